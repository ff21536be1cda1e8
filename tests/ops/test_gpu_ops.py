"""The detour over a GPU that the op tests take, played with the CPU as the device."""

import gpu_ops
import pytest
import torch

import gnnoffload as go
from gnnoffload import _dispatch


def test_there_and_back_gives_the_op(monkeypatch):
    graph = go.Graph(torch.randint(20, (2, 100)), (20, 20))
    x = torch.randn(20, 5, requires_grad=True)
    expected = go.spmm(graph, x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    monkeypatch.setattr(gpu_ops, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_ops, "split_rows", lambda rowptr: rowptr)
    monkeypatch.setattr(_dispatch, "spmm_op", gpu_ops.spmm)
    before = gpu_ops.n_calls
    y = go.spmm(graph, x)
    (again,) = torch.autograd.grad(y.square().sum(), x)
    assert gpu_ops.n_calls == before + 2
    assert torch.equal(y, expected) and torch.equal(again, gradient)


def test_other_bits_are_noticed(monkeypatch):
    monkeypatch.setattr(gpu_ops, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_ops, "split_rows", lambda rowptr: rowptr)
    results = iter([torch.zeros(3), -torch.zeros(3), torch.zeros(3)])
    monkeypatch.setitem(gpu_ops.REAL, "spmm", lambda *args: next(results))
    empty = torch.empty(0)
    with pytest.raises(AssertionError, match="other bits in spmm"):
        gpu_ops.spmm(*[empty] * 10)
