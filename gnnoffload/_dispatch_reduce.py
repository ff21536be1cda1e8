"""The ops of aggregation, as `_dispatch` has spmm's: fake kernels, formulas for
torch.compile and an eager route.

`which` is a sum of `1 << REDUCE.index(name)`. What is absent or not wanted is an empty
tensor in the ops and None here. The gradients are not differentiable again: their own
backward raises by name.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_compiling

from gnnoffload._dispatch import (
    _ABSENT,
    GraphArgs,
    _grad_enabled,
    accumulator,
    below_autograd,
    eager_apply,
    is_transformed,
)

REDUCE = ("sum", "mean", "min", "max", "var", "std")
_MIN, _MAX, _STD = 4, 8, 32  # bits of `which`
_NEEDS_X = 4 | 8 | 16 | 32
_NEEDS_MEAN = 16 | 32

aggregate_op = torch.ops.gnnoffload.aggregate.default
aggregate_vjp_op = torch.ops.gnnoffload.aggregate_vjp.default


def refuse_transforms(name):
    """The transforms that the fused ops of this file do not have, by name."""
    if not is_compiling() and is_transformed():
        raise NotImplementedError(
            f"{name}: torch.func transforms and forward-mode differentiation are not "
            "supported"
        )


def refuse_twice(name):
    raise NotImplementedError(f"{name}: differentiable once, not twice")


# ------------------------------------------------------------------------- fake kernels

_ARGS = {0: torch.int8, 8: torch.int8, 16: torch.int16, 32: torch.int32}


@torch.library.register_fake("gnnoffload::aggregate")
def _(x, edge, *graph_and_more):
    *graph, which, arg_bits, wants_mean = graph_and_more

    def rows(wanted, dtype=x.dtype):
        return x.new_empty((graph[6] if wanted else 0, x.shape[1]), dtype=dtype)

    values = [rows(which & 1 << r) for r in range(len(REDUCE))]
    args = [rows(arg_bits and which & bit, _ARGS[arg_bits]) for bit in (_MIN, _MAX)]
    return *values, *args, rows(wants_mean, accumulator(x.dtype))


@torch.library.register_fake("gnnoffload::aggregate_vjp")
def _(x, edge, *more):
    graph, wants_x, wants_edge = more[12:20], more[21], more[22]
    return (
        x.new_empty((graph[7] if wants_x else 0, x.shape[1])),
        x.new_empty((graph[1].shape[0] if wants_edge else 0, x.shape[1])),
    )


# ---------------------------------------------------------------------------- gradients


def _save(ctx, x, edge, which, outputs):
    """Keeps what the gradients of `which` read; outputs as the op gives them."""
    *values, arg_min, arg_max, mean = outputs
    if which & _NEEDS_MEAN and mean.numel() == 0:
        mean = values[1]  # in the accumulator's dtype as it is
    kept = (values[REDUCE.index("min")], values[REDUCE.index("max")], values[5])
    ctx.which = which
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, edge, *kept, arg_min, arg_max, mean)


def _vjp_arguments(ctx, grads, absent):
    """What aggregate_vjp takes in front of the graph; grads by statistic, or None."""
    x, edge, *saved = ctx.saved_tensors
    return x, edge, *(absent if g is None else g for g in grads), *saved


def _wants_mean(which, dtype):
    """Whether VAR or STD need a mean besides the one that is asked for."""
    return bool(which & _NEEDS_MEAN) and (
        not which & 2 or dtype not in (torch.float32, torch.float64)
    )


# ----------------------------------------------------------- formulas for torch.library


def _setup(ctx, inputs, output):
    x, edge, *graph, which, _arg_bits, _wants_mean = inputs
    ctx.graph = tuple(graph)
    _save(ctx, x, edge, which, output)


def _backward(ctx, *grads):
    x = ctx.saved_tensors[0]
    wants = ctx.needs_input_grad[:2]
    arguments = _vjp_arguments(ctx, grads[:6], x.new_empty(0))
    d_x, d_edge = aggregate_vjp_op(*arguments, *ctx.graph, ctx.which, *wants)
    return d_x if wants[0] else None, d_edge if wants[1] else None, *(None,) * 11


def _vjp_setup(ctx, inputs, output):
    pass


def _vjp_backward(ctx, *grads):
    refuse_twice("aggregate")


torch.library.register_autograd(
    "gnnoffload::aggregate", _backward, setup_context=_setup
)
torch.library.register_autograd(
    "gnnoffload::aggregate_vjp", _vjp_backward, setup_context=_vjp_setup
)


# -------------------------------------------------------------------------- eager route


class _Aggregate(Function):
    @staticmethod
    def forward(ctx, x, edge, graph, which, arg_bits):
        with below_autograd():
            outputs = aggregate_op(
                x, edge, *graph, which, arg_bits, _wants_mean(which, x.dtype)
            )
        ctx.graph = graph
        _save(ctx, x, edge, which, outputs)
        return tuple(y for r, y in enumerate(outputs[:6]) if which & 1 << r)

    @staticmethod
    def backward(ctx, *grads):
        grads = iter(grads)
        grads = [next(grads) if ctx.which & 1 << r else None for r in range(6)]
        arguments = _vjp_arguments(ctx, grads, _ABSENT)
        wants = ctx.needs_input_grad[:2]
        vjp = _record_vjp if _grad_enabled() else _vjp
        d_x, d_edge = vjp(arguments, ctx.graph, ctx.which, *wants, *arguments[:8])
        return d_x if wants[0] else None, d_edge if wants[1] else None, None, None, None


def _vjp(arguments, graph, which, wants_x, wants_edge, *recorded):
    with below_autograd():
        return aggregate_vjp_op(*arguments, *graph, which, wants_x, wants_edge)


class _AggregateVjp(Function):
    """For create_graph=True: `recorded` are the arguments it would be a function of."""

    @staticmethod
    def forward(ctx, *arguments):
        return _vjp(*arguments)

    @staticmethod
    def backward(ctx, *grads):
        refuse_twice("aggregate")


_record_aggregate, _record_vjp = eager_apply(_Aggregate), eager_apply(_AggregateVjp)


def aggregate(x, edge, graph: GraphArgs, which, arg_bits) -> tuple[Tensor, ...]:
    """The recorded statistics in `which`, in the order of REDUCE; edge may be None.
    arg_bits is 0 where nothing is recorded."""
    if is_compiling():
        edge = x.new_empty(0) if edge is None else edge
        outputs = aggregate_op(
            x, edge, *graph, which, arg_bits, _wants_mean(which, x.dtype)
        )
        return tuple(y for r, y in enumerate(outputs[:6]) if which & 1 << r)
    refuse_transforms("aggregate")
    edge = _ABSENT if edge is None else edge
    if arg_bits:
        return _record_aggregate(x, edge, graph, which, arg_bits)
    with below_autograd():
        outputs = aggregate_op(x, edge, *graph, which, 0, False)
    return tuple(y for r, y in enumerate(outputs[:6]) if which & 1 << r)
