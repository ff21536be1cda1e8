"""Fixtures of the layer tests: PyG or skip, one small graph, a clean ledger."""

import pytest
import torch

pytest.importorskip("torch_geometric")

from gnnoffload import _fallback


@pytest.fixture(autouse=True)
def clean_ledger():
    _fallback.reset()
    yield
    _fallback.reset()


@pytest.fixture
def no_fallback(monkeypatch):
    """Every fallback is an error while the test runs."""
    monkeypatch.setenv("GNNOFFLOAD_FALLBACK", "error")


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
