"""The ops under torch.func transforms and forward-mode differentiation.

The eager Functions of `_dispatch` take the short way round torch's machinery, which a
transform needs. These take the long way (about 40 us a call): a context set up apart
from forward, a rule for tangents, vmap by torch's own loop over the batch, and the
graph as eight arguments (nested ones do not survive vmap of jvp).
"""

from torch import Tensor
from torch.autograd import Function

from gnnoffload import _dispatch, _dispatch_gine


def _tangent_sum(*terms) -> Tensor:
    """The sum of the terms that are there; each comes from one input's tangent."""
    return sum(term for term in terms if term is not None)


class _Spmm(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, row_scale, col_scale, *graph):
        return _dispatch.call_spmm(x, weight, row_scale, col_scale, graph)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, row_scale, col_scale, *graph = inputs
        ctx.graph = tuple(graph)
        ctx.save_for_backward(x, weight, row_scale, col_scale)
        ctx.save_for_forward(x, weight, row_scale, col_scale)

    @staticmethod
    def backward(ctx, grad):
        return _dispatch.spmm_backward(ctx, grad)[:2] + (None,) * 10

    @staticmethod
    def jvp(ctx, x_tangent, weight_tangent, *_):
        x, weight, row_scale, col_scale = ctx.saved_tensors
        scales = row_scale, col_scale, ctx.graph
        return _tangent_sum(
            None if x_tangent is None else _dispatch.spmm(x_tangent, weight, *scales),
            None
            if weight_tangent is None
            else _dispatch.spmm(x, weight_tangent, *scales),
        )


class _Sddmm(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a, b, row_scale, col_scale, *graph):
        return _dispatch.call_sddmm(a, b, row_scale, col_scale, graph)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b, row_scale, col_scale, *graph = inputs
        ctx.graph = tuple(graph)
        ctx.save_for_backward(a, b, row_scale, col_scale)
        ctx.save_for_forward(a, b, row_scale, col_scale)

    @staticmethod
    def backward(ctx, grad):
        return _dispatch.sddmm_backward(ctx, grad)[:2] + (None,) * 10

    @staticmethod
    def jvp(ctx, a_tangent, b_tangent, *_):
        a, b, row_scale, col_scale = ctx.saved_tensors
        scales = row_scale, col_scale, ctx.graph
        return _tangent_sum(
            None if a_tangent is None else _dispatch.sddmm(a_tangent, b, *scales),
            None if b_tangent is None else _dispatch.sddmm(a, b_tangent, *scales),
        )


class _Gine(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, edge, *graph):
        return _dispatch_gine.gine_op(x, edge, *graph)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, edge, *graph = inputs
        ctx.graph = tuple(graph)
        ctx.save_for_backward(x, edge)
        ctx.save_for_forward(x, edge)

    @staticmethod
    def backward(ctx, grad):
        return _dispatch_gine.gine_backward(ctx, grad)[:2] + (None,) * 8

    @staticmethod
    def jvp(ctx, x_tangent, edge_tangent, *_):
        x, edge = ctx.saved_tensors
        return _dispatch_gine.gine_jvp(x, edge, x_tangent, edge_tangent, ctx.graph)


class _GineJvp(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, edge, dx, dedge, *graph):
        return _dispatch_gine.call_gine_jvp(x, edge, dx, dedge, graph)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, edge, _dx, _dedge, *graph = inputs
        ctx.graph = tuple(graph)
        ctx.save_for_backward(x, edge)
        ctx.save_for_forward(x, edge)

    @staticmethod
    def backward(ctx, grad):
        return _dispatch_gine.gine_jvp_backward(ctx, grad)[:4] + (None,) * 8

    @staticmethod
    def jvp(ctx, _x, _edge, dx_tangent, dedge_tangent, *_):
        x, edge = ctx.saved_tensors
        return _dispatch_gine.gine_jvp(x, edge, dx_tangent, dedge_tangent, ctx.graph)


class _GineVjp(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, edge, wants_x, wants_edge, *graph):
        return _dispatch_gine.call_gine_vjp(grad, x, edge, graph, wants_x, wants_edge)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _grad, x, edge, wants_x, wants_edge, *graph = inputs
        ctx.graph, ctx.wants = tuple(graph), (wants_x, wants_edge)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, edge)
        ctx.save_for_forward(x, edge)

    @staticmethod
    def backward(ctx, dx, dedge):
        return _dispatch_gine.gine_vjp_backward(ctx, dx, dedge)[:1] + (None,) * 12

    @staticmethod
    def jvp(ctx, grad_tangent, *_):
        x, edge = ctx.saved_tensors
        return _dispatch_gine.gine_vjp(grad_tangent, x, edge, ctx.graph, *ctx.wants)


def spmm(x, weight, row_scale, col_scale, graph) -> Tensor:
    return _Spmm.apply(x, weight, row_scale, col_scale, *graph)


def sddmm(a, b, row_scale, col_scale, graph) -> Tensor:
    return _Sddmm.apply(a, b, row_scale, col_scale, *graph)


def gine(x, edge, graph) -> Tensor:
    return _Gine.apply(x, edge, *graph)


def gine_jvp(x, edge, dx, dedge, graph) -> Tensor:
    return _GineJvp.apply(x, edge, dx, dedge, *graph)


def gine_vjp(grad, x, edge, graph, wants_x, wants_edge) -> tuple[Tensor, Tensor]:
    return _GineVjp.apply(grad, x, edge, wants_x, wants_edge, *graph)
