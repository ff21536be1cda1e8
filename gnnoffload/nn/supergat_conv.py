"""SuperGATConv: attention whose logits are also trained to predict edges.

MX: lrelu((a_l W x_j + a_r W x_i) * sigmoid(<W x_i, W x_j>)), SD: lrelu(<..> / sqrt(C)).
Composed of the edge product by head (logits), [E, H] arithmetic, the edge softmax and
the sum by head; no E x H x C tensor. Logits of edges that are no part of the graph come
from the edge product over those edges.
"""

import math

import torch
from torch.nn.functional import dropout, leaky_relu
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.supergat_conv import SuperGATConv as PyGSuperGATConv

from gnnoffload import _fallback
from gnnoffload.attention import edge_softmax
from gnnoffload.graph import Graph
from gnnoffload.nn import _guard
from gnnoffload.nn._attention import edges_of_call, finish
from gnnoffload.ops import sddmm, spmm


class SuperGATConv(PyGSuperGATConv):
    """PyG's SuperGATConv, MX and SD, its self-supervision included.

    Dropout and the sampling of edges draw from torch's and PyG's generators in PyG's
    order: the same seed drops and samples the same edges.
    """

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class

    def forward(self, x, edge_index, neg_edge_index=None, batch=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, F]
        neg_edge_index : [2, E'] the negative edges of training; None: sampled
        batch : [N] graph of each node, for sampling inside graphs

        Returns
        -------
        [N, H * C], or [N, C] with concat=False. In training, `get_attention_loss()`
        is that of this call.

        Memory: [N, H * C] and a few [E, H]; in training also those of negative edges.
        """
        edges = self._reason(edge_index) or edges_of_call(
            self, PyGSuperGATConv, (x, x), edge_index, None
        )
        if isinstance(edges, str):
            return self._forward_pyg(edges, x, edge_index, neg_edge_index, batch)
        _fallback.count_fast("SuperGATConv")

        graph = edges.graph
        x = self.lin(x).view(-1, self.heads, self.out_channels)
        x_dst = edges.pad(x)
        alpha = logits = self._logits(graph, x_dst, x)
        if self.attention_type == "MX":
            alpha = self._mixed(graph, x_dst, x, logits)
        alpha = edge_softmax(graph, leaky_relu(alpha, self.negative_slope))
        alpha = dropout(alpha, p=self.dropout, training=self.training)
        out = spmm(graph, x, alpha)
        if self.training:
            self._supervise(graph, x, logits, neg_edge_index, batch)
        return finish(self, edges.trim(out), None)

    def _logits(self, graph, x_dst, x):
        """[E, H] <x_i, x_j> by head, for SD over sqrt(C)."""
        logits = sddmm(graph, x_dst, x)
        if self.attention_type == "SD":
            logits = logits / math.sqrt(self.out_channels)
        return logits

    def _mixed(self, graph, x_dst, x, logits):
        """[E, H] (a_l x_j + a_r x_i) * sigmoid(logits); the sum of both ends is the
        edge product of (a_r x_i, 1) and (1, a_l x_j)."""
        left = (x * self.att_l).sum(dim=-1, keepdim=True)
        right = (x_dst * self.att_r).sum(dim=-1, keepdim=True)
        right = torch.cat([right, torch.ones_like(right)], dim=-1)
        left = torch.cat([torch.ones_like(left), left], dim=-1)
        ends = sddmm(graph, right, left)
        return ends * logits.sigmoid()

    def _supervise(self, graph, x, logits, negative, batch):
        """Logits and labels of positive and negative edges, as PyG keeps them."""
        edge_index = graph.edge_index
        if self.edge_sample_ratio < 1:
            positive = self.positive_sampling(edge_index)
            logits = self._logits(Graph(positive, graph.size), x, x)
        if negative is None:
            negative = self.negative_sampling(edge_index, graph.num_dst, batch)
        others = self._logits(Graph(negative, graph.size), x, x)
        self.att_x = torch.cat([logits, others])
        self.att_y = self.att_x.new_zeros(self.att_x.size(0))
        self.att_y[: logits.size(0)] = 1.0

    def _reason(self, edge_index):
        """What only this layer cannot do; None if there is nothing."""
        if self.flow != "source_to_target":
            return "flow=target_to_source with positive and negative edges"
        if self.training and torch.compiler.is_compiling():
            return "training under torch.compile"
        layout = getattr(edge_index, "layout", torch.strided)
        if layout is not torch.strided or hasattr(edge_index, "csr"):
            return "sparse matrix with positive and negative edges"
        replaced = "get_attention" in vars(self)
        own = type(self).get_attention is PyGSuperGATConv.get_attention
        return None if own and not replaced else "get_attention() overridden"

    def _forward_pyg(self, reason, x, edge_index, neg_edge_index, batch):
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: Tensor)
        return super().forward(x, edge_index, neg_edge_index, batch)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGSuperGATConv)
