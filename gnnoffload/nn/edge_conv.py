"""EdgeConv: reduce over edges of nn([x_i, x_j - x_i])."""

import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.conv.edge_conv import EdgeConv as PyGEdgeConv

from gnnoffload import _chunk, _fallback
from gnnoffload.nn import _aggregators, _guard
from gnnoffload.nn._adjacency import adjacency
from gnnoffload.nn._chunked import in_chunks
from gnnoffload.nn._edge_mlp import edge_mlp
from gnnoffload.nn._linear import projected, through
from gnnoffload.ops import spmm


class EdgeConv(PyGEdgeConv):
    """PyG's EdgeConv; the first Linear runs on nodes, the rest on 1 MiB at a time."""

    propagate = MessagePassing.propagate  # not what PyG compiled for its own class
    serves = staticmethod(_aggregators.serves_any)

    def forward(self, x, edge_index):
        """As in PyG; `edge_index` may also be a `gnnoffload.Graph`.

        Where nn is an `nn.Sequential` that begins with a Linear W = [W1, W2] and the
        reduction is sum, mean, max or min,

            nn([x_i, x_j - x_i]) = rest(u_i + v_j),  u = (W1 - W2) x + b,  v = W2 x

        so that W multiplies N rows instead of E. For sum and mean a last Linear moves
        behind the sum; for max and min a ReLU at the end of the first Linear, and a
        Linear alone, need no message at all. Any other nn runs as under
        `gnnoffload.chunk`, 64 MiB of messages at a time. A norm over the edges
        (BatchNorm in training mode) needs all messages at once and is left to PyG.

        Args
        ----
        x : [N, F], or ([N_src, F], [N_dst, F])

        Returns
        -------
        [N_dst, F_out], 0 where no edge arrives

        Memory: u and v, and 1 MiB of messages with what nn makes of them; backward runs
        nn again. Under torch.compile and for second derivatives, all messages.
        """
        pair = (x, x) if isinstance(x, Tensor) else x
        reason = _guard.blocked(self, PyGEdgeConv, pair[0]) or self._reason(pair)
        adj = reason or adjacency(self, edge_index, pair)
        if isinstance(adj, str):
            edge_index = _guard.fall_back(self, adj, edge_index)
            # propagate_type: (x: PairTensor)
            return super().forward(x, edge_index)
        _fallback.count_fast("EdgeConv")
        names = _aggregators.statistics(self.aggr_module) or ()
        if len(names) == 1 and names[0] in _REDUCE and self._splits(pair):
            return self._split(adj.graph, *pair, names[0])
        return in_chunks(self, adj.graph, x=pair)

    def _split(self, graph, x_src, x_dst, reduce):
        first, *rest = self.nn
        width = first.weight.shape[1] // 2
        on_dst, on_src = first.weight[:, :width], first.weight[:, width:]
        u = projected(x_dst, on_dst - on_src, first.bias)
        v = projected(x_src, on_src)
        rest = [m for m in rest if type(m) is not nn.Identity]
        if reduce in ("max", "min") and all(_is_monotone(m) for m in rest):
            y = through(rest, spmm(graph, v, reduce=reduce) + u)
            return _where_edges(graph, y)
        last = None
        if reduce in ("sum", "mean") and rest and type(rest[-1]) in _guard.LINEAR:
            last = rest.pop()  # a Linear of a sum is the sum of Linears
        if rest:
            y = edge_mlp(graph, u, v, rest, reduce, _width(first, rest))
        else:
            y = spmm(graph, v, reduce=reduce) + _times_degree(graph, u, reduce)
        if last is None:
            return y
        y = projected(y, last.weight)
        if last.bias is None:
            return y
        return y + _times_degree(graph, last.bias, reduce)

    def _reason(self, pair):
        """What only this layer cannot do; None if there is nothing."""
        if not isinstance(pair[1], Tensor):
            return "no features of destinations"
        if any(_chunk._crosses(m) for m in self.nn.modules()):
            return "a norm over all edges"
        return None

    def _splits(self, pair):
        """Whether nn is a Linear of [x_i, x_j - x_i] and more, with nobody watching."""
        if type(self.nn) is not nn.Sequential or len(self.nn) == 0:
            return False
        first = self.nn[0]
        return (
            type(first) in _guard.LINEAR
            and first.weight.shape[1] == 2 * pair[0].shape[1] == 2 * pair[1].shape[1]
            and pair[0].dtype is pair[1].dtype is first.weight.dtype
            and not any(
                m._forward_hooks or m._forward_pre_hooks for m in self.nn.modules()
            )
            and not any(_is_random(m) for m in self.nn)
            and not torch.is_autocast_enabled("cpu")
            and not torch.is_autocast_enabled("cuda")
        )

    def __prepare_scriptable__(self):
        return _guard.script_with_pyg(self, PyGEdgeConv)


_REDUCE = ("sum", "mean", "max", "min")


def _is_monotone(module):
    """Whether the greatest of its results is the result of the greatest, with the same
    gradient where several are greatest."""
    if type(module) is nn.LeakyReLU:
        return module.negative_slope >= 0
    return type(module) is nn.ReLU


def _where_edges(graph, y):
    return torch.where(graph.degree.view(-1, 1) > 0, y, 0.0)


def _times_degree(graph, u, reduce):
    """u [N_dst, H] or [H], reduced over the edges into each destination."""
    degree = graph.degree if reduce == "sum" else graph.degree.clamp(max=1)
    return degree.view(-1, 1).to(u.dtype) * u


def _is_random(module):
    """Whether the second pass may differ from the first: `chunk` keeps the generator's
    state, `edge_mlp` does not."""
    return any(
        not isinstance(m, _KNOWN) and not (isinstance(m, nn.Dropout) and not m.training)
        for m in module.modules()
    )


_KNOWN = (
    *(*_guard.LINEAR, nn.LayerNorm, nn.Sequential, nn.Identity),
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.SELU, nn.CELU, nn.Mish, nn.PReLU, nn.BatchNorm1d),
)


def _width(first, rest):
    """Of the widest tensor between the modules."""
    found = [first, *(m for part in rest for m in part.modules())]
    return max(m.weight.shape[0] for m in found if type(m) in _guard.LINEAR)
