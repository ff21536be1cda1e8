"""Aggregation and projection in the cheaper order, in the dtype PyG would use."""

import torch

from gnnoffload._dispatch import is_transformed
from gnnoffload.nn._guard import is_plain
from gnnoffload.nn._linear import is_tall, projected
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
    if not same_dtype or not is_plain(lin):
        return lin(aggregate(graph, x, weight, reduce))
    w, bias = lin._parameters["weight"], lin._parameters["bias"]
    if not projects_first(graph, x, w):
        return projected(spmm(graph, x, weight, reduce), w, bias)
    y = spmm(graph, projected(x, w), weight, reduce)
    return y if bias is None else y + bias


def add_projection(y, x, lin, made_by):
    """y + lin(x) for a lin without bias, in place when that is the same.

    y is overwritten when nobody else can hold it: `made_by`, the module whose output it
    is, is plain (no hooks). That is one [N_dst, F_out] less at the peak.
    """
    w = lin._parameters.get("weight")
    if not (w is not None and y.dtype is x.dtype is w.dtype and is_plain(lin)):
        return y + lin(x)
    if lin._parameters["bias"] is not None:
        return y + lin(x)
    in_place = is_plain(made_by) and not is_transformed()
    if in_place and is_tall(x, w):
        return y.add_(projected(x, w))
    return y.addmm_(x, w.t()) if in_place else torch.addmm(y, x, w.t())


def add_root(y, x, eps):
    """y + (1 + eps) * x, the root term of GIN; eps [1] is a parameter or a buffer."""
    factor = constant_factor(eps, x) if x.dtype is y.dtype else None
    if factor is None:
        return torch.addcmul(y, x, 1 + eps)
    return torch.add(y, x, alpha=factor)


def constant_factor(eps, x):
    """1 + eps as a number where eps is a constant of x's dtype, else None."""
    constant = not eps.requires_grad and eps.dtype is x.dtype and eps.is_cpu
    if constant and not torch.compiler.is_compiling():
        return 1.0 + eps.item()
    return None


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
