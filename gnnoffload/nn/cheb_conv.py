"""ChebConv: the sum over k of T_k(L^) x W_k, T_k the Chebyshev polynomials.

L^ = 2 L / lambda_max - I is never written per edge when the graph has no weights and no
self-loops: L^ x = (2 / lambda_max) (diag x - s A t x) - x with N-vectors s, t, diag.
Otherwise the off-diagonal entries are an [E] vector and the diagonal stays an N-vector.

in <= out: T_k x by the recurrence, each projected (as PyG does)
otherwise: Clenshaw's scheme on projected rows, b_k = x W_k + 2 L^ b_(k+1) - b_(k+2)
"""

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.cheb_conv import ChebConv as PyGChebConv

from gnnoffload import _fallback
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import adjacency
from gnnoffload.nn._aggregate import add_projection
from gnnoffload.nn._laplacian import scaled_laplacian
from gnnoffload.nn.tag_conv import projects_before_hops


class ChebConv(PyGChebConv):
    """PyG's ChebConv, with the Laplacian of an unweighted graph kept on the graph."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class

    def forward(self, x, edge_index, edge_weight=None, batch=None, lambda_max=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, in_channels]
        edge_weight : [E] in the order of edge_index, may require a gradient
        batch : [N] graph of each node, for a lambda_max of each graph
        lambda_max : number, [] or [graphs]; None: twice the largest entry of L

        Returns
        -------
        [N, out_channels]

        Memory: one [N, min(in, out)] a term; nothing of size E x F.
        """
        reason = _guard.blocked(self, PyGChebConv, x)
        reason = reason or self._reason(edge_index, edge_weight)
        adj = reason or adjacency(self, edge_index, (x, x))
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, edge_weight, batch, lambda_max)
        _fallback.count_fast("ChebConv")
        hop = scaled_laplacian(
            adj.graph,
            edge_weight,
            self.normalization,
            lambda_max,
            batch,
            dtype=x.dtype,
            reverse=self.flow != "source_to_target",
        )
        if projects_before_hops(self.lins, adj.graph, x, hop):
            out = _clenshaw(hop, x, self.lins)
        else:
            out = _recurrence(hop, x, self.lins)
        return out if self.bias is None else out + self.bias

    def _reason(self, edge_index, edge_weight):
        """What only this layer cannot do; None if there is nothing."""
        if _guard.reduction(self) != "sum":
            return f"aggr={self.aggr}"
        if isinstance(edge_index, Tensor):
            if edge_index.layout is not torch.strided:
                return "sparse matrix (PyG refuses it)"
        elif hasattr(edge_index, "csr"):
            return "sparse matrix (PyG refuses it)"
        return _guard.weight_reason(edge_weight)

    def _forward_pyg(self, reason, x, edge_index, edge_weight, batch, lambda_max):
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: Tensor, norm: Tensor)
        return super().forward(x, edge_index, edge_weight, batch, lambda_max)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGChebConv)


def _recurrence(hop, x, lins):
    """The sum of T_k x W_k; T_0 = 1, T_1 = L^, T_k = 2 L^ T_(k-1) - T_(k-2)."""
    out = lins[0](x)
    older, newer = None, x
    for lin in lins[1:]:
        term = hop(newer)
        if older is not None:
            term = torch.add(-older, term, alpha=2)
        out = add_projection(out, term, lin, made_by=lins[0])
        older, newer = newer, term
    return out


def _clenshaw(hop, x, lins):
    """The same sum from k = K - 1 down, on projected rows."""
    newer, older = x @ lins[-1].weight.t(), None  # b_(k+1), b_(k+2)
    for k in range(len(lins) - 2, -1, -1):
        term = hop(newer)
        term = term if k == 0 else 2 * term
        if older is not None:
            term = term - older
        newer, older = torch.addmm(term, x, lins[k].weight.t()), newer
    return newer
