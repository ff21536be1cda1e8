"""100,000 calls leave the resident size where it was, on the error path as well."""

import sys

import pytest
import torch

import gnnoffload as go
from gnnoffload import _dispatch

CALLS = 100_000
GRAPH = go.Graph(torch.tensor([[0, 1], [1, 0]]))
NONE = torch.empty(0)


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def forward(x, w):
    go.spmm(GRAPH, x.detach(), w.detach())


def copies(x, w):
    """Arguments that the op has to copy: another handle to free."""
    go.spmm(GRAPH, x.detach().t()[:2], w.detach())


def forward_backward(x, w):
    go.spmm(GRAPH, x, w, "mean").sum().backward()
    x.grad = w.grad = None


def build(x, w):
    go.Graph(torch.tensor([[0, 1], [1, 0]])).args(True)


def bad_edge(x, w):
    with pytest.raises(go.GraphError):
        go.Graph(torch.tensor([[0, 7], [1, 0]]), (2, 2))


def raise_in_forward(x, w):
    with pytest.raises(RuntimeError):
        _dispatch.spmm_op(x, NONE[None], w.double(), NONE, *GRAPH.args())


def raise_in_backward(x, w):
    y = _dispatch.spmm_op(x, NONE, NONE, NONE, *unbuilt)
    with pytest.raises(RuntimeError):
        y.sum().backward()


unbuilt = go.Graph(torch.tensor([[0, 1], [1, 0]])).args()
SLOW = [build, bad_edge, raise_in_forward, raise_in_backward, forward_backward]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "call",
    [forward, copies] + [pytest.param(f, marks=pytest.mark.slow) for f in SLOW],
    ids=lambda f: f.__name__,
)
def test_flat(call):
    x, w = torch.ones(2, 2, requires_grad=True), torch.ones(2, requires_grad=True)
    for _ in range(2000):
        call(x, w)
    before = resident()
    for _ in range(CALLS):
        call(x, w)
    assert resident() - before < 16 * CALLS  # one lost handle is more than 16 bytes
