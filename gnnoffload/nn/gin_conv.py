"""GINConv: nn((1 + eps) * x_i + sum over neighbours of x_j), with the sum fused."""

from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.gin_conv import GINConv as PyGGINConv

from gnnoffload import _fallback
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import SPARSE, adjacency
from gnnoffload.nn._aggregate import add_root, aggregate
from gnnoffload.nn._linear import through


class GINConv(PyGGINConv):
    """PyG's GINConv; sum and mean run without a tensor of size E x F."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class

    def forward(self, x, edge_index, size=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, F], or ([N_src, F], [N_dst, F] or None)

        Returns
        -------
        what `self.nn` makes of [N_dst, F]
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        reason = _guard.blocked(self, PyGGINConv, pair[0])
        adj = reason or adjacency(self, edge_index, pair, size)
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, size)
        _fallback.count_fast("GINConv")

        x_src, x_dst = pair
        weight = (
            adj.values if adj.form is SPARSE else None
        )  # as PyG: SparseTensor drops
        out = aggregate(adj.graph, x_src, weight, _guard.reduction(self))
        if x_dst is not None:
            out = add_root(out, x_dst, self.eps)
        return through([self.nn], out)

    def _forward_pyg(self, reason, x, edge_index, size):
        size = _guard.size_for_pyg(edge_index, size)
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: OptPairTensor)
        return super().forward(x, edge_index, size)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGGINConv)
