"""torch_sparse's SparseTensor, told by its methods: here a stand-in with the same ones.

PyG's rules for it: SAGE and GIN drop its values, GraphConv uses them as weights, GCN
puts a self-loop of the fill value on every diagonal entry.
"""

import pytest
import torch
import torch_geometric.nn as pyg

import gnnoffload.nn as nn

pytestmark = pytest.mark.usefixtures("no_fallback")


class StandIn:
    """Rows are destinations; values in row order, or None."""

    def __init__(self, edge_index, size, values=None):
        order = torch.argsort(edge_index[1] * size[0] + edge_index[0], stable=True)
        counts = torch.bincount(edge_index[1], minlength=size[1])
        self._rowptr = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        self._col = edge_index[0, order]
        self._values = None if values is None else values[order]
        self._sizes = size[::-1]

    def csr(self):
        return self._rowptr, self._col, self._values

    def sparse_sizes(self):
        return self._sizes


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
WEIGHT = torch.tensor([0.5, 2.0, 1.5, 3.0, 0.25])


def test_sage_and_gin_drop_the_values():
    adj = StandIn(EDGES, (4, 4), WEIGHT)
    for layer in (nn.SAGEConv(5, 3), nn.GINConv(torch.nn.Linear(5, 3))):
        assert torch.equal(layer(X, adj), layer(X, EDGES))


def test_graph_conv_uses_the_values():
    layer = nn.GraphConv(5, 3)
    expected = layer(X, EDGES, WEIGHT)
    torch.testing.assert_close(layer(X, StandIn(EDGES, (4, 4), WEIGHT)), expected)
    unweighted = layer(X, StandIn(EDGES, (4, 4)))
    torch.testing.assert_close(unweighted, layer(X, EDGES))


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_gcn_normalises(weight):
    layer = nn.GCNConv(5, 3)
    adj = StandIn(EDGES, (4, 4), weight)
    torch.testing.assert_close(layer(X, adj), layer(X, EDGES, weight))


def test_gcn_replaces_existing_loops_by_the_fill_value():
    loops = torch.cat([EDGES, torch.tensor([[1, 1], [1, 1]])], dim=1)
    weight = torch.cat([WEIGHT, torch.tensor([7.0, 9.0])])
    layer = nn.GCNConv(5, 3, improved=True)
    expected = layer(X, EDGES, WEIGHT)  # fill value 2 on every diagonal entry
    torch.testing.assert_close(layer(X, StandIn(loops, (4, 4), weight)), expected)
    ones = torch.ones(EDGES.size(1))
    expected = layer(X, EDGES, ones)
    torch.testing.assert_close(layer(X, StandIn(loops, (4, 4))), expected)


def test_bipartite_and_wrong_sizes():
    edges = torch.tensor([[0, 3, 2], [1, 1, 0]])
    layer = nn.SAGEConv((5, 5), 3)
    pair = (X, X[:2])
    expected = pyg.SAGEConv.forward(layer, pair, edges)
    torch.testing.assert_close(layer(pair, StandIn(edges, (4, 2))), expected)
    with pytest.raises(ValueError, match="expected size 5"):
        layer(pair, StandIn(edges, (5, 2)))
