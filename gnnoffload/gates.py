"""Sums of gated messages: what ResGatedGraphConv and CGConv do between their Linears.

One op does them (`_dispatch_gated`). Where more than a first derivative is asked for,
each message exists (`by_messages`): second derivatives, forward mode, torch.func.
"""

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling
from torch.nn.functional import pad, softplus

from gnnoffload._dispatch import (
    _transforms_active,
    accumulator,
    below_autograd,
    eager_apply,
)
from gnnoffload._dispatch import transposed as transposed_args
from gnnoffload._dispatch_gated import call_gated, gated_vjp, grad_of_u
from gnnoffload.errors import named
from gnnoffload.graph import Graph
from gnnoffload.messages import gather, segment
from gnnoffload.ops import _graph_of, _is_matrix, _matrix_error, in_one_dtype

VALUES = ("identity", "softplus")


def gated(
    graph, u, v, edge=None, *, value="identity", reduce="sum", size=None
) -> Tensor:
    """The sum of gated messages, as in ResGatedGraphConv and CGConv.

    y[i] = sum over edges e = (j -> i) of  sigmoid(gate[e]) * f(value[e])

    [gate[e], value[e]] = u[i] + v[j] + edge[e]

    Args:
        graph: as in `spmm`; `size` defaults to (rows of v, rows of u).
        u: `[num_dst, 2 F]`, gates and values side by side; or `[num_dst, F]`, gates
            alone: values have no part of the destination then.
        v: `[num_src, 2 F]`.
        edge: `[E, 2 F]` in the caller's edge order, or None. All are promoted to one
            dtype; any strides.
        value: f: "identity", or "softplus", log(1 + e^z), which above 20 is z itself as
            in torch.
        reduce: "sum" or "mean" (0 where there are no edges).

    Returns:
        `[num_dst, F]`

    Raises:
        GraphError, TypeError, ValueError: as `spmm`; a v of odd width.

    Numerics: all in float32 (float64 for float64), in the order (source, position), for
    any number of threads. NaN and infinities go where the formula sends them.

    Memory: y; where gradients are recorded u, v, edge and the derivative of y by u are
    saved, as wide as u and in the accumulator's dtype. Backward is one pass by source
    and writes gradients alone: nothing else of size E x F. For second derivatives, in
    forward mode and under torch.func every message exists.

    Source: Bresson and Laurent 2017, Residual Gated Graph ConvNets, eq. 11; Xie and
    Grossman 2018, Crystal Graph Convolutional Neural Networks, eq. 5.

    >>> import torch
    >>> u = torch.zeros(3, 1)
    >>> v = torch.tensor([[0.0, 2.0], [0.0, 4.0], [30.0, 8.0]])
    >>> gated(torch.tensor([[0, 1, 2], [1, 1, 0]]), u, v)
    tensor([[8.],
            [3.],
            [0.]])
    """
    if type(graph) is not Graph:
        graph = _graph_of(graph, size, v, u)
    if not _is_matrix(v, graph._n_src, graph):
        raise _matrix_error("gated", "v", v, graph, graph._n_src, "source")
    if not _is_matrix(u, graph._n_dst, graph):
        raise _matrix_error("gated", "u", u, graph, graph._n_dst, "destination")
    if v.shape[1] % 2 != 0:
        raise ValueError(
            "gated: v must have an even number of columns, gates and values, got "
            f"{v.shape[1]}"
        )
    if u.shape[1] not in (v.shape[1] // 2, v.shape[1]):
        raise ValueError(
            f"gated: u must have {v.shape[1] // 2} or {v.shape[1]} columns, got "
            f"{u.shape[1]}"
        )
    if edge is not None:
        if not _is_matrix(edge, graph._n_edges, graph):
            raise _matrix_error("gated", "edge", edge, graph, graph._n_edges, "edge")
        if edge.shape[1] != v.shape[1]:
            raise ValueError(
                f"gated: edge must have {v.shape[1]} columns as v has, got "
                f"{edge.shape[1]}"
            )
    if value not in VALUES:
        raise ValueError(
            f"gated: value must be 'identity' or 'softplus', got {value!r}"
        )
    if reduce not in ("sum", "mean"):
        raise ValueError(f"gated: reduce must be 'sum' or 'mean', got {reduce!r}")
    u, v = in_one_dtype(u, v)
    if edge is not None and edge.dtype is not v.dtype:
        v, edge = in_one_dtype(v, edge)
        u = u.to(v.dtype)
    try:
        return by_op(graph, u, v, edge, value == "softplus", reduce)
    except RuntimeError as error:
        raise named(error) from None


def scale_of(graph, dtype, reduce):
    """What the sums of a mean are multiplied by, [num_dst]; None for sums."""
    if reduce == "sum":
        return None
    wide = accumulator(dtype)
    return graph.inverse_degree(wide)


def by_messages(graph, u, v, edge, soft, reduce):
    """Each message made; differentiable any number of times, in any way."""
    z = gather(graph, v, "src")
    z = z + gather(graph, pad(u, (0, v.shape[1] - u.shape[1])), "dst")
    if edge is not None:
        z = z + edge
    gate, value = z.chunk(2, dim=1)
    value = softplus(value) if soft else value
    return segment(graph, gate.sigmoid() * value, reduce)


def by_op(graph, u, v, edge, soft, reduce):
    """The recorded sum. Nothing is validated here beyond what the C op checks."""
    scale = scale_of(graph, v.dtype, reduce)
    tensors = [t for t in (u, v, edge) if t is not None]
    records = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if is_compiling():
        absent, args = v.new_empty(0), graph.args(records)
        return call_gated(u, v, edge, scale, soft, records, args, absent)[0]
    if _transforms_active() or forward_ad._current_level >= 0:
        return by_messages(graph, u, v, edge, soft, reduce)
    if records:
        return _record(u, v, edge, scale, graph, soft, reduce)
    with below_autograd():
        return call_gated(u, v, edge, scale, soft, False, graph.args())[0]


class _Gated(Function):
    @staticmethod
    def forward(ctx, u, v, edge, scale, graph, soft, reduce):
        ctx.how = graph, soft, reduce
        with below_autograd():
            args = graph.args()
            y, dy_du = call_gated(u, v, edge, scale, soft, True, args)
        ctx.save_for_backward(u, v, edge, scale, dy_du)
        return y

    @staticmethod
    def backward(ctx, grad):
        u, v, edge, scale, dy_du = ctx.saved_tensors
        graph, soft, reduce = ctx.how
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # create_graph
            inputs = u, v, edge
            wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
            y = by_messages(graph, *inputs, soft, reduce)
            found = torch.autograd.grad(y, wanted, grad, create_graph=True)
            grads = iter(found)
            return *(next(grads) if n else None for n in needs), *(None,) * 4
        with below_autograd():
            grad_u = grad_of_u(grad, dy_du) if needs[0] else None
            grad_v = grad_edge = None
            if needs[1] or needs[2]:
                back = transposed_args(graph.args(with_csc=True))
                grad_v, grad_edge = gated_vjp(
                    grad, u, v, edge, scale, soft, back, *needs[1:]
                )
        return (
            grad_u,
            grad_v if needs[1] else None,
            grad_edge if needs[2] else None,
            *(None,) * 4,
        )


_record = eager_apply(_Gated)
