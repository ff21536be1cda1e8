"""GENConv: MLP(x_i + AGG over edges of relu(x_j + e) + eps), without messages."""

from torch import Tensor
from torch_geometric.nn.aggr import PowerMeanAggregation, SoftmaxAggregation
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.gen_conv import GENConv as PyGGENConv

from gnnoffload import _fallback
from gnnoffload.nn import _aggregators, _guard
from gnnoffload.nn._adjacency import adjacency
from gnnoffload.nn._chunked import in_chunks
from gnnoffload.nn._linear import through
from gnnoffload.ops import gine, spmm
from gnnoffload.reductions import aggregate


class GENConv(PyGGENConv):
    """PyG's GENConv; softmax, power mean and all statistics in one gather."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class
    serves = staticmethod(_aggregators.serves_any)

    def forward(self, x, edge_index, edge_attr=None, size=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Without edge_attr the message relu(x_j) + eps is a node's own, and any
        aggregation of `_aggregators`, or a power mean, gathers it once. With edge_attr
        softmax, sum, mean, max and min are one op each; a power mean, var, std and
        lists run as under `gnnoffload.chunk`, 64 MiB of messages at a time, and so do
        aggregations that are not ours.

        Args
        ----
        x : [N, F], or ([N_src, F_src], [N_dst, F_dst] or None)
        edge_attr : [E, edge_dim] in the order of edge_index

        Returns
        -------
        [N_dst, out_channels]

        Memory: [N, out] for x and the aggregate; with softmax two more to save. With
        edge_attr and a Linear for it, [E, out] for its result.
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        reason = _guard.blocked(self, PyGGENConv, pair[0]) or self._reason(edge_attr)
        adj = reason or adjacency(self, edge_index, pair, size)
        if isinstance(adj, str):
            size = _guard.size_for_pyg(edge_index, size)
            edge_index = _guard.fall_back(self, adj, edge_index)
            # propagate_type: (x: OptPairTensor, edge_attr: OptTensor)
            return super().forward(x, edge_index, edge_attr, size)
        _fallback.count_fast("GENConv")

        x_src, x_dst = pair
        if hasattr(self, "lin_src"):
            x_src = through([self.lin_src], x_src)
        if edge_attr is None:
            out = self._without_edges(adj.graph, x_src, x_dst)
        else:
            out = self._with_edges(adj.graph, x_src, x_dst, edge_attr)
        if hasattr(self, "lin_aggr_out"):
            out = through([self.lin_aggr_out], out)
        if hasattr(self, "msg_norm"):
            out = self.msg_norm(x_src if x_dst is None else x_dst, out)
        if x_dst is not None:
            if hasattr(self, "lin_dst"):
                x_dst = through([self.lin_dst], x_dst)
            out = out + x_dst
        if self.mlp._forward_hooks or self.mlp._forward_pre_hooks:
            return self.mlp(out)
        return through(self.mlp, out)

    def _without_edges(self, graph, x_src, x_dst):
        module = self.aggr_module
        if type(module) is PowerMeanAggregation:
            return self._power_mean(graph, x_src.relu() + self.eps)
        if _aggregators.serves(module):
            return _aggregators.reduce_by(graph, x_src.relu() + self.eps, module)
        return self._in_chunks(graph, x_src, x_dst, None)

    def _power_mean(self, graph, message):
        module = self.aggr_module
        p, limits = module.p, (module.min_value, module.max_value)
        if isinstance(p, (int, float)) and p == 1:
            return spmm(graph, message, reduce="mean")
        y = spmm(graph, message.clamp(*limits).pow(p), reduce="mean")
        return y.clamp(*limits).pow(1.0 / p)

    def _with_edges(self, graph, x_src, x_dst, edge_attr):
        module = self.aggr_module
        names = _aggregators.statistics(module) or ()
        fused = type(module) is SoftmaxAggregation or (
            len(names) == 1 and names[0] in ("sum", "mean", "max", "min")
        )
        if not fused:
            return self._in_chunks(graph, x_src, x_dst, edge_attr)
        edge = self._edge(edge_attr)
        assert x_src.size(-1) == edge.size(-1)  # as PyG
        if type(module) is SoftmaxAggregation:
            return _aggregators.softmax_with_edges(graph, x_src, edge, module, self.eps)
        degree = graph.degree.view(-1, 1).to(x_src.dtype)
        if names[0] in ("max", "min"):  # the greatest passes relu as the greatest
            y = aggregate(graph, x_src, names, edge)[0].relu()
            return y + self.eps * degree.clamp(max=1)
        y = gine(graph, x_src, edge) + self.eps * degree
        return y if names[0] == "sum" else y / degree.clamp(min=1)

    def _edge(self, edge_attr):
        """[E, edge_dim] -> [E, out]"""
        lin = getattr(self, "lin_edge", None)
        if lin is None:
            return edge_attr
        if not _guard.is_plain(lin) or lin.weight.dtype is not edge_attr.dtype:
            return lin(edge_attr)
        y = edge_attr @ lin.weight.t().contiguous()  # see PNAConv: a quicker backward
        return y if lin.bias is None else y + lin.bias

    def _in_chunks(self, graph, x_src, x_dst, edge_attr):
        size = (graph.num_src, graph.num_dst)
        if self.flow != "source_to_target":
            size = size[::-1]
        pair = (x_src, x_dst)
        return in_chunks(self, graph, size, x=pair, edge_attr=edge_attr)

    def _reason(self, edge_attr):
        """What only this layer cannot do; None if there is nothing."""
        if edge_attr is not None and edge_attr.dim() != 2:
            return "edge_attr is not a matrix"
        if any(m._forward_hooks or m._forward_pre_hooks for m in self._watched()):
            return "aggr_module has hooks"
        return None

    def _watched(self):
        return () if self.aggr_module is None else self.aggr_module.modules()

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGGENConv)
