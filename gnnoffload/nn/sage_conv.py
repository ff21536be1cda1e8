"""SAGEConv: W_l * reduce over neighbours of x_j + W_r * x_i, fused for sum and mean."""

from torch import Tensor
from torch.nn.functional import normalize
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.sage_conv import SAGEConv as PyGSAGEConv

from gnnoffload import _fallback
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import SPARSE, adjacency
from gnnoffload.nn._aggregate import add_projection, aggregate_and_project


class SAGEConv(PyGSAGEConv):
    """PyG's SAGEConv; `sum`/`add` and `mean` run without a tensor of size E x F."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class

    def forward(self, x, edge_index, size=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, F], or ([N_src, F_src], [N_dst, F_dst] or None)

        Returns
        -------
        [N_dst, out_channels]

        Memory: [N, min(in, out)] for the aggregate; nothing of size E x F.
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        reason = _guard.blocked(self, PyGSAGEConv, pair[0])
        adj = reason or adjacency(self, edge_index, pair, size)
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, size)
        _fallback.count_fast("SAGEConv")

        x_src, x_dst = pair
        if self.project:
            x_src = self.lin(x_src).relu()
        weight = (
            adj.values if adj.form is SPARSE else None
        )  # as PyG: SparseTensor drops
        out = aggregate_and_project(
            adj.graph, x_src, weight, _guard.reduction(self), self.lin_l
        )
        if self.root_weight and x_dst is not None:
            out = add_projection(out, x_dst, self.lin_r, made_by=self.lin_l)
        return normalize(out, p=2.0, dim=-1) if self.normalize else out

    def _forward_pyg(self, reason, x, edge_index, size):
        size = _guard.size_for_pyg(edge_index, size)
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: OptPairTensor)
        return super().forward(x, edge_index, size)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGSAGEConv)
