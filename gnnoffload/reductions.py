"""Statistics of the messages that arrive at each destination: several in one gather, or
their average weighted by a softmax."""

import torch
from torch import Tensor
from torch.compiler import is_compiling

from gnnoffload import _dispatch, _dispatch_reduce, _dispatch_softmax_aggregate
from gnnoffload._dispatch_reduce import REDUCE
from gnnoffload.errors import named
from gnnoffload.graph import Graph
from gnnoffload.ops import _graph_of, _is_matrix, _matrix_error


def aggregate(graph, x, reduce, edge=None, *, size=None) -> tuple[Tensor, ...]:
    """Several statistics of the messages that arrive at each destination.

    m_e = x[j], or x[j] + edge[e]      over the edges e = (j -> i), feature by feature

    Args:
        graph: as in `spmm`.
        x: `[num_src, F]`, float32, float64, bfloat16 or float16; any strides.
        reduce: names out of "sum", "mean", "min", "max", "var" and "std". var is the
            mean of the squares minus the square of the mean; std its square root where
            var is above 1e-5, else 0, both as PyG has them.
        edge: `[E, F]` in the caller's edge order, or None.

    Returns:
        One `[num_dst, F]` per name, in the order asked; 0 where no edge arrives.

    Numerics: float32 (float64 for float64), in the order (source, position), the same
    bits for any number of threads. var and std are taken around the first message of a
    row, so that a mean far from 0 costs no digits. NaN wins min and max. Where several
    messages attain min or max, they share its gradient evenly (torch.scatter_reduce's
    rule), a single one gets all of it. Differentiable once. PyG 2.8 differs in one case
    on CPU: there a maximum or minimum of exactly 0 counts one more message, which takes
    its share of the gradient away.

    Memory: what is returned; for backward x and edge, the returned min, max and std,
    the mean with var or std, and one byte (2 or 4 with more than 128 edges into one
    destination) per number of min and max: the place among a destination's edges.
    Backward is one pass over the edges by source with 2 F numbers per destination for
    sum, mean, var and std together, and 1, 2 or 4 bytes per edge for min and max.

    >>> import torch
    >>> x = torch.tensor([[1.0], [2.0], [4.0]])
    >>> edges = torch.tensor([[0, 1, 2], [1, 1, 0]])
    >>> [y.flatten().tolist() for y in aggregate(edges, x, ("max", "mean"))]
    [[4.0, 2.0, 0.0], [4.0, 1.5, 0.0]]
    """
    if type(graph) is not Graph:
        graph = _graph_of(graph, size, x, x)
    if not _is_matrix(x, graph._n_src, graph):
        raise _matrix_error("aggregate", "x", x, graph, graph._n_src, "source")
    names = _names(reduce)
    if edge is not None:
        x, edge = _edge("aggregate", graph, x, edge)
    elif not any(name in _FUSED for name in names):
        return tuple(_spmm(graph, x, name) for name in names)
    which = 0
    for name in names:
        which |= 1 << REDUCE.index(name)
    values = dict(zip(_in(which), _aggregate(graph, x, edge, which), strict=True))
    return tuple(values[name] for name in names)


def softmax_aggregate(
    graph,
    x,
    t=1.0,
    edge=None,
    *,
    relu=False,
    eps=1e-7,
    semi_grad=False,
    size=None,
) -> Tensor:
    """The messages that arrive at each destination, averaged with softmax weights,
    feature by feature.

    y[i] = sum over edges e = (j -> i) of  p_e m_e,    p_e = exp(t m_e) / sum exp(t m_e)

    m_e = x[j], or x[j] + edge[e]; with `relu`, max(that, 0) + eps: GENConv's message

    Args:
        graph: as in `spmm`.
        x: `[num_src, F]`, float32, float64, bfloat16 or float16; any strides.
        t: the inverse temperature: a number, or a tensor `[]`, `[1]` or `[F]`, which
            may have a gradient.
        edge: `[E, F]` in the caller's edge order, or None.
        semi_grad: treat the weights p as constants in backward; t then has no gradient.

    Returns:
        `[num_dst, F]`; 0 where no edge arrives.

    Numerics: t, exponentials and sums in float32 (float64 for float64), in the order
    (source, position); the same bits for any number of threads. PyG adds 1e-16 to the
    sum of exponentials, which is at least 1: within rounding. An infinite t m_e makes
    its destination and feature NaN unless it is -inf and m_e finite. Differentiable
    once.

    Memory: y; for backward x, edge and t, y and its logarithms `[num_dst, F]` (16-bit
    inputs: y in float32 as well). Backward makes the weights again, in one pass over
    the edges by source: nothing of size E x F but the gradient of edge, where wanted.

    Source: Li et al. 2020, DeeperGCN: All You Need to Train Deeper GCNs, eq. 4.

    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0], [5.0]])
    >>> edges = torch.tensor([[0, 1, 2], [1, 1, 0]])
    >>> softmax_aggregate(edges, x, t=0.0).flatten().tolist()
    [5.0, 0.5, 0.0]
    """
    if type(graph) is not Graph:
        graph = _graph_of(graph, size, x, x)
    if not _is_matrix(x, graph._n_src, graph):
        raise _matrix_error("softmax_aggregate", "x", x, graph, graph._n_src, "source")
    if edge is not None:
        x, edge = _edge("softmax_aggregate", graph, x, edge)
    t = _temperature(t, x)
    records = torch.is_grad_enabled() and (
        x.requires_grad or t.requires_grad or (edge is not None and edge.requires_grad)
    )
    spec = bool(relu), float(eps), bool(semi_grad)
    try:
        return _dispatch_softmax_aggregate.softmax_aggregate(
            x, edge, t, graph.args(records), spec
        )
    except RuntimeError as error:
        raise named(error) from None


def _temperature(t, x):
    """t as `[F]` of the accumulator's dtype on x's device, its gradient following."""
    dtype, n_features = _dispatch_reduce.accumulator(x.dtype), x.shape[1]
    if not isinstance(t, Tensor):
        return torch.full((n_features,), float(t), dtype=dtype, device=x.device)
    if t.numel() != 1 and tuple(t.shape) != (n_features,):
        raise ValueError(
            f"softmax_aggregate: t must be a number or have shape [1] or "
            f"[{n_features}], got {list(t.shape)}"
        )
    if not t.dtype.is_floating_point or t.device != x.device:
        raise TypeError(
            f"softmax_aggregate: t must be floating and on {x.device}, got {t.dtype} "
            f"on {t.device}"
        )
    t = t.to(dtype)
    return (
        t
        if t.dim() == 1 and t.numel() == n_features
        else t.reshape(1).expand(n_features)
    )


_FUSED = ("min", "max", "var", "std")


def extreme(graph, x, reduce) -> Tensor:
    """`ops.spmm` for reduce "min" and "max", its arguments checked."""
    return _aggregate(graph, x, None, 1 << REDUCE.index(reduce))[0]


def _aggregate(graph, x, edge, which):
    records = torch.is_grad_enabled() and (
        x.requires_grad or (edge is not None and edge.requires_grad)
    )
    bits = arg_bits(graph) if records else 0
    try:
        return _dispatch_reduce.aggregate(x, edge, graph.args(records), which, bits)
    except RuntimeError as error:
        raise named(error) from None


def arg_bits(graph) -> int:
    """Bits of the smallest integer that numbers the edges of any one destination."""
    bits = graph.cache.get("arg_bits")
    if bits is None:
        if is_compiling():
            return 32  # the degrees of a graph built under compilation are not known
        degree = int(graph.degree.max()) if graph.num_dst else 0
        bits = graph.cache["arg_bits"] = (
            8 if degree <= 2**7 else 16 if degree <= 2**15 else 32
        )
    return bits


def _spmm(graph, x, name):
    records = torch.is_grad_enabled() and x.requires_grad
    scale = None
    if name == "mean":
        scale = graph.inverse_degree(_dispatch_reduce.accumulator(x.dtype))
    try:
        return _dispatch.spmm(x, None, scale, None, graph.args(records))
    except RuntimeError as error:
        raise named(error) from None


def _in(which):
    return [name for r, name in enumerate(REDUCE) if which & 1 << r]


def _names(reduce):
    if isinstance(reduce, str):
        raise TypeError(
            f"aggregate: reduce must be a tuple of names, got {reduce!r}: ({reduce!r},)"
        )
    names = tuple(reduce)
    for name in names:
        if name not in REDUCE:
            raise ValueError(
                f"aggregate: reduce must name some of {REDUCE}, got {name!r}"
            )
    if not names:
        raise ValueError(f"aggregate: reduce must name some of {REDUCE}, got none")
    return names


def _edge(op, graph, x, edge):
    """x and edge [E, F], checked and of one dtype."""
    if not _is_matrix(edge, graph._n_edges, graph):
        raise _matrix_error(op, "edge", edge, graph, graph._n_edges, "edge")
    if x.shape[1] != edge.shape[1]:
        raise ValueError(
            f"{op}: edge must have {x.shape[1]} columns as x has, got {edge.shape[1]}"
        )
    if x.dtype is not edge.dtype:
        dtype = torch.promote_types(x.dtype, edge.dtype)
        x, edge = x.to(dtype), edge.to(dtype)
    return x, edge
