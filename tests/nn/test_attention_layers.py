"""What GATConv, GATv2Conv and TransformerConv have beyond the matrix of cases.py."""

import pytest
import torch
import torch_geometric.nn as pyg
from torch.utils._python_dispatch import TorchDispatchMode

import gnnoffload as go
import gnnoffload.nn as nn
from gnnoffload import Graph, _fallback
from gnnoffload.testing import compare

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([[0, 1, 2, 3, 0, 1], [1, 2, 3, 0, 2, 1]])  # with a self-loop
ATTR = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
NAMES = ["GATConv", "GATv2Conv", "TransformerConv"]
LOOPED = NAMES[:2]
EMPTY = torch.empty(2, 0, dtype=torch.long)


def leaf(tensor):
    return tensor.clone().requires_grad_()


def both(name, *args, **options):
    """Ours with the weights of PyG's, and PyG's."""
    ours, theirs = (getattr(m, name)(*args, **options) for m in (nn, pyg))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_gat_by_hand(no_fallback):
    edges, x = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[1.0], [2.0], [4.0]])
    layer = nn.GATConv(1, 1)
    one = torch.ones(1, 1, 1)
    state = {"lin.weight": one[0], "att_src": one, "att_dst": -one}
    layer.load_state_dict(state | {"bias": torch.zeros(1)})
    # scores into node 2: lrelu(1 - 4), lrelu(2 - 4), and of its self-loop lrelu(4 - 4)
    e = torch.tensor([-0.6, -0.4, 0.0]).exp()
    expected = torch.stack([x[0], x[1], ((e * x[:, 0]).sum() / e.sum()).view(1)])
    torch.testing.assert_close(layer(x, edges), expected)


# -------------------------------------------------------------------------- the weights


@pytest.mark.parametrize("edge_dim", [None, 3])
@pytest.mark.parametrize("form", ["edge_index", "Graph"])
@pytest.mark.parametrize("name", NAMES)
def test_returned_weights_and_their_gradient(name, form, edge_dim, no_fallback):
    results = []
    for layer in both(name, 5, 4, heads=2, edge_dim=edge_dim):
        x, attr = leaf(X), None if edge_dim is None else leaf(ATTR)
        ours = form == "Graph" and isinstance(layer, getattr(nn, name))
        graph = Graph(EDGES, (4, 4)) if ours else EDGES
        y, (edges, alpha) = layer(x, graph, attr, return_attention_weights=True)
        weight = torch.arange(alpha.numel()).view_as(alpha)
        (y.sum() + (weight * alpha).sum()).backward()
        grads = [x.grad, *(p.grad for p in layer.parameters())]
        results.append(
            [y, edges, alpha, *grads, *([] if attr is None else [attr.grad])]
        )
    for got, expected in zip(*results, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_returned_weights_of_a_sparse_matrix(name, loops, layout, no_fallback):
    if name == "TransformerConv" and loops:
        return
    options = {"heads": 2} | ({} if loops else {"add_self_loops": False})
    if name == "TransformerConv":
        options = {"heads": 2}
    ours, theirs = both(name, 5, 4, **options)
    edges = torch.unique(EDGES.flip(0), dim=1)
    adj = torch.sparse_coo_tensor(edges, torch.ones(edges.size(1)), (4, 4)).coalesce()
    adj = adj if layout == "coo" else adj.to_sparse_csr()
    results = [layer(X, adj, return_attention_weights=True) for layer in (ours, theirs)]
    (y, (mine, alpha)), (expected, (other, weights)) = results
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(alpha, weights)
    assert mine.layout == other.layout
    assert mine.shape == other.shape
    torch.testing.assert_close(mine.to_dense(), other.to_dense())


def test_the_transformer_returns_weights_for_any_bool(no_fallback):
    layer = nn.TransformerConv(5, 4, heads=2)
    for wanted in (True, False):
        _, (edges, alpha) = layer(X, EDGES, return_attention_weights=wanted)
        assert edges is EDGES
        assert alpha.shape == (6, 2)
        assert layer._alpha is None
    assert layer(X, EDGES, return_attention_weights=None).shape == (4, 8)
    assert nn.GATConv(5, 4)(X, EDGES, return_attention_weights=False).shape == (4, 4)


# ------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("name", NAMES)
def test_dropout_of_weights(name, no_fallback):
    ours, theirs = both(name, 5, 4, heads=2, dropout=0.5)
    torch.manual_seed(1)
    first, (_, alpha) = ours(X, EDGES, return_attention_weights=True)
    torch.manual_seed(1)
    again = ours(X, EDGES)
    torch.testing.assert_close(again, first)
    assert not torch.allclose(ours(X, EDGES), first)
    expected, (_, weights) = theirs.eval()(X, EDGES, return_attention_weights=True)
    if name == "TransformerConv":
        torch.testing.assert_close(alpha, weights)  # before dropout
    else:
        kept = alpha != 0
        assert 0 < kept.sum() < kept.numel()
        torch.testing.assert_close(alpha[kept], 2 * weights[kept])
    mean = sum(ours(X, EDGES).detach() for _ in range(500)) / 500
    torch.testing.assert_close(mean, expected.detach(), rtol=0, atol=0.3)
    torch.testing.assert_close(ours.eval()(X, EDGES), expected)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_under_dropout_are_those_of_the_edges_kept(name, no_fallback):
    layer = getattr(nn, name)(5, 3, heads=2, dropout=0.4).double()
    x = leaf(X.double())

    def call(x):
        torch.manual_seed(5)
        return layer(x, EDGES)

    assert torch.autograd.gradcheck(call, (x,))


# -------------------------------------------------------------------- nodes and options


@pytest.mark.parametrize("name", NAMES)
def test_two_sets_of_nodes(name, no_fallback):
    edges = torch.tensor([[0, 3, 2, 1, 1], [1, 1, 0, 1, 2]])
    pair = (leaf(X), leaf(X[:3, :2]))
    for options in ({"heads": 2}, {"heads": 2, "concat": False, "edge_dim": 3}):
        attr = (leaf(ATTR[:5]),) if "edge_dim" in options else ()
        layers = both(name, (5, 2), 4, **options)
        compare(*layers, (pair, edges, *attr))
        compare(*layers, (pair, Graph(edges, (4, 3)).edge_index, *attr))
        assert layers[0](pair, Graph(edges, (4, 3)), *attr).size(0) == 3


def test_gat_without_destination_features_and_with_a_size(no_fallback):
    edges = torch.tensor([[0, 3, 2, 1, 1], [1, 1, 0, 1, 2]])
    for options in ({}, {"add_self_loops": False}):
        layers = both("GATConv", (5, 2), 4, heads=2, **options)
        inputs = {"x": (leaf(X), None), "edge_index": edges, "size": (4, 3)}
        compare(*layers, inputs)
        compare(*both("GATConv", 5, 4, **options), {"x": leaf(X), "edge_index": EDGES})
    with pytest.raises(ValueError, match="expected size 5"):
        layers[0]((X, None), edges, size=(5, 3))


def test_gat_shares_or_splits_its_projection_by_how_it_was_made(no_fallback):
    for channels, x in ((5, (leaf(X), leaf(X))), ((5, 5), leaf(X))):
        compare(*both("GATConv", channels, 4, heads=2, residual=True), (x, EDGES))


@pytest.mark.parametrize("name", LOOPED)
def test_edge_features_in_one_dimension(name, no_fallback):
    for options in ({}, {"fill_value": "max"}, {"add_self_loops": False}):
        layers = both(name, 5, 4, heads=2, edge_dim=1, **options)
        compare(*layers, (leaf(X), EDGES, leaf(ATTR[:, 0])))


@pytest.mark.parametrize("fill", [2.5, torch.tensor([1.0, 2.0, 3.0]), "add", "mul"])
@pytest.mark.parametrize("name", LOOPED)
def test_features_of_self_loops(name, fill, no_fallback):
    layers = both(name, 5, 4, heads=2, edge_dim=3, fill_value=fill)
    compare(*layers, (leaf(X), EDGES, leaf(ATTR)))


def test_features_that_no_layer_projects(no_fallback):
    layers = both("GATConv", 5, 4, heads=2)
    compare(*layers, (leaf(X), EDGES, leaf(ATTR)))  # ignored, as in PyG
    compare(*both("GATConv", 5, 4, edge_dim=3), (leaf(X), EDGES))
    compare(*both("GATv2Conv", 5, 4, edge_dim=3), (leaf(X), EDGES))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_nodes", [0, 4])
def test_graphs_without_edges_or_nodes(name, n_nodes, no_fallback):
    options = {} if name == "TransformerConv" else {"add_self_loops": False}
    layers = both(name, 5, 4, heads=2, **options)
    compare(*layers, (leaf(X[:n_nodes]), EMPTY))
    if name != "TransformerConv":
        compare(*both(name, 5, 4, heads=2), (leaf(X[:n_nodes]), EMPTY))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [-1, (-1, -1)])
def test_lazy_layers(name, channels, no_fallback):
    residual = {} if name == "TransformerConv" else {"residual": True}
    layer = getattr(nn, name)(channels, 4, heads=2, **residual)
    pair = (X, X[:, :2]) if isinstance(channels, tuple) else X
    first = layer(pair, EDGES)
    assert all(type(p) is torch.nn.Parameter for p in layer.parameters())
    width = (5, 2) if isinstance(channels, tuple) else 5
    stock = getattr(pyg, name)(width, 4, heads=2, **residual)
    stock.load_state_dict(layer.state_dict())
    torch.testing.assert_close(first, stock(pair, EDGES))
    torch.testing.assert_close(layer(pair, EDGES), first)


def test_shared_weights_are_one_module(no_fallback):
    layer = nn.GATv2Conv(5, 4, share_weights=True)
    assert layer.lin_l is layer.lin_r
    keys = {"att", "bias", "lin_l.weight", "lin_l.bias", "lin_r.weight", "lin_r.bias"}
    assert layer.state_dict().keys() == keys


@pytest.mark.parametrize("name", [*NAMES, "SuperGATConv"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"edge_dim": 3}], ids=str)
def test_autocast(name, options, no_fallback):
    if name == "SuperGATConv" and "edge_dim" in options:
        return
    results = []
    for layer in both(name, 5, 4, heads=2, **options):
        x, rest = leaf(X), (ATTR,) if "edge_dim" in options else ()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer.eval()(x, EDGES, *rest)
        y.float().square().sum().backward()
        results.append((y, x.grad))
    for got, expected in zip(*results, strict=True):
        assert got.dtype is expected.dtype
        got, expected = got.float(), expected.float()
        assert (got - expected).abs().max() <= 0.05 * expected.abs().max()


# ------------------------------------------------------------------------- what is left


class EdgeHalf(nn.GATConv):
    def edge_update(self, alpha_j, alpha_i, edge_attr, index, ptr, dim_size):
        return torch.full_like(alpha_j, 0.5)


def test_an_overridden_edge_update_is_obeyed():
    layer = EdgeHalf(5, 4, add_self_loops=False, bias=False)
    x = layer.lin(X)
    expected = torch.zeros(4, 4).index_add(0, EDGES[1], 0.5 * x[EDGES[0]])
    torch.testing.assert_close(layer(X, EDGES), expected)
    assert _fallback.counts()["EdgeHalf"]["fallback"] == {"edge_update() overridden": 1}


@pytest.mark.parametrize("name", NAMES)
def test_hooks_and_explanations_are_obeyed(name):
    ours, theirs = both(name, 5, 4, heads=2)
    seen = []
    handle = ours.register_message_forward_hook(lambda *args: seen.append(1))
    torch.testing.assert_close(ours(X, Graph(EDGES, (4, 4))), theirs(X, EDGES))
    handle.remove()
    if name != "TransformerConv":
        handle = ours.register_edge_update_forward_hook(lambda *args: seen.append(1))
        torch.testing.assert_close(ours(X, EDGES), theirs(X, EDGES))
        handle.remove()
    ours.explain = True
    ours._edge_mask = torch.full((6,), 20.0)
    ours._loop_mask = EDGES[0] != EDGES[1]
    ours(X, EDGES)
    ours.explain = False
    reasons = _fallback.counts()[name]["fallback"]
    assert reasons == {"message passing hooks": len(seen), "explain": 1}
    torch.testing.assert_close(ours(X, EDGES), theirs(X, EDGES))


def test_scripting_compiles_the_layer_of_pyg():
    class Model(torch.nn.Module):  # PyG's overloads need a caller
        def __init__(self):
            super().__init__()
            self.conv = nn.TransformerConv(5, 4, heads=2)

        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            return self.conv(x, edge_index)

    model = Model()
    torch.testing.assert_close(torch.jit.script(model)(X, EDGES), model(X, EDGES))
    assert "torch.jit.script" in _fallback.counts()["TransformerConv"]["fallback"]


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_that_the_ops_do_not_have(name):
    ours, theirs = both(name, 5, 4, heads=2)
    tangents = []
    for layer in (ours, theirs):
        _, tangent = torch.func.jvp(lambda x, f=layer: f(x, EDGES), (X,), (X,))
        tangents.append(tangent)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(X, X)
            y = layer(dual, EDGES)
            tangents.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
    for tangent in tangents[1:]:
        torch.testing.assert_close(tangent, tangents[0])
    assert "forward-mode differentiation" in _fallback.counts()[name]["fallback"]
    x = leaf(X)
    with pytest.raises(NotImplementedError):
        (g,) = torch.autograd.grad(ours(x, EDGES).sum(), x, create_graph=True)
        g.square().sum().backward()
    (g,) = torch.autograd.grad(go.revert(ours)(x, EDGES).sum(), x, create_graph=True)
    g.square().sum().backward()


def test_what_pyg_refuses_it_refuses_still():
    adj = torch.eye(4).to_sparse_csr()
    with pytest.raises(AssertionError):
        nn.GATConv(5, 4, edge_dim=3)(X, adj, ATTR[:4])
    with pytest.raises(AssertionError):
        nn.GATv2Conv(5, 4)(X, EDGES, ATTR)
    with pytest.raises(AssertionError):
        nn.GATv2Conv((5, 5), 4)((X, None), EDGES)
    with pytest.raises(AssertionError):
        nn.TransformerConv(5, 4, edge_dim=3)(X, EDGES)
    with pytest.raises(AssertionError, match="Static graphs"):
        nn.GATConv(5, 4)(X.expand(2, 4, 5), EDGES)


# ------------------------------------------------------------------------- steady state


class OpNames(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", LOOPED)
def test_the_graph_with_self_loops_is_built_once(name, no_fallback):
    layers = [getattr(nn, name)(5, 4, edge_dim=3) for _ in range(2)]
    edges = EDGES.clone()
    layers[0](leaf(X), edges, ATTR).sum().backward()
    with OpNames() as ops:
        for layer in layers:
            layer(leaf(X), edges, ATTR).sum().backward()
    assert not ops.names & {"nonzero", "sort", "graph_build", "graph_transpose"}


def test_16_bit_results_are_as_close_to_the_truth_as_those_of_pyg(no_fallback):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 16, generator=generator)
    edges = torch.randint(60, (2, 900), generator=generator)
    for name in NAMES:
        ours, theirs = both(name, 16, 8, heads=2)
        truth = theirs.double()(x.double(), edges)
        state = {k: v.bfloat16() for k, v in theirs.state_dict().items()}
        errors = []
        for layer in (ours, theirs):
            layer.bfloat16().load_state_dict(state)
            y = layer(x.bfloat16(), edges)
            errors.append((y.double() - truth).abs().max().item())
        assert errors[0] <= 1.5 * errors[1], name
