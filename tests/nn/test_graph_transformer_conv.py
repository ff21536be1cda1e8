"""GraphTransformerConv against attention written out in plain torch."""

import copy
import pickle

import pytest
import torch

import gnnoffload.nn as nn
from gnnoffload import Graph

N_SRC, N_DST, E, H, C = 7, 5, 19, 3, 4


def plain(query, key, value, edge, edge_index):
    """The attention of anemoi's layer, message by message."""
    out = torch.zeros_like(query)
    source, destination = edge_index
    for i in range(query.size(0)):
        mine = (destination == i).nonzero().view(-1)
        if mine.numel():
            f = 0 if edge is None else edge[mine]
            scores = (query[i] * (key[source[mine]] + f)).sum(-1) / C**0.5
            alpha = scores.softmax(dim=0)[..., None]
            out[i] = (alpha * (value[source[mine]] + f)).sum(dim=0)
    return out


def operands(n_src=N_SRC, dtype=torch.float64):
    shapes = (N_DST, H, C), (n_src, H, C), (n_src, H, C), (E, H, C)
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


def random_edges(n_src=N_SRC):
    edges = torch.randint(n_src, (2, E))
    edges[1] = torch.randint(N_DST - 1, (E,))  # the last destination has none
    return edges


@pytest.mark.parametrize("form", ["edge_index", "size", "Graph"])
@pytest.mark.parametrize("with_edges", [True, False])
@pytest.mark.parametrize("n_src", [N_SRC, N_DST])
def test_values_and_gradients(n_src, with_edges, form):
    *qkv, edge = operands(n_src)
    inputs = [*qkv, edge] if with_edges else qkv
    edges, size = random_edges(n_src), (n_src, N_DST)
    given = Graph(edges, size) if form == "Graph" else edges
    conv = nn.GraphTransformerConv(C)
    attr = edge if with_edges else None
    ours = conv(*qkv, attr, given, size if form == "size" else None)
    theirs = plain(*qkv, attr, edges)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    results = [torch.autograd.grad(y, inputs, grad) for y in (ours, theirs)]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_dropout_of_weights_in_training_alone():
    qkv, edges = operands()[:3], random_edges()
    conv = nn.GraphTransformerConv(C, dropout=0.5)
    expected = plain(*qkv, None, edges)
    torch.testing.assert_close(conv.eval()(*qkv, None, edges), expected)
    conv.train()
    torch.manual_seed(3)
    first = conv(*qkv, None, edges)
    torch.manual_seed(3)
    assert torch.equal(conv(*qkv, None, edges), first)
    mean = sum(conv(*qkv, None, edges).detach() for _ in range(400)) / 400
    assert not torch.allclose(first, expected)
    torch.testing.assert_close(mean, expected.detach(), rtol=0, atol=0.5)


def test_it_has_no_weights_and_can_be_copied():
    conv = nn.GraphTransformerConv(C, dropout=0.25)
    assert conv.state_dict() == {}
    assert repr(conv) == "GraphTransformerConv(4, dropout=0.25)"
    for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert (twin.out_channels, twin.dropout) == (C, 0.25)


def test_what_does_not_fit_is_named():
    query, key, value, edge = operands()
    edges, conv = random_edges(), nn.GraphTransformerConv(C)
    with pytest.raises(ValueError, match=r"edge must have shape \[19, 3, 4\]"):
        conv(query, key, value, edge[:-1], edges)
    with pytest.raises(ValueError, match="value must"):
        conv(query, key, value[:-1], edge, edges)
    with pytest.raises(ValueError, match="of edge"):
        conv(query, key, value, edge, edges + 5)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        nn.GraphTransformerConv(C, dropout=1)
