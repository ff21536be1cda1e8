"""The attention ops: one recorded node whose backward is two passes over the edges.

Forward saves its operands, `lse` [N, H] and `out` (in float where `out` is 16-bit). The
dst pass, by destination, recomputes the scores and writes alpha and the gradient of the
scores, [E, H] each, with what hangs on destinations, edges and parameters; the src
pass, by source, reads the two and does the rest. gnn.h has the formulas by kind.

The eleven operands stand in one order everywhere, None for what a kind does not have:
v, k, q, score_src, score_dst, score_edge, att, edge, edge_attr, edge_weight, q_edge,
the rows of each [rows, H * C] or [rows, H]; `seed` comes twelfth. There are no second
derivatives: the gradients are nodes that raise when they are differentiated.
"""

from typing import NamedTuple

import torch
from torch.autograd import Function
from torch.compiler import is_compiling

from gnnoffload._dispatch import (
    _ABSENT,
    _grad_enabled,
    below_autograd,
    eager_apply,
    is_transformed,
    transposed,
)
from gnnoffload._dispatch_heads import accumulator

attention_op = torch.ops.gnnoffload.attention.default
dst_vjp_op = torch.ops.gnnoffload.attention_dst_vjp.default
src_vjp_op = torch.ops.gnnoffload.attention_src_vjp.default

GAT, GATV2, DOT = 0, 1, 2  # gnn_attention_kind
NAMES = ("gat", "gatv2", "dot_attention")
N_OPERANDS = 11
# place among the operands of the gradients that a pass writes, in its order
DST_GRADS = (2, 4, 6, 7, 8, 9, 10)  # q, score_dst, att, edge, edge_attr, ...
SRC_GRADS = (0, 1, 3)  # v, k, score_src
SCORE_EDGE = 5  # its gradient is that of the scores
SCORES = (3, 4, SCORE_EDGE)  # of the accumulator's dtype
DST_ROWS = {GAT: (0,), GATV2: (), DOT: (0, 1)}  # rows that the dst pass alone reads


class Options(NamedTuple):
    """The numbers, as the ops take them."""

    kind: int
    n_heads: int
    slope: float = 0.0
    scale: float = 1.0
    dropout: float = 0.0


def refuse(kind, what):
    return NotImplementedError(
        f"{NAMES[kind]}: {what}; edge_softmax, spmm and sddmm, which have it, compute "
        "the same in more memory"
    )


# ------------------------------------------------------------------------- fake kernels


@torch.library.register_fake("gnnoffload::attention")
def _(*args):
    v, edge_attr, n_rows = args[0], args[8], args[18]
    kind, n_heads, *_, wants_acc = args[20:]
    wide = accumulator(v.dtype)

    def empty(wanted, *shape, dtype=wide):
        return v.new_empty(shape if wanted else (0,), dtype=dtype)

    has_attr = kind == DOT and edge_attr.dim() == 2
    return (
        empty(True, n_rows, v.shape[1], dtype=v.dtype),
        empty(has_attr, n_rows, n_heads * (edge_attr.shape[1] if has_attr else 0)),
        empty(True, n_rows, n_heads),
        empty(wants_acc, n_rows, v.shape[1]),
    )


@torch.library.register_fake("gnnoffload::attention_dst_vjp")
def _(*args):
    operands, n_edges = args[5:16], args[18].shape[0]
    n_heads, wants = args[26], args[30]
    v = operands[0]
    per_edge = [
        v.new_empty((n_edges, n_heads), dtype=accumulator(v.dtype)) for _ in range(2)
    ]
    return (*per_edge, *_wanted_like(operands, DST_GRADS, wants))


@torch.library.register_fake("gnnoffload::attention_src_vjp")
def _(*args):
    return tuple(_wanted_like(args[3:14], SRC_GRADS, args[28]))


def _wanted_like(operands, places, wants):
    for bit, place in enumerate(places):
        operand, v = operands[place], operands[0]
        is_wanted = wants >> bit & 1 and operand.dim() == 2
        dtype = accumulator(v.dtype) if place in SCORES else v.dtype
        yield v.new_empty(operand.shape if is_wanted else (0,), dtype=dtype)


# ----------------------------------------------------------------------------- backward


def _mask(places, needs):
    return sum(1 << bit for bit, place in enumerate(places) if needs[place])


def attention_vjp(
    grad, grad_edge, written, operands, seed, graph, options, needs, forget=False
):
    """The gradients of the operands, None where `needs` says so. `written` is forward's
    out_acc, out_edge and lse; an absent tensor is an empty one here. `forget`: the
    lists `written` and `operands` lose what the src pass does not read before it makes
    its outputs."""
    grads = [None] * N_OPERANDS
    alpha, dscore, *given = dst_vjp_op(
        grad,
        grad_edge,
        *written,
        *operands,
        seed,
        *graph,
        *options,
        _mask(DST_GRADS, needs),
    )
    for place, gradient in zip(DST_GRADS, given, strict=True):
        grads[place] = gradient
    grads[SCORE_EDGE] = dscore
    if forget:
        written.clear()
        for place in DST_ROWS[options.kind]:
            operands[place] = _stand_in(operands[place])
    wants = _mask(SRC_GRADS, needs)
    if wants:
        given = src_vjp_op(
            grad, alpha, dscore, *operands, seed, *transposed(graph), *options, wants
        )
        for place, gradient in zip(SRC_GRADS, given, strict=True):
            grads[place] = gradient
    return tuple(
        g if need else None for g, need in zip(grads, needs[:N_OPERANDS], strict=True)
    )


def _stand_in(rows):
    """Rows of that shape and of one row's memory."""
    return rows.new_empty(1, rows.shape[1]).expand(rows.shape[0], -1)


# ----------------------------------------------------------- formulas for torch.library


def _setup(ctx, inputs, output):
    out, out_edge, lse, out_acc = output
    *tensors, _wants_acc = inputs
    ctx.graph, ctx.options = tuple(tensors[12:20]), tuple(tensors[20:])
    out_acc = out_acc if out_acc.dim() == 2 else out
    ctx.save_for_backward(*tensors[:12], out_acc, out_edge, lse)


def _backward(ctx, grad, grad_edge, _lse, _out_acc):
    *operands, seed, out_acc, out_edge, lse = ctx.saved_tensors
    grads = attention_vjp(
        grad,
        _contiguous(grad_edge),
        (out_acc, out_edge, lse),
        operands,
        seed,
        ctx.graph,
        ctx.options,
        ctx.needs_input_grad,
    )
    return *grads, *(None,) * 15


def _contiguous(grad_edge):
    return grad_edge.contiguous()


def _no_backward_of(op, kind_at):
    def setup(ctx, inputs, output):
        ctx.kind = inputs[kind_at]

    def backward(ctx, *_):
        raise refuse(ctx.kind, "its gradient is not differentiable")

    torch.library.register_autograd(f"gnnoffload::{op}", backward, setup_context=setup)


torch.library.register_autograd(
    "gnnoffload::attention", _backward, setup_context=_setup
)
_no_backward_of("attention_dst_vjp", 25)
_no_backward_of("attention_src_vjp", 23)


# -------------------------------------------------------------------------- eager route


def present(tensors, absent=_ABSENT):
    return [absent if tensor is None else tensor for tensor in tensors]


class _Attention(Function):
    @staticmethod
    def forward(ctx, *args):
        *operands, seed, graph, options = args
        ctx.graph, ctx.options = graph, options
        ctx.set_materialize_grads(False)
        is_wide = operands[0].dtype is accumulator(operands[0].dtype)
        with below_autograd():
            out, out_edge, lse, out_acc = attention_op(
                *present(operands), *present([seed]), *graph, *options, not is_wide
            )
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(
            *operands, seed, out if is_wide else out_acc, out_edge, lse
        )
        return out, out_edge, lse

    @staticmethod
    def backward(ctx, grad, grad_edge, _):
        if grad is None and grad_edge is None:
            return (None,) * (N_OPERANDS + 3)
        *operands, seed, out_acc, out_edge, lse = ctx.saved_tensors
        if grad is None:
            grad = zeros_like_rows(operands[0], ctx.graph[6])
        numbers = ctx.graph, ctx.options, ctx.needs_input_grad
        written = [out_acc, out_edge, lse]
        if _grad_enabled():
            grads = _AttentionVjp.apply(
                grad, grad_edge, *written, *operands, seed, *numbers
            )
        else:
            # nothing here holds a saved tensor while the src pass makes its outputs,
            # and neither does the node, unless the graph is retained
            del out_acc, out_edge, lse
            ctx.maybe_clear_saved_tensors()
            grads = _run_vjp(grad, grad_edge, written, operands, seed, *numbers)
        return *grads, None, None, None


def _run_vjp(grad, grad_edge, written, operands, seed, *numbers):
    """Empties the lists `written` and `operands`."""
    grad_edge = _ABSENT if grad_edge is None else grad_edge.contiguous()
    operands[:] = present(operands)
    with below_autograd():
        return attention_vjp(
            *(grad, grad_edge, written, operands, *present([seed]), *numbers),
            forget=True,
        )


class _AttentionVjp(Function):
    """Recorded under create_graph=True, so that whoever goes on is told."""

    @staticmethod
    def forward(ctx, grad, grad_edge, out_acc, out_edge, lse, *args):
        *operands, seed, graph, options, needs = args
        ctx.kind = options.kind
        written = [out_acc, out_edge, lse]
        return _run_vjp(grad, grad_edge, written, operands, seed, graph, options, needs)

    @staticmethod
    def backward(ctx, *_):
        raise refuse(ctx.kind, "its gradient is not differentiable")


class _Weights(Function):
    """alpha, which says on the way back that it has no gradient."""

    @staticmethod
    def forward(ctx, out, alpha, kind):
        ctx.kind = kind
        return alpha.view_as(alpha)

    @staticmethod
    def backward(ctx, *_):
        raise refuse(ctx.kind, "the returned attention weights have no gradient")


_record_attention = eager_apply(_Attention)


def zeros_like_rows(v, n_rows):
    """[n_rows, F] zeros of one row's memory."""
    return v.new_zeros(1, v.shape[1]).expand(n_rows, -1)


def attention(operands, seed, graph, options):
    """(out, out_edge, lse) of the eleven operands, recorded; out_edge is empty unless
    the kind has it. Nothing is validated here beyond what the C op checks."""
    v = operands[0]
    records = _grad_enabled() and any(
        t is not None and t.requires_grad for t in operands
    )
    if is_compiling():
        wants_acc = records and v.dtype is not accumulator(v.dtype)
        tensors = present((*operands, seed), v.new_empty(0))
        return attention_op(*tensors, *graph, *options, wants_acc)[:3]
    if is_transformed():
        raise refuse(
            options.kind, "torch.func and forward-mode differentiation are not there"
        )
    if records:
        return _record_attention(*operands, seed, graph, options)
    with below_autograd():
        tensors = present((*operands, seed))
        return attention_op(*tensors, *graph, *options, False)[:3]


def weights(operands, seed, graph, options, out, out_edge, lse):
    """alpha [E, H] after dropout, in the caller's edge order, from the dst pass under a
    gradient of zeros. Differentiating it raises (torch.compile: a constant)."""
    v = operands[0]
    wide = accumulator(v.dtype)
    absent = v.new_empty(0)
    tensors = [t.detach() for t in present((*operands, seed), absent)]
    is_wide = v.dtype is wide
    out_acc = out.detach() if is_wide else torch.zeros_like(out, dtype=wide)
    grad = zeros_like_rows(tensors[0], graph[6])
    with torch.no_grad():
        alpha = dst_vjp_op(
            grad, absent, out_acc, out_edge.detach(), lse, *tensors, *graph, *options, 0
        )[0].to(v.dtype)
    if is_compiling() or not (_grad_enabled() and out.requires_grad):
        return alpha
    return _Weights.apply(out, alpha, options.kind)
