"""What PyG promises of each layer, in our words: its text form, that the order and the
form of the edges do not matter, its caches, and what it returns."""

import copy
import pickle

import pytest
import torch
import torch_geometric.nn as pyg

import gnnoffload as go
import gnnoffload.nn as nn
from gnnoffload import _fallback

EDGES = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 1]])
WEIGHT = torch.tensor([0.5, 1.5, 2.0, 0.25])
LAYERS = {  # how it is made -> how it prints
    "GATConv(8, 32, heads=2)": "GATConv(8, 32, heads=2)",
    "GATv2Conv(8, 32, heads=2)": "GATv2Conv(8, 32, heads=2)",
    "TransformerConv(8, 32, heads=2)": "TransformerConv(8, 32, heads=2)",
    "SuperGATConv(8, 32, heads=2)": "SuperGATConv(8, 32, heads=2, type=MX)",
    "SuperGATConv(8, 32, 2, attention_type='SD')": (
        "SuperGATConv(8, 32, heads=2, type=SD)"
    ),
    "SGConv(8, 32, K=10)": "SGConv(8, 32, K=10)",
    "TAGConv(8, 32)": "TAGConv(8, 32, K=3)",
    "TAGConv(8, 32, normalize=False)": "TAGConv(8, 32, K=3)",
    "ChebConv(8, 32, K=3)": "ChebConv(8, 32, K=3, normalization=sym)",
    "APPNP(K=3, alpha=0.1)": "APPNP(K=3, alpha=0.1)",
    "LGConv()": "LGConv()",
    "SimpleConv()": "SimpleConv()",
}
SPARSE = [text for text in LAYERS if not text.startswith(("Cheb", "SuperGAT"))]


@pytest.fixture
def x():
    return torch.randn(4, 8)


def build(text, module=nn):
    return eval(text, {name: getattr(module, name) for name in nn.PYG_LAYERS})


@pytest.mark.parametrize("text", LAYERS)
def test_how_it_prints(text):
    assert str(build(text)) == str(build(text, pyg)) == LAYERS[text]


@pytest.mark.parametrize("text", LAYERS)
def test_edges_in_any_order(text, x, no_fallback):
    layer = build(text).eval()
    expected = layer(x, EDGES)
    for order in ([3, 1, 0, 2], [1, 0, 3, 2]):
        torch.testing.assert_close(
            layer(x, EDGES[:, order]), expected, rtol=1e-5, atol=1e-8
        )


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("text", SPARSE)
def test_the_sparse_forms_of_a_graph(text, x, no_fallback):
    layer = build(text)
    expected = layer(x, EDGES)
    coo = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(4), (4, 4)).coalesce()
    for adj in (coo, coo.to_sparse_csr()):
        y = layer(x, adj)
        if "SGConv" in text or "APPNP" in text:
            # a sparse matrix keeps its loop and gets one more, as in PyG
            expected = build(text, pyg).forward.__func__(layer, x, adj)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text", [t for t in LAYERS if "GAT" not in t and "Tr" not in t]
)
def test_weights_of_one_are_no_weights(text, x, no_fallback):
    layer = build(text)
    torch.testing.assert_close(layer(x, EDGES, torch.ones(4)), layer(x, EDGES))
    assert not torch.allclose(layer(x, EDGES, WEIGHT), layer(x, EDGES))


def test_sizes_of_outputs_and_weights(x, no_fallback):
    for name in ("GATConv", "GATv2Conv"):
        layer = getattr(nn, name)(8, 32, heads=2)
        assert layer(x, EDGES).shape == (4, 64)
        y, (edges, alpha) = layer(x, EDGES, return_attention_weights=True)
        assert y.shape == (4, 64)
        # the loop 0 -> 0 goes, four come
        assert (edges.shape, alpha.shape) == ((2, 7), (7, 2))
        assert (alpha > 0).all()
        assert alpha.max() <= 1
        sums = torch.zeros(4, 2).index_add(0, edges[1], alpha.detach())
        torch.testing.assert_close(sums, torch.ones(4, 2))
        adj = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(4), (4, 4)).coalesce()
        _, (matrix, _) = layer(x, adj.to_sparse_csr(), return_attention_weights=True)
        assert matrix.shape == (4, 4, 2)
        assert matrix._nnz() == 7
    layer = nn.TransformerConv(8, 32, heads=2, concat=False, beta=True)
    y, (edges, alpha) = layer(x, EDGES, return_attention_weights=True)
    assert y.shape == (4, 32)
    assert (edges.shape, alpha.shape) == ((2, 4), (4, 2))


def test_a_chebyshev_filter_of_each_graph_of_a_batch(x, no_fallback):
    layer = nn.ChebConv(8, 5, K=3)
    edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    batch = torch.tensor([0, 0, 1, 1])
    expected = layer(x, edges, lambda_max=2.5)
    lambda_max = torch.tensor([2.5, 2.5])
    y = layer(x, edges, batch=batch, lambda_max=lambda_max)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer(x, edges, None, None, lambda_max[0]), expected)


def test_models_of_pyg_made_of_our_layers(x, no_fallback):
    for model in (
        pyg.GAT(8, 16, num_layers=2, heads=4),
        pyg.GAT(8, 16, num_layers=2, v2=True, heads=2, edge_dim=3),
        pyg.LightGCN(4, 8, num_layers=2),
    ):
        edge_attr = torch.randn(4, 3)
        if isinstance(model, pyg.LightGCN):
            inputs = (EDGES,)
        else:
            inputs = (x, EDGES, None, edge_attr)
        expected = model(*inputs)
        torch.testing.assert_close(go.convert(model)(*inputs), expected)
    fast = {name: row["fast"] for name, row in _fallback.counts().items()}
    assert fast == {"GATConv": 2, "GATv2Conv": 2, "LGConv": 2}


@pytest.mark.parametrize("text", LAYERS)
def test_copies_conversion_and_its_undoing(text, x, no_fallback):
    layer = build(text, pyg).eval()
    expected = layer(x, EDGES)
    assert type(go.convert(layer)).__module__.startswith("gnnoffload.nn")
    for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer)
        torch.testing.assert_close(twin(x, EDGES), expected)
    assert type(go.revert(layer)) is type(build(text, pyg))
    assert torch.equal(layer(x, EDGES), expected)
