"""Law 1 for the layers: outputs and all gradients are PyG's, and by the fast path."""

import itertools

import pytest
import torch
import torch_geometric.nn as pyg
from cases import ATTENTION, DTYPES, FORMS, OPTIONS, inputs_of, make

import gnnoffload.nn as ours
from gnnoffload import _fallback
from gnnoffload.testing import compare

pytestmark = [
    pytest.mark.law(1),
    pytest.mark.filterwarnings("ignore:Converting sparse tensor"),
    pytest.mark.filterwarnings("ignore:Sparse"),
]
CASES = [
    (name, options, form, bipartite, weighted)
    for name, list_of_options in OPTIONS.items()
    for options, form in itertools.product(list_of_options, FORMS)
    for bipartite, weighted in itertools.product((False, True), (False, True))
]


def label(case):
    name, options, form, bipartite, weighted = case
    words = [name, *(f"{k}={v}" for k, v in options.items()), form]
    return " ".join(words + ["pair"] * bipartite + ["weighted"] * weighted)


def run(case, dtype):
    """Compares one case; None when PyG has no such call."""
    name, options, form, bipartite, weighted = case
    inputs = inputs_of(name, options, form, dtype, bipartite, weighted)
    if inputs is None:
        return None
    torch.manual_seed(0)
    # PyG rounds every step of a 16-bit softmax
    rough = name in ATTENTION and dtype is torch.bfloat16
    return compare(
        make(ours, name, options, dtype),
        make(pyg, name, options, dtype),
        inputs,
        tolerance=0.3 if rough else None,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_outputs_and_gradients_are_those_of_pyg(name, dtype, capsys):
    compared = 0
    for case in CASES:
        if case[0] == name:
            try:
                result = run(case, dtype)
            except AssertionError as error:
                raise AssertionError(f"{label(case)}: {error}") from error
            compared += result is not None
    assert compared >= 20
    if dtype is torch.float32:
        with capsys.disabled():
            print("\n" + _fallback.table())
    row = _fallback.counts()[name]  # nine calls in ten take the fast path
    assert row["fast"] >= 0.9 * (row["fast"] + sum(row["fallback"].values()))


@pytest.mark.parametrize("name", OPTIONS)
def test_state_dict_and_repr_are_those_of_pyg(name):
    for options in OPTIONS[name]:
        torch.manual_seed(3)
        a = make(ours, name, options, torch.float32)
        torch.manual_seed(3)
        b = make(pyg, name, options, torch.float32)
        assert repr(a) == repr(b)
        assert a.state_dict().keys() == b.state_dict().keys()
        for key, value in b.state_dict().items():
            assert torch.equal(a.state_dict()[key], value), key


@pytest.mark.parametrize("weight_dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["GCNConv", "GraphConv"])
def test_a_weight_of_another_dtype_promotes_as_in_pyg(name, weight_dtype, no_fallback):
    x, graph, _ = inputs_of(name, {}, "edge_index", torch.float32, weighted=True)
    weight = torch.rand(graph.size(1), dtype=weight_dtype, requires_grad=True)
    layers = [make(module, name, {}, torch.float32) for module in (ours, pyg)]
    if name == "GraphConv" and weight_dtype is torch.float64:
        for layer in layers:  # the promoted sum meets a float32 Linear
            with pytest.raises(RuntimeError, match="dtype"):
                layer(x, graph, weight)
        return
    compare(*layers, (x, graph, weight), tolerance=1e-2)


@pytest.mark.parametrize("name", OPTIONS)
def test_all_forms_of_a_graph_give_the_same_bits(name, no_fallback):
    results = []
    for form in ("edge_index", "edge_index32", "EdgeIndex", "Graph"):
        torch.manual_seed(0)
        layer = make(ours, name, {}, torch.float32)
        x, graph, *rest = inputs_of(name, {}, form, torch.float32)
        results.append(layer(x, getattr(graph, "forms", [graph])[0], *rest))
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_graph_without_edges(name, no_fallback):
    layers = [make(module, name, {}, torch.float32) for module in (ours, pyg)]
    x = torch.randn(4, 5, requires_grad=True)
    edge_index = torch.empty(2, 0, dtype=torch.long)
    inputs = (x, edge_index)
    if name == "GINEConv":
        inputs += (torch.randn(0, 5, requires_grad=True),)
    compare(*layers, inputs)


@pytest.mark.parametrize("name", ["SAGEConv", "GINConv", "GINEConv", "GraphConv"])
def test_no_destination_features_and_a_size(name, no_fallback):
    layers = [make(module, name, {}, torch.float32) for module in (ours, pyg)]
    (x, _), edge_index, *rest = inputs_of(
        name, {}, "edge_index", torch.float32, bipartite=True
    )
    names = ["x", "edge_index"] + ["edge_attr"] * len(rest)
    inputs = dict(zip(names, [(x, None), edge_index, *rest], strict=True))
    compare(*layers, inputs | {"size": (9, 6)})
    for layer in layers:
        with pytest.raises(ValueError, match="expected size 8"):
            layer(**inputs, size=(8, 6))


@pytest.mark.parametrize("name", OPTIONS)
def test_frozen_weights_leave_the_input_gradient(name, no_fallback):
    layers = [make(module, name, {}, torch.float32) for module in (ours, pyg)]
    for layer in layers:
        layer.requires_grad_(False)
    compare(*layers, inputs_of(name, {}, "edge_index", torch.float32))


@pytest.mark.parametrize("name", OPTIONS)
def test_inputs_without_gradient_leave_the_weight_gradients(name, no_fallback):
    x, graph, *rest = inputs_of(name, {}, "edge_index", torch.float32)
    inputs = (x.detach(), graph, *(t.detach() for t in rest))
    for options in OPTIONS[name][-1], {"out_channels": 3}:
        layers = [make(m, name, options, torch.float32) for m in (ours, pyg)]
        if "edge_dim" in options:
            inputs = (*inputs[:2], torch.randn(graph.size(1), 3))
        elif name == "GINEConv":
            inputs = (*inputs[:2], torch.randn(graph.size(1), 5))
        compare(*layers, inputs)
