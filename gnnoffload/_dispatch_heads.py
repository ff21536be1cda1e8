"""The ops with one number per edge and head: softmax over the edges of a destination,
and spmm and sddmm head by head, as `_dispatch` has the products of one head.

    alpha = softmax of s over row i     ds = alpha (dalpha - sum_row alpha dalpha)
    y[i, h] = sum_e w[e, h] x[j, h]     z[e, h] = <a[i, h], b[j, h]>

The two products are each other's derivatives. The softmax's gradient is an op too, and
its own gradients are put together from it and the products, so that all four can be
differentiated any number of times. Scores and weights are [E, H] in the caller's edge
order, features [rows, H * C].
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_compiling

from gnnoffload import _dispatch
from gnnoffload._dispatch import (
    GraphArgs,
    _grad_enabled,
    accumulator,
    below_autograd,
    eager_apply,
    is_transformed,
    transposed,
)

edge_softmax_op = torch.ops.gnnoffload.edge_softmax.default
edge_softmax_vjp_op = torch.ops.gnnoffload.edge_softmax_vjp.default
heads_spmm_op = torch.ops.gnnoffload.heads_spmm.default
heads_sddmm_op = torch.ops.gnnoffload.heads_sddmm.default


# ------------------------------------------------------------------------- fake kernels


@torch.library.register_fake("gnnoffload::edge_softmax")
def _(scores, *graph):
    return scores.new_empty(scores.shape)


@torch.library.register_fake("gnnoffload::edge_softmax_vjp")
def _(grad, alpha, *graph):
    return alpha.new_empty(alpha.shape)


@torch.library.register_fake("gnnoffload::heads_spmm")
def _(x, weight, *graph):
    return x.new_empty((graph[6], x.shape[1]))


@torch.library.register_fake("gnnoffload::heads_sddmm")
def _(a, b, *graph_and_numbers):
    *graph, n_heads, wide = graph_and_numbers
    dtype = accumulator(a.dtype) if wide else a.dtype
    return a.new_empty((graph[1].shape[0], n_heads), dtype=dtype)


# ----------------------------------------------------------------------------- formulas


def softmax_backward(ctx, grad):
    (alpha,) = ctx.saved_tensors
    return edge_softmax_vjp(grad, alpha, ctx.graph)


def softmax_vjp_backward(ctx, upstream):
    """With <t> = sum over the row of alpha t, spread over its edges again:
    ds = alpha (g - <g>), so dg = alpha (u - <u>) and dalpha = u (g - <g>) - g <u>."""
    grad, alpha = ctx.saved_tensors
    needs_grad, needs_alpha, *_ = ctx.needs_input_grad
    d_grad = d_alpha = None
    if needs_grad:
        d_grad = edge_softmax_vjp(upstream, alpha, ctx.graph)
    if needs_alpha:
        wide = accumulator(alpha.dtype)
        u, g, a = (t.to(wide) for t in (upstream, grad, alpha))
        ones = a.new_ones(1, a.shape[1]).expand(ctx.graph[7], -1)

        def mean(t):
            total = heads_spmm(ones, a * t, ctx.graph)
            return heads_sddmm(total, ones, ctx.graph, a.shape[1], False)

        d_alpha = (u * (g - mean(g)) - g * mean(u)).to(alpha.dtype)
    return d_grad, d_alpha


def spmm_backward(ctx, grad):
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    grad_x = grad_weight = None
    if needs_x:
        grad_x = heads_spmm(grad, weight, transposed(ctx.graph))
    if needs_weight:
        grad_weight = heads_sddmm(grad, x, ctx.graph, ctx.n_heads, ctx.wide)
    return grad_x, grad_weight


def sddmm_backward(ctx, grad):
    a, b = ctx.saved_tensors
    needs_a, needs_b, *_ = ctx.needs_input_grad
    grad_a = heads_spmm(b, grad, ctx.graph) if needs_a else None
    grad_b = heads_spmm(a, grad, transposed(ctx.graph)) if needs_b else None
    return grad_a, grad_b


# ----------------------------------------------------------- formulas for torch.library


def _softmax_setup(ctx, inputs, output):
    ctx.graph = tuple(inputs[1:])
    ctx.save_for_backward(output)


def _softmax_vjp_setup(ctx, inputs, output):
    grad, alpha, *graph = inputs
    ctx.graph = tuple(graph)
    ctx.save_for_backward(grad, alpha)


def _spmm_setup(ctx, inputs, output):
    x, weight, *graph = inputs
    _save_spmm(ctx, x, weight, tuple(graph))


def _sddmm_setup(ctx, inputs, output):
    a, b, *graph, _n_heads, _wide = inputs
    _save_sddmm(ctx, a, b, tuple(graph))


def _save_spmm(ctx, x, weight, graph):
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    ctx.graph, ctx.n_heads = graph, weight.shape[1]
    ctx.wide = weight.dtype is not x.dtype
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)


def _save_sddmm(ctx, a, b, graph):
    needs_a, needs_b, *_ = ctx.needs_input_grad
    ctx.graph = graph
    ctx.save_for_backward(a if needs_b else None, b if needs_a else None)


for _name, _formula, _setup, _constants in (
    ("edge_softmax", lambda ctx, g: (softmax_backward(ctx, g),), _softmax_setup, 8),
    ("edge_softmax_vjp", softmax_vjp_backward, _softmax_vjp_setup, 8),
    ("heads_spmm", spmm_backward, _spmm_setup, 8),
    ("heads_sddmm", sddmm_backward, _sddmm_setup, 10),
):
    torch.library.register_autograd(
        f"gnnoffload::{_name}",
        lambda ctx, grad, formula=_formula, n=_constants: (
            *formula(ctx, grad),
            *(None,) * n,
        ),
        setup_context=_setup,
    )


# -------------------------------------------------------------------------- eager route


class _EdgeSoftmax(Function):
    @staticmethod
    def forward(ctx, scores, graph):
        ctx.graph = graph
        with below_autograd():
            alpha = edge_softmax_op(scores, *graph)
        ctx.save_for_backward(alpha)
        return alpha

    @staticmethod
    def backward(ctx, grad):
        return softmax_backward(ctx, grad), None


class _EdgeSoftmaxVjp(Function):
    @staticmethod
    def forward(ctx, grad, alpha, graph):
        ctx.graph = graph
        ctx.save_for_backward(grad, alpha)
        with below_autograd():
            return edge_softmax_vjp_op(grad, alpha, *graph)

    @staticmethod
    def backward(ctx, upstream):
        return *softmax_vjp_backward(ctx, upstream), None


class _HeadsSpmm(Function):
    @staticmethod
    def forward(ctx, x, weight, graph):
        _save_spmm(ctx, x, weight, graph)
        with below_autograd():
            return heads_spmm_op(x, weight, *graph)

    @staticmethod
    def backward(ctx, grad):
        return *spmm_backward(ctx, grad), None


class _HeadsSddmm(Function):
    @staticmethod
    def forward(ctx, a, b, graph, n_heads, wide):
        _save_sddmm(ctx, a, b, graph)
        with below_autograd():
            return heads_sddmm_op(a, b, *graph, n_heads, wide)

    @staticmethod
    def backward(ctx, grad):
        return *sddmm_backward(ctx, grad), None, None, None


_record_softmax, _record_softmax_vjp = (
    eager_apply(_EdgeSoftmax),
    eager_apply(_EdgeSoftmaxVjp),
)
_record_spmm, _record_sddmm = eager_apply(_HeadsSpmm), eager_apply(_HeadsSddmm)


def edge_softmax(scores, graph: GraphArgs) -> Tensor:
    """The recorded softmax of scores `[E, H]`. Nothing is validated here beyond what
    the C op checks."""
    scores = scores.contiguous()
    if is_compiling():
        return edge_softmax_op(scores, *graph)
    if is_transformed():
        return _softmax_in_torch(scores, graph)
    if _grad_enabled() and scores.requires_grad:
        return _record_softmax(scores, graph)
    with below_autograd():
        return edge_softmax_op(scores, *graph)


def edge_softmax_vjp(grad, alpha, graph: GraphArgs) -> Tensor:
    grad, alpha = grad.contiguous(), alpha.contiguous()
    if is_compiling():
        return edge_softmax_vjp_op(grad, alpha, *graph)
    if _grad_enabled() and (grad.requires_grad or alpha.requires_grad):
        return _record_softmax_vjp(grad, alpha, graph)
    with below_autograd():
        return edge_softmax_vjp_op(grad, alpha, *graph)


def heads_spmm(x, weight, graph: GraphArgs) -> Tensor:
    """x `[n_cols, H * C]`, weight `[E, H]` of x's dtype or its accumulator's."""
    weight = weight.contiguous()
    if is_compiling():
        return heads_spmm_op(x, weight, *graph)
    if is_transformed():
        heads = zip(_heads(x, weight.shape[1]), weight.unbind(1), strict=True)
        y = [_dispatch.spmm(x, w.to(x.dtype), None, None, graph) for x, w in heads]
        return torch.stack(y, 1).flatten(1)
    if _grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _record_spmm(x, weight, graph)
    with below_autograd():
        return heads_spmm_op(x, weight, *graph)


def heads_sddmm(a, b, graph: GraphArgs, n_heads, wide) -> Tensor:
    """a `[n_rows, H * C]`, b `[n_cols, H * C]`; the result is of the accumulator's
    dtype when `wide`."""
    if is_compiling():
        return heads_sddmm_op(a, b, *graph, n_heads, wide)
    if is_transformed():
        heads = zip(_heads(a, n_heads), _heads(b, n_heads), strict=True)
        z = [_dispatch.sddmm(a, b, None, None, graph) for a, b in heads]
        return torch.stack(z, 1).to(accumulator(a.dtype) if wide else a.dtype)
    if _grad_enabled() and (a.requires_grad or b.requires_grad):
        return _record_sddmm(a, b, graph, n_heads, wide)
    with below_autograd():
        return heads_sddmm_op(a, b, *graph, n_heads, wide)


# ------------------------------------ under torch.func and forward-mode differentiation


def _heads(x, n_heads):
    """The H matrices [rows, C] of [rows, H * C]."""
    return x.view(x.shape[0], n_heads, x.shape[1] // n_heads).unbind(1)


def _softmax_in_torch(scores, graph):
    """What the op computes, in torch's own differentiable ones."""
    rowptr, col, eid, *_, n_rows, _ = graph
    starts = rowptr[: n_rows + 1]
    row = torch.repeat_interleave(
        torch.arange(n_rows, device=rowptr.device),
        starts[1:] - starts[:-1],
        output_size=col.shape[0],
    )
    if eid.numel() > 0:
        row = torch.empty_like(row).index_copy(0, eid.long(), row)
    wide = scores.to(accumulator(scores.dtype))
    index = row[:, None].expand(-1, scores.shape[1])
    top = wide.detach().new_zeros(n_rows, scores.shape[1])
    top = top.scatter_reduce(0, index, wide.detach(), "amax", include_self=False)
    e = (wide - top[row]).exp()
    total = e.new_zeros(n_rows, scores.shape[1]).index_add(0, row, e)
    return (e / total[row]).to(scores.dtype)
