"""SGConv: W (D^-1/2 (A + I) D^-1/2)^K x, projected before or after the K hops."""

from torch.nn.functional import linear
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.sg_conv import SGConv as PyGSGConv

from gnnoffload import _fallback
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import adjacency
from gnnoffload.nn._aggregate import projects_first
from gnnoffload.nn._gcn_norm import norm_reason, normalized_hop


class SGConv(PyGSGConv):
    """PyG's SGConv; the normalisation is never written per edge.

    With `cached=True` the first call stores A^K x in `_cached_x`, as PyG does, and
    later calls project it whatever they are given.
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

        Memory: two [N, min(in, out)] for the hops; nothing of size E x F.
        """
        if self._cached_x is not None:
            return self.lin(self._cached_x.detach())
        reason = _guard.blocked(self, PyGSGConv, x)
        reason = reason or norm_reason(self, edge_index, edge_weight)
        adj = reason or adjacency(self, edge_index, (x, x))
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, edge_weight)
        _fallback.count_fast("SGConv")

        loops = self.add_self_loops
        hop = normalized_hop(adj, edge_weight, loops, False, x.dtype)
        if not self.cached and self._projects_first(adj, x, hop):
            x = linear(x, self.lin.weight)
            for _ in range(self.K):
                x = hop(x)
            return x if self.lin.bias is None else x + self.lin.bias
        for _ in range(self.K):
            x = hop(x)
        if self.cached and self.K > 0:
            self._cached_x = x
        return self.lin(x)

    def _projects_first(self, adj, x, hop):
        return (
            hop.dtype is x.dtype
            and _guard.is_plain(self.lin)
            and projects_first(adj.graph, x, self.lin.weight)
        )

    def _forward_pyg(self, reason, x, edge_index, edge_weight):
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        return super().forward(x, edge_index, edge_weight)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGSGConv)
