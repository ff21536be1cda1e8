"""Node orders: permutations with the locality they promise."""

import pytest
import torch

import gnnoffload as go


def grid_graph(side, seed=0):
    """A side x side grid with shuffled node numbers: (edge_index, pos)."""
    shuffle = torch.randperm(side * side, generator=torch.Generator().manual_seed(seed))
    at = shuffle.view(side, side)
    edges = torch.cat(
        (
            torch.stack((at[:, :-1].flatten(), at[:, 1:].flatten())),
            torch.stack((at[:-1].flatten(), at[1:].flatten())),
        ),
        dim=1,
    )
    pos = torch.empty(side * side, 2)
    pos[shuffle] = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    return torch.cat((edges, edges.flip(0)), dim=1), pos


@pytest.mark.parametrize("name", ["degree", "rcm", "morton", "hilbert"])
def test_reordered_graph_gives_the_same_result(name):
    edges, pos = grid_graph(7)
    x = torch.randn(49, 5, dtype=torch.float64)
    weight = torch.randn(edges.shape[1], dtype=torch.float64)
    graph = go.Graph(edges, reorder=name, pos=pos)
    assert torch.equal(graph.perm.sort().values, torch.arange(49))
    assert torch.equal(graph.permute(x), x[graph.perm])
    assert torch.equal(graph.restore(graph.permute(x)), x)
    y = graph.restore(go.spmm(graph, graph.permute(x), weight))
    torch.testing.assert_close(y, go.spmm(go.Graph(edges), x, weight))


def test_rcm_bandwidth_of_a_grid():
    edges, _ = grid_graph(20)
    bandwidth = (edges[0] - edges[1]).abs().max()
    edges = go.Graph(edges, reorder="rcm").edge_index
    assert bandwidth > 200
    assert (edges[0] - edges[1]).abs().max() <= 25  # 20 is the best there is


def test_rcm_of_several_components_and_isolated_nodes():
    edges = torch.tensor([[0, 5, 2], [5, 0, 7]])
    graph = go.Graph(edges, (9, 9), reorder="rcm")
    assert torch.equal(graph.perm.sort().values, torch.arange(9))
    assert ((graph.edge_index[0] - graph.edge_index[1]).abs() == 1).all()


def test_degree_puts_the_hub_first():
    edges = torch.tensor([[0, 1, 2, 3], [4, 4, 4, 4]])
    assert go.Graph(edges, reorder="degree").perm.tolist() == [4, 0, 1, 2, 3]


@pytest.mark.parametrize("dim", [2, 3])
def test_hilbert_steps_to_a_neighbour(dim):
    """On a full grid of 2^k points a side each step of the curve has length 1."""
    axes = [torch.arange(8.0)] * dim
    pos = torch.cartesian_prod(*axes)
    n = pos.shape[0]
    none = torch.empty(2, 0, dtype=torch.int64)
    for name, longest in (("hilbert", 1.0), ("morton", None)):
        perm = go.Graph(none, (n, n), reorder=name, pos=pos).perm
        steps = (pos[perm][1:] - pos[perm][:-1]).norm(dim=1)
        assert (steps == 1).all() == (longest == 1.0), name


@pytest.mark.parametrize(
    "arguments, text",
    [
        (dict(reorder="size"), "reorder must be"),
        (dict(reorder="morton"), "needs pos"),
        (dict(reorder="rcm", size=(3, 4)), "one set of nodes"),
        (dict(reorder="hilbert", pos=torch.full((2, 2), torch.nan)), "finite"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        go.Graph(torch.tensor([[0], [1]]), **arguments)
