"""SuperGATConv: its training, where PyG samples edges, and what it leaves to PyG."""

import random

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg

import gnnoffload.nn as nn
from gnnoffload import Graph, _fallback

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([[0, 1, 2, 3, 0, 4, 5, 1], [1, 2, 3, 0, 2, 5, 4, 1]])
NEGATIVE = torch.tensor([[0, 3, 5], [3, 1, 0]])


def seed(number):
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def train_step(module, options, **inputs):
    """Output, loss and gradients of one step with the loss of attention."""
    seed(3)
    layer = module.SuperGATConv(5, 4, heads=2, **options)
    x = X.clone().requires_grad_()
    seed(7)
    y = layer(x, EDGES, **inputs)
    loss = layer.get_attention_loss()
    (y.square().sum() + loss).backward()
    names = [name for name, _ in layer.named_parameters()]
    grads = [p.grad for p in layer.parameters()]
    return dict(zip(names, grads, strict=True)) | {"y": y, "loss": loss, "x": x.grad}


@pytest.mark.parametrize("kind", ["MX", "SD"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.5},
        {"edge_sample_ratio": 0.6},
        {"neg_sample_ratio": 1.0, "is_undirected": True},
        {"add_self_loops": False},
    ],
    ids=str,
)
def test_a_training_step_is_that_of_pyg(kind, options, no_fallback):
    options = {"attention_type": kind, **options}
    ours, theirs = (train_step(module, options) for module in (nn, pyg))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-6)


def test_given_negative_edges_and_batches(no_fallback):
    batch = torch.tensor([0, 0, 0, 0, 1, 1])
    for inputs in ({"neg_edge_index": NEGATIVE}, {"batch": batch}):
        ours, theirs = (train_step(module, {}, **inputs) for module in (nn, pyg))
        for name, expected in theirs.items():
            torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-6)


def test_the_loss_is_zero_out_of_training():
    layer = nn.SuperGATConv(5, 4).eval()
    layer(X, EDGES)
    assert layer.get_attention_loss() == torch.tensor([0])


def test_a_graph_is_its_edge_index(no_fallback):
    layer = nn.SuperGATConv(5, 4, heads=3)
    results = []
    for form in (EDGES, Graph(EDGES, (6, 6))):
        seed(1)
        results.append((layer(X, form), layer.att_x, layer.att_y))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_what_is_left_to_pyg():
    class Mine(nn.SuperGATConv):
        def get_attention(self, edge_index_i, x_i, x_j, num_nodes, return_logits=False):
            return 0 * (x_i * x_j).sum(-1)

    assert torch.equal(Mine(5, 4, bias=False)(X, EDGES), torch.zeros(6, 4))
    layer = nn.SuperGATConv(5, 4)
    layer.get_attention = lambda *args, **kwargs: layer.get_attention_loss()
    reasons = [_fallback.counts()["Mine"]["fallback"]]
    adj = torch.eye(6).to_sparse_csr()
    layer = nn.SuperGATConv(5, 4, add_self_loops=False).eval()
    torch.testing.assert_close(layer(X, adj), layer(X, torch.arange(6).expand(2, 6)))
    reasons.append(_fallback.counts()["SuperGATConv"]["fallback"])
    assert reasons == [
        {"get_attention() overridden": 1},
        {"sparse matrix with positive and negative edges": 1},
    ]
