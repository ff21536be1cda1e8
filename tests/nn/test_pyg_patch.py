"""The pytest plugin: PyG's names are ours in a test module, fallbacks are reported."""

import os
import subprocess
import sys

import pytest

MODULE = """
import torch
import torch_geometric.nn.conv.gcn_conv
from torch_geometric.nn import GCN, GCNConv, SAGEConv
from torch_geometric.nn.conv import GraphConv

X, EDGES = torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]])

def test_names():
    for cls in (GCNConv, SAGEConv, GraphConv):
        assert cls.__module__.startswith("gnnoffload.nn")
    assert torch_geometric.nn.conv.gcn_conv.GCNConv is GCNConv
    assert type(GCN(4, 4, 1).convs[0]) is GCNConv

def test_calls():
    GCNConv(4, 2)(X, EDGES)
    SAGEConv(4, 2, aggr="mul")(X, EDGES)
"""
BAD = """
def test_unexpected():
    from gnnoffload import _fallback
    _fallback.note("GCNConv", "some new reason")
"""


def run_pytest(folder, text, **variables):
    (folder / "test_patched.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "gnnoffload.testing.pyg_patch"]
    command += ["-q", "-p", "no:cacheprovider", str(folder / "test_patched.py")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), **variables}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_the_plugin_rebinds_and_reports(tmp_path):
    run = run_pytest(tmp_path, MODULE, GNNOFFLOAD_PATCH="strict")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 passed" in run.stdout
    assert "GCNConv      fast      1  fallback     0  100.0%" in run.stdout
    assert "1 x aggr=mul (by design)" in run.stdout


@pytest.mark.slow
def test_a_fallback_that_is_not_by_design_fails_a_strict_run(tmp_path):
    run = run_pytest(tmp_path, BAD, GNNOFFLOAD_PATCH="strict")
    assert run.returncode == 1
    assert "not by design: GCNConv: some new reason" in run.stdout
    assert run_pytest(tmp_path, BAD).returncode == 0
