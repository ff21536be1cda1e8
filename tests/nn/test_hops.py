"""What SG, TAG, Cheb, APPNP, LG and Simple have beyond the matrix of cases.py."""

import pytest
import torch
import torch_geometric.nn as pyg

import gnnoffload.nn as nn
from gnnoffload import Graph, _fallback
from gnnoffload.testing import compare

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
LOOPS = torch.cat([EDGES, torch.tensor([[1, 3, 1], [1, 3, 1]])], dim=1)
WEIGHT = torch.tensor([0.5, 2.0, 1.5, 3.0, 0.25, 0.75, 1.25, 0.1])
OTHER = torch.tensor([[3, 2], [1, 1]])


def leaf(tensor):
    return tensor.clone().requires_grad_()


# ------------------------------------------------------------------------------ literal


def test_two_hops_by_hand(no_fallback):
    edges, x = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[1.0], [3.0], [5.0]])
    layer = nn.SGConv(1, 1, K=2, add_self_loops=False)
    layer.load_state_dict({"lin.weight": torch.ones(1, 1), "lin.bias": torch.zeros(1)})
    # degrees 0, 1, 1: the edge 0 -> 1 has weight 0, the edge 1 -> 2 has weight 1
    torch.testing.assert_close(layer(x, edges), torch.zeros(3, 1))
    torch.testing.assert_close(nn.LGConv()(x, edges), torch.tensor([[0.0], [0.0], [3]]))
    y = nn.APPNP(K=1, alpha=0.25, add_self_loops=False)(x, edges)
    torch.testing.assert_close(y, torch.tensor([[0.25], [0.75], [1.25 + 0.75 * 3]]))


def test_chebyshev_terms_by_hand(no_fallback):
    edges = torch.tensor([[0, 1], [1, 0]])  # L^ = -[[0, 1], [1, 0]] as lambda_max = 2
    x = torch.tensor([[1.0], [3.0]])
    layer = nn.ChebConv(1, 1, K=3, bias=False)
    weights = {f"lins.{k}.weight": torch.full((1, 1), 10.0**k) for k in range(3)}
    layer.load_state_dict(weights)
    # T_1 x = -(3, 1), T_2 x = 2 L^ T_1 x - x = x
    expected = torch.tensor([[1.0 - 30 + 100], [3.0 - 10 + 300]])
    torch.testing.assert_close(layer(x, edges), expected)


@pytest.mark.parametrize("root", ["sum", "cat", "self_loop", None])
def test_the_root_of_simple_conv_by_hand(root, no_fallback):
    edges, x = torch.tensor([[0, 2], [1, 1]]), torch.tensor([[1.0], [3.0], [5.0]])
    mean = torch.tensor([[0.0], [3.0], [0.0]])
    expected = {
        "sum": mean + x,
        "cat": torch.cat([x, mean], dim=1),
        "self_loop": torch.tensor([[1.0], [3.0], [5.0]]),
        None: mean,
    }[root]
    y = nn.SimpleConv("mean", combine_root=root)(x, edges)
    torch.testing.assert_close(y, expected)


# ----------------------------------------------------------------------------- ChebConv

LAMBDAS = {
    "none": None,
    "number": 1.7,
    "tensor": torch.tensor(2.2),
    "one graph": torch.tensor([2.2]),
}


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LAMBDAS)
@pytest.mark.parametrize("normalization", [None, "sym", "rw"])
def test_cheb_lambda_max(normalization, name, weighted, flow, no_fallback):
    options = {"K": 3, "normalization": normalization, "flow": flow}
    for edges in (EDGES, LOOPS):
        for width in (2, 7):
            layers = [module.ChebConv(5, width, **options) for module in (nn, pyg)]
            weight = leaf(WEIGHT[: edges.size(1)]) if weighted else None
            compare(*layers, (leaf(X), edges, weight, None, LAMBDAS[name]))


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("normalization", [None, "sym", "rw"])
def test_cheb_with_a_lambda_max_of_each_graph(normalization, flow, no_fallback):
    options = {"K": 3, "normalization": normalization, "flow": flow}
    layers = [module.ChebConv(5, 3, **options) for module in (nn, pyg)]
    edges = torch.tensor([[0, 0, 1, 2, 3, 3, 4, 5], [1, 2, 0, 0, 4, 5, 3, 3]])
    batch = torch.tensor([0, 0, 0, 1, 1, 1])
    x, lambda_max = torch.randn(6, 5), leaf(torch.tensor([2.0, 3.0]))
    for weight in (None, leaf(WEIGHT)):
        compare(*layers, (leaf(x), edges, weight, batch, lambda_max))


def test_cheb_with_weights_below_zero_has_another_lambda_max(no_fallback):
    weight = torch.tensor([4.0, -1.0, 5.0, 2.0, 3.0])  # -w / D may exceed 1
    layers = [module.ChebConv(5, 3, K=2, normalization="rw") for module in (nn, pyg)]
    compare(*layers, (leaf(X), EDGES, leaf(weight)))


def test_the_laplacian_of_an_unweighted_graph_is_built_once(no_fallback):
    graph = Graph(EDGES, (4, 4))
    layer = nn.ChebConv(5, 3, K=2)
    layer(X, graph)
    kept = graph.cache["laplacian", "sym", torch.float32, False]
    assert kept.weight is None  # N-vectors alone
    layer(X, graph)
    assert graph.cache["laplacian", "sym", torch.float32, False] is kept


# -------------------------------------------------------------------------------- APPNP


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("loops", [False, True])
def test_appnp_drops_the_edges_that_pyg_drops(loops, cached, weighted, no_fallback):
    options = {"dropout": 0.5, "add_self_loops": loops, "cached": cached}
    results = []
    for module in (nn, pyg):
        layer = module.APPNP(3, 0.1, **options)
        x, weight = leaf(X), leaf(WEIGHT) if weighted else None
        torch.manual_seed(7)
        y = layer(x, LOOPS, weight)
        y.square().sum().backward()
        results.append([y, x.grad, *([weight.grad] if weighted else [])])
        layer.eval()
        results[-1].append(layer(X, LOOPS, weight))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(results[0][0], results[0][-1])


def test_appnp_without_normalisation_drops_weights_or_refuses():
    a, b = (module.APPNP(2, 0.1, dropout=0.3, normalize=False) for module in (nn, pyg))
    torch.manual_seed(1)
    y = a(X, EDGES, WEIGHT[:5])
    torch.manual_seed(1)
    torch.testing.assert_close(y, b(X, EDGES, WEIGHT[:5]))
    with pytest.raises(AssertionError):
        a(X, EDGES)


def test_appnp_leaves_the_dropout_of_sparse_values_to_pyg():
    layer = nn.APPNP(2, 0.1, dropout=0.3)
    layer(X, torch.eye(4).to_sparse_csr())
    (reason,) = _fallback.counts()["APPNP"]["fallback"]
    assert reason == "sparse matrix with dropout of its values"
    layer.eval()(X, torch.eye(4).to_sparse_csr())
    assert _fallback.counts()["APPNP"]["fast"] == 1


# ------------------------------------------------------------------------------- cached


@pytest.mark.parametrize("form", [EDGES, Graph(EDGES, (4, 4))], ids=["edges", "Graph"])
def test_the_first_graph_of_appnp_stays(form, no_fallback):
    layer = nn.APPNP(3, 0.1, cached=True)
    expected = layer(X, form)
    torch.testing.assert_close(expected, nn.APPNP(3, 0.1)(X, EDGES))
    torch.testing.assert_close(layer(X, OTHER), expected)
    assert layer._cached_edge_index[0].shape == (2, 9)
    layer.reset_parameters()
    assert layer._cached_edge_index is None


def test_the_first_features_of_sg_stay_and_are_detached(no_fallback):
    layer = nn.SGConv(5, 3, K=2, cached=True)
    x = leaf(X)
    expected = layer(x, EDGES)
    assert layer._cached_x.shape == (4, 5)
    again = layer(x + 1, OTHER)
    torch.testing.assert_close(again, expected)
    again.sum().backward()
    assert x.grad is None
    layer.reset_parameters()
    assert layer._cached_x is None


# ------------------------------------------------------ the narrower scheme is the same


@pytest.mark.parametrize("width", [2, 5, 9])
def test_both_schemes_of_many_hops_agree(width, no_fallback):
    for name, options in {"SGConv": {}, "TAGConv": {}, "ChebConv": {}}.items():
        for k in (1, 2, 4):
            layers = [getattr(m, name)(5, width, K=k, **options) for m in (nn, pyg)]
            compare(*layers, (leaf(X), LOOPS, leaf(WEIGHT)))
            compare(*layers, (X, LOOPS))


def test_a_watched_projection_is_not_moved(no_fallback):
    seen = []
    layer = nn.TAGConv(5, 2, K=2)  # narrow: ours would project first
    for lin in layer.lins:
        lin.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0].shape))
    layer(X, EDGES)
    assert seen == [(4, 5)] * 3


def test_simple_conv_with_a_pair(no_fallback):
    pair = (leaf(X), leaf(X[:3, :2]))
    edges = torch.tensor([[0, 3, 2], [1, 1, 0]])
    for options in ({}, {"combine_root": "cat"}, {"aggr": "mean"}):
        layers = [module.SimpleConv(**options) for module in (nn, pyg)]
        compare(*layers, (pair, edges, leaf(WEIGHT[:3])))
    layer = nn.SimpleConv()
    torch.testing.assert_close(layer((X, None), edges, size=(4, 3))[2], torch.zeros(5))


@pytest.mark.parametrize("root", ["self_loop", "cat", None])
@pytest.mark.parametrize("aggr", ["max", "min", "var", ["sum", "max", "std"]])
def test_other_reductions_of_simple_conv(aggr, root, no_fallback):
    layers = [module.SimpleConv(aggr, combine_root=root) for module in (nn, pyg)]
    for edges in (EDGES, LOOPS):
        compare(*layers, (leaf(X), edges))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_simple_conv_leaves_to_pyg():
    adj = torch.eye(4).to_sparse_csr()
    for aggr, rest in (
        ("mul", (EDGES,)),
        ("max", (EDGES, WEIGHT[:5])),
        ("max", (adj,)),
    ):
        ours, theirs = (module.SimpleConv(aggr) for module in (nn, pyg))
        torch.testing.assert_close(ours(X, *rest), theirs(X, *rest))
    assert _fallback.counts()["SimpleConv"]["fallback"] == {
        "aggr=mul": 1,
        "edge_weight with aggr=max": 1,
        "sparse matrix with aggr=max": 1,
    }


def test_simple_conv_refuses_loops_between_two_sets_of_nodes():
    layer = nn.SimpleConv(combine_root="self_loop")
    with pytest.raises(ValueError, match="self_loop"):
        layer((X, X), EDGES)
    with pytest.raises(ValueError, match="combine_root"):
        nn.SimpleConv(combine_root="other")
