"""GraphTransformerConv: the attention of a graph transformer, projections left out.

What weather models call for after they have made queries, keys, values and edge
features themselves: the same call as anemoi's layer of this name, in one op. Needs
torch alone.
"""

from torch import Tensor, nn

from gnnoffload.attention import dot_attention
from gnnoffload.graph import as_graph


class GraphTransformerConv(nn.Module):
    r"""Attention over the edges into each destination, with edge features.

        s[e, h] = <query[i, h], key[j, h] + edge[e, h]> / sqrt(out_channels)
        out[i, h] = sum over edges e = (j -> i) of softmax(s)[e, h] (value[j, h] +
                    edge[e, h])

    Args:
        out_channels: width C of a head, whose root divides the scores.
        dropout: of the attention weights, in training; drawn by a counter from one seed
            of torch's generator and drawn again in backward, so nothing is stored.

    Memory: [N, H, C] and [N, H]; backward writes [E, H] twice and, where `edge_attr`
    wants it, its gradient [E, H, C]. Nothing else of size E x H x C is made. A second
    derivative raises NotImplementedError.

    Source: Shi et al. 2021, Masked Label Prediction, eq. 3 and 4, as used by Lang et
    al. 2024, AIFS.

    >>> import torch
    >>> from gnnoffload.nn import GraphTransformerConv
    >>> q, k, v = torch.zeros(3, 3, 2, 4).unbind(0)
    >>> edges = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
    >>> GraphTransformerConv(4)(q, k, v, torch.zeros(4, 2, 4), edges).shape
    torch.Size([3, 2, 4])
    """

    def __init__(self, out_channels: int, dropout: float = 0.0):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(
                f"GraphTransformerConv: dropout must be in [0, 1), got {dropout}"
            )
        self.out_channels, self.dropout = out_channels, dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        edge_attr: Tensor | None,
        edge_index,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """One round of attention.

        Args:
            query: [N_dst, H, C].
            key, value: [N_src, H, C].
            edge_attr: [E, H, C] in the order of edge_index, or None.
            edge_index: a `Graph`, or [2, E] integers: sources, then destinations.
            size: (N_src, N_dst); None: the rows of key and of query.

        Returns:
            [N_dst, H, C]; 0 for a destination without edges.

        Raises:
            GraphError, TypeError, ValueError: as `gnnoffload.attention.dot_attention`.
        """
        graph, _ = as_graph(edge_index, size or (key.size(0), query.size(0)))
        return dot_attention(
            graph,
            query,
            key,
            value,
            edge_attr,
            scale=self.out_channels**-0.5,
            dropout=self.dropout if self.training else 0.0,
        )

    def extra_repr(self) -> str:
        return f"{self.out_channels}, dropout={self.dropout}"
