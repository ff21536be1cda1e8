"""The ops of gated sums, as `_dispatch` has spmm's.

    gated:      y_i = s_i sum_e sigmoid(gate_e) value_e, dy_du its derivative by u_i
    gated_vjp:  grad_v_j = sum_e grad_edge_e, by source

The gradient of u is grad * dy_du: it needs no pass over the edges. An absent edge or
scale is None here and empty in the ops. gated_vjp takes the graph as gated does and
hands its op the transposed one. It has no formula of its own: second derivatives are
those of the messages one by one (gates.py).
"""

import torch

from gnnoffload._dispatch import _ABSENT, accumulator, transposed

gated_op = torch.ops.gnnoffload.gated.default
gated_vjp_op = torch.ops.gnnoffload.gated_vjp.default


@torch.library.register_fake("gnnoffload::gated")
def _(u, v, edge, scale, *graph_and_options):
    n_rows, wanted = graph_and_options[6], graph_and_options[9]
    wide = accumulator(v.dtype)
    return (
        v.new_empty((n_rows, v.shape[1] // 2)),
        v.new_empty((n_rows if wanted else 0, u.shape[1]), dtype=wide),
    )


@torch.library.register_fake("gnnoffload::gated_vjp")
def _(grad, u, v, edge, scale, *graph_and_options):
    *graph, _softplus, wants_v, wants_edge = graph_and_options
    return (
        v.new_empty((graph[6] if wants_v else 0, v.shape[1])),
        v.new_empty((graph[1].shape[0] if wants_edge else 0, v.shape[1])),
    )


def _setup(ctx, inputs, output):
    u, v, edge, scale, *graph, softplus, _ = inputs
    ctx.graph, ctx.softplus = tuple(graph), softplus
    ctx.save_for_backward(u, v, edge, scale, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    u, v, edge, scale, dy_du = ctx.saved_tensors
    needs_u, needs_v, needs_edge = ctx.needs_input_grad[:3]
    grad_u = grad_of_u(grad, dy_du) if needs_u else None
    grad_v = grad_edge = None
    if needs_v or needs_edge:
        back = transposed(ctx.graph)
        given = grad, u, v, edge, scale, ctx.softplus, back
        grad_v, grad_edge = gated_vjp(*given, needs_v, needs_edge)
    return (
        grad_u,
        grad_v if needs_v else None,
        grad_edge if needs_edge else None,
        *(None,) * 11,
    )


torch.library.register_autograd("gnnoffload::gated", _backward, setup_context=_setup)


def grad_of_u(grad, dy_du):
    """grad [N, F], dy_du [N, F] or [N, 2 F] -> the gradient of u, as wide as dy_du"""
    if dy_du.shape[1] == grad.shape[1]:
        return (grad * dy_du).to(grad.dtype)
    halves = dy_du.view(-1, 2, grad.shape[1])
    return (grad.unsqueeze(1) * halves).to(grad.dtype).view(dy_du.shape)


def call_gated(u, v, edge, scale, softplus, wants_dy_du, graph, absent=_ABSENT):
    """The op itself: (y, dy_du); None is an absent edge or scale."""
    return gated_op(
        u,
        v,
        absent if edge is None else edge,
        absent if scale is None else scale,
        *graph,
        softplus,
        wants_dy_du,
    )


def gated_vjp(grad, u, v, edge, scale, softplus, back, wants_v, wants_edge):
    """The op itself, of the transposed graph: (grad_v, grad_edge)."""
    return gated_vjp_op(
        grad,
        u,
        v,
        _ABSENT if edge is None else edge,
        _ABSENT if scale is None else scale,
        *back,
        softplus,
        wants_v,
        wants_edge,
    )
