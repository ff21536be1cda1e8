"""PyG's aggregation modules in terms of our reductions.

| module                                  | served by                                |
|-----------------------------------------|------------------------------------------|
| Sum, Mean, Max, Min, Var, Std, one or a | `aggregate`, one gather for all of them  |
| list of them put side by side           |                                          |
| Softmax                                 | `softmax_aggregate`                      |

Var and Std with `semi_grad` are not.
"""

import torch
from torch_geometric.nn import aggr

from gnnoffload.ops import spmm
from gnnoffload.reductions import aggregate, softmax_aggregate

_NAMES = {
    aggr.SumAggregation: "sum",
    aggr.MeanAggregation: "mean",
    aggr.MaxAggregation: "max",
    aggr.MinAggregation: "min",
    aggr.VarAggregation: "var",
    aggr.StdAggregation: "std",
}


def statistics(module):
    """The names, in order, that `aggregate` takes for a module; None if it has none."""
    if type(module) is not aggr.MultiAggregation:
        name = _name(module)
        return None if name is None else (name,)
    names = tuple(_name(m) for m in module.aggrs)
    if None in names or (module.mode != "cat" and len(names) > 1):
        return None
    return names


def _name(module):
    name = _NAMES.get(type(module))
    variance = getattr(module, "var_aggr", module)
    return None if getattr(variance, "semi_grad", False) else name


def serves(module):
    """Whether `reduce_by` can stand for the module."""
    return type(module) is aggr.SoftmaxAggregation or statistics(module) is not None


def serves_one(module):
    """Whether the module is a sum, mean, max or min."""
    return statistics(module) in (("sum",), ("mean",), ("max",), ("min",))


def serves_any(module):
    """For layers that have a way of their own for every module."""
    return True


def reduce_by(graph, x, module):
    """What the module makes of x_j over the edges: [N_dst, F times its statistics]."""
    if type(module) is aggr.SoftmaxAggregation:
        return softmax_aggregate(graph, x, module.t, semi_grad=_semi(module))
    names = statistics(module)
    if len(names) == 1 and names[0] not in ("var", "std"):
        return spmm(graph, x, reduce=names[0])
    return torch.cat(aggregate(graph, x, names), dim=1)


def _semi(module):
    return module.semi_grad and not module.learn


def softmax_with_edges(graph, x, edge, module, eps):
    """The softmax of relu(x_j + edge) + eps."""
    return softmax_aggregate(
        graph, x, module.t, edge, relu=True, eps=eps, semi_grad=_semi(module)
    )
