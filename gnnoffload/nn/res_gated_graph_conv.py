"""ResGatedGraphConv: sum over edges of act(k_i + q_j) * v_j, where k, q, v may see the
edge's attributes."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.res_gated_graph_conv import (
    ResGatedGraphConv as PyGResGatedGraphConv,
)

from gnnoffload import _fallback
from gnnoffload.nn import _aggregators, _guard
from gnnoffload.nn._adjacency import adjacency
from gnnoffload.nn._edge_mlp import edge_mlp
from gnnoffload.nn._gated import Parts, gated_sum

ACTS = (nn.Sigmoid, nn.Tanh, nn.ReLU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Identity)


class ResGatedGraphConv(PyGResGatedGraphConv):
    """PyG's ResGatedGraphConv; messages are summed where they are made, in one op."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class
    serves = staticmethod(_aggregators.serves_one)

    def forward(self, x, edge_index, edge_attr=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        The Linears of key, query and value see [x, edge_attr]: their node parts run on
        nodes and their edge parts are one Linear of the attributes.

        Args
        ----
        x : [N, F], or ([N_src, F_src], [N_dst, F_dst])
        edge_attr : [E, edge_dim] in the order of edge_index

        Returns
        -------
        [N_dst, out_channels]

        Memory: key [N_dst, C], query and value [N_src, 2 C] and, for backward, another
        [N_dst, C]; with edge_attr 1 MiB of its projection at a time (64 MiB on CUDA),
        which under torch.compile exists whole. With another act than Sigmoid, a maximum
        or a minimum, 1 MiB of messages and what backward makes of them. For second
        derivatives, all messages.
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        reason = _guard.blocked(self, PyGResGatedGraphConv, pair[0])
        reason = reason or self._reason(pair, edge_attr)
        adj = reason or adjacency(self, edge_index, pair)
        if isinstance(adj, str):
            edge_index = _guard.fall_back(self, adj, edge_index)
            # propagate_type: (k: Tensor, q: Tensor, v: Tensor, edge_attr: OptTensor)
            return super().forward(x, edge_index, edge_attr)
        _fallback.count_fast("ResGatedGraphConv")

        x_src, x_dst = pair
        key, query, value = self.lin_key, self.lin_query, self.lin_value
        of_dst, of_src = key.weight, torch.cat([query.weight, value.weight])
        weight = None
        if edge_attr is not None:
            gate = of_dst[:, x_dst.shape[1] :] + query.weight[:, x_src.shape[1] :]
            weight = torch.cat([gate, value.weight[:, x_src.shape[1] :]])
        of_dst, of_src = of_dst[:, : x_dst.shape[1]], of_src[:, : x_src.shape[1]]
        bias = torch.cat([query.bias, value.bias])
        (reduce,) = _aggregators.statistics(self.aggr_module)
        if type(self.act) is nn.Sigmoid and reduce in ("sum", "mean"):
            root = self.lin_skip.weight if self._skips_plainly() else None
            parts = Parts(of_dst, key.bias, of_src, bias, weight, root, self.bias)
            out = gated_sum(adj.graph, pair, edge_attr, parts, False, reduce)
            if root is not None or not self.root_weight:
                return out
            return out + self.lin_skip(x_dst)
        k, qv = linear(x_dst, of_dst, key.bias), linear(x_src, of_src, bias)
        rest, width = [_Gate(self.act)], qv.shape[1]
        out = edge_mlp(adj.graph, k, qv, rest, reduce, width, edge_attr, weight)
        if self.root_weight:
            out = out + self.lin_skip(x_dst)
        return out if self.bias is None else out + self.bias

    def _skips_plainly(self):
        return (
            self.root_weight
            and _guard.is_plain(self.lin_skip)
            and self.lin_skip.bias is None
        )

    def _reason(self, pair, edge_attr):
        """What only this layer cannot do; None if there is nothing."""
        if not isinstance(pair[1], Tensor):
            return "no features of destinations"
        if (edge_attr is None) != (self.edge_dim is None):
            return "edge_attr and edge_dim go together"
        if edge_attr is not None and edge_attr.dim() != 2:
            return "edge_attr is not a matrix"
        if type(self.act) not in ACTS or getattr(self.act, "inplace", False):
            return f"act={self.act}"
        linears = (self.lin_key, self.lin_query, self.lin_value)
        if not all(_guard.is_plain(lin) for lin in linears):
            return "a Linear has hooks, is lazy or runs under autocast"
        return None

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGResGatedGraphConv)


class _Gate:
    """[n, 2 C] -> act(first half) * second half"""

    def __init__(self, act):
        self.act = act

    def __call__(self, z):
        gate, value = z.chunk(2, dim=1)
        return self.act(gate) * value

    def parameters(self):
        return ()
