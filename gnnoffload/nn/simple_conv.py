"""SimpleConv: a reduction over neighbours, with the root if asked for."""

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.simple_conv import SimpleConv as PyGSimpleConv

from gnnoffload import _fallback
from gnnoffload.graph import Graph
from gnnoffload.nn import _aggregators, _guard
from gnnoffload.nn._adjacency import PLAIN, adjacency
from gnnoffload.nn._aggregate import aggregate
from gnnoffload.nn._gcn_norm import with_self_loops


class SimpleConv(PyGSimpleConv):
    """PyG's SimpleConv; sum and mean, weighted or not, and max, min, var, std and lists
    of them run without a tensor of size E x F."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class
    serves = staticmethod(_aggregators.serves)

    def forward(self, x, edge_index, edge_weight=None, size=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, F], or ([N_src, F], [N_dst, *] or None)
        edge_weight : [E] in the order of edge_index, may require a gradient; ignored
            for sparse matrices, whose values are the weights (as in PyG)

        Returns
        -------
        [N_dst, F]; [N_dst, * + F] with combine_root="cat"
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        reason = _guard.blocked(self, PyGSimpleConv, pair[0])
        reason = reason or self._reason(x, edge_index, edge_weight, size)
        adj = reason or adjacency(self, edge_index, pair, size)
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, edge_weight, size)
        _fallback.count_fast("SimpleConv")

        x_src, x_dst = pair
        if self._is_linear():
            out = self._linear(adj, x_src, edge_weight)
        else:
            graph = adj.graph
            if self.combine_root == "self_loop":
                graph = with_self_loops(graph, keep_existing=True).graph
            out = _aggregators.reduce_by(graph, x_src, self.aggr_module)
        if x_dst is not None and self.combine_root == "sum":
            return out + x_dst
        if x_dst is not None and self.combine_root == "cat":
            return torch.cat([x_dst, out], dim=-1)
        return out

    def _linear(self, adj, x, edge_weight):
        """The weighted sum or mean, with one more edge of weight 1 from each node to
        itself where the layer adds self-loops."""
        weight = adj.values
        if adj.form is PLAIN and edge_weight is not None:
            weight = edge_weight.view(-1)
        reduce = _guard.reduction(self)
        if self.combine_root != "self_loop":
            return aggregate(adj.graph, x, weight, reduce)
        out = aggregate(adj.graph, x, weight, "sum") + x
        if reduce == "mean":
            out = out / (adj.graph.degree + 1).view(-1, 1).to(out.dtype)
        return out

    def _is_linear(self):
        return type(self.aggr_module) in _guard.REDUCE

    def _reason(self, x, edge_index, edge_weight, size):
        """What only this layer cannot do; None if there is nothing."""
        if self.combine_root == "self_loop":
            if not isinstance(x, Tensor) or (size is not None and size[0] != size[1]):
                return "self_loop with two sets of nodes (PyG refuses it)"
            if not isinstance(edge_index, Tensor | Graph):
                return "SparseTensor with combine_root=self_loop"
            layout = getattr(edge_index, "layout", torch.strided)
            if layout is torch.sparse_csc:
                return "sparse CSC (PyG adds no loops to it)"
            if layout is not torch.strided and self.aggr not in ("sum", "add"):
                return "sparse matrix whose loops are merged before the reduction"
        if not self._is_linear():
            return self._statistics_reason(edge_index, edge_weight)
        return _guard.weight_reason(edge_weight)

    def _statistics_reason(self, edge_index, edge_weight):
        if edge_weight is not None:
            return f"edge_weight with aggr={self.aggr}"
        layout = getattr(edge_index, "layout", torch.strided)
        if layout is not torch.strided or hasattr(edge_index, "csr"):
            return f"sparse matrix with aggr={self.aggr}"
        if self.combine_root == "self_loop" and torch.compiler.is_compiling():
            return f"aggr={self.aggr} with self-loops under torch.compile"
        return None

    def _forward_pyg(self, reason, x, edge_index, edge_weight, size):
        size = _guard.size_for_pyg(edge_index, size)
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: OptPairTensor, edge_weight: OptTensor)
        return super().forward(x, edge_index, edge_weight, size)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGSimpleConv)
