"""Law 11: what the fast path leaves to PyG is counted, printed, and can be an error."""

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric.nn import MessagePassing

import gnnoffload as go
import gnnoffload.nn as nn
from gnnoffload import Graph, _fallback

pytestmark = pytest.mark.law(11)

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 0]])


def fallbacks(name):
    return _fallback.counts()[name]["fallback"]


def hooked():
    layer = nn.SAGEConv(5, 3)
    layer.register_message_forward_hook(lambda module, inputs, output: None)
    return layer


def explained():
    layer = nn.SAGEConv(5, 3)
    layer.explain = True
    layer._edge_mask = torch.ones(5)
    layer._loop_mask = torch.ones(5, dtype=torch.bool)
    return layer


def with_own_message():
    layer = nn.SAGEConv(5, 3)
    layer.message = lambda x_j: 2 * x_j
    return layer


def functional(layer, x, edges):
    return torch.func.grad(lambda x: layer(x, edges).sum())(x)


REASONS = {
    "message passing hooks": (hooked, X),
    "explain": (explained, X),
    "decomposed_layers=3": (lambda: nn.GCNConv(5, 3, decomposed_layers=3), X),
    "aggr=median": (lambda: nn.SAGEConv(5, 3, aggr="median"), X),
    "aggr=['mean', 'median']": (lambda: nn.SAGEConv(5, 3, aggr=["mean", "median"]), X),
    "a method of the instance replaced": (with_own_message, X),
    "x has 3 dimensions (static graph)": (lambda: nn.SAGEConv(5, 3), X.expand(2, 4, 5)),
    "x is sparse": (lambda: nn.GCNConv(5, 3), X.to_sparse()),
    "aggr=mean": (lambda: nn.GCNConv(5, 3, aggr="mean"), X),
}


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_is_counted_and_the_result_is_that_of_pyg(reason):
    build, x = REASONS[reason]
    layer = build()
    y = layer(x, EDGES)
    name = type(layer).__name__
    assert fallbacks(name) == {reason: 1}
    assert _fallback.counts()[name]["fast"] == 0
    stock = type(layer).__bases__[0].forward(layer, x, EDGES)
    torch.testing.assert_close(y, stock)


@pytest.mark.parametrize("reason", ["message passing hooks", "aggr=median", "explain"])
def test_a_graph_falls_back_as_its_edge_index(reason):
    build, x = REASONS[reason]
    layer = build()
    torch.testing.assert_close(layer(x, Graph(EDGES, (4, 4))), layer(x, EDGES))
    assert sum(fallbacks("SAGEConv").values()) == 2


def test_a_bipartite_graph_falls_back_with_its_size():
    layer = nn.GraphConv((5, 2), 3, aggr="max")
    graph = Graph(torch.tensor([[0, 3], [1, 1]]), (4, 6))
    assert layer((X, None), graph).shape == (6, 3)


@pytest.mark.parametrize("born_as", [nn, pyg], ids=["ours", "converted"])
def test_explain_obeys_the_edge_mask(born_as):
    pyg.SAGEConv(5, 3)  # its class now holds a compiled propagate that knows no mask
    layer = go.convert(born_as.SAGEConv(5, 3))
    layer.explain = True
    layer._edge_mask = torch.full((5,), -torch.inf)
    layer._loop_mask = torch.ones(5, dtype=torch.bool)
    expected = layer.lin_r(X) + layer.lin_l.bias
    torch.testing.assert_close(layer(X, EDGES), expected)
    layer.explain = False
    assert not torch.allclose(layer(X, EDGES), expected)


@pytest.mark.parametrize("born_as", [nn, pyg], ids=["ours", "converted"])
def test_decomposed_layers_see_slices_of_the_features(born_as):
    pyg.GCNConv(5, 4)
    layer = go.convert(born_as.GCNConv(5, 4))
    expected, widths = layer(X, EDGES), []
    layer.register_message_forward_pre_hook(
        lambda module, args: widths.append(args[0]["x_j"].size(1))
    )
    layer.decomposed_layers = 2
    torch.testing.assert_close(layer(X, EDGES), expected)
    assert widths == [2, 2]


def test_a_subclass_that_overrides_propagate_is_obeyed():
    class Nothing(nn.SAGEConv):
        def propagate(self, edge_index, x, size=None):
            return torch.zeros_like(x[0])

    layer = Nothing(5, 3)
    expected = layer.lin_r(X) + layer.lin_l.bias
    torch.testing.assert_close(layer(X, EDGES), expected)
    assert fallbacks("Nothing") == {"propagate() overridden": 1}


def test_hooks_run():
    seen = []
    layer = nn.GCNConv(5, 3)
    handle = layer.register_message_forward_pre_hook(lambda m, args: seen.append(args))
    layer(X, EDGES)
    assert len(seen) == 1
    handle.remove()
    layer(X, EDGES)
    assert len(seen) == 1
    assert _fallback.counts()["GCNConv"]["fast"] == 1


def test_a_subclass_that_overrides_message_is_obeyed():
    class Doubled(nn.GraphConv):
        def message(self, x_j, edge_weight):
            return 2 * x_j

    layer = Doubled(5, 3)
    expected = layer.lin_rel(2 * X[[3, 0, 1, 2]] + 2 * X[[0]] * EYE0) + layer.lin_root(
        X
    )
    torch.testing.assert_close(layer(X, EDGES), expected)
    assert fallbacks("Doubled") == {"message() overridden": 1}


EYE0 = torch.tensor([[1.0], [0.0], [0.0], [0.0]])


def test_a_subclass_that_overrides_nothing_keeps_the_fast_path():
    class Named(nn.SAGEConv):
        pass

    assert Named(5, 3)(X, EDGES).shape == (4, 3)
    assert _fallback.counts()["SAGEConv"] == {"fast": 1, "fallback": {}}


def test_a_subclass_may_call_propagate_with_arguments_of_its_own():
    class Scaled(nn.SAGEConv):
        def forward(self, x, edge_index, scale):
            # propagate_type: (x: Tensor, scale: Tensor)
            return self.propagate(edge_index, x=x, scale=scale)

        def message(self, x_j, scale):
            return scale * x_j

    layer = Scaled(5, 3)
    mean = pyg.SimpleConv("mean")(X, EDGES)
    torch.testing.assert_close(layer(X, EDGES, torch.tensor(3.0)), 3 * mean)


def test_the_base_class_patched_by_hand_is_obeyed(monkeypatch):
    layer = nn.GINConv(torch.nn.Identity())
    monkeypatch.setattr(nn.GINConv, "message", lambda self, x_j: 0 * x_j)
    torch.testing.assert_close(layer(X, EDGES), X)
    assert "message() overridden" in fallbacks("GINConv")


def test_scripting_compiles_the_layer_of_pyg():
    layer = nn.SAGEConv(5, 3)
    scripted = torch.jit.script(layer)
    torch.testing.assert_close(scripted(X, EDGES), layer(X, EDGES))
    assert fallbacks("SAGEConv") == {"torch.jit.script": 1}
    assert type(layer) is nn.SAGEConv


def test_tracing_falls_back():
    layer = nn.SAGEConv(5, 3)
    traced = torch.jit.trace(layer, (X, EDGES), check_trace=False)
    other = torch.randn(4, 5)
    torch.testing.assert_close(traced(other, EDGES), layer(other, EDGES))
    assert "torch.jit.trace" in fallbacks("SAGEConv")


def test_function_transforms_fall_back():
    layer = nn.SAGEConv(5, 3)
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(x, EDGES).sum(), x)
    torch.testing.assert_close(functional(layer, X, EDGES), expected)
    assert fallbacks("SAGEConv") == {"torch.func transform": 1}


def test_the_log_says_each_reason_once(monkeypatch, capsys):
    monkeypatch.setenv("GNNOFFLOAD_LOG", "other,fallback")
    layer = nn.SAGEConv(5, 3, aggr="median")
    layer(X, EDGES)
    layer(X, EDGES)
    expected = "gnnoffload: SAGEConv: fast path not taken: aggr=median\n"
    assert capsys.readouterr().err == expected


def test_no_log_without_the_variable(monkeypatch, capsys):
    monkeypatch.delenv("GNNOFFLOAD_LOG", raising=False)
    nn.SAGEConv(5, 3, aggr="median")(X, EDGES)
    assert capsys.readouterr().err == ""


def test_a_fallback_can_be_an_error(no_fallback):
    with pytest.raises(_fallback.FallbackError, match=r"SAGEConv: .* aggr=median"):
        nn.SAGEConv(5, 3, aggr="median")(X, EDGES)
    nn.SAGEConv(5, 3)(X, EDGES)


def test_the_table_names_layers_reasons_and_shares():
    nn.SAGEConv(5, 3)(X, EDGES)
    nn.SAGEConv(5, 3, aggr="median")(X, EDGES)
    lines = _fallback.table(("aggr=",)).splitlines()
    assert lines[0].split() == ["SAGEConv", "fast", "1", "fallback", "1", "50.0%"]
    assert lines[1].split() == ["1", "x", "aggr=median", "(by", "design)"]


def test_malformed_inputs_raise_as_in_pyg():
    layer = nn.SAGEConv(5, 3)
    with pytest.raises(ValueError, match="integer type"):
        layer(X, EDGES.float())
    with pytest.raises(ValueError, match="two-dimensional"):
        layer(X, EDGES[0])
    with pytest.raises(ValueError):
        layer(X, EDGES + 4)
    with pytest.raises(ValueError, match=r"size must be .*, got \(4,\)"):
        layer(X, EDGES, size=(4,))
    with pytest.raises(ValueError, match="1-based"):
        layer(X, torch.tensor([[1, 2], [2, 4]]))
    with pytest.raises(ValueError, match="tuple"):
        nn.GCNConv(5, 3)((X, X), EDGES)
    with pytest.raises(ValueError, match="target_to_source"):
        nn.SAGEConv(5, 3, flow="target_to_source")(X, torch.eye(4).to_sparse_csr())
    with pytest.raises(NotImplementedError, match="CSC"):
        nn.GCNConv(5, 3)(X, torch.eye(4).to_sparse_csc())


def test_every_layer_is_a_message_passing_layer_of_pyg():
    for name in nn.PYG_LAYERS:
        ours, stock = getattr(nn, name), getattr(pyg, name)
        assert ours.__name__ == name
        assert ours.__bases__ == (stock,)
        assert issubclass(ours, MessagePassing)
