"""TransformerConv: softmax over neighbours of <q_i, k_j + W_e e> / sqrt(C), fused."""

import math

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.transformer_conv import (
    TransformerConv as PyGTransformerConv,
)

from gnnoffload import _fallback
from gnnoffload.attention import dot_attention, folded_dot_attention
from gnnoffload.nn import _guard
from gnnoffload.nn._attention import (
    differentiable,
    edges_of_call,
    projected_edges,
    projections,
    weights_as_pyg,
)
from gnnoffload.nn._linear import linears

MOST_FOLDED_HEADS = 8  # with more, zeros would outweigh the products with lin_edge


class TransformerConv(PyGTransformerConv):
    """PyG's TransformerConv; scores, softmax and sum in one op, without an E x H x C
    tensor, edge features included.

    Dropout in training and second derivatives: see GATConv.
    """

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class

    def forward(self, x, edge_index, edge_attr=None, return_attention_weights=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, F], or ([N_src, F_src], [N_dst, F_dst])
        edge_attr : [E, edge_dim], in the order of edge_index
        return_attention_weights : if it is a bool, True or False, return
            (out, (edge_index, alpha [E, H])) with alpha before dropout, as PyG does

        Returns
        -------
        [N_dst, H * C], or [N_dst, C] with concat=False

        Memory: [N, H * C] a few times, [N, H, edge_dim] with edge features and, in
        backward, [E, H] twice.
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        wanted = isinstance(return_attention_weights, bool)
        reason = self._reason(pair, edge_attr)
        edges = reason or edges_of_call(
            self, PyGTransformerConv, pair, edge_index, edge_attr, None, wanted
        )
        if isinstance(edges, str):
            return self._forward_pyg(
                edges, x, edge_index, edge_attr, return_attention_weights
            )
        _fallback.count_fast("TransformerConv")

        p = self.dropout if self.training else 0.0
        if not wanted and self._folds(pair, edges.attr):
            return self._folded(edges.graph, *pair, edges.attr, p)
        shape = (-1, self.heads, self.out_channels)
        query, key, value, skip = self._projections(*pair)
        query, key, value = (rows.view(shape) for rows in (query, key, value))
        edge = projected_edges(self, edges.attr)
        attend = (edges.graph, query, key, value)
        if not wanted:
            return self._root(dot_attention(*attend, dropout=p, **edge), skip)
        if p > 0:  # the weights to return are those before dropout
            out = dot_attention(*attend, dropout=p, **edge)
            with torch.no_grad():
                _, alpha = dot_attention(*attend, return_weights=True, **edge)
        else:
            out, alpha = dot_attention(*attend, return_weights=True, **edge)
        ends = edges.graph.edge_index
        alpha = differentiable(
            alpha,
            edges.graph,
            0.0,
            lambda *operands: _scores(*operands, *ends),
            *(query, key, *map(edge.get, ("edge", "edge_attr", "edge_weight"))),
        )
        return self._root(out, skip), weights_as_pyg(edges, alpha, in_matrix=False)

    def _projections(self, x_src, x_dst, *more):
        """[query, key, value, skip or None] and x_dst by each (weight, bias) of `more`;
        what is made of one x is made in one node."""
        of_dst = [self.lin_query, self.lin_skip][: 1 + self.root_weight]
        of_src = [self.lin_key, self.lin_value]
        if x_src is x_dst:
            key, value, *rows = projections(x_src, *of_src, *of_dst, more=more)
        else:
            key, value = projections(x_src, *of_src)
            rows = projections(x_dst, *of_dst, more=more)
        query, *rows = rows
        if not self.root_weight:
            return query, key, value, None, *rows
        return query, key, value, *rows

    def _folds(self, pair, edge_attr):
        """Whether `_folded` does; the layer itself may be in any other state."""
        layers = self.lin_query, self.lin_edge, self.lin_skip
        return (
            edge_attr is not None
            and 0 < edge_attr.shape[1] <= self.out_channels
            and self.heads <= MOST_FOLDED_HEADS
            and self.concat
            and self.root_weight
            and self.lin_beta is None
            and edge_attr.dtype is pair[0].dtype
            and all(map(_guard.is_plain, layers))
        )

    def _folded(self, graph, x_src, x_dst, edge_attr, p):
        """lin_edge [H, C, D] on both sides of the edges, never on them: folded into
        lin_query for the scores, and after the sum for the values."""
        heads, channels = self.heads, self.out_channels
        of_edge = self.lin_edge.weight.view(heads, channels, -1)
        of_query = torch.bmm(
            of_edge.transpose(1, 2), self.lin_query.weight.view(heads, channels, -1)
        ).flatten(0, 1)
        bias = self.lin_query.bias
        if bias is not None:
            bias = (of_edge * bias.view(heads, channels, 1)).sum(dim=1).flatten()
        *rows, skip, q_edge = self._projections(x_src, x_dst, (of_query, bias))
        rows = [row.view(-1, heads, channels) for row in rows]
        out, out_edge = folded_dot_attention(graph, *rows, q_edge, edge_attr, dropout=p)
        (y,) = linears(out_edge.to(out.dtype), (torch.block_diag(*of_edge), None))
        return y.add_(skip).add_(out.flatten(1))

    def _root(self, out, skip):
        """out [N, H, C] with heads joined and skip mixed in."""
        out = out.flatten(1) if self.concat else out.mean(dim=1)
        if skip is None:
            return out
        if self.lin_beta is None:
            return out + skip
        beta = self.lin_beta(torch.cat([out, skip, out - skip], dim=-1)).sigmoid()
        return torch.lerp(out, skip, beta)

    def _reason(self, pair, edge_attr):
        """What only this layer cannot do; None if there is nothing."""
        if pair[1] is None:
            return "no features of destinations (PyG refuses it)"
        if (edge_attr is None) != (self.lin_edge is None):
            return "edge_attr without edge_dim, or the reverse"
        if edge_attr is not None and edge_attr.dim() != 2:
            return "edge_attr is not a matrix"
        return None

    def _forward_pyg(self, reason, x, edge_index, edge_attr, weights):
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (query: Tensor, key: Tensor, value: Tensor, edge_attr: OptTensor)  # noqa: E501
        return super().forward(x, edge_index, edge_attr, weights)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGTransformerConv)


def _scores(query, key, edge, edge_attr, edge_weight, source, destination):
    rows = key[source]
    if edge_attr is not None:
        edge = linear(edge_attr, edge_weight).view_as(rows)
    rows = rows if edge is None else rows + edge
    return (query[destination] * rows).sum(dim=-1) / math.sqrt(query.shape[2])
