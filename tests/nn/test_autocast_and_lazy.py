"""Autocast, lazy initialisation and moved modules: PyG's dtypes, the fast path."""

import pytest
import torch
import torch_geometric.nn as pyg
from cases import inputs_of, make

import gnnoffload.nn as ours
from gnnoffload import _fallback
from gnnoffload.nn import _guard

NAMES = ["GCNConv", "SAGEConv", "GINConv", "GraphConv"]


def forward_and_gradients(layer, inputs):
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(*inputs)
    leaves = [inputs[0], *layer.parameters()]
    return [y, *torch.autograd.grad(y.float().square().sum(), leaves)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name, weighted, no_fallback):
    inputs = inputs_of(name, {}, "edge_index", torch.float32, weighted=weighted)
    if inputs is None:
        return
    a, b = (make(module, name, {}, torch.float32) for module in (ours, pyg))
    a.load_state_dict(b.state_dict())
    results = (forward_and_gradients(layer, inputs) for layer in (a, b))
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        scale = expected.float().abs().max()
        assert (got.float() - expected.float()).abs().max() <= 0.03 * scale


def test_gine_under_autocast_with_a_projection_falls_back():
    options = {"edge_dim": 3}
    inputs = inputs_of("GINEConv", options, "edge_index", torch.float32)
    a, b = (make(m, "GINEConv", options, torch.float32) for m in (ours, pyg))
    a.load_state_dict(b.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(a(*inputs), b(*inputs))
    assert "lin has hooks" in next(iter(_fallback.counts()["GINEConv"]["fallback"]))


@pytest.fixture
def autocast_on_cuda():
    """As inside torch.autocast("cuda"), also where there is no GPU to switch it on."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", before)


def test_gine_under_cuda_s_autocast_with_a_projection_falls_back(autocast_on_cuda):
    options = {"edge_dim": 3}
    inputs = inputs_of("GINEConv", options, "edge_index", torch.float32)
    a, b = (make(m, "GINEConv", options, torch.float32) for m in (ours, pyg))
    a.load_state_dict(b.state_dict())
    torch.testing.assert_close(a(*inputs), b(*inputs))
    assert "lin has hooks" in next(iter(_fallback.counts()["GINEConv"]["fallback"]))


def test_no_projection_moves_under_cuda_s_autocast(autocast_on_cuda, no_fallback):
    """`lin` runs in bfloat16 there, so it runs where PyG runs it: before the sum."""
    x, edge_index = inputs_of("GCNConv", {}, "edge_index", torch.float32)
    assert not _guard.is_plain(ours.GCNConv(5, 7).lin)
    for narrow in (7, 2):
        layer, stock = ours.GCNConv(5, narrow), pyg.GCNConv(5, narrow)
        layer.load_state_dict(stock.state_dict())
        torch.testing.assert_close(layer(x, edge_index), stock(x, edge_index))


@pytest.mark.parametrize("name", ["GCNConv", "SAGEConv", "GraphConv"])
def test_lazy_layers(name, no_fallback):
    x, edge_index = inputs_of(name, {}, "edge_index", torch.float32)
    layer = getattr(ours, name)(-1, 4)
    first = layer(x, edge_index)
    assert all(type(p) is torch.nn.Parameter for p in layer.parameters())
    stock = getattr(pyg, name)(5, 4)
    stock.load_state_dict(layer.state_dict())
    torch.testing.assert_close(first, stock(x, edge_index))
    torch.testing.assert_close(layer(x, edge_index), first)


def test_a_hook_on_the_projection_sees_what_pyg_hands_it(no_fallback):
    x, edge_index = inputs_of("SAGEConv", {}, "edge_index", torch.float32)
    widths = []
    for module in (ours, pyg):
        layer = module.SAGEConv(5, 2)  # narrow: ours would project first
        layer.lin_l.register_forward_hook(
            lambda m, inputs, output: widths.append(inputs[0].shape)
        )
        layer(x, edge_index)
    assert widths[0] == widths[1]


def test_a_replaced_projection_is_called(no_fallback):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, edge_index = inputs_of("GCNConv", {}, "edge_index", torch.float32)
    layer, stock = ours.GCNConv(5, 7), pyg.GCNConv(5, 7)
    layer.lin = stock.lin = Doubled(5, 7)
    torch.testing.assert_close(layer(x, edge_index), stock(x, edge_index))
