"""The InteractionNetwork block of GraphCast and MeshGraphNet; needs torch alone.

The first Linear of each MLP works on a concatenation, so it is the sum of one Linear
for each part. The node parts are multiplied on N rows before they are gathered to E
edges: no [E, 3C] tensor exists, and the products with the two ends cost N rows each.
Both ends are gathered by one sparse product over 2E entries, whose transpose is the
backward: deterministic, no atomics, no index_add. The rest is plain torch.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnoffload.graph import Graph, as_graph
from gnnoffload.ops import spmm

ACTIVATIONS = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}
AGGREGATES = ("message", "state")


class InteractionNetwork(nn.Module):
    r"""Updates the states of edges, then of nodes.

        m_e = LN(MLP([e, x_src, x_dst]))          e' = e + m_e
        x'_i = x_i + LN(MLP([x_i, sum of m_e over the edges e into i]))

    Args:
        channels: width C of node and edge states.
        hidden_channels: width H of the hidden layers; None means `channels`.
        hidden_layers: hidden layers of both MLPs, at least 1.
        activation: "silu", "relu", "gelu" or "tanh", after every hidden layer.
        norm: LayerNorm after both MLPs.
        aggregate: what a node sums, "message" (m, as GraphCast and MeshGraphNet define
            it) or "state" (e', as PhysicsNeMo does).
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Numerics: sums in edge order, accumulated in float32 for 16-bit states; the result
    and all gradients are the same for any number of threads.

    Memory: with one hidden layer and H = C, backward keeps 4 E C + 5 N C elements
    (e, its pre-activation, its activation, the input of LN; the same for nodes and the
    sum): 16 E C + 20 N C bytes in float32, 8 E C + 10 N C in bfloat16. The form that
    concatenates keeps 6 E C + 5 N C, and an E C index for each index_add. A graph's
    gather and scatter lists take about 56 E bytes, once for all blocks that use it.

    Source: Battaglia et al. 2016 (arXiv 1612.00222); Pfaff et al. 2021 (arXiv
    2010.03409); Lam et al. 2023 (arXiv 2212.12794), section 3.3.

    >>> import torch
    >>> from gnnoffload.nn import InteractionNetwork
    >>> block = InteractionNetwork(8)
    >>> edge_index = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
    >>> x, e = block(torch.zeros(3, 8), edge_index, torch.zeros(4, 8))
    >>> x.shape, e.shape
    (torch.Size([3, 8]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int | None = None,
        *,
        hidden_layers: int = 1,
        activation: str = "silu",
        norm: bool = True,
        aggregate: str = "message",
        device=None,
        dtype=None,
    ):
        super().__init__()
        if hidden_layers < 1:
            raise ValueError(
                f"InteractionNetwork: hidden_layers must be at least 1, "
                f"got {hidden_layers}"
            )
        _require("activation", activation, ACTIVATIONS)
        _require("aggregate", aggregate, AGGREGATES)
        hidden = channels if hidden_channels is None else hidden_channels
        like = {"device": device, "dtype": dtype}
        self.channels, self.hidden_channels = channels, hidden
        self.activation, self.aggregate = activation, aggregate

        # The parts of the first Linear, in the order of the concatenation.
        self.edge_in = nn.Linear(channels, hidden, **like)
        self.source_in = nn.Linear(channels, hidden, bias=False, **like)
        self.destination_in = nn.Linear(channels, hidden, bias=False, **like)
        self.edge_out = _tail(hidden, channels, hidden_layers, like)
        self.edge_norm = nn.LayerNorm(channels, **like) if norm else nn.Identity()

        self.node_in = nn.Linear(channels, hidden, **like)
        self.sum_in = nn.Linear(channels, hidden, bias=False, **like)
        self.node_out = _tail(hidden, channels, hidden_layers, like)
        self.node_norm = nn.LayerNorm(channels, **like) if norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self):
        """PyTorch's Linear defaults, with the fan-in of the concatenated form."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
        edge = (self.edge_in, self.source_in, self.destination_in)
        for parts in (edge, (self.node_in, self.sum_in)):
            bound = 1 / math.sqrt(len(parts) * self.channels)
            for part in parts:
                nn.init.uniform_(part.weight, -bound, bound)
            nn.init.uniform_(parts[0].bias, -bound, bound)

    def forward(
        self, x: Tensor | tuple[Tensor, Tensor], edge_index, edge_attr: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One update of all edges and of the nodes they point to.

        Args:
            x: [N, C] node states, or a pair (sources [M, C], destinations [N, C]) for a
                bipartite graph, of which the destinations are updated.
            edge_index: a `Graph`, or [2, E] integers: sources, then destinations.
            edge_attr: [E, C] edge states in the order of `edge_index`.

        Returns:
            New destination states [N, C] and new edge states [E, C].

        Raises:
            GraphError: an index is out of range, or sizes do not fit.
            ValueError: `x` or `edge_attr` does not have the graph's number of rows.
        """
        source, destination = x if isinstance(x, tuple) else (x, x)
        size = (source.size(0), destination.size(0))
        graph, _ = as_graph(edge_index, size)
        if graph.size != size:
            raise ValueError(
                f"InteractionNetwork: x must have {graph.size} (source, destination) "
                f"rows, got {size}"
            )
        if edge_attr.size(0) != graph.num_edges:
            raise ValueError(
                f"InteractionNetwork: edge_attr must have {graph.num_edges} rows, "
                f"got {edge_attr.size(0)}"
            )
        gather, scatter = incidence(graph)
        act = ACTIVATIONS[self.activation]

        ends = torch.cat([self.source_in(source), self.destination_in(destination)])
        z = self.edge_in(edge_attr).add_(spmm(gather, ends))  # [E, H]
        message = self.edge_norm(self._finish(self.edge_out, act, z))  # [E, C]
        # Only "state" sums what the next block sees; the sum itself saves nothing.
        if self.aggregate == "state":
            message = message + edge_attr
        total = spmm(scatter, message)  # [N, C]
        if self.aggregate == "message":
            message = message + edge_attr

        z = self.node_in(destination).add_(self.sum_in(total))  # [N, H]
        update = self.node_norm(self._finish(self.node_out, act, z))
        return update + destination, message

    @staticmethod
    def _finish(layers, act, z):
        for layer in layers:
            z = layer(act(z))
        return z

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, {self.hidden_channels}, activation={self.activation}, "
            f"aggregate={self.aggregate}"
        )


def incidence(graph: Graph) -> tuple[Graph, Graph]:
    """The two sparse matrices between nodes and edges, kept with the graph.

    Returns:
        gather: M + N sources, E destinations; row e holds e's source and M + e's
            destination, so its product sums both ends of each edge.
        scatter: E sources, N destinations; row i holds the edges into node i in edge
            order, so its product sums them.
    """
    found = graph.cache.get("incidence")
    if found is None:
        source, destination = graph.edge_index
        edges = torch.arange(graph.num_edges, device=source.device)
        ends = torch.stack([source, destination + graph.num_src], dim=1).reshape(-1)
        rows = torch.stack([edges, edges], dim=1).reshape(-1)
        nodes = graph.num_src + graph.num_dst
        gather = Graph(torch.stack([ends, rows]), (nodes, graph.num_edges))
        scatter = Graph(
            torch.stack([edges, destination]), (graph.num_edges, graph.num_dst)
        )
        found = graph.cache["incidence"] = (gather, scatter)
    return found


def _tail(hidden: int, channels: int, hidden_layers: int, like: dict) -> nn.ModuleList:
    """The Linears after the first; the last one has the width of the state."""
    widths = [hidden] * hidden_layers + [channels]
    return nn.ModuleList(nn.Linear(a, b, **like) for a, b in pairwise(widths))


def _require(name: str, value: str, allowed) -> None:
    if value not in allowed:
        raise ValueError(
            f"InteractionNetwork: {name} must be one of {', '.join(allowed)}, "
            f"got {value!r}"
        )
