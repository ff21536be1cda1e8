"""The ops of GINE's sum, as `_dispatch` has spmm's.

    gine:      y_i = sum_e relu(x_j + a_e)
    gine_jvp:  y_i = sum_e gate_e (dx_j + da_e)          gate_e = [x_j + a_e > 0]
    gine_vjp:  grad_x_j = sum_e gate_e grad_i,  grad_a_e = gate_e grad_i

The gate is constant almost everywhere, so gine's gradient is gine_vjp, and gine_jvp and
gine_vjp, which are linear, are each other's. An absent tangent is None here and empty
in the ops. gine_vjp takes the graph as gine does and hands its op the transposed one.
"""

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling

from gnnoffload._dispatch import (
    _ABSENT,
    GraphArgs,
    _grad_enabled,
    _transforms_active,
    below_autograd,
    eager_apply,
    transposed,
)

gine_op = torch.ops.gnnoffload.gine.default
gine_jvp_op = torch.ops.gnnoffload.gine_jvp.default
gine_vjp_op = torch.ops.gnnoffload.gine_vjp.default


# ------------------------------------------------------------------------- fake kernels


@torch.library.register_fake("gnnoffload::gine")
def _(x, edge, *graph):
    return x.new_empty((graph[6], x.shape[1]))


@torch.library.register_fake("gnnoffload::gine_jvp")
def _(x, edge, dx, dedge, *graph):
    return x.new_empty((graph[6], x.shape[1]))


@torch.library.register_fake("gnnoffload::gine_vjp")
def _(grad, x, edge, *graph_and_wants):
    *graph, wants_x, wants_edge = graph_and_wants
    return (
        x.new_empty((graph[6] if wants_x else 0, x.shape[1])),
        x.new_empty((graph[1].shape[0] if wants_edge else 0, x.shape[1])),
    )


# ----------------------------------------------------------- formulas for torch.library


def _setup(ctx, inputs, output):
    x, edge, *graph = inputs
    ctx.graph = tuple(graph)
    ctx.save_for_backward(x, edge)


def _backward(ctx, grad):
    return *_vjp_of(ctx, grad, ctx.needs_input_grad[:2]), *(None,) * 8


def _jvp_setup(ctx, inputs, output):
    x, edge, _dx, _dedge, *graph = inputs
    ctx.graph = tuple(graph)
    ctx.save_for_backward(x, edge)


def _jvp_backward(ctx, grad):
    grads = _vjp_of(ctx, grad, ctx.needs_input_grad[2:4])
    return None, None, *grads, *(None,) * 8


def _vjp_of(ctx, grad, wants):
    x, edge = ctx.saved_tensors
    grads = gine_vjp_op(grad, x, edge, *transposed(ctx.graph), *wants)
    return _none_unless(wants, grads)


def _none_unless(wants, tensors):
    return tuple(t if want else None for want, t in zip(wants, tensors, strict=True))


def _vjp_setup(ctx, inputs, output):
    _grad, x, edge, *graph, wants_x, wants_edge = inputs
    ctx.graph, ctx.wants = tuple(graph), (wants_x, wants_edge)
    ctx.save_for_backward(x, edge)


def _vjp_backward(ctx, dx, dedge):
    x, edge = ctx.saved_tensors
    absent = x.new_empty(0)
    wants_x, wants_edge = ctx.wants
    dx, dedge = dx if wants_x else absent, dedge if wants_edge else absent
    grad = gine_jvp_op(x, edge, dx, dedge, *transposed(ctx.graph))
    return grad, *(None,) * 12


for _name, _formula, _context in (
    ("gine", _backward, _setup),
    ("gine_jvp", _jvp_backward, _jvp_setup),
    ("gine_vjp", _vjp_backward, _vjp_setup),
):
    torch.library.register_autograd(
        f"gnnoffload::{_name}", _formula, setup_context=_context
    )


# -------------------------------------------------------------------------- eager route


def gine_backward(ctx, grad):
    x, edge = ctx.saved_tensors
    wants = ctx.needs_input_grad[:2]
    return *_none_unless(wants, gine_vjp(grad, x, edge, ctx.graph, *wants)), None


def gine_jvp_backward(ctx, grad):
    x, edge = ctx.saved_tensors
    wants = ctx.needs_input_grad[2:4]
    grads = _none_unless(wants, gine_vjp(grad, x, edge, ctx.graph, *wants))
    return None, None, *grads, None


def gine_vjp_backward(ctx, dx, dedge):
    x, edge = ctx.saved_tensors
    dx, dedge = _none_unless(ctx.wants, (dx, dedge))
    grad = None
    if dx is not None or dedge is not None:
        grad = gine_jvp(x, edge, dx, dedge, ctx.graph)
    return grad, None, None, None, None, None


class _Gine(Function):
    @staticmethod
    def forward(ctx, x, edge, graph):
        ctx.graph = graph
        ctx.save_for_backward(x, edge)
        with below_autograd():
            return gine_op(x, edge, *graph)

    backward = staticmethod(gine_backward)


class _GineJvp(Function):
    @staticmethod
    def forward(ctx, x, edge, dx, dedge, graph):
        ctx.graph = graph
        ctx.save_for_backward(x, edge)
        with below_autograd():
            return call_gine_jvp(x, edge, dx, dedge, graph)

    backward = staticmethod(gine_jvp_backward)


class _GineVjp(Function):
    @staticmethod
    def forward(ctx, grad, x, edge, graph, wants_x, wants_edge):
        ctx.graph, ctx.wants = graph, (wants_x, wants_edge)
        ctx.set_materialize_grads(False)  # zeros of size E x F otherwise
        ctx.save_for_backward(x, edge)
        with below_autograd():
            return call_gine_vjp(grad, x, edge, graph, wants_x, wants_edge)

    backward = staticmethod(gine_vjp_backward)


_record_gine, _record_jvp = eager_apply(_Gine), eager_apply(_GineJvp)
_record_vjp = eager_apply(_GineVjp)


def call_gine_jvp(x, edge, dx, dedge, graph, absent=_ABSENT):
    """The op itself; None is an absent tangent."""
    return gine_jvp_op(
        x,
        edge,
        absent if dx is None else dx,
        absent if dedge is None else dedge,
        *graph,
    )


def call_gine_vjp(grad, x, edge, graph, wants_x, wants_edge):
    """The op itself, of the graph as forward has it."""
    return gine_vjp_op(grad, x, edge, *transposed(graph), wants_x, wants_edge)


def gine(x, edge, graph: GraphArgs) -> Tensor:
    """The recorded sum. Nothing is validated here beyond what the C op checks."""
    if is_compiling():
        return gine_op(x, edge, *graph)
    if _transforms_active() or forward_ad._current_level >= 0:
        from gnnoffload import _transforms

        return _transforms.gine(x, edge, graph)
    if _grad_enabled() and (x.requires_grad or edge.requires_grad):
        return _record_gine(x, edge, graph)
    with below_autograd():
        return gine_op(x, edge, *graph)


def gine_jvp(x, edge, dx, dedge, graph: GraphArgs) -> Tensor:
    """The recorded derivative of `gine` along dx and dedge, each a tensor or None."""
    if is_compiling():
        return call_gine_jvp(x, edge, dx, dedge, graph, x.new_empty(0))
    if _transforms_active() or forward_ad._current_level >= 0:
        from gnnoffload import _transforms

        return _transforms.gine_jvp(x, edge, dx, dedge, graph)
    tangents = [t for t in (dx, dedge) if t is not None]
    if _grad_enabled() and any(t.requires_grad for t in tangents):
        return _record_jvp(x, edge, dx, dedge, graph)
    with below_autograd():
        return call_gine_jvp(x, edge, dx, dedge, graph)


def gine_vjp(grad, x, edge, graph: GraphArgs, wants_x, wants_edge):
    """(grad_x, grad_edge), recorded; empty where not wanted."""
    if is_compiling():
        return call_gine_vjp(grad, x, edge, graph, wants_x, wants_edge)
    if _transforms_active() or forward_ad._current_level >= 0:
        from gnnoffload import _transforms

        return _transforms.gine_vjp(grad, x, edge, graph, wants_x, wants_edge)
    if _grad_enabled() and grad.requires_grad:
        return _record_vjp(grad, x, edge, graph, wants_x, wants_edge)
    with below_autograd():
        return call_gine_vjp(grad, x, edge, graph, wants_x, wants_edge)
