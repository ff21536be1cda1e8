"""Attention over the edges into each destination, with gradients, in O(E H) memory.

`gat`, `gatv2` and `dot_attention` are a score, a softmax and a weighted sum in one pass
over the edges; nothing of size E x H x C is made, forward or backward. `edge_softmax`,
with `spmm` and `sddmm` head by head, is for scores of one's own.
"""

import math
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional

from gnnoffload import _dispatch_attention, _dispatch_heads
from gnnoffload._dispatch_attention import DOT, GAT, GATV2, Options
from gnnoffload._dispatch_heads import accumulator
from gnnoffload.errors import named
from gnnoffload.graph import Graph, as_graph
from gnnoffload.ops import _graph_of, check_rows

MAX_EDGE_FEATURES = 16  # GNN_MAX_EDGE_FEATURES


def edge_softmax(graph, scores, *, size=None) -> Tensor:
    """The softmax of scores over the edges into each destination.

    alpha[e] = exp(s[e]) / sum over edges e' into the same destination of  exp(s[e'])

    Args:
        graph: a `Graph`, or `[2, E]` edge_index (or another form `as_graph` takes).
        scores: `[E, H]` or `[E]`, in the caller's edge order; float32, float64,
            bfloat16 or float16.
        size: (sources, destinations) of a plain edge_index; None: counted.

    Returns:
        alpha, as scores.

    Raises:
        GraphError, TypeError, ValueError: see `Graph`; scores of the wrong kind, dtype,
            device or shape.

    Numerics: the row's maximum is taken off first, so no finite score overflows; sums
        in float32 (float64 for float64) in the order (source, position), the same bits
        for any number of threads. -inf is a weight of 0; a row with a NaN or +inf, or
        with nothing but -inf, is NaN. Differentiable any number of times.

    Memory: alpha, which backward saves.

    Source: Milakov and Gimelshein 2018, Online normalizer calculation for softmax.

    >>> import torch
    >>> edge_softmax(torch.tensor([[0, 1, 2], [1, 1, 0]]), torch.zeros(3))
    tensor([0.5000, 0.5000, 1.0000])
    """
    if type(graph) is not Graph:
        graph = _plain_graph(graph, size)
    is_vector = isinstance(scores, Tensor) and scores.dim() == 1
    sizes = () if is_vector else ("H",)
    check_rows(
        "edge_softmax", graph, "scores", scores, (graph._n_edges, "edge"), *sizes
    )
    if scores.numel() == 0:
        return scores * 1
    records = torch.is_grad_enabled() and scores.requires_grad
    try:
        alpha = _dispatch_heads.edge_softmax(
            scores[:, None] if is_vector else scores, graph.args(records)
        )
    except RuntimeError as error:
        raise named(error) from None
    return alpha[:, 0] if is_vector else alpha


def gat(
    graph,
    x,
    score_src,
    score_dst,
    score_edge=None,
    *,
    negative_slope=0.2,
    dropout=0.0,
    seed=None,
    return_weights=False,
    size=None,
):
    """Attention by a sum of scores, as in GAT.

    s[e, h] = lrelu(score_src[j, h] + score_dst[i, h] + score_edge[e, h])
    out[i, h] = sum over edges e = (j -> i) of  softmax(s)[e, h] * x[j, h]

    Args:
        graph: as in `edge_softmax`; `size` defaults to (rows of x, rows of score_dst).
        x: `[M, H, C]`, one row per source; float32, float64, bfloat16 or float16.
        score_src: `[M, H]`, score_dst: `[N, H]`, score_edge: `[E, H]` in the caller's
            edge order, or None for zeros.
        negative_slope: of lrelu.
        dropout: the probability in [0, 1) with which a weight is left out; the others
            are divided by 1 - dropout.
        seed: of dropout, an int in [0, 2**63) or an int64 tensor [1] on the CPU; None:
            drawn from torch's default generator. One seed, one choice of edges, on
            every device and for any order of the graph's entries.
        return_weights: whether to return the weights too.

    Returns:
        out `[N, H, C]`; with return_weights (out, alpha `[E, H]`), alpha after dropout
        and in the caller's edge order. Differentiating alpha raises.

    Raises:
        GraphError, TypeError, ValueError: see `Graph`; an operand of the wrong kind,
            dtype, device or shape.
        NotImplementedError: a second derivative, torch.func, forward-mode
            differentiation: use `edge_softmax` and `spmm`.

    Numerics: scores, weights and sums in float32 (float64 for float64), in the order
        (source, position), the same bits for any number of threads. An empty row is 0.
        A score of NaN or +inf makes its row and head NaN.

    Memory: out; backward saves the operands, log-sum-exp `[N, H]` and out (in float32
        for 16-bit) and writes two tensors `[E, H]`.

    Source: Velickovic et al. 2018, Graph Attention Networks, eq. 3; a softmax in one
        pass by Milakov and Gimelshein 2018.

    >>> import torch
    >>> x = torch.tensor([[[1.0]], [[3.0]], [[5.0]]])
    >>> zeros = torch.zeros(3, 1)
    >>> gat(torch.tensor([[0, 1, 2], [2, 2, 0]]), x, zeros, zeros)[:, 0]
    tensor([[5.],
            [0.],
            [2.]])
    """
    if type(graph) is not Graph:
        graph = _graph_of(graph, size, x, x if score_dst is None else score_dst)
    heads, width = _check_features("gat", graph, "x", x, graph._n_src, "source")
    n_edges = graph._n_edges
    scores = {
        "score_src": (score_src, graph._n_src, "source"),
        "score_dst": (score_dst, graph._n_dst, "destination"),
        "score_edge": (score_edge, n_edges, "edge"),
    }
    wide = accumulator(x.dtype)
    for name, (score, n_rows, what) in scores.items():
        if score is None and name == "score_edge":
            scores[name] = None
            continue
        check_rows("gat", graph, name, score, (n_rows, what), heads)
        scores[name] = score.to(wide).contiguous()
    operands = (x.flatten(1), None, None, *scores.values(), *(None,) * 5)
    options = Options(
        GAT, heads, _number("gat", "negative_slope", negative_slope), 1.0, dropout
    )
    out, _, alpha = _attend(graph, operands, options, seed, return_weights)
    out = out.view(graph._n_dst, heads, width // heads)
    return (out, alpha) if return_weights else out


def gatv2(
    graph,
    x_src,
    x_dst,
    att,
    edge=None,
    *,
    edge_attr=None,
    edge_weight=None,
    negative_slope=0.2,
    dropout=0.0,
    seed=None,
    return_weights=False,
    size=None,
):
    """Attention by a nonlinear sum of features, as in GATv2.

    s[e, h] = <att[h], lrelu(x_src[j, h] + x_dst[i, h] + f[e, h])>
    out[i, h] = sum over edges e = (j -> i) of  softmax(s)[e, h] * x_src[j, h]

    Args:
        graph: as in `edge_softmax`; `size` defaults to (rows of x_src, rows of x_dst).
        x_src: `[M, H, C]`, x_dst: `[N, H, C]`, att: `[H, C]`; promoted to one dtype.
        edge: f `[E, H, C]` in the caller's edge order; or
        edge_attr: `[E, D]` with edge_weight `[H * C, D]` (a Linear's weight), of which
            f is edge_attr @ edge_weight.T, made edge by edge inside for D <= 16 and as
            a tensor `[E, H * C]` beyond. Neither: f is 0.
        negative_slope, dropout, seed, return_weights: as in `gat`.

    Returns, Raises, Numerics: as `gat`.

    Memory: as `gat`; backward also writes the gradients of edge or edge_attr where they
        are wanted.

    Source: Brody, Alon and Yahav 2022, How Attentive are Graph Attention Networks?,
        eq. 7.

    >>> import torch
    >>> x = torch.tensor([[[1.0]], [[1.0]], [[5.0]]])
    >>> gatv2(torch.tensor([[0, 1, 2], [2, 2, 0]]), x, x, torch.ones(1, 1))[:, 0]
    tensor([[5.],
            [0.],
            [1.]])
    """
    if type(graph) is not Graph:
        graph = _graph_of(graph, size, x_src, x_dst)
    heads, width = _check_features(
        "gatv2", graph, "x_src", x_src, graph._n_src, "source"
    )
    shape = heads, width // heads
    check_rows("gatv2", graph, "x_dst", x_dst, (graph._n_dst, "destination"), *shape)
    check_rows("gatv2", graph, "att", att, (heads, "head"), shape[1])
    _check_edge("gatv2", graph, edge, edge_attr, edge_weight, shape)
    x_src, x_dst, att, edge, edge_attr, edge_weight = _promoted(
        x_src, x_dst, att, edge, edge_attr, edge_weight
    )
    if edge_attr is not None:
        if 0 < edge_attr.shape[1] <= MAX_EDGE_FEATURES:
            edge_weight = edge_weight.t().contiguous()
        else:
            edge = functional.linear(edge_attr, edge_weight)
            edge_attr = edge_weight = None
    elif edge is not None:
        edge = edge.flatten(1)
    operands = (
        *(x_src.flatten(1), None, x_dst.flatten(1), None, None, None),
        *(att.reshape(1, width), edge, edge_attr, edge_weight, None),
    )
    options = Options(
        GATV2, heads, _number("gatv2", "negative_slope", negative_slope), 1.0, dropout
    )
    out, _, alpha = _attend(graph, operands, options, seed, return_weights)
    out = out.view(graph._n_dst, *shape)
    return (out, alpha) if return_weights else out


def dot_attention(
    graph,
    query,
    key,
    value,
    edge=None,
    *,
    edge_attr=None,
    edge_weight=None,
    scale=None,
    dropout=0.0,
    seed=None,
    return_weights=False,
    size=None,
):
    """Scaled dot-product attention with edge features, as in the graph transformer.

    s[e, h] = scale * <query[i, h], key[j, h] + f[e, h]>
    out[i, h] = sum over edges e = (j -> i) of  softmax(s)[e, h] (value[j, h] + f[e, h])

    Args:
        graph: as in `edge_softmax`; `size` defaults to (rows of key, rows of query).
        query: `[N, H, C]`, key and value: `[M, H, C]`; promoted to one dtype.
        edge: f `[E, H, C]` in the caller's edge order; or
        edge_attr: `[E, D]` with edge_weight `[H * C, D]` (a Linear's weight), of which
            f is edge_attr @ edge_weight.T. Both products with f go through D numbers
            per edge and H * D per node, so f is never made. Neither: f is 0.
        scale: None: 1 / sqrt(C).
        dropout, seed, return_weights: as in `gat`.

    Returns, Raises, Numerics: as `gat`.

    Memory: as `gat`; with edge_attr also `[N, H, D]` thrice; backward also writes the
        gradients of edge or edge_attr where they are wanted.

    Source: Shi et al. 2021, Masked Label Prediction, eq. 3 and 4 (TransformerConv).

    >>> import torch
    >>> value = torch.tensor([[[1.0]], [[3.0]], [[5.0]]])
    >>> zeros = torch.zeros(3, 1, 1)
    >>> dot_attention(torch.tensor([[0, 1, 2], [2, 2, 0]]), zeros, zeros, value)[:, 0]
    tensor([[5.],
            [0.],
            [2.]])
    """
    if type(graph) is not Graph:
        graph = _graph_of(graph, size, key, query)
    op = "dot_attention"
    heads, width = _check_features(
        op, graph, "query", query, graph._n_dst, "destination"
    )
    shape = heads, width // heads
    check_rows(op, graph, "key", key, (graph._n_src, "source"), *shape)
    check_rows(op, graph, "value", value, (graph._n_src, "source"), *shape)
    _check_edge(op, graph, edge, edge_attr, edge_weight, shape)
    query, key, value, edge, edge_attr, edge_weight = _promoted(
        query, key, value, edge, edge_attr, edge_weight
    )
    if scale is None:
        scale = 1 / math.sqrt(max(shape[1], 1))
    q_edge = None
    if edge_attr is not None and edge_attr.shape[1] == 0:
        edge_attr = None
    if edge_attr is not None:
        # [H, C, D]: <q, W a> = <W' q, a>, sum of W a = W sum of a
        projection = edge_weight.reshape(*shape, edge_attr.shape[1])
        q_edge = _by_head(query.flatten(1), projection)
    rows = query, key, value, edge, edge_attr, q_edge
    out, out_edge, alpha = _attend_by_dots(
        graph, rows, _number(op, "scale", scale), dropout, seed, return_weights
    )
    if edge_attr is not None:
        projected = _by_head(out_edge.to(out.dtype), projection.transpose(1, 2))
        out = out + projected.view_as(out)
    return (out, alpha) if return_weights else out


def folded_dot_attention(graph, query, key, value, q_edge, edge_attr, *, dropout=0.0):
    """`dot_attention` with edge_attr [E, D], its two products with edge_weight left to
    the caller: q_edge [N, H * D] is edge_weight' query by head, and the product of
    edge_weight with out_edge by head is to be added to out. Returns (out, out_edge
    [N, H * D])."""
    op, shape = "dot_attention", query.shape[1:]
    check_rows(op, graph, "query", query, (graph._n_dst, "destination"), *shape)
    check_rows(op, graph, "key", key, (graph._n_src, "source"), *shape)
    check_rows(op, graph, "value", value, (graph._n_src, "source"), *shape)
    n_attr = q_edge.shape[1] // shape[0]
    check_rows(op, graph, "edge_attr", edge_attr, (graph._n_edges, "edge"), n_attr)
    scale = 1 / math.sqrt(max(query.shape[2], 1))
    rows = query, key, value, None, edge_attr, q_edge
    return _attend_by_dots(graph, rows, scale, dropout, None, False)[:2]


def _attend_by_dots(graph, rows, scale, dropout, seed, return_weights):
    """(out [N, H, C], out_edge, alpha or None)"""
    query, key, value, edge, edge_attr, q_edge = rows
    edge = None if edge is None else edge.flatten(1)
    heads = query.shape[1]
    nodes = [tensor.flatten(1) for tensor in (value, key, query)]
    operands = (*nodes, *(None,) * 4, edge, edge_attr, None, q_edge)
    options = Options(DOT, heads, 0.0, scale, dropout)
    out, out_edge, alpha = _attend(graph, operands, options, seed, return_weights)
    return out.view(graph._n_dst, *query.shape[1:]), out_edge, alpha


def _by_head(x, weight):
    """x [N, H * A] times weight [H, A, B], head by head: [N, H * B].

    One product with a block-diagonal matrix is twice as fast as H small ones up to
    H = 8, though it multiplies with zeros."""
    heads = weight.shape[0]
    if heads <= 8:
        return x @ torch.block_diag(*weight)
    rows = x.view(x.shape[0], heads, -1).transpose(0, 1)
    return (rows @ weight).transpose(0, 1).flatten(1)


def _attend(graph, operands, options, seed, return_weights):
    """(out, out_edge, alpha or None) of checked operands."""
    name = _dispatch_attention.NAMES[options.kind]
    dropout = _number(name, "dropout", options.dropout)
    if not 0 <= dropout < 1:
        raise ValueError(f"{name}: dropout must be in [0, 1), got {dropout}")
    seed = _seed(name, seed) if dropout > 0 else None
    options = options._replace(dropout=dropout)
    records = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in operands
    )
    args = graph.args(records)
    try:
        out, out_edge, lse = _dispatch_attention.attention(
            operands, seed, args, options
        )
        alpha = None
        if return_weights:
            alpha = _dispatch_attention.weights(
                operands, seed, args, options, out, out_edge, lse
            )
    except RuntimeError as error:
        raise named(error) from None
    return out, out_edge, alpha


# -------------------------------------------------------------------------- validation


def _plain_graph(form, size):
    graph, value = as_graph(form, size)
    if value is not None:
        raise TypeError("a sparse matrix with values: pass as_graph(matrix)[0]")
    return graph


def _check_features(op, graph, name, x, n_rows, what):
    """(H, H * C) of x [n_rows, H, C]"""
    check_rows(op, graph, name, x, (n_rows, what), "H", "C")
    if x.shape[1] == 0:
        raise ValueError(f"{op}: {name} must have a head, got {list(x.shape)}")
    return x.shape[1], x.shape[1] * x.shape[2]


def _check_edge(op, graph, edge, edge_attr, edge_weight, shape):
    n_edges = graph._n_edges
    if edge is not None:
        if edge_attr is not None or edge_weight is not None:
            raise ValueError(f"{op}: edge and edge_attr must not both be given")
        check_rows(op, graph, "edge", edge, (n_edges, "edge"), *shape)
    elif edge_attr is not None or edge_weight is not None:
        if edge_attr is None or edge_weight is None:
            raise ValueError(f"{op}: edge_attr and edge_weight must be given together")
        check_rows(op, graph, "edge_attr", edge_attr, (n_edges, "edge"), "D")
        rows = shape[0] * shape[1], "channel of a head"
        check_rows(op, graph, "edge_weight", edge_weight, rows, edge_attr.shape[1])


def _promoted(*tensors):
    """The tensors in one dtype, None for None."""
    dtypes = {t.dtype for t in tensors if t is not None}
    if len(dtypes) == 1:
        return tensors
    dtype = dtypes.pop()
    for other in dtypes:
        dtype = torch.promote_types(dtype, other)
    return [None if t is None else t.to(dtype) for t in tensors]


def _number(op, name, value):
    if not isinstance(value, Real):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    return float(value)


def _seed(op, seed):
    """`[1]` int64 on the CPU."""
    if seed is None:
        return torch.randint(0, 2**63 - 1, (1,), device="cpu")
    if isinstance(seed, Tensor):
        if seed.dtype is not torch.int64 or not seed.is_cpu or seed.shape != (1,):
            raise TypeError(
                f"{op}: seed must be an int64 tensor [1] on the CPU, got {seed.dtype} "
                f"{list(seed.shape)} on {seed.device}"
            )
        return seed
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"{op}: seed must be an int in [0, 2**63), got {seed!r}")
    return torch.tensor([seed], device="cpu")
