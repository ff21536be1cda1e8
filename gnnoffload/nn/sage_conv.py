"""SAGEConv: W_l * reduce over neighbours of x_j + W_r * x_i, without messages."""

from torch import Tensor
from torch.nn.functional import normalize
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.sage_conv import SAGEConv as PyGSAGEConv

from gnnoffload import _fallback
from gnnoffload.nn import _aggregators, _guard
from gnnoffload.nn._adjacency import SPARSE, adjacency
from gnnoffload.nn._aggregate import add_projection, aggregate_and_project
from gnnoffload.nn._linear import through


class SAGEConv(PyGSAGEConv):
    """PyG's SAGEConv; sum, mean, max, min, var, std, lists of them and softmax run
    without a tensor of size E x F."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class
    serves = staticmethod(_aggregators.serves)

    def forward(self, x, edge_index, size=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, F], or ([N_src, F_src], [N_dst, F_dst] or None)

        Returns
        -------
        [N_dst, out_channels]

        Memory: [N, min(in, out)] for a sum or mean, [N, in] for each other statistic,
        and 1 byte an element for max and min (2 or 4 with more than 128 or 32768 edges
        into one destination); nothing of size E x F.
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        reason = _guard.blocked(self, PyGSAGEConv, pair[0])
        adj = reason or adjacency(self, edge_index, pair, size)
        linear = type(self.aggr_module) in _guard.REDUCE
        if not (isinstance(adj, str) or linear) and adj.form is SPARSE and self.fuse:
            adj = f"sparse matrix with aggr={self.aggr}"
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, size)
        _fallback.count_fast("SAGEConv")

        x_src, x_dst = pair
        if self.project:
            x_src = through([self.lin], x_src).relu()
        if linear:
            # as PyG: the values of a SparseTensor are dropped
            weight = adj.values if adj.form is SPARSE else None
            out = aggregate_and_project(
                adj.graph, x_src, weight, _guard.reduction(self), self.lin_l
            )
        else:
            out = _aggregators.reduce_by(adj.graph, x_src, self.aggr_module)
            out = through([self.lin_l], out)
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
