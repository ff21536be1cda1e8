"""The dispatcher ops of `_C`: fake kernels, autograd formulas, and the eager fast path.

Every op takes a graph as the same eight arguments, `GraphArgs`; swapping the two halves
transposes it, so the derivatives of `spmm` and `sddmm` are `spmm` and `sddmm` again:

    y[i] = s_i sum_e w_e t_j x_j      dx = spmm(transposed, dy, w, t, s)
                                      dw = sddmm(dy, x, s, t)
    z_e  = s_i t_j <a_i, b_j>         da = spmm(graph, b, dz, s, t)
                                      db = spmm(transposed, a, dz, t, s)

An empty tensor is an absent one (weight, scale, eid, an unbuilt half).

Two routes lead to the same kernels. Under torch.compile the ops are called as they
are, with the formulas registered by torch.library. Eager calls go through an
autograd.Function below the autograd keys: 12 us instead of 52 us for a recorded call
(2 cores, torch 2.13).
"""

import os

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling

from gnnoffload import _C
from gnnoffload.errors import named

_C.bind(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))

graph_build_op = torch.ops.gnnoffload.graph_build.default
graph_check_op = torch.ops.gnnoffload.graph_check.default
graph_transpose_op = torch.ops.gnnoffload.graph_transpose.default
spmm_op = torch.ops.gnnoffload.spmm.default
sddmm_op = torch.ops.gnnoffload.sddmm.default

# rowptr, col, eid, colptr, row, ceid, n_rows (destinations), n_cols (sources)
GraphArgs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, int]

below_autograd = torch._C._AutoDispatchBelowAutograd
_grad_enabled = torch.is_grad_enabled
_transforms_active = torch._C._are_functorch_transforms_active
_ABSENT = torch.empty(0, device="cpu")


def call(op, *args):
    """op(*args), its failure as the exception that C named."""
    if is_compiling():
        return op(*args)
    try:
        return op(*args)
    except RuntimeError as error:
        raise named(error) from None


def transposed(graph: GraphArgs) -> GraphArgs:
    rowptr, col, eid, colptr, row, ceid, n_rows, n_cols = graph
    return colptr, row, ceid, rowptr, col, eid, n_cols, n_rows


# ------------------------------------------------------------------------- fake kernels


def _eid_dtype(n_edges):
    return torch.int32 if n_edges <= 2**31 - 1 else torch.int64


@torch.library.register_fake("gnnoffload::graph_build")
def _(source, destination, n_sources, n_destinations):
    n_edges = source.shape[0]
    return (
        source.new_empty(n_destinations + 1, dtype=torch.int64),
        source.new_empty(n_edges, dtype=torch.int32),
        source.new_empty(n_edges, dtype=_eid_dtype(n_edges)),
        source.new_empty(1, dtype=torch.bool),
    )


@torch.library.register_fake("gnnoffload::graph_check")
def _(rowptr, col, n_rows, n_cols):
    return None


@torch.library.register_fake("gnnoffload::graph_transpose")
def _(rowptr, col, eid, n_cols):
    n_edges = col.shape[0]
    return (
        rowptr.new_empty(n_cols + 1, dtype=torch.int64),
        rowptr.new_empty(n_edges, dtype=torch.int32),
        rowptr.new_empty(n_edges, dtype=_eid_dtype(n_edges)),
    )


@torch.library.register_fake("gnnoffload::spmm")
def _(x, weight, row_scale, col_scale, *graph):
    return x.new_empty((graph[6], x.shape[1]))


@torch.library.register_fake("gnnoffload::sddmm")
def _(a, b, row_scale, col_scale, *graph):
    return a.new_empty(graph[1].shape[0])


# ----------------------------------------------------------- formulas for torch.library


def _spmm_setup(ctx, inputs, output):
    x, weight, row_scale, col_scale, *graph = inputs
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.graph = tuple(graph)
    ctx.save_for_backward(
        x if needs_weight else None, weight if needs_x else None, row_scale, col_scale
    )


def _spmm_backward(ctx, grad):
    x, weight, row_scale, col_scale = ctx.saved_tensors
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    grad_x = grad_weight = None
    if needs_x:
        back = transposed(ctx.graph)
        grad_x = spmm_op(grad, weight, col_scale, row_scale, *back)
    if needs_weight:
        grad_weight = sddmm_op(grad, x, row_scale, col_scale, *ctx.graph)
    return (grad_x, grad_weight) + (None,) * 10


def _sddmm_setup(ctx, inputs, output):
    a, b, row_scale, col_scale, *graph = inputs
    needs_a, needs_b = ctx.needs_input_grad[:2]
    ctx.graph = tuple(graph)
    ctx.save_for_backward(
        a if needs_b else None, b if needs_a else None, row_scale, col_scale
    )


def _sddmm_backward(ctx, grad):
    a, b, row_scale, col_scale = ctx.saved_tensors
    needs_a, needs_b = ctx.needs_input_grad[:2]
    grad_a = grad_b = None
    if needs_a:
        grad_a = spmm_op(b, grad, row_scale, col_scale, *ctx.graph)
    if needs_b:
        back = transposed(ctx.graph)
        grad_b = spmm_op(a, grad, col_scale, row_scale, *back)
    return (grad_a, grad_b) + (None,) * 10


torch.library.register_autograd(
    "gnnoffload::spmm", _spmm_backward, setup_context=_spmm_setup
)
torch.library.register_autograd(
    "gnnoffload::sddmm", _sddmm_backward, setup_context=_sddmm_setup
)


# -------------------------------------------------------------------------- eager route


def spmm_backward(ctx, grad):
    x, weight, row_scale, col_scale = ctx.saved_tensors
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    grad_x = grad_weight = None
    if needs_x:
        back = transposed(ctx.graph)
        grad_x = spmm(grad, weight, col_scale, row_scale, back)
    if needs_weight:
        grad_weight = sddmm(grad, x, row_scale, col_scale, ctx.graph)
    return grad_x, grad_weight, None, None, None


def sddmm_backward(ctx, grad):
    a, b, row_scale, col_scale = ctx.saved_tensors
    needs_a, needs_b, *_ = ctx.needs_input_grad
    grad_a = grad_b = None
    if needs_a:
        grad_a = spmm(b, grad, row_scale, col_scale, ctx.graph)
    if needs_b:
        back = transposed(ctx.graph)
        grad_b = spmm(a, grad, col_scale, row_scale, back)
    return grad_a, grad_b, None, None, None


def eager_apply(function):
    """function.apply without what torch.func needs of it (3 us), for callers that have
    asked `_transforms_active` themselves."""
    return super(Function, function).apply


class _Spmm(Function):
    @staticmethod
    def forward(ctx, x, weight, row_scale, col_scale, graph):
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.graph = graph
        ctx.save_for_backward(
            x if needs_weight else None,
            weight if needs_x else None,
            row_scale,
            col_scale,
        )
        with below_autograd():
            return call_spmm(x, weight, row_scale, col_scale, graph)

    backward = staticmethod(spmm_backward)


class _Sddmm(Function):
    @staticmethod
    def forward(ctx, a, b, row_scale, col_scale, graph):
        needs_a, needs_b, *_ = ctx.needs_input_grad
        ctx.graph = graph
        ctx.save_for_backward(
            a if needs_b else None, b if needs_a else None, row_scale, col_scale
        )
        with below_autograd():
            return call_sddmm(a, b, row_scale, col_scale, graph)

    backward = staticmethod(sddmm_backward)


_record_spmm, _record_sddmm = eager_apply(_Spmm), eager_apply(_Sddmm)


def accumulator(dtype) -> torch.dtype:
    """What sums of `dtype` are made in, as the kernels make them."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def is_transformed() -> bool:
    """Under torch.compile, torch.func or forward-mode differentiation."""
    return is_compiling() or _transforms_active() or forward_ad._current_level >= 0


def call_spmm(x, weight, row_scale, col_scale, graph, absent=_ABSENT):
    """The op itself; None is an absent weight or scale."""
    return spmm_op(
        x,
        absent if weight is None else weight,
        absent if row_scale is None else row_scale,
        absent if col_scale is None else col_scale,
        *graph,
    )


def call_sddmm(a, b, row_scale, col_scale, graph, absent=_ABSENT):
    return sddmm_op(
        a,
        b,
        absent if row_scale is None else row_scale,
        absent if col_scale is None else col_scale,
        *graph,
    )


def spmm(x, weight, row_scale, col_scale, graph: GraphArgs) -> Tensor:
    """The recorded product; None is an absent weight or scale. Nothing is validated
    here beyond what the C op checks."""
    if is_compiling():
        return call_spmm(x, weight, row_scale, col_scale, graph, x.new_empty(0))
    if _transforms_active() or forward_ad._current_level >= 0:
        from gnnoffload import _transforms

        return _transforms.spmm(x, weight, row_scale, col_scale, graph)
    if _grad_enabled() and (
        x.requires_grad or (weight is not None and weight.requires_grad)
    ):
        return _record_spmm(x, weight, row_scale, col_scale, graph)
    with below_autograd():
        return call_spmm(x, weight, row_scale, col_scale, graph)


def sddmm(a, b, row_scale, col_scale, graph: GraphArgs) -> Tensor:
    """The recorded edge product, as `spmm`."""
    if is_compiling():
        return call_sddmm(a, b, row_scale, col_scale, graph, a.new_empty(0))
    if _transforms_active() or forward_ad._current_level >= 0:
        from gnnoffload import _transforms

        return _transforms.sddmm(a, b, row_scale, col_scale, graph)
    if _grad_enabled() and (a.requires_grad or b.requires_grad):
        return _record_sddmm(a, b, row_scale, col_scale, graph)
    with below_autograd():
        return call_sddmm(a, b, row_scale, col_scale, graph)
