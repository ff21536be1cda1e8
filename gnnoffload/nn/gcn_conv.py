"""GCNConv: D^-1/2 (A + I) D^-1/2 X W, in one product with one scale per node."""

import torch
from torch.nn.functional import linear
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.gcn_conv import GCNConv as PyGGCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gnnoffload import _fallback
from gnnoffload.graph import Graph
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import PLAIN, adjacency
from gnnoffload.nn._aggregate import aggregate, projects_first
from gnnoffload.nn._gcn_norm import (
    normalized_adjacency,
    normalized_product,
    traced_product,
)


class GCNConv(PyGGCNConv):
    """PyG's GCNConv; the normalisation is never written per edge.

    With `cached=True` the first call stores what PyG stores (`_cached_edge_index`: the
    edges with self-loops and their normalised weights, [E + N]) and later calls run on
    it whatever graph they are given, as PyG documents.
    """

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class

    def forward(self, x, edge_index, edge_weight=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, in_channels]
        edge_weight : [E] in the order of edge_index, may require a gradient; ignored
            for sparse matrices, whose values are the weights (as in PyG)

        Returns
        -------
        [N, out_channels]

        Memory: [N, min(in, out)] for the product, N scales; nothing of size E x F.
        """
        reason = _guard.blocked(self, PyGGCNConv, x) or self._reason(
            edge_index, edge_weight
        )
        adj = reason or adjacency(self, edge_index, (x, x))
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, edge_weight)
        _fallback.count_fast("GCNConv")

        if self.cached and self.normalize:
            edge_index, edge_weight = self._fill_cache(x, edge_index, edge_weight)
            adj = adjacency(self, edge_index, (x, x))

        dtype = x.dtype
        if self._aggregates_first(adj, x, edge_weight):
            y = self._product(adj, x, edge_weight, dtype)
            return linear(y, self.lin.weight, self.bias)
        y = self._product(adj, self.lin(x), edge_weight, dtype)
        return y if self.bias is None else y + self.bias

    def _reason(self, edge_index, edge_weight):
        """What only this layer cannot do; None if there is nothing."""
        if _guard.reduction(self) != "sum":
            return f"aggr={self.aggr}"
        if self.normalize and getattr(edge_index, "layout", None) is torch.sparse_csc:
            return "sparse CSC (PyG refuses to normalise it)"
        if self.cached and self.normalize and hasattr(edge_index, "csr"):
            return "cached=True with a SparseTensor"
        return _guard.weight_reason(edge_weight)

    def _aggregates_first(self, adj, x, edge_weight):
        """(A X) W instead of A (X W): if narrower, and the dtypes leave the choice."""
        weight = edge_weight if adj.form == PLAIN else adj.values
        if weight is not None and weight.dtype is not x.dtype:
            return False
        return _guard.is_plain(self.lin) and not projects_first(
            adj.graph, x, self.lin.weight
        )

    def _product(self, adj, x, edge_weight, dtype):
        """The normalised sum over neighbours of the rows of x."""
        if self.cached or not self.normalize:
            weight = edge_weight if adj.form == PLAIN else adj.values
            return aggregate(adj.graph, x, weight)
        if torch.compiler.is_compiling():
            return traced_product(
                adj, x, edge_weight, self.add_self_loops, self.improved, dtype
            )
        graph, weight = normalized_adjacency(
            adj, edge_weight, self.add_self_loops, self.improved
        )
        return normalized_product(graph, x, weight, dtype)

    def _fill_cache(self, x, edge_index, edge_weight):
        """PyG's cache of the first graph, filled by PyG's gcn_norm."""
        if self._cached_edge_index is None:
            if isinstance(edge_index, Graph):
                edge_index = edge_index.edge_index
            self._cached_edge_index = gcn_norm(
                edge_index,
                edge_weight,
                x.size(0),
                self.improved,
                self.add_self_loops,
                self.flow,
                x.dtype,
            )
        return self._cached_edge_index

    def _forward_pyg(self, reason, x, edge_index, edge_weight):
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        return super().forward(x, edge_index, edge_weight)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGGCNConv)
