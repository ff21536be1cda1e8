"""convert, conversion_report, revert: a change of class that touches nothing else."""

import copy
import pickle

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric.nn import to_hetero

import gnnoffload.nn as ours
from gnnoffload import _fallback
from gnnoffload._convert import conversion_report, convert, revert

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])


class MyGCN(pyg.GCNConv):
    pass


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = pyg.GCNConv(5, 8)
        self.rest = torch.nn.ModuleDict(
            {
                "sage": pyg.SAGEConv(8, 8),
                "max": pyg.SAGEConv(8, 8, aggr="median"),
                "arma": pyg.ARMAConv(8, 8),
                "mine": MyGCN(8, 8),
                "norm": torch.nn.LayerNorm(8),
            }
        )

    def forward(self, x, edge_index):
        x = self.first(x, edge_index)
        for name in ("sage", "max", "arma", "mine"):
            x = self.rest[name](x, edge_index).relu()
        return self.rest["norm"](x)


def test_convert_swaps_and_revert_restores():
    model = Net()
    classes = [type(m) for m in model.modules()]
    state = model.state_dict(keep_vars=True)
    expected = model(X, EDGES)

    assert convert(model) is model
    assert type(model.first) is ours.GCNConv
    assert type(model.rest["sage"]) is ours.SAGEConv
    assert type(model.rest["arma"]) is pyg.ARMAConv
    assert type(model.rest["mine"]) is MyGCN
    for key, value in model.state_dict(keep_vars=True).items():
        assert value is state[key]
    torch.testing.assert_close(model(X, EDGES), expected)
    assert _fallback.counts()["GCNConv"] == {"fast": 1, "fallback": {}}

    assert revert(model) is model
    assert [type(m) for m in model.modules()] == classes
    assert torch.equal(model(X, EDGES), expected)
    assert _fallback.counts()["GCNConv"]["fast"] == 1


def test_the_report_says_what_was_not_swapped_and_why():
    model = convert(Net())
    report = conversion_report(model)
    assert [(e.name, e.reason) for e in report.swapped] == [
        ("first", ""),
        ("rest.sage", ""),
        ("rest.max", "falls back: aggr=median"),
    ]
    assert [(e.name, e.reason) for e in report.kept] == [
        ("rest.arma", "no fused counterpart yet"),
        ("rest.mine", "a subclass of GCNConv; only PyG's own class is swapped"),
    ]
    assert report.to_dict()["layers"][0] == {
        "name": "first",
        "layer": "GCNConv",
        "status": "swapped",
        "reason": "",
    }
    lines = repr(report).splitlines()
    assert lines[0] == "conversion report: 3 of 5 message passing layers swapped"
    assert lines[4].split(maxsplit=2)[2] == "kept: no fused counterpart yet"


def test_the_report_of_an_unconverted_model():
    report = conversion_report(torch.nn.ModuleList([pyg.GCNConv(2, 2)]))
    assert report.swapped == ()
    assert report.kept[0].status == "not converted yet"
    assert "no message passing layers" in repr(conversion_report(torch.nn.Linear(1, 1)))


def test_the_root_itself():
    layer = pyg.SAGEConv(5, 3)
    expected = layer(X, EDGES)
    assert type(convert(layer)) is ours.SAGEConv
    torch.testing.assert_close(layer(X, EDGES), expected)
    assert "(model)" in repr(conversion_report(layer))
    assert type(revert(layer)) is pyg.SAGEConv


def test_a_layer_born_as_ours_can_become_that_of_pyg():
    layer = ours.GraphConv(5, 3)
    expected = layer(X, EDGES)
    revert(layer)
    assert type(layer) is pyg.GraphConv
    torch.testing.assert_close(layer(X, EDGES), expected)


def test_converting_twice_is_converting_once():
    model = convert(convert(Net()))
    assert type(model.first) is ours.GCNConv


def test_sequential_and_whole_models_of_pyg():
    model = pyg.Sequential(
        "x, edge_index",
        [(pyg.GCNConv(5, 8), "x, edge_index -> x"), torch.nn.ReLU(inplace=True)],
    )
    expected = model(X, EDGES)
    torch.testing.assert_close(convert(model)(X, EDGES), expected)
    model = pyg.GraphSAGE(5, 8, num_layers=2)
    expected = model(X, EDGES)
    torch.testing.assert_close(convert(model)(X, EDGES), expected)
    assert len(conversion_report(model).swapped) == 2
    assert _fallback.counts()["SAGEConv"]["fast"] == 2


def test_heterogeneous_models():
    metadata = (["a", "b"], [("a", "to", "b"), ("b", "to", "a")])
    model = to_hetero(pyg.GraphSAGE((-1, -1), 8, num_layers=2), metadata)
    x = {"a": torch.randn(3, 5), "b": torch.randn(4, 5)}
    edges = {
        ("a", "to", "b"): torch.tensor([[0, 1, 2], [3, 0, 3]]),
        ("b", "to", "a"): torch.tensor([[3, 0], [1, 1]]),
    }
    expected = model(x, edges)
    result = convert(model)(x, edges)
    for kind in ("a", "b"):
        torch.testing.assert_close(result[kind], expected[kind])
    assert len(conversion_report(model).swapped) == 4
    assert _fallback.counts()["SAGEConv"] == {"fast": 4, "fallback": {}}


def test_heterogeneous_models_made_of_our_layers():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = ours.SAGEConv((-1, -1), 8)

        def forward(self, x, edge_index):
            return self.conv(x, edge_index).relu()

    metadata = (["a"], [("a", "to", "a")])
    y = to_hetero(Two(), metadata)({"a": X}, {("a", "to", "a"): EDGES})
    assert y["a"].shape == (4, 8)


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_copies_of_a_converted_model(again):
    model = convert(Net())
    expected = model(X, EDGES)
    twin = again(model)
    assert type(twin.first) is ours.GCNConv
    assert torch.equal(twin(X, EDGES), expected)
    twin.first.explain = True  # the inherited machinery survives the copy
    twin.first._edge_mask = torch.ones(9)
    torch.testing.assert_close(twin.first(X, EDGES).isnan().any(), torch.tensor(False))
    assert type(revert(twin).first) is pyg.GCNConv
    torch.testing.assert_close(model(X, EDGES), expected)


def test_hooks_and_training_survive():
    model = pyg.GCNConv(5, 3)
    seen = []
    model.register_forward_hook(lambda *args: seen.append(1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    convert(model)(X, EDGES).sum().backward()
    before = model.lin.weight.clone()
    optimizer.step()
    assert seen == [1]
    assert not torch.equal(model.lin.weight, before)


def test_scripted_layers_are_reported():
    model = torch.nn.ModuleList([torch.jit.script(pyg.GCNConv(2, 2))])
    assert conversion_report(convert(model)).kept[0].reason == "compiled by TorchScript"


@pytest.mark.parametrize("function", [convert, revert, conversion_report])
def test_what_is_no_module(function):
    name = function.__name__
    with pytest.raises(TypeError, match=f"{name}: model must be .*, got int"):
        function(3)
