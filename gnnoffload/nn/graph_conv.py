"""GraphConv: W_rel * reduce over edges of w_e * x_j + W_root * x_i, fused."""

from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.graph_conv import GraphConv as PyGGraphConv

from gnnoffload import _fallback
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import PLAIN, adjacency
from gnnoffload.nn._aggregate import add_projection, aggregate_and_project


class GraphConv(PyGGraphConv):
    """PyG's GraphConv; `add` and `mean`, weighted or not, run without E x F tensors."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class

    def forward(self, x, edge_index, edge_weight=None, size=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, F], or ([N_src, F_src], [N_dst, F_dst] or None)
        edge_weight : [E] in the order of edge_index, may require a gradient; ignored
            for sparse matrices, whose values are the weights (as in PyG)

        Returns
        -------
        [N_dst, out_channels]
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        reason = _guard.blocked(self, PyGGraphConv, pair[0])
        reason = reason or _guard.weight_reason(edge_weight)
        adj = reason or adjacency(self, edge_index, pair, size)
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, edge_weight, size)
        _fallback.count_fast("GraphConv")

        weight = adj.values
        if adj.form is PLAIN and edge_weight is not None:
            weight = edge_weight.view(-1)
        out = aggregate_and_project(
            adj.graph, pair[0], weight, _guard.reduction(self), self.lin_rel
        )
        if pair[1] is None:
            return out
        return add_projection(out, pair[1], self.lin_root, made_by=self.lin_rel)

    def _forward_pyg(self, reason, x, edge_index, edge_weight, size):
        size = _guard.size_for_pyg(edge_index, size)
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: OptPairTensor, edge_weight: OptTensor)
        return super().forward(x, edge_index, edge_weight, size)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGGraphConv)
