"""The attention stage checks what it times, and measures anemoi where it is."""

import sys
import types
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gnnoffload as go
from benchmarks import gpu_attention as stage

CPU = torch.device("cpu")


def test_the_graphs_have_the_shapes_of_the_weather_model():
    graphs = stage.weather_graphs(CPU, small=True)
    sizes = {name: (g[0].shape[1], *g[1:]) for name, g in graphs.items()}
    assert sizes == {
        "era_to_h": (471, 300, 42),
        "h_to_h": (300, 42, 42),
        "h_to_era": (900, 42, 300),
    }
    for edges, n_src, n_dst in graphs.values():
        assert (edges.max(1).values < torch.tensor([n_src, n_dst])).all()
        assert (edges[1].diff() >= 0).all()


def test_the_nearest_nodes_are_those_of_all_distances():
    points, nodes = torch.randn(50, 3), torch.randn(20, 3)
    distance, index = stage.nearest_nodes(points, nodes, 3, range_bytes=4 * 20 * 7)
    every = (points[:, None] - nodes).norm(dim=2)
    want = every.sort(dim=1)
    torch.testing.assert_close(distance, want.values[:, :3])
    assert torch.equal(index, want.indices[:, :3])


@pytest.mark.parametrize("name", ["dot_attention", "gatv2"])
def test_what_is_wrong_is_not_timed(name, monkeypatch):
    right = getattr(go, name)
    monkeypatch.setattr(go, name, lambda *args, **more: right(*args, **more) * 1.01)
    with pytest.raises(RuntimeError, match=r"relative error 1\.0e-02 of result 0"):
        stage.attention(CPU, small=True)


def test_anemoi_is_measured_where_it_is(monkeypatch):
    """Stand-ins of its two modules, right on one graph and wrong on the others."""

    def convert(edges, num_nodes, reverse, edges_are_dst_sorted):
        assert reverse and edges_are_dst_sorted
        return (edges, num_nodes[1]), None, "reverse"

    def attend(q, k, v, e, csc, reverse):
        edges, n_dst = csc
        wrong = 1.0 if edges.shape[1] == 300 else 1.1
        return stage.plain_attention(edges, n_dst, q, k, v, e) * wrong

    kernel, utils = types.ModuleType("gt"), types.ModuleType("utils")
    kernel.graph_transformer_attention_conv = attend
    utils.edge_index_to_csc = convert
    for name in ("anemoi", "anemoi.models", "anemoi.models.triton"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "anemoi.models.triton.gt", kernel)
    monkeypatch.setitem(sys.modules, "anemoi.models.triton.utils", utils)
    graphs = stage.graph_transformer(CPU, small=True)["graphs"]
    assert graphs["h_to_h"]["of_anemoi"] > 0 and graphs["h_to_h"]["problems"] == {}
    for name in ("era_to_h", "h_to_era"):
        assert "anemoi on" in graphs[name]["problems"]["anemoi"]
        assert "of_anemoi" not in graphs[name]
