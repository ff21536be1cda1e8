"""The ops of gnnoffload in plain torch: slow, obvious, the oracle of the tests.

Every function gathers its messages as an [E, F] tensor and adds them up; autograd does
the rest. Same names, same arguments, same results as the ops.
"""

import torch
from torch import Tensor

from gnnoffload.graph import Graph
from gnnoffload.reference_attention import (  # noqa: F401
    dot_attention,
    edge_softmax,
    gat,
    gatv2,
)
from gnnoffload.reference_reductions import (  # noqa: F401
    aggregate,
    softmax_aggregate,
)


def _ends(graph, size, src, dst):
    """(source, destination, n_src, n_dst) of a Graph or an edge_index."""
    if isinstance(graph, Graph):
        return *graph.edge_index, *graph.size
    n_src, n_dst = size if size is not None else (src.shape[0], dst.shape[0])
    return *graph.long(), n_src, n_dst


def spmm(
    graph, x, weight=None, reduce="sum", *, row_scale=None, col_scale=None, size=None
) -> Tensor:
    if reduce in ("max", "min"):
        return aggregate(graph, x, (reduce,), size=size)[0]
    source, destination, _, n_dst = _ends(graph, size, x, x)
    message = x.index_select(0, source)
    ones = [1] * (x.dim() - 1)  # a weight for each edge, or for each head of it
    if col_scale is not None:
        message = message * col_scale[source, None]
    if weight is not None:
        message = message * weight[..., None]
    y = message.new_zeros(n_dst, *x.shape[1:]).index_add(0, destination, message)
    if reduce == "mean":
        degree = torch.zeros(n_dst, dtype=torch.int64).index_add(
            0, destination, torch.ones_like(destination)
        )
        y = y / degree.clamp(min=1).view(-1, *ones).to(y.dtype)
    return y if row_scale is None else y * row_scale[:, None]


def sddmm(graph, a, b, *, row_scale=None, col_scale=None, size=None) -> Tensor:
    source, destination, _, _ = _ends(graph, size, b, a)
    z = (a.index_select(0, destination) * b.index_select(0, source)).sum(dim=-1)
    if row_scale is not None:
        z = z * row_scale[destination]
    return z if col_scale is None else z * col_scale[source]


def gine(graph, x, edge, *, size=None) -> Tensor:
    source, destination, _, n_dst = _ends(graph, size, x, x)
    message = (x.index_select(0, source) + edge).relu()
    return message.new_zeros(n_dst, x.shape[1]).index_add(0, destination, message)


def gated(
    graph, u, v, edge=None, *, value="identity", reduce="sum", size=None
) -> Tensor:
    source, destination, _, n_dst = _ends(graph, size, v, u)
    width = v.shape[1] // 2
    message = v.index_select(0, source)
    gate, values = message[:, :width], message[:, width:]
    of_dst = u.index_select(0, destination)
    gate = gate + of_dst[:, :width]
    if of_dst.shape[1] > width:
        values = values + of_dst[:, width:]
    if edge is not None:
        gate, values = gate + edge[:, :width], values + edge[:, width:]
    if value == "softplus":
        values = torch.nn.functional.softplus(values)
    return segment(graph, gate.sigmoid() * values, reduce, size=(v.shape[0], n_dst))


def gather(graph, x, end, *, size=None) -> Tensor:
    source, destination, _, _ = _ends(graph, size, x, x)
    return x[source if end == "src" else destination]


def segment(graph, messages, reduce="sum", *, size=None) -> Tensor:
    _, destination, _, n_dst = _ends(graph, size, None, None)
    y = messages.new_zeros(n_dst, *messages.shape[1:])
    y = y.index_add(0, destination, messages)
    if reduce == "mean":
        degree = torch.bincount(destination, minlength=n_dst).clamp(min=1)
        y = y / degree.view(-1, *[1] * (y.dim() - 1)).to(y.dtype)
    return y
