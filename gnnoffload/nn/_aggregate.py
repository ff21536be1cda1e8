"""Aggregation and projection in the cheaper order, in the dtype PyG would use."""

import torch
from torch.nn.functional import linear

from gnnoffload.nn._guard import is_plain
from gnnoffload.ops import spmm


def aggregate(graph, x, weight=None, reduce="sum"):
    """y[i] = reduce over edges e = (j, i) of weight[e] * x[j]

    Args
    ----
    x : [N_src, F]
    weight : [E] in the caller's edge order, or None
    reduce : "sum" or "mean" (the mean divides by the number of edges)

    Returns
    -------
    [N_dst, F] of the promoted dtype of x and weight, as `weight.view(-1, 1) * x_j` has.
    """
    if weight is not None and weight.dtype is not x.dtype:
        dtype = torch.promote_types(x.dtype, weight.dtype)
        x, weight = x.to(dtype), weight.to(dtype)
    return spmm(graph, x, weight, reduce)


def aggregate_and_project(graph, x, weight, reduce, lin):
    """lin(aggregate(x)) with the product moved before the aggregation when that is less
    work: A (X W) = (A X) W for sum and mean.

    Memory: spmm reads the narrower of the two widths per edge.
    """
    same_dtype = weight is None or weight.dtype is x.dtype
    if not same_dtype or not is_plain(lin) or not projects_first(graph, x, lin.weight):
        return lin(aggregate(graph, x, weight, reduce))
    y = spmm(graph, linear(x, lin.weight), weight, reduce)
    return y if lin.bias is None else y + lin.bias


def projects_first(graph, x, lin_weight):
    """Whether to gather rows of width F_out rather than F_in.

    A forward and, if its input needs a gradient, a backward product are paid. Gathering
    x itself costs no backward when x needs none; the projected x always does. The
    projection runs over source rows, so it stays last when sources outnumber
    destinations (a sampled block).
    """
    f_out, f_in = lin_weight.shape
    if graph.num_src > graph.num_dst:
        return False
    free_backward = not x.requires_grad and lin_weight.requires_grad
    return f_in > (2 * f_out if free_backward else f_out)
