"""GCNConv(cached=True): PyG's cache, and what it means for later calls."""

import pytest
import torch
import torch_geometric.nn as pyg

import gnnoffload.nn as nn
from gnnoffload import Graph

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
OTHER = torch.tensor([[3, 2], [1, 1]])


@pytest.mark.parametrize("form", [EDGES, Graph(EDGES, (4, 4))], ids=["edges", "Graph"])
def test_the_first_graph_stays(form, no_fallback):
    layer = nn.GCNConv(5, 3, cached=True)
    expected = layer(X, form)
    plain = nn.GCNConv(5, 3)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(expected, plain(X, EDGES))
    assert torch.equal(layer(X, OTHER), expected)
    layer.reset_parameters()
    assert layer._cached_edge_index is None


def test_the_cache_is_the_one_of_pyg():
    layer, stock = nn.GCNConv(5, 3, cached=True), pyg.GCNConv(5, 3, cached=True)
    layer(X, EDGES)
    stock(X, EDGES)
    for ours, theirs in zip(
        layer._cached_edge_index, stock._cached_edge_index, strict=True
    ):
        assert torch.equal(ours, theirs)
    layer.register_message_forward_hook(lambda *args: None)
    layer(X, OTHER)  # PyG's forward runs on the same cache


def test_without_cached_nothing_of_the_size_of_the_edges_is_kept():
    layer = nn.GCNConv(5, 3)
    layer(X, EDGES)
    assert layer._cached_edge_index is None
    assert layer._cached_adj_t is None
