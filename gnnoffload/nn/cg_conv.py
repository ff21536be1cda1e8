"""CGConv: x_i + sum over edges of sigmoid(lin_f z) * softplus(lin_s z),
z = [x_i, x_j, e]."""

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.cg_conv import CGConv as PyGCGConv

from gnnoffload import _fallback
from gnnoffload.nn import _aggregators, _guard
from gnnoffload.nn._adjacency import adjacency
from gnnoffload.nn._edge_mlp import edge_mlp
from gnnoffload.nn._gated import Parts, gated_sum


class CGConv(PyGCGConv):
    """PyG's CGConv; messages are summed where they are made, in one op."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class
    serves = staticmethod(_aggregators.serves_one)

    def forward(self, x, edge_index, edge_attr=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Both Linears of [x_i, x_j, e] are sums of three: two run on nodes, one on the
        edges' attributes.

        Args
        ----
        x : [N, C], or ([N_src, C_src], [N_dst, C])
        edge_attr : [E, dim] in the order of edge_index; None with dim 0

        Returns
        -------
        [N_dst, C]

        Memory: [N_dst, 2 C], [N_src, 2 C] and, for backward, another [N_dst, 2 C]; with
        edge_attr 1 MiB of its projection at a time (64 MiB on CUDA), which under
        torch.compile exists whole. With a maximum or a minimum, 1 MiB of messages and
        what backward makes of them. For second derivatives, all messages.
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        reason = _guard.blocked(self, PyGCGConv, pair[0])
        reason = reason or self._reason(pair, edge_attr)
        adj = reason or adjacency(self, edge_index, pair)
        if isinstance(adj, str):
            edge_index = _guard.fall_back(self, adj, edge_index)
            # propagate_type: (x: PairTensor, edge_attr: OptTensor)
            return super().forward(x, edge_index, edge_attr)
        _fallback.count_fast("CGConv")

        x_src, x_dst = pair
        f, s = self.lin_f, self.lin_s
        weight = torch.cat([f.weight, s.weight])
        bias = None if f.bias is None else torch.cat([f.bias, s.bias])
        widths = (x_dst.shape[1], x_src.shape[1], self.dim)
        on_dst, on_src, on_edge = weight.split(widths, dim=1)
        if edge_attr is None:
            on_edge = None
        (reduce,) = _aggregators.statistics(self.aggr_module)
        if reduce in ("sum", "mean"):
            parts = Parts(on_dst, bias, on_src, None, on_edge)
            out = gated_sum(adj.graph, pair, edge_attr, parts, True, reduce)
        else:
            u, v = linear(x_dst, on_dst, bias), linear(x_src, on_src)
            rest, width = [_Gate()], v.shape[1]
            out = edge_mlp(adj.graph, u, v, rest, reduce, width, edge_attr, on_edge)
        out = out if self.bn is None else self.bn(out)
        return out + x_dst

    def _reason(self, pair, edge_attr):
        """What only this layer cannot do; None if there is nothing."""
        if not isinstance(pair[1], Tensor):
            return "no features of destinations"
        if (edge_attr is None) != (self.dim == 0):
            return "edge_attr and dim go together"
        if edge_attr is not None and edge_attr.dim() != 2:
            return "edge_attr is not a matrix"
        if not all(_guard.is_plain(lin) for lin in (self.lin_f, self.lin_s)):
            return "a Linear has hooks or runs under autocast"
        return None

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGCGConv)


class _Gate:
    """[n, 2 C] -> sigmoid(first half) * softplus(second half)"""

    def __call__(self, z):
        gate, value = z.chunk(2, dim=1)
        return gate.sigmoid() * softplus(value)

    def parameters(self):
        return ()
