"""The cache for plain edge_index: when it hits, when it must not, when it lets go."""

import gc
import warnings
import weakref

import pytest
import torch
from graph_cases import random_edges

from gnnoffload import graph as graph_module
from gnnoffload._graph_cache import GraphCache
from gnnoffload.graph import as_graph


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    fresh = GraphCache(capacity=4)
    monkeypatch.setattr(graph_module, "_cache", fresh)
    return fresh


def look_up(edges, size=(9, 9), flow="source_to_target"):
    return as_graph(edges, size, flow)[0]


def test_hits():
    edges = random_edges(9, 9, 20)
    graph = look_up(edges)
    assert look_up(edges) is graph
    assert look_up(edges[:]) is graph  # another view of the same numbers
    assert look_up(edges.detach()) is graph


def test_misses():
    edges = random_edges(9, 9, 20)
    graph = look_up(edges)
    assert look_up(edges, (10, 9)) is not graph
    assert look_up(edges, flow="target_to_source") is not graph
    assert look_up(edges[:, :19]).num_edges == 19
    assert look_up(edges[:, ::2]).num_edges == 10
    assert look_up(edges.clone()) is not graph


def test_an_in_place_change_is_seen():
    edges = random_edges(9, 9, 20)
    look_up(edges)
    edges[0, 0] = 8
    assert look_up(edges).edge_index[0, 0] == 8
    with torch.inference_mode():
        edges[0, 0] = 7
    assert look_up(edges).edge_index[0, 0] == 7


def test_new_numbers_at_an_old_address():
    """Memory reused after a tensor died: same pointer, shape, strides and version."""
    numbers = random_edges(9, 9, 20).numpy()
    edges = torch.from_numpy(numbers)
    look_up(edges)
    del edges
    numbers[0, 0] = (numbers[0, 0] + 1) % 9
    edges = torch.from_numpy(numbers)
    assert look_up(edges).edge_index[0, 0] == numbers[0, 0]


def test_an_entry_dies_with_its_storage(cache):
    edges = random_edges(9, 9, 20)
    graph = weakref.ref(look_up(edges))
    view = edges[:, :5]
    del edges
    gc.collect()
    assert graph() is not None and len(cache) == 1  # the view keeps the storage
    del view
    gc.collect()
    assert graph() is None and len(cache) == 0


def test_bounded_and_least_recently_used_goes_first(cache):
    tensors = [random_edges(9, 9, 20, seed=i) for i in range(5)]
    graphs = [look_up(edges) for edges in tensors[:4]]
    assert look_up(tensors[0]) is graphs[0]
    look_up(tensors[4])
    assert len(cache) == 4
    assert look_up(tensors[0]) is graphs[0]
    assert look_up(tensors[1]) is not graphs[1]


def test_inference_tensors_are_not_cached(cache):
    with torch.inference_mode():
        edges = random_edges(9, 9, 20)
        one, two = look_up(edges), look_up(edges)
    assert one is not two and len(cache) == 0
    assert torch.equal(one.edge_index, two.edge_index)


def test_twenty_misses_in_a_row_are_said_once(cache):
    keep = [random_edges(9, 9, 20, seed=i) for i in range(70)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for edges in keep[:19]:
            look_up(edges)
        look_up(keep[18])  # a hit: counting starts again
        for edges in keep[19:38]:
            look_up(edges)
        assert not said
        for edges in keep[38:]:
            look_up(edges)
    assert len(said) == 1 and "20 edge_index tensors in a row" in str(said[0].message)
