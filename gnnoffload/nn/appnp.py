"""APPNP: K times x = (1 - alpha) D^-1/2 (A + I) D^-1/2 x + alpha x_0."""

import torch
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.appnp import APPNP as PyGAPPNP

from gnnoffload import _fallback
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import adjacency
from gnnoffload.nn._gcn_norm import (
    fill_cache,
    norm_reason,
    normalized_hop,
    plain_hop,
)


class APPNP(PyGAPPNP):
    """PyG's APPNP; the normalisation is never written per edge.

    Dropout in training acts on the edge weights, hop after hop on what the last one
    left, drawn from torch's generator in PyG's order: the same seed drops the same
    edges. With `cached=True` the first call stores what PyG stores, and later calls run
    on it whatever graph they are given.
    """

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class

    def forward(self, x, edge_index, edge_weight=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, F]
        edge_weight : [E] in the order of edge_index, may require a gradient; ignored
            for sparse matrices, whose values are the weights (as in PyG)

        Returns
        -------
        [N, F]

        Memory: alpha x_0 and two [N, F] for the hops; with dropout a weight for each
        edge and hop. Nothing of size E x F.
        """
        drops = self.training and self.dropout > 0
        reason = _guard.blocked(self, PyGAPPNP, x)
        reason = reason or self._reason(edge_index, edge_weight, drops)
        adj = reason or adjacency(self, edge_index, (x, x))
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, edge_weight)
        _fallback.count_fast("APPNP")

        if self.cached and self.normalize:
            edge_index, edge_weight = fill_cache(self, x, edge_index, edge_weight)
            adj = adjacency(self, edge_index, (x, x))
        if self.normalize and not self.cached:
            loops = self.add_self_loops
            hop = normalized_hop(adj, edge_weight, loops, False, x.dtype)
        else:
            hop = plain_hop(adj, edge_weight, x.dtype)

        teleport = x * self.alpha if self.K > 0 else None
        for _ in range(self.K):
            if drops:
                hop = hop.dropped(self.dropout)
            x = torch.add(teleport, hop(x), alpha=1 - self.alpha)
        return x

    def _reason(self, edge_index, edge_weight, drops):
        """What only this layer cannot do; None if there is nothing."""
        if self.cached and self.normalize and hasattr(edge_index, "csr"):
            return "cached=True with a SparseTensor"
        if drops and (
            hasattr(edge_index, "csr")
            or getattr(edge_index, "layout", torch.strided) is not torch.strided
        ):
            return "sparse matrix with dropout of its values"
        if drops and torch.compiler.is_compiling():
            return "dropout under torch.compile"
        if drops and not self.normalize and edge_weight is None:
            return "dropout without weights (PyG refuses it)"
        return norm_reason(self, edge_index, edge_weight)

    def _forward_pyg(self, reason, x, edge_index, edge_weight):
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        return super().forward(x, edge_index, edge_weight)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGAPPNP)
