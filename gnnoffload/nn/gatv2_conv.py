"""GATv2Conv: softmax of <a, lrelu(W_l x_j + W_r x_i + W_e e)>, fused."""

from torch import Tensor
from torch.nn.functional import leaky_relu, linear
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.gatv2_conv import GATv2Conv as PyGGATv2Conv

from gnnoffload import _fallback
from gnnoffload.attention import gatv2
from gnnoffload.nn import _guard
from gnnoffload.nn._attention import (
    differentiable,
    edges_of_call,
    finish,
    projected_edges,
    projections,
    weights_as_pyg,
)


class GATv2Conv(PyGGATv2Conv):
    """PyG's GATv2Conv; scores, softmax and sum in one op, without an E x H x C tensor.

    Edge features of up to 16 columns are projected inside the op; wider ones are
    projected to [E, H * C] first, as PyG does. Dropout in training and second
    derivatives: see GATConv.
    """

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class
    edge_updater = MessagePassing.edge_updater

    def forward(self, x, edge_index, edge_attr=None, return_attention_weights=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, F], or ([N_src, F_src], [N_dst, F_dst])
        edge_attr : [E, edge_dim] or [E], in the order of edge_index
        return_attention_weights : return (out, (edge_index, alpha [E, H])) with the
            self-loops in both and alpha after dropout

        Returns
        -------
        [N_dst, H * C], or [N_dst, C] with concat=False

        Memory: [N, H * C] a few times and, in backward, [E, H] twice; [E, edge_dim]
        with the self-loops' features.
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        wanted = bool(return_attention_weights)
        reason = self._reason(pair, edge_attr)
        edges = reason or edges_of_call(
            self, PyGGATv2Conv, pair, edge_index, edge_attr, None, wanted
        )
        if isinstance(edges, str):
            return self._forward_pyg(
                edges, x, edge_index, edge_attr, return_attention_weights
            )
        _fallback.count_fast("GATv2Conv")

        shape = (-1, self.heads, self.out_channels)
        x_l, x_r = (rows.view(shape) for rows in self._projections(*pair))
        edge = projected_edges(self, edges.attr)
        att, p = self.att[0], self.dropout if self.training else 0.0
        slope = self.negative_slope
        out = gatv2(
            edges.graph,
            x_l,
            edges.pad(x_r),
            att,
            negative_slope=slope,
            dropout=p,
            return_weights=wanted,
            **edge,
        )
        if not wanted:
            return finish(self, edges.trim(out), pair[1])
        ends = edges.graph.edge_index
        alpha = differentiable(
            out[1],
            edges.graph,
            p,
            lambda *operands: _scores(*operands, *ends, slope),
            *(x_l, x_r, att, *map(edge.get, ("edge", "edge_attr", "edge_weight"))),
        )
        return finish(self, out[0], pair[1]), weights_as_pyg(edges, alpha)

    def _projections(self, x_src, x_dst):
        if x_src is not x_dst:
            return *projections(x_src, self.lin_l), *projections(x_dst, self.lin_r)
        if self.share_weights:
            return projections(x_src, self.lin_l) * 2
        return projections(x_src, self.lin_l, self.lin_r)

    def _reason(self, pair, edge_attr):
        """What only this layer cannot do; None if there is nothing."""
        if pair[1] is None:
            return "no features of destinations (PyG refuses it)"
        if edge_attr is not None and self.lin_edge is None:
            return "edge_attr without edge_dim (PyG refuses it)"
        return None

    def _forward_pyg(self, reason, x, edge_index, edge_attr, weights):
        edge_index = _guard.fall_back(self, reason, edge_index)
        # edge_updater_type: (x: PairTensor, edge_attr: OptTensor)
        # propagate_type: (x: PairTensor, alpha: Tensor)
        return super().forward(x, edge_index, edge_attr, weights)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGGATv2Conv)


def _scores(x_l, x_r, att, edge, edge_attr, edge_weight, source, destination, slope):
    rows = x_l[source] + x_r[destination]
    if edge_attr is not None:
        edge = linear(edge_attr, edge_weight).view_as(rows)
    rows = rows if edge is None else rows + edge
    return (leaky_relu(rows, slope) * att).sum(dim=-1)
