"""spmm and sddmm on a graph small enough to check by hand."""

import pytest
import torch

import gnnoffload as go

pytestmark = pytest.mark.law(1)

# edges 0 -> 1, 2 -> 1, 2 -> 0, 1 -> 1 (self loop), 0 -> 1 (duplicate); node 3 isolated
EDGES = torch.tensor([[0, 2, 2, 1, 0], [1, 1, 0, 1, 1]])
X = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]])
W = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])

TABLE = [
    # weight, reduce, rows of the first column of y
    (None, "sum", [4, 1 + 4 + 2 + 1, 0, 0]),
    (None, "mean", [4, 8 / 4, 0, 0]),
    (W, "sum", [3 * 4, 1 * 1 + 2 * 4 + 4 * 2 + 5 * 1, 0, 0]),
    (W, "mean", [3 * 4, 22 / 4, 0, 0]),
]


@pytest.mark.parametrize("weight, reduce, expected", TABLE)
def test_spmm_literal(weight, reduce, expected):
    expected = torch.tensor(expected)[:, None] * torch.tensor([[1.0, 10.0]])
    assert torch.equal(go.spmm(EDGES, X, weight, reduce), expected)
    assert torch.equal(go.reference.spmm(EDGES, X, weight, reduce), expected)


def test_sddmm_literal():
    expected = 101 * torch.tensor([2.0, 8.0, 4.0, 4.0, 2.0])
    assert torch.equal(go.sddmm(EDGES, X, X), expected)
    assert torch.equal(go.reference.sddmm(EDGES, X, X), expected)


def test_gradients_literal():
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    go.spmm(go.Graph(EDGES, (4, 4)), x, w).sum().backward()
    column = torch.tensor([1.0 + 5.0, 4.0, 2.0 + 3.0, 0.0])
    assert torch.equal(x.grad, column[:, None].expand(4, 2))
    assert torch.equal(w.grad, 11 * torch.tensor([1.0, 4.0, 4.0, 2.0, 1.0]))


def test_scales():
    s, t = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 10.0, 100.0, 1000.0])
    y = go.spmm(EDGES, X[:, :1], W, row_scale=s, col_scale=t)
    assert y[:, 0].tolist() == [1200, 2 * (1 + 800 + 80 + 5), 0, 0]
    z = go.sddmm(EDGES, X[:, :1], X[:, :1], row_scale=s, col_scale=t)
    assert z.tolist() == [2 * 2, 2 * 100 * 8, 100 * 4, 2 * 10 * 4, 2 * 2]


def test_bipartite():
    edges = torch.tensor([[0, 2, 1], [0, 0, 1]])
    y = go.spmm(edges, X[:3], size=(3, 2))
    assert torch.equal(y, torch.stack((X[0] + X[2], X[1])))
    assert torch.equal(go.spmm(go.Graph(edges, (3, 2)), X[:3]), y)
