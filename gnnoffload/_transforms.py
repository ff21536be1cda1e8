"""`spmm` and `sddmm` under torch.func transforms and forward-mode differentiation.

The eager Functions of `_dispatch` take the short way round torch's machinery, which a
transform needs. These take the long way (about 40 us a call): a context set up apart
from forward, a rule for tangents, vmap by torch's own loop over the batch, and the
graph as eight arguments (nested ones do not survive vmap of jvp).
"""

from torch import Tensor
from torch.autograd import Function

from gnnoffload import _dispatch


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


def spmm(x, weight, row_scale, col_scale, graph) -> Tensor:
    return _Spmm.apply(x, weight, row_scale, col_scale, *graph)


def sddmm(a, b, row_scale, col_scale, graph) -> Tensor:
    return _Sddmm.apply(a, b, row_scale, col_scale, *graph)
