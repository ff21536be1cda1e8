"""The ops of `gnnoffload.attention` in plain torch: slow, obvious, the oracle of the
tests. Every function makes its messages as an [E, H, C] tensor; autograd does the rest.
"""

import math

import torch
from torch import Tensor

from gnnoffload.graph import Graph, as_graph


def _ends(graph, size):
    """(source, destination, n_dst) of a Graph or an edge_index."""
    if not isinstance(graph, Graph):
        graph = as_graph(graph, size)[0]
    return *graph.edge_index, graph.num_dst


def edge_softmax(graph, scores, *, size=None) -> Tensor:
    _, destination, n_dst = _ends(graph, size)
    index = destination.view(-1, *[1] * (scores.dim() - 1)).expand_as(scores)
    top = torch.full((n_dst, *scores.shape[1:]), -math.inf, dtype=scores.dtype)
    top = top.scatter_reduce(0, index, scores.detach(), "amax")
    e = (scores - top[destination]).exp()
    total = torch.zeros_like(top).index_add(0, destination, e)
    return e / total[destination]
