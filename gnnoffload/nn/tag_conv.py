"""TAGConv: the sum over k = 0..K of A^k x W_k, by whichever of two schemes is narrower.

in <= out: x_k = A x_(k-1), each projected (as PyG does; backward keeps the K x_k)
otherwise: Horner's scheme on projected rows, y = x W_k + A y for k = K..0; backward
           keeps x alone
"""

import torch
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.tag_conv import TAGConv as PyGTAGConv

from gnnoffload import _fallback
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import adjacency
from gnnoffload.nn._aggregate import add_projection, projects_first
from gnnoffload.nn._gcn_norm import norm_reason, normalized_hop, plain_hop


class TAGConv(PyGTAGConv):
    """PyG's TAGConv; the normalisation is never written per edge."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class

    def forward(self, x, edge_index, edge_weight=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, in_channels]
        edge_weight : [E] in the order of edge_index, may require a gradient; ignored
            for sparse matrices, whose values are the weights (as in PyG)

        Returns
        -------
        [N, out_channels]

        Memory: one [N, min(in, out)] a hop; nothing of size E x F.
        """
        reason = _guard.blocked(self, PyGTAGConv, x)
        reason = reason or norm_reason(self, edge_index, edge_weight)
        adj = reason or adjacency(self, edge_index, (x, x))
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, edge_weight)
        _fallback.count_fast("TAGConv")

        if self.normalize:
            hop = normalized_hop(adj, edge_weight, False, False, x.dtype)
        else:
            hop = plain_hop(adj, edge_weight, x.dtype)
        if projects_before_hops(self.lins, adj.graph, x, hop):
            out = _horner(hop, x, self.lins)
        else:
            out = self.lins[0](x)
            for lin in self.lins[1:]:
                x = hop(x)
                out = add_projection(out, x, lin, made_by=self.lins[0])
        return out if self.bias is None else out + self.bias

    def _forward_pyg(self, reason, x, edge_index, edge_weight):
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        return super().forward(x, edge_index, edge_weight)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGTAGConv)


def projects_before_hops(lins, graph, x, hop):
    """Whether the hops run on rows of width out: narrower, and free to move."""
    return (
        len(lins) > 1
        and hop.dtype is x.dtype
        and all(map(_guard.is_plain, lins))
        and projects_first(graph, x, lins[0].weight)
    )


def _horner(hop, x, lins):
    y = x @ lins[-1].weight.t()
    for lin in reversed(lins[:-1]):
        y = torch.addmm(hop(y), x, lin.weight.t())
    return y
