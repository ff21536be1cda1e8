"""Symmetric normalisation of a graph, kept as one scale per node.

PyG writes a weight s_i * w_e * s_j per edge. Here s = degree^-1/2 stays an N-vector
that the product applies while it gathers (column scale) and when it stores (row scale),
and a self-loop is an ordinary edge of a graph variant, kept on the Graph.

PyG's three rules for self-loops, which differ by the form of the graph:
- edge_index: existing loops go, every node gets one; with weights, a node that had a
  loop keeps its weight (of several, one), others get the fill value; without, all are 1
- SparseTensor: existing loops go, every node gets one of the fill value
- torch.sparse: every node gets one more, of the fill value
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gnnoffload._dispatch import accumulator
from gnnoffload.graph import Graph
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import PLAIN, SPARSE, SPARSE_TENSOR
from gnnoffload.ops import spmm


class Looped(NamedTuple):
    """A graph with self-loops: the kept edges in their order, then one loop a node."""

    graph: Graph
    keep: Tensor | None  # [E'] positions of the kept edges; None: all
    old_node: Tensor | None  # [L] node of each loop that was there; None: no loop
    old_edge: Tensor | None  # [L] its position


def with_self_loops(graph, keep_existing, n_loops=None):
    """The variant of `graph` in which each node has a new self-loop, built once.

    keep_existing : leave loops that are already there (torch.sparse) or drop them
    n_loops : for nodes 0 .. n_loops - 1; None: all
    """
    n_loops = graph.num_dst if n_loops is None else n_loops
    key = ("self_loops", keep_existing, n_loops)
    if key not in graph.cache:
        graph.cache[key] = _build_self_loops(graph, keep_existing, n_loops)
    return graph.cache[key]


def _build_self_loops(graph, keep_existing, n_loops):
    edges = graph.edge_index
    nodes = torch.arange(n_loops, dtype=edges.dtype, device=edges.device)
    keep = old_node = old_edge = None
    is_loop = edges[0] == edges[1]
    if not keep_existing and bool(is_loop.any()):
        keep = (~is_loop).nonzero().view(-1)
        old_edge = is_loop.nonzero().view(-1)
        old_node = edges[0, old_edge].long()
        edges = edges[:, keep]
    edges = torch.cat([edges, nodes.expand(2, n_loops)], dim=1)
    return Looped(Graph(edges, graph.size), keep, old_node, old_edge)


def unweighted_scale(graph, dtype):
    """degree^-1/2 [N], zero for isolated nodes, computed once and kept on the graph."""
    key = ("degree^-1/2", dtype)
    if key not in graph.cache:
        graph.cache[key] = inverse_sqrt(graph.degree.to(dtype))
    return graph.cache[key]


def inverse_sqrt(degree):
    """degree^-1/2, zero where the degree is zero, with a zero gradient there."""
    return degree.masked_fill(degree == 0, float("inf")).pow(-0.5)


def normalized_adjacency(adj, weight, add_self_loops, improved):
    """The graph and the weights (before normalisation) that GCN sums over.

    Args
    ----
    adj : Adjacency; its values take precedence, as in PyG
    weight : [E] or None

    Returns
    -------
    (Graph, weight [E'] or None)
    """
    weight = weight if adj.form == PLAIN else adj.values
    if not add_self_loops:
        return adj.graph, weight
    fill = 2.0 if improved else 1.0
    looped = with_self_loops(adj.graph, keep_existing=adj.form == SPARSE)
    if weight is None and (adj.form == PLAIN or fill == 1.0):
        return looped.graph, None
    if weight is None:
        weight = torch.ones(adj.graph.num_edges, device=looped.graph.device)

    loops = weight.new_full((adj.graph.num_dst,), fill)
    if looped.keep is not None:
        if adj.form != SPARSE_TENSOR:
            old = weight.index_select(0, looped.old_edge)
            loops = loops.index_put((looped.old_node,), old)
        weight = weight.index_select(0, looped.keep)
    return looped.graph, torch.cat([weight, loops])


class Hop:
    """One step x -> A x over a prepared graph: what a layer of K hops repeats.

    y[i] = s_i * sum over edges e = (j, i) of weight[e] * s_j * x[j]
           (+ s_i * loops_i * s_i * x[i])

    graph, weight : [E] or None, what is summed over
    scale : [N] s as a constant, or None
    outer : [N, 1] s as a tensor that needs a gradient (or is traced), or None
    loops : [N] weight of each node's own loop where it is no edge, or None
    dtype : of x and y
    """

    __slots__ = ("dtype", "graph", "loops", "outer", "scale", "weight")

    def __init__(self, graph, weight, dtype, scale=None, outer=None, loops=None):
        self.graph, self.weight, self.dtype = graph, weight, dtype
        self.scale, self.outer, self.loops = scale, outer, loops

    def __call__(self, x):
        """[N, F] -> [N, F] of the hop's dtype."""
        if x.dtype is not self.dtype:
            x = x.to(self.dtype)
        scale = self.scale
        if self.outer is None:
            return spmm(self.graph, x, self.weight, row_scale=scale, col_scale=scale)
        x = self.outer * x
        y = spmm(self.graph, x, self.weight)
        if self.loops is not None:
            y = torch.addcmul(y, self.loops, x)
        return self.outer * y

    def dropped(self, p):
        """This hop with its weights under dropout, drawn as PyG draws them: from
        torch's generator, one number for each edge in PyG's order."""
        weight = self.weight
        if weight is None:
            weight = torch.ones(
                self.graph.num_edges, dtype=self.dtype, device=self.graph.device
            )
        weight = torch.nn.functional.dropout(weight, p)
        return Hop(self.graph, weight, self.dtype, self.scale, self.outer, self.loops)


def plain_hop(adj, weight, dtype):
    """The sum over neighbours as it is, of rows of `dtype`; a weight promotes it."""
    weight = weight if adj.form == PLAIN else adj.values
    if weight is not None:
        weight = weight.view(-1)
        dtype = torch.promote_types(dtype, weight.dtype)
        weight = weight.to(dtype)
    return Hop(adj.graph, weight, dtype)


def normalized_hop(adj, weight, add_self_loops, improved, dtype, x_dtype=None):
    """D^-1/2 A D^-1/2, D the sum of the weights of each node's edges.

    Args
    ----
    weight : [E] or None for all ones; a gradient reaches it through D too
    dtype : dtype of the normalisation in PyG, which the result is promoted to
    x_dtype : dtype of the rows that the hop is for; None: the same

    Numerics: the scales D^-1/2 are float32 for 16-bit inputs.
    """
    x_dtype = dtype if x_dtype is None else x_dtype
    if torch.compiler.is_compiling():
        return _traced_hop(adj, weight, add_self_loops, improved, dtype, x_dtype)
    graph, weight = normalized_adjacency(adj, weight, add_self_loops, improved)
    if weight is not None:
        dtype = weight.dtype
    if x_dtype is not dtype:
        x_dtype = torch.promote_types(x_dtype, dtype)
    acc = accumulator(x_dtype)
    if weight is None:
        return Hop(graph, None, x_dtype, unweighted_scale(graph, acc))

    s = weighted_scale(graph, weight.to(acc))
    weight = weight.to(x_dtype)
    if not s.requires_grad:
        return Hop(graph, weight, x_dtype, s)
    return Hop(graph, weight, x_dtype, outer=s.to(x_dtype).view(-1, 1))


def weighted_scale(graph, weight):
    """(sum of the weights of a node's edges)^-1/2, [N], differentiable in weight."""
    ones = weight.new_ones(graph.num_src, 1)
    return inverse_sqrt(spmm(graph, ones, weight).view(-1))


def _traced_hop(adj, weight, add_self_loops, improved, dtype, x_dtype):
    """The same for torch.compile, without a graph variant, whose size would depend on
    the data: existing self-loops get weight zero, each node's loop is added apart.
    """
    graph = adj.graph
    weight = weight if adj.form == PLAIN else adj.values
    dtype = dtype if weight is None else weight.dtype
    dtype = torch.promote_types(x_dtype, dtype)
    acc = accumulator(dtype)
    src, dst = graph.edge_index.unbind(0)
    loops = None
    if add_self_loops:
        n = graph.num_dst
        fill = 2.0 if improved and weight is not None else 1.0
        loops = torch.full((n,), fill, dtype=acc, device=graph.device)
        if adj.form == PLAIN:
            is_loop = src == dst
            if weight is None:
                weight = torch.ones(src.shape, dtype=acc, device=graph.device)
            else:  # a slot n beyond the nodes swallows the edges that are no loops
                slots = torch.cat([loops, loops[:1]])
                slots = slots.scatter(0, torch.where(is_loop, dst, n), weight.to(acc))
                loops = slots[:n]
            weight = weight.masked_fill(is_loop, 0.0)
    ones = torch.ones(graph.num_src, 1, dtype=acc, device=graph.device)
    degree = spmm(graph, ones, None if weight is None else weight.to(acc)).view(-1)
    s = inverse_sqrt(degree if loops is None else degree + loops)
    weight = None if weight is None else weight.to(dtype)
    loops = None if loops is None else loops.view(-1, 1).to(dtype)
    return Hop(graph, weight, dtype, outer=s.view(-1, 1).to(dtype), loops=loops)


def fill_cache(layer, x, edge_index, edge_weight, improved=False):
    """PyG's cache of a layer's first graph, filled by PyG's gcn_norm: (edges with
    self-loops, their normalised weights)."""
    if layer._cached_edge_index is None:
        if isinstance(edge_index, Graph):
            edge_index = edge_index.edge_index
        layer._cached_edge_index = gcn_norm(
            edge_index,
            edge_weight,
            x.size(0),
            improved,
            layer.add_self_loops,
            layer.flow,
            x.dtype,
        )
    return layer._cached_edge_index


def norm_reason(layer, edge_index, edge_weight):
    """Why a layer of gcn_norm cannot take its fast path; None if it can."""
    if _guard.reduction(layer) != "sum":
        return f"aggr={layer.aggr}"
    normalize = getattr(layer, "normalize", True)
    if normalize and getattr(edge_index, "layout", None) is torch.sparse_csc:
        return "sparse CSC (PyG refuses to normalise it)"
    return _guard.weight_reason(edge_weight)
