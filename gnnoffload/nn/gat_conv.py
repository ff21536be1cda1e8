"""GATConv: softmax over neighbours of lrelu(a_s W x_j + a_d W x_i + a_e W_e e), fused.

The scores of nodes are H numbers a node, those of edges H numbers an edge: att_edge is
folded into lin_edge as a [H, edge_dim] matrix, so [E, H, C] never exists.
"""

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.gat_conv import GATConv as PyGGATConv

from gnnoffload import _fallback
from gnnoffload.attention import gat
from gnnoffload.nn import _guard
from gnnoffload.nn._attention import (
    differentiable,
    edges_of_call,
    finish,
    weights_as_pyg,
)
from gnnoffload.nn._linear import linears


class GATConv(PyGGATConv):
    """PyG's GATConv; scores, softmax and sum in one op, without an E x H x C tensor.

    Dropout in training draws one seed from torch's generator and decides on each edge
    and head by a counter, in backward again: other edges than PyG drops for the same
    torch seed, the same distribution, nothing stored.

    A second derivative (`create_graph=True`) raises NotImplementedError:
    `gnnoffload.revert(layer)` gives it PyG's class again, which has one.
    """

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class
    edge_updater = MessagePassing.edge_updater

    def forward(
        self, x, edge_index, edge_attr=None, size=None, return_attention_weights=None
    ):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, F], or ([N_src, F_src], [N_dst, F_dst] or None)
        edge_attr : [E, edge_dim] or [E], in the order of edge_index
        size : (N_src, N_dst)
        return_attention_weights : return (out, (edge_index, alpha [E, H])) with the
            self-loops in both and alpha after dropout

        Returns
        -------
        [N_dst, H * C], or [N_dst, C] with concat=False

        Memory: [N, H * C] a few times; [E, H] scores of edges and, in backward, twice
        more; [E, edge_dim] with the self-loops' features.
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        wanted = bool(return_attention_weights)
        edges = edges_of_call(
            self, PyGGATConv, pair, edge_index, edge_attr, size, wanted
        )
        if isinstance(edges, str):
            return self._forward_pyg(
                edges, x, edge_index, edge_attr, size, return_attention_weights
            )
        _fallback.count_fast("GATConv")

        x_src, score_src, score_dst = self._nodes(*pair, edges.adj.graph)
        scores = (score_src, edges.pad(score_dst), self._edge_scores(edges.attr))
        p = self.dropout if self.training else 0.0
        slope = self.negative_slope
        out = gat(
            edges.graph,
            x_src,
            *scores,
            negative_slope=slope,
            dropout=p,
            return_weights=wanted,
        )
        out, alpha = out if wanted else (out, None)
        if x_src.dtype is not self.att_src.dtype:  # autocast: PyG's scores promote
            out = out.to(torch.promote_types(x_src.dtype, self.att_src.dtype))
        out = finish(self, edges.trim(out), pair[1])
        if not wanted:
            return out
        ends = edges.graph.edge_index
        alpha = differentiable(
            alpha, edges.graph, p, lambda *s: _scores(*s, *ends, slope), *scores
        )
        return out, weights_as_pyg(edges, alpha)

    def _nodes(self, x, x_dst, graph):
        """(x_src [N_src, H, C], score_src [N_src, H], score_dst [N_dst, H])"""
        shape = (-1, self.heads, self.out_channels)
        lin_src = self.lin if self.lin is not None else self.lin_src
        lin_dst = self.lin if self.lin is not None else self.lin_dst
        if x_dst is x and lin_dst is lin_src:
            x_src, both = _projected(lin_src, x, self.att_src, self.att_dst)
            return x_src.view(shape), *both.split(self.heads, dim=1)
        x_src, score_src = _projected(lin_src, x, self.att_src)
        x_src = x_src.view(shape)
        if x_dst is None:
            return x_src, score_src, score_src.new_zeros(graph.num_dst, self.heads)
        return x_src, score_src, _folded_scores(lin_dst, x_dst, self.att_dst)

    def _edge_scores(self, edge_attr):
        """[E, H] of edge_attr [E, edge_dim] or [E]; None without it or lin_edge"""
        if edge_attr is None or self.lin_edge is None:
            return None
        if edge_attr.dim() == 1:
            edge_attr = edge_attr.view(-1, 1)
        return _folded_scores(self.lin_edge, edge_attr, self.att_edge)

    def _forward_pyg(self, reason, x, edge_index, edge_attr, size, weights):
        size = _guard.size_for_pyg(edge_index, size)
        edge_index = _guard.fall_back(self, reason, edge_index)
        # edge_updater_type: (alpha: OptPairTensor, edge_attr: OptTensor)
        # propagate_type: (x: OptPairTensor, alpha: Tensor)
        return super().forward(x, edge_index, edge_attr, size, weights)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGGATConv)


def _projected(lin, x, *atts):
    """lin(x) [N, H * C], and (lin(x) * att).sum(-1) [N, H] of each att [1, H, C], side
    by side, without a product of the size of lin(x).

    The scores are one GEMM, of x or of lin(x): the narrower (of width 32 instead of 128
    that is half the time of the whole projection step, forward and backward, on a CPU).
    """
    if _guard.is_plain(lin) and x.shape[1] <= lin.weight.shape[0]:
        return linears(x, (lin.weight, lin.bias), (_folded_weight(lin, *atts), None))
    projected = lin(x)
    heads, width = atts[0].shape[1:]
    eye = torch.eye(heads, dtype=projected.dtype, device=x.device)
    eye = eye.view(heads, 1, heads)
    columns = [att.view(heads, width, 1) * eye for att in atts]
    return projected, projected @ torch.cat(columns, dim=2).view(heads * width, -1)


def _folded_scores(lin, x, *atts):
    """(lin(x) * att).sum(-1) [N, H] of each att [1, H, C], side by side, as a product
    of x with an [H * len(atts), in] matrix; lin(x) itself is not made."""
    heads, width = atts[0].shape[1:]
    if not _guard.is_plain(lin):
        projected = lin(x).view(-1, heads, width)
        return torch.cat([(projected * att).sum(dim=-1) for att in atts], dim=1)
    return linears(x, (_folded_weight(lin, *atts), None))[0]


def _folded_weight(lin, *atts):
    """[H * len(atts), in], of which the scores of x are a product"""
    heads, width = atts[0].shape[1:]
    weight = lin.weight.view(heads, width, -1)
    rows = [(weight * att.view(heads, width, 1)).sum(dim=1) for att in atts]
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def _scores(score_src, score_dst, score_edge, source, destination, slope):
    scores = score_src[source] + score_dst[destination]
    return leaky_relu(scores if score_edge is None else scores + score_edge, slope)
