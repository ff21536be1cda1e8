"""LGConv: D^-1/2 A D^-1/2 x, the propagation of LightGCN; no parameters."""

from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.lg_conv import LGConv as PyGLGConv

from gnnoffload import _fallback
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import adjacency
from gnnoffload.nn._gcn_norm import norm_reason, normalized_hop, plain_hop


class LGConv(PyGLGConv):
    """PyG's LGConv; the normalisation is never written per edge."""

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
        [N, F], nothing else of its size; no E x F tensor
        """
        reason = _guard.blocked(self, PyGLGConv, x)
        reason = reason or norm_reason(self, edge_index, edge_weight)
        adj = reason or adjacency(self, edge_index, (x, x))
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, edge_weight)
        _fallback.count_fast("LGConv")
        if self.normalize:
            return normalized_hop(adj, edge_weight, False, False, x.dtype)(x)
        return plain_hop(adj, edge_weight, x.dtype)(x)

    def _forward_pyg(self, reason, x, edge_index, edge_weight):
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        return super().forward(x, edge_index, edge_weight)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGLGConv)
