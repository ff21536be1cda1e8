"""The path graph 0 -> 1 -> 2 with known features, worked out by hand."""

import pytest
import torch
from torch.nn import Identity

import gnnoffload.nn as nn
from gnnoffload import Graph

X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
EDGES = torch.tensor([[0, 1], [1, 2]])

pytestmark = pytest.mark.usefixtures("no_fallback")


def with_identity(layer, *names):
    for name in names:
        torch.nn.init.eye_(getattr(layer, name).weight)
    return layer


def test_gcn():
    layer = with_identity(nn.GCNConv(2, 2), "lin")
    # with self-loops the degrees are 1, 2, 2; s = 1, 1/sqrt 2, 1/sqrt 2
    r = 0.5**0.5
    expected = torch.stack([X[0], r * X[0] + X[1] / 2, X[1] / 2 + X[2] / 2])
    torch.testing.assert_close(layer(X, EDGES), expected)
    torch.testing.assert_close(layer(X, Graph(EDGES, (3, 3))), expected)


def test_gcn_weighted_with_an_existing_self_loop():
    layer = with_identity(nn.GCNConv(2, 2), "lin")
    edges = torch.tensor([[0, 1, 2], [1, 2, 2]])
    weight = torch.tensor([3.0, 2.0, 7.0])
    # loops 1, 1, 7; degrees 1, 1 + 3 = 4, 7 + 2 = 9
    row1 = 3 * X[0] / (1 * 2) + X[1] / 4
    row2 = 2 * X[1] / (2 * 3) + 7 * X[2] / 9
    expected = torch.stack([X[0], row1, row2])
    torch.testing.assert_close(layer(X, edges, weight), expected)


def test_gcn_gradient_of_an_edge_weight_passes_through_the_degrees():
    layer = with_identity(nn.GCNConv(2, 2), "lin")
    weight = torch.tensor([1.0, 1.0], requires_grad=True)
    layer(X, EDGES, weight)[1, 0].backward()
    # y_1 = w x_0 / sqrt(1 + w) + x_1 / (1 + w), w = 1; edge 1 -> 2 does not enter
    expected = 1 / 2**0.5 - 1 / (2 * 2**1.5) - 3 / 4
    torch.testing.assert_close(weight.grad, torch.tensor([expected, 0.0]))


def test_sage_mean_and_sum():
    edges = torch.tensor([[0, 1, 2], [1, 2, 1]])
    layer = with_identity(nn.SAGEConv(2, 2, bias=False), "lin_l", "lin_r")
    expected = torch.stack([X[0], (X[0] + X[2]) / 2 + X[1], X[1] + X[2]])
    torch.testing.assert_close(layer(X, edges), expected)
    layer = with_identity(nn.SAGEConv(2, 2, aggr="sum", bias=False), "lin_l", "lin_r")
    expected[1] = X[0] + X[2] + X[1]
    torch.testing.assert_close(layer(X, edges), expected)


def test_gin():
    layer = nn.GINConv(Identity(), eps=0.5)
    expected = torch.stack([1.5 * X[0], X[0] + 1.5 * X[1], X[1] + 1.5 * X[2]])
    torch.testing.assert_close(layer(X, EDGES), expected)


def test_gine():
    layer = nn.GINEConv(Identity())
    attr = torch.tensor([[-2.0, 1.0], [1.0, -9.0]])
    expected = torch.stack(
        [X[0], torch.tensor([0.0, 3.0]) + X[1], torch.tensor([4.0, 0.0]) + X[2]]
    )
    torch.testing.assert_close(layer(X, EDGES, attr), expected)


def test_graph_conv():
    layer = with_identity(nn.GraphConv(2, 2, bias=False), "lin_rel", "lin_root")
    weight = torch.tensor([2.0, -1.0])
    expected = torch.stack([X[0], 2 * X[0] + X[1], X[2] - X[1]])
    torch.testing.assert_close(layer(X, EDGES, weight), expected)
