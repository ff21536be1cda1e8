"""y[i] = sum over edges e = (j, i) of relu(x_j + lin(a_e)), the message of GINEConv.

PyG writes five tensors of size E x F for it and saves one. Without a projection it is
one op, `gnnoffload.ops.gine`. With one, the projected edge features exist a chunk of
edges at a time; backward projects them again, by source, so that the gradients of x, of
the edge features and of the projection come out of one pass, in a fixed order.
Saved: x, the edge features, the projection. Nothing of size E x F.
"""

import torch
from torch.nn.functional import linear

from gnnoffload import _dispatch_gine
from gnnoffload._dispatch import accumulator, below_autograd, eager_apply
from gnnoffload._dispatch_gine import call_gine_vjp, gine_op, gine_vjp_op
from gnnoffload.nn._edge_chunks import chunks


def relu_message_sum(
    graph, x, edge_attr, weight=None, bias=None, root=None, factor=1.0
):
    """See the module.

    Args
    ----
    graph : Graph of N_src sources, N_dst destinations, E edges
    x : [N_src, F]
    edge_attr : [E, D] in the caller's edge order
    weight, bias : [F, D] and [F] of the projection; None: D = F, no projection
    root : [N_dst, F] of the result's dtype, or None; factor * root is added in place,
        which saves a tensor of its size and a node of the autograd graph

    Returns
    -------
    [N_dst, F] of the promoted dtype
    """
    if torch.compiler.is_compiling():
        y = _whole(graph, x, edge_attr, weight, bias)
        return y if root is None else torch.add(y, root, alpha=factor)
    return _record(graph, x, edge_attr, weight, bias, root, factor)


def _whole(graph, x, edge_attr, weight, bias):
    """With the projection of all edges at once, and differentiable any number of times:
    for torch.compile and second derivatives."""
    edge = _project(edge_attr, weight, bias)
    dtype = _result_dtype(x, edge_attr, weight)
    args = graph.args(with_csc=True)
    return _dispatch_gine.gine(x.to(dtype), edge.to(dtype), args)


def _project(edge_attr, weight, bias):
    return edge_attr if weight is None else linear(edge_attr, weight, bias)


def _result_dtype(x, edge_attr, weight):
    edge = edge_attr if weight is None else weight
    if edge.dtype is x.dtype:
        return x.dtype
    return torch.promote_types(x.dtype, edge.dtype)


def _is_one_op(x, edge_attr, weight):
    return weight is None and edge_attr.dtype is x.dtype


class _ReluMessageSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graph, x, edge_attr, weight, bias, root, factor):
        ctx.graph, ctx.factor = graph, factor
        ctx.save_for_backward(x, edge_attr, weight, bias)
        with below_autograd():  # the ops here record nothing: half their host time
            if _is_one_op(x, edge_attr, weight):
                y = gine_op(x, edge_attr, *graph.args())
            else:
                y = _sum_by_chunks(graph, x, edge_attr, weight, bias)
            return y if root is None else y.add_(root, alpha=factor)

    @staticmethod
    def backward(ctx, grad_y):
        needs = ctx.needs_input_grad[1:6]
        grad_root = grad_y * ctx.factor if needs[4] else None
        if not any(needs[:4]):
            grads = (None,) * 4
        elif torch.is_grad_enabled():  # create_graph
            grads = _differentiable_backward(
                ctx.graph, ctx.saved_tensors, needs, grad_y
            )
        else:
            inputs = ctx.saved_tensors
            with below_autograd():
                grads = _backward(ctx.graph, inputs, needs, grad_y)
        return None, *grads, grad_root, None


_record = eager_apply(_ReluMessageSum)  # layers fall back under torch.func


def _sum_by_chunks(graph, x, edge_attr, weight, bias):
    dtype = _result_dtype(x, edge_attr, weight)
    y = torch.zeros(graph.num_dst, x.shape[1], dtype=dtype, device=x.device)
    x = x.to(dtype)
    for chunk in chunks(graph, x.shape[1] * dtype.itemsize):
        edge = _project(chunk.edges_of(edge_attr), weight, bias)
        y[chunk.row_begin : chunk.row_end] = gine_op(x, edge.to(dtype), *chunk.args)
    return y


def _backward(graph, inputs, needs, grad_y):
    """Gradients of x, edge_attr, weight and bias."""
    x, edge_attr, weight, _ = inputs
    if not _is_one_op(x, edge_attr, weight):
        return _backward_by_chunks(graph, inputs, needs, grad_y)
    args = graph.args(with_csc=True)
    grads = call_gine_vjp(grad_y, x, edge_attr, args, *needs[:2])
    grad_x, grad_attr = (g if n else None for g, n in zip(grads, needs, strict=False))
    return grad_x, grad_attr, None, None


def _backward_by_chunks(graph, inputs, needs, grad_y):
    x, edge_attr, weight, bias = inputs
    need_x, need_attr, need_weight, need_bias, _ = needs
    need_edge = need_attr or need_weight or need_bias
    grad_x = torch.zeros_like(x) if need_x else None
    grad_attr = torch.empty_like(edge_attr) if need_attr else None
    # sums over all chunks: in float32 for 16-bit types
    acc = accumulator(grad_y.dtype)
    grad_weight = torch.zeros_like(weight.t(), dtype=acc) if need_weight else None
    grad_bias = torch.zeros_like(bias, dtype=acc) if need_bias else None
    dtype = grad_y.dtype
    for chunk in chunks(graph.transpose(), x.size(1) * dtype.itemsize):
        attr = chunk.edges_of(edge_attr)
        rows = slice(chunk.row_begin, chunk.row_end)
        edge = _project(attr, weight, bias).to(dtype)
        of_x, grad = gine_vjp_op(
            grad_y, x[rows].to(dtype), edge, *chunk.args, need_x, need_edge
        )
        if need_x:
            grad_x[rows] = of_x
        if weight is not None:
            grad = grad.to(weight.dtype)
        if need_weight:
            grad_weight += attr.t() @ grad
        if need_bias:
            grad_bias += grad.sum(0)
        if need_attr:
            grad = grad if weight is None else grad @ weight
            chunk.put_edges(grad_attr, grad.to(grad_attr.dtype))
    if need_weight:
        grad_weight = grad_weight.t().contiguous().to(weight.dtype)
    if need_bias:
        grad_bias = grad_bias.to(bias.dtype)
    return grad_x, grad_attr, grad_weight, grad_bias


def _differentiable_backward(graph, inputs, needs, grad_y):
    needs = needs[: len(inputs)]
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    with torch.enable_grad():
        y = _whole(graph, *inputs)
    grads = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=True))
    return tuple(next(grads) if need else None for need in needs)
