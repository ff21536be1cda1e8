"""The ops of softmax aggregation, as `_dispatch_reduce` has aggregation's: fake
kernels, formulas for torch.compile and an eager route; differentiable once.

`spec` is (relu, eps, semi_grad). t is `[F]` of the accumulator's dtype. An absent edge
is an empty tensor in the ops and None here.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_compiling

from gnnoffload._dispatch import (
    _ABSENT,
    GraphArgs,
    _grad_enabled,
    below_autograd,
    eager_apply,
    transposed,
)
from gnnoffload._dispatch_reduce import accumulator, refuse_transforms, refuse_twice

softmax_op = torch.ops.gnnoffload.softmax_aggregate.default
softmax_vjp_op = torch.ops.gnnoffload.softmax_aggregate_vjp.default


@torch.library.register_fake("gnnoffload::softmax_aggregate")
def _(x, edge, t, *graph_and_more):
    *graph, _relu, _eps, _semi_grad, saves = graph_and_more
    dtype = accumulator(x.dtype)
    wider = saves and dtype is not x.dtype
    return (
        x.new_empty((graph[6], x.shape[1])),
        x.new_empty((graph[6] if wider else 0, x.shape[1]), dtype=dtype),
        x.new_empty((graph[6] if saves else 0, x.shape[1]), dtype=dtype),
    )


@torch.library.register_fake("gnnoffload::softmax_aggregate_vjp")
def _(x, edge, t, grad, out, lse, *graph_and_more):
    *graph, _relu, _eps, _semi_grad, wants_x, wants_edge, wants_t = graph_and_more
    return (
        x.new_empty((graph[6] if wants_x else 0, x.shape[1])),
        x.new_empty((graph[1].shape[0] if wants_edge else 0, x.shape[1])),
        t.new_empty(t.shape[0] if wants_t else 0),
    )


def _save(ctx, x, edge, t, outputs):
    y, out_acc, lse = outputs
    ctx.save_for_backward(x, edge, t, y if out_acc.numel() == 0 else out_acc, lse)


def _wants(needs, semi_grad):
    return needs[0], needs[1], needs[2] and not semi_grad


def _none_unless(wants, tensors):
    return tuple(t if want else None for want, t in zip(wants, tensors, strict=True))


# ----------------------------------------------------------- formulas for torch.library


def _setup(ctx, inputs, output):
    x, edge, t, *graph, relu, eps, semi_grad, _saves = inputs
    ctx.graph, ctx.spec = tuple(graph), (relu, eps, semi_grad)
    ctx.set_materialize_grads(False)
    _save(ctx, x, edge, t, output)


def _backward(ctx, grad, _out_acc, _lse):
    if grad is None:
        return (None,) * 15
    x, edge, t, out, lse = ctx.saved_tensors
    wants = _wants(ctx.needs_input_grad, ctx.spec[2])
    grads = softmax_vjp_op(
        x, edge, t, grad, out, lse, *transposed(ctx.graph), *ctx.spec, *wants
    )
    return *_none_unless(wants, grads), *(None,) * 12


def _vjp_setup(ctx, inputs, output):
    pass


def _vjp_backward(ctx, *grads):
    refuse_twice("softmax_aggregate")


torch.library.register_autograd(
    "gnnoffload::softmax_aggregate", _backward, setup_context=_setup
)
torch.library.register_autograd(
    "gnnoffload::softmax_aggregate_vjp", _vjp_backward, setup_context=_vjp_setup
)


# -------------------------------------------------------------------------- eager route


class _Softmax(Function):
    @staticmethod
    def forward(ctx, x, edge, t, graph, spec):
        ctx.graph, ctx.spec = graph, spec
        with below_autograd():
            outputs = softmax_op(x, edge, t, *graph, *spec, True)
        _save(ctx, x, edge, t, outputs)
        return outputs[0]

    @staticmethod
    def backward(ctx, grad):
        x, edge, t, out, lse = ctx.saved_tensors
        wants = _wants(ctx.needs_input_grad, ctx.spec[2])
        vjp = _record_vjp if _grad_enabled() else _vjp
        grads = vjp(x, edge, t, grad, out, lse, ctx.graph, ctx.spec, wants)
        return *_none_unless(wants, grads), None, None


def _vjp(x, edge, t, grad, out, lse, graph, spec, wants):
    with below_autograd():
        return softmax_vjp_op(
            x, edge, t, grad, out, lse, *transposed(graph), *spec, *wants
        )


class _SoftmaxVjp(Function):
    @staticmethod
    def forward(ctx, *arguments):
        return _vjp(*arguments)

    @staticmethod
    def backward(ctx, *grads):
        refuse_twice("softmax_aggregate")


_record_softmax, _record_vjp = eager_apply(_Softmax), eager_apply(_SoftmaxVjp)


def softmax_aggregate(x, edge, t, graph: GraphArgs, spec) -> Tensor:
    """The recorded average; edge may be None."""
    if is_compiling():
        edge = x.new_empty(0) if edge is None else edge
        return softmax_op(x, edge, t, *graph, *spec, True)[0]
    refuse_transforms("softmax_aggregate")
    edge = _ABSENT if edge is None else edge
    if _grad_enabled() and (x.requires_grad or edge.requires_grad or t.requires_grad):
        return _record_softmax(x, edge, t, graph, spec)
    with below_autograd():
        return softmax_op(x, edge, t, *graph, *spec, False)[0]
