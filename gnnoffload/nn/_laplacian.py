"""The scaled Laplacian L^ = 2 L / lambda_max - I of ChebConv, as a product.

| normalization | L               | off the diagonal         | on it |
|---------------|-----------------|--------------------------|-------|
| None          | D - A           | -w_e                     | D     |
| "sym"         | I - D^-½ A D^-½ | -w_e / sqrt(D_i D_j)     | 1     |
| "rw"          | I - D^-1 A      | -w_e / D_first           | 1     |

A has no self-loops: existing ones are dropped. D is, as in PyG, the sum of the weights
of the edges whose FIRST end (row 0 of edge_index) a node is, and "rw" and a lambda_max
of each graph go by that end too.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gnnoffload.nn._gcn_norm import accumulator, inverse_sqrt
from gnnoffload.ops import spmm


class Laplacian(NamedTuple):
    """L x = diagonal x - S (A with weights) T x; its largest entry is `top`."""

    weight: Tensor | None  # [E] minus the entries off the diagonal; None: by scales
    row_scale: Tensor | None  # [N] S, or None
    col_scale: Tensor | None  # [N] T, or None
    diagonal: Tensor | float  # [N] or 1
    top: Tensor | float


class ScaledLaplacian:
    """x [N, F] -> L^ x, of `dtype`; a plain class, as torch.compile wants it.

    graph, laplacian : Graph, Laplacian
    factor : 2 / lambda_max: number, [] or [N] by the first end
    factor_of_rows : where the first ends are destinations
    root : factor * diagonal - 1: number or [N, 1]
    """

    __slots__ = ("dtype", "factor", "factor_of_rows", "graph", "laplacian", "root")

    def __init__(self, graph, laplacian, factor, factor_of_rows, root, dtype):
        self.graph, self.laplacian, self.dtype = graph, laplacian, dtype
        self.factor, self.factor_of_rows, self.root = factor, factor_of_rows, root

    def __call__(self, x):
        x = x if x.dtype is self.dtype else x.to(self.dtype)
        weight, row, col, *_ = self.laplacian
        factor, vector = self.factor, isinstance(self.factor, Tensor)
        vector = vector and factor.dim() == 1
        inner = factor.view(-1, 1) * x if vector and not self.factor_of_rows else x
        y = spmm(self.graph, inner, weight, row_scale=row, col_scale=col)
        if vector:
            y = factor.view(-1, 1) * y if self.factor_of_rows else y
        elif isinstance(factor, Tensor) or factor != 1.0:
            y = factor * y
        if isinstance(self.root, float):
            return -y if self.root == 0.0 else torch.sub(self.root * x, y)
        return self.root * x - y


def scaled_laplacian(
    graph, weight, normalization, lambda_max, batch, dtype, reverse
) -> ScaledLaplacian:
    """L^ of a graph and its weights.

    Args
    ----
    weight : [E] or None for ones, for which L is kept on the graph
    lambda_max, batch : as ChebConv.forward has them
    dtype : of the rows it is for
    reverse : the first end of an edge is its destination (flow=target_to_source)
    """
    if weight is None:
        lap = _unweighted(graph, normalization, dtype, reverse)
    else:
        lap = _weighted(graph, weight.view(-1), normalization, reverse)
        dtype = torch.promote_types(dtype, weight.dtype)
    if lambda_max is None:
        lambda_max = 2.0 * lap.top
    elif isinstance(lambda_max, Tensor) and batch is not None:
        lambda_max = lambda_max[batch] if lambda_max.numel() > 1 else lambda_max
    factor = _reciprocal(lambda_max)
    if isinstance(factor, Tensor):
        if factor.dim() == 1 and factor.numel() == 1:
            factor = factor.view(())
        factor = factor.to(dtype)
    root = factor * lap.diagonal - 1
    if isinstance(root, Tensor):
        root = root.to(dtype)
        root = root.view(-1, 1) if root.dim() == 1 else root
    return ScaledLaplacian(graph, lap, factor, reverse, root, dtype)


def _reciprocal(lambda_max):
    """2 / lambda_max, 0 for a lambda_max of 0 (PyG drops infinite entries)."""
    if isinstance(lambda_max, Tensor):
        factor = 2.0 / lambda_max
        return factor.masked_fill(factor == float("inf"), 0.0)
    return 2.0 / lambda_max if lambda_max else 0.0


def _unweighted(graph, normalization, dtype, reverse):
    key = ("laplacian", normalization, accumulator(dtype), reverse)
    if torch.compiler.is_compiling() or key not in graph.cache:
        ones = torch.ones(graph.num_edges, dtype=dtype, device=graph.device)
        simple = not torch.compiler.is_compiling() and not _has_loops(graph)
        build = _by_scales if simple else _weighted
        lap = build(graph, ones, normalization, reverse)
        if torch.compiler.is_compiling():
            return lap
        graph.cache[key] = lap
    return graph.cache[key]


def _has_loops(graph):
    source, destination = graph.edge_index
    return bool((source == destination).any())


def _by_scales(graph, ones, normalization, reverse):
    """L of a graph without weights and self-loops, all in N-vectors."""
    acc = accumulator(ones.dtype)
    first = graph if reverse else graph.transpose()
    degree = first.degree.to(acc)
    if normalization is None:
        top = float(degree.max()) if degree.numel() else 0.0
        return Laplacian(None, None, None, degree, top)
    if normalization == "sym":
        s = inverse_sqrt(degree)
        return Laplacian(None, s, s, 1.0, 1.0)
    s = degree.reciprocal().masked_fill(degree == 0, 0.0)
    return Laplacian(None, *((s, None) if reverse else (None, s)), 1.0, 1.0)


def _weighted(graph, weight, normalization, reverse):
    """L with its off-diagonal entries as a vector; differentiable in weight [E]."""
    first, second = graph.edge_index.unbind(0)
    weight = weight.masked_fill(first == second, 0.0)
    if reverse:
        first, second = second, first
    degree = weight.new_zeros(graph.num_src).index_add(0, first, weight)
    if normalization is None:
        top = torch.cat([-weight, degree]).max()
        return Laplacian(weight, None, None, degree, top)
    if normalization == "sym":
        s = inverse_sqrt(degree)
        weight = s[first] * weight * s[second]
    else:
        s = (1.0 / degree).masked_fill(degree == 0, 0.0)
        weight = s[first] * weight
    top = torch.cat([-weight, weight.new_ones(1)]).max()
    return Laplacian(weight, None, None, 1.0, top)
