"""GINEConv: nn((1 + eps) * x_i + sum over edges of relu(x_j + lin(a_e)))."""

from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.gin_conv import GINEConv as PyGGINEConv

from gnnoffload import _fallback
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import adjacency
from gnnoffload.nn._aggregate import add_root, constant_factor
from gnnoffload.nn._linear import through
from gnnoffload.nn._relu_message import relu_message_sum


class GINEConv(PyGGINEConv):
    """PyG's GINEConv; messages are summed where they are made, in one op."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class

    def forward(self, x, edge_index, edge_attr=None, size=None):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Args
        ----
        x : [N, F], or ([N_src, F], [N_dst, F] or None)
        edge_attr : [E, edge_dim] ([E, F] without edge_dim), in the order of edge_index

        Returns
        -------
        what `self.nn` makes of [N_dst, F]

        Memory: no [E, F] tensor, besides the gradient of `edge_attr` if it needs one.
        With edge_dim, 1 MiB of projected features at a time (or one row of them), again
        in backward; under torch.compile and for second derivatives they exist whole.
        PyG allocates five [E, F] and saves one.
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        reason = _guard.blocked(self, PyGGINEConv, pair[0])
        reason = reason or self._reason(edge_attr)
        adj = reason or adjacency(self, edge_index, pair, size)
        if isinstance(adj, str):
            return self._forward_pyg(adj, x, edge_index, edge_attr, size)
        self._check_widths(pair[0], edge_attr, adj.graph)
        _fallback.count_fast("GINEConv")

        (x_src, x_dst), lin = pair, self.lin
        weight, bias = (None, None) if lin is None else (lin.weight, lin.bias)
        factor = self._root_factor(x_src, x_dst, edge_attr if lin is None else weight)
        root = None if factor is None else x_dst
        out = relu_message_sum(adj.graph, x_src, edge_attr, weight, bias, root, factor)
        if factor is None and _guard.reduction(self) == "mean":
            out = out / adj.graph.degree.clamp(min=1).view(-1, 1).to(out.dtype)
        if root is None and x_dst is not None:
            out = add_root(out, x_dst, self.eps)
        return through([self.nn], out)

    def _root_factor(self, x, x_dst, edge):
        """1 + eps where (1 + eps) * x_dst may be added inside the product, else None:
        a constant eps, a sum, and no promotion or broadcast between the two."""
        if (
            x_dst is None
            or (x_dst is not x and x_dst.shape[1] != x.shape[1])
            or not (x_dst.dtype is x.dtype is edge.dtype)
            or _guard.reduction(self) != "sum"
        ):
            return None
        return constant_factor(self.eps, x)

    def _reason(self, edge_attr):
        """What only this layer cannot do; None if there is nothing."""
        if not isinstance(edge_attr, Tensor) or edge_attr.dim() != 2:
            return "edge_attr is not a matrix"
        if edge_attr.dtype not in _guard.DTYPES:
            return f"edge_attr of dtype {edge_attr.dtype}"
        if self.lin is not None and not _guard.is_plain(self.lin):
            return "lin has hooks, is lazy or runs under autocast"
        return None

    def _check_widths(self, x, edge_attr, graph):
        if self.lin is None and x.shape[1] != edge_attr.shape[1]:
            raise ValueError(
                "Node and edge feature dimensionalities do not match. Consider setting "
                "the 'edge_dim' attribute of 'GINEConv'"
            )
        if edge_attr.shape[0] != graph.num_edges:
            raise ValueError(
                f"GINEConv: edge_attr must have {graph.num_edges} rows, "
                f"got {edge_attr.size(0)}"
            )

    def _forward_pyg(self, reason, x, edge_index, edge_attr, size):
        size = _guard.size_for_pyg(edge_index, size)
        edge_index = _guard.fall_back(self, reason, edge_index)
        # propagate_type: (x: OptPairTensor, edge_attr: OptTensor)
        return super().forward(x, edge_index, edge_attr, size)

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGGINEConv)
