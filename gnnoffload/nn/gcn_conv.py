"""GCNConv: D^-1/2 (A + I) D^-1/2 X W, in one product with one scale per node."""

from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.gcn_conv import GCNConv as PyGGCNConv

from gnnoffload import _fallback
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import PLAIN, adjacency
from gnnoffload.nn._aggregate import projects_first
from gnnoffload.nn._gcn_norm import (
    fill_cache,
    norm_reason,
    normalized_hop,
    plain_hop,
)
from gnnoffload.nn._linear import projected, through


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
            edge_index, edge_weight = fill_cache(
                self, x, edge_index, edge_weight, self.improved
            )
            adj = adjacency(self, edge_index, (x, x))

        dtype = x.dtype
        if self._aggregates_first(adj, x, edge_weight):
            y = self._product(adj, x, edge_weight, dtype)
            return projected(y, self.lin.weight, self.bias)
        y = self._product(adj, through([self.lin], x), edge_weight, dtype)
        return y if self.bias is None else y + self.bias

    def _reason(self, edge_index, edge_weight):
        """What only this layer cannot do; None if there is nothing."""
        if self.cached and self.normalize and hasattr(edge_index, "csr"):
            return "cached=True with a SparseTensor"
        return norm_reason(self, edge_index, edge_weight)

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
            return plain_hop(adj, edge_weight, x.dtype)(x)
        loops, improved = self.add_self_loops, self.improved
        return normalized_hop(adj, edge_weight, loops, improved, dtype, x.dtype)(x)

    def _forward_pyg(self, reason, x, edge_index, edge_weight):
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        return super().forward(x, edge_index, edge_weight)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGGCNConv)
