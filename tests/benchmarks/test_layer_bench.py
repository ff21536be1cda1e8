"""The rig of `bench attention` and `bench aggregate`: it measures what it says and
times nothing that is wrong."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gnnoffload as go
from benchmarks import bench_aggregate, bench_attention, layer_bench

LAYERS = {"GCN": layer_bench.Layer(lambda nn, f, h: nn.GCNConv(f, f))}
CASE = ("small", 8, 1, "float32", False)


def run(*words, layers=LAYERS, cases=(("GCN", CASE),)):
    words = ["--no-save", "--rounds", "2", *words]
    return layer_bench.main("test: a table", layers, list(cases), [], words)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_case_has_times_memory_and_ratios(capsys):
    build = ("small", 8, 1, "float32", True)
    plain, with_build = run(cases=[("GCN", CASE), ("GCN", build)])
    assert plain["fallbacks"] == [] and set(plain["peak_extra_bytes"]) == {
        *("ours", "pyg", "pyg_sorted")
    }
    low, middle, high = plain["pyg_ratio"]
    assert 0 < low <= middle <= high and plain["pyg_memory_ratio"] > 0
    assert with_build["with_build"]
    assert "no case on mesh6" in capsys.readouterr().out


def test_a_wrong_layer_is_not_timed(monkeypatch):
    right = go.nn.GCNConv.forward

    def wrong(self, *args):
        return right(self, *args) * 1.01

    monkeypatch.setattr(go.nn.GCNConv, "forward", wrong)
    with pytest.raises(
        SystemExit, match=r"GCN on small, ours: relative error 1\.0e-02"
    ):
        run()


def test_a_wrong_gradient_is_not_timed(monkeypatch):
    right = go.nn.GCNConv.forward

    def wrong(self, x, *args):
        return right(self, x * 1.01 - x.detach() * 0.01, *args)

    monkeypatch.setattr(go.nn.GCNConv, "forward", wrong)
    with pytest.raises(SystemExit, match=r"ours: relative error 1\.0e-02 of result 1"):
        run()


def test_a_fallback_stands_in_the_table(capsys):
    layers = {"SAGE": layer_bench.Layer(lambda nn, f, h: nn.SAGEConv(f, f, aggr="mul"))}
    (case,) = run(layers=layers, cases=[("SAGE", CASE)])
    assert case["fallbacks"] == ["aggr=mul"]
    assert "fallback: aggr=mul" in capsys.readouterr().out


def test_a_layer_that_is_not_there_is_named(capsys):
    layers = {"X": layer_bench.Layer(lambda nn, f, h: nn.NoSuchConv(f, f))}
    assert run(layers=layers, cases=[("X", CASE)]) == []
    out = capsys.readouterr().out
    assert "X: not there yet" in out and "nothing to measure" in out


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_extra_bytes():
    """What is alive at once counts once; what is freed before does not."""
    size = 2**24  # floats: 64 MiB

    def step():
        for _ in range(3):
            torch.ones(size)
        return (torch.ones(size // 4),)

    # other pages of the process, which the kernel took away, may come back meanwhile
    peak = min(layer_bench.peak_extra_bytes(step) for _ in range(3))
    assert 0.98 * 4 * size <= peak < 1.2 * 4 * size  # the kernel rounds


@pytest.mark.parametrize("bench", [bench_attention, bench_aggregate])
def test_the_tables_name_their_layers(bench):
    assert {name for name, _ in bench.MATRIX} == set(bench.LAYERS)
    assert {name for name, _ in bench.QUICK} == set(bench.LAYERS)
