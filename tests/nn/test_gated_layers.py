"""ResGatedGraphConv and CGConv by the op `gated`: PyG's numbers for every choice of
what has a gradient, the same for any cut into chunks, and no E x F tensor."""

import pytest
import torch
import torch_geometric.nn as pyg
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gnnoffload import Graph
from gnnoffload import nn as ours
from gnnoffload.nn import _edge_chunks

N_SRC, N_DST, E, DIM = 40, 30, 3000, 3
LAYERS = {
    "gated": lambda nn: nn.ResGatedGraphConv(6, 5),
    "gated edges": lambda nn: nn.ResGatedGraphConv(6, 5, edge_dim=DIM, aggr="mean"),
    "gated no root": lambda nn: nn.ResGatedGraphConv(6, 5, root_weight=False),
    "gated no bias": lambda nn: nn.ResGatedGraphConv(6, 5, bias=False, aggr="mean"),
    "gated pair": lambda nn: nn.ResGatedGraphConv((7, 6), 5),
    "gated pair edges": lambda nn: nn.ResGatedGraphConv((7, 6), 5, edge_dim=DIM),
    "cg": lambda nn: nn.CGConv(6, aggr="mean"),
    "cg edges": lambda nn: nn.CGConv(6, dim=DIM, batch_norm=True),
    "cg pair edges": lambda nn: nn.CGConv((7, 6), dim=DIM, bias=False),
}


def case(name, dtype=torch.float64, hub=0):
    """(our layer, PyG's, the graph, arguments for either): destination 29 of a pair and
    some sources have no edges."""
    torch.manual_seed(0)
    stock, layer = LAYERS[name](pyg).to(dtype), LAYERS[name](ours).to(dtype)
    layer.load_state_dict(stock.state_dict())
    pair = "pair" in name
    n_dst = N_DST if pair else N_SRC
    source = torch.randint(N_SRC - 3, (E,))
    destination = torch.randint(n_dst - 1, (E,))
    destination[:hub], source[hub : 2 * hub] = 3, 5
    x_dst = torch.randn(n_dst, 6, dtype=dtype)
    x = (torch.randn(N_SRC, 7, dtype=dtype), x_dst) if pair else (x_dst,)
    attr = torch.randn(E, DIM, dtype=dtype) if "edges" in name else None
    return layer, stock, torch.stack([source, destination]), x, attr


def step(layer, edges, x, attr, **options):
    """(y, gradients of x, of edge_attr and of all parameters)"""
    x = [t.detach().requires_grad_() for t in x]
    attr = None if attr is None else attr.detach().requires_grad_()
    y = layer(x[0] if len(x) == 1 else tuple(x), edges, attr)
    wanted = [*x, *([] if attr is None else [attr]), *layer.parameters()]
    return [y, *torch.autograd.grad((y * y).sum(), wanted, **options)]


@pytest.mark.law(1)
@pytest.mark.parametrize("hub", [0, 1200])
@pytest.mark.parametrize("name", LAYERS)
def test_many_chunks_give_what_pyg_gives(name, hub, monkeypatch, no_fallback):
    monkeypatch.setattr(_edge_chunks, "CHUNK_BYTES", 1 << 14)
    monkeypatch.setattr("gnnoffload.nn._gated.CHUNK_BYTES", 1 << 9)
    layer, stock, edges, x, attr = case(name, hub=hub)
    graph = Graph(edges, (x[0].shape[0], x[-1].shape[0]))
    for form in (edges, graph):
        got, expected = step(layer, form, x, attr), step(stock, edges, x, attr)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)


@pytest.mark.law(1)
@pytest.mark.parametrize("name", ["gated pair edges", "cg pair edges", "gated"])
def test_each_gradient_alone(name, no_fallback):
    """What one alone asks for is what all together are given."""
    layer, _, edges, x, attr = case(name)
    expected = step(layer, edges, x, attr)[1:]
    given = [*x, *([] if attr is None else [attr]), *layer.parameters()]
    for k, wanted in enumerate(given):
        for tensor in given:
            tensor.requires_grad_(tensor is wanted)
        y = layer(x[0] if len(x) == 1 else x, edges, attr)
        (grad,) = torch.autograd.grad((y * y).sum(), wanted)
        torch.testing.assert_close(grad, expected[k], rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("name", ["gated edges", "cg pair edges", "gated", "cg"])
def test_without_gradients_the_derivative_by_u_is_not_made(name, monkeypatch):
    from gnnoffload.nn import _gated

    wanted, call = [], _gated.call_gated
    monkeypatch.setattr(
        _gated, "call_gated", lambda *args: wanted.append(args[5]) or call(*args)
    )
    layer, _, edges, x, attr = case(name)
    given = x[0] if len(x) == 1 else x, edges, attr
    expected = layer(*given)
    assert all(wanted)
    del wanted[:]
    with torch.no_grad():
        assert torch.equal(layer(*given), expected)
    assert wanted and not any(wanted)


@pytest.mark.law(1)
@pytest.mark.parametrize("name", ["gated edges", "cg pair edges"])
def test_second_derivatives(name, no_fallback):
    layer, stock, edges, x, attr = case(name)
    results = []
    for conv in (layer, stock):
        inputs = [t.detach().requires_grad_() for t in (*x, attr)]
        *nodes, a = inputs
        y = conv(nodes[0] if len(nodes) == 1 else tuple(nodes), edges, a)
        wanted = [*inputs, *conv.parameters()]
        first = torch.autograd.grad((y * y).sum(), inputs, create_graph=True)
        total = sum(g.square().sum() for g in first)
        results.append(torch.autograd.grad(total, wanted, allow_unused=True))
    for a, b in zip(*results, strict=True):
        if b is None:  # PyG's bias after the sum has no second derivative
            assert a is None or not a.any()
        else:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-6)


@pytest.mark.law(1)
@pytest.mark.parametrize("name", ["gated edges", "cg"])
def test_forward_mode(name, no_fallback):
    layer, stock, edges, x, attr = case(name)
    tangents = []
    for conv in (layer, stock):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x[0], torch.ones_like(x[0]))
            y = conv(dual, edges, attr)
            tangents.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(*tangents, rtol=1e-10, atol=1e-9)


@pytest.mark.law(2)
@pytest.mark.parametrize("name", ["gated edges", "cg pair edges"])
def test_threads_change_no_bit(name):
    layer, _, edges, x, attr = case(name, torch.float32, hub=1200)
    found, threads = [], torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(step(layer, edges, x, attr)[:3])
    torch.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


class _Largest(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.law(3)
@pytest.mark.parametrize("name", ["gated edges", "cg edges"])
def test_no_tensor_of_edges_by_features(name, monkeypatch, no_fallback):
    """The widest is of two rows of indices, or three columns of attributes."""
    monkeypatch.setattr(_edge_chunks, "CHUNK_BYTES", 1 << 14)
    layer, stock, edges, x, attr = case(name)
    with _Largest() as largest:
        step(layer, edges, x, attr)
    assert largest.elements <= DIM * E
    with _Largest() as largest:  # the mode would have seen it
        step(stock, edges, x, attr)
    assert largest.elements >= 5 * E


def test_acts_and_maxima_still_go_by_messages(no_fallback):
    """What the op does not know has the way it had."""
    for make in (
        lambda nn: nn.ResGatedGraphConv(6, 5, act=torch.nn.Tanh()),
        lambda nn: nn.ResGatedGraphConv(6, 5, aggr="max"),
        lambda nn: nn.CGConv(6, aggr="min"),
    ):
        torch.manual_seed(0)
        stock, layer = make(pyg).double(), make(ours).double()
        layer.load_state_dict(stock.state_dict())
        *_, edges, x, _ = case("gated")
        got, expected = step(layer, edges, x, None), step(stock, edges, x, None)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)


def test_attributes_of_too_few_edges_are_refused():
    layer, _, edges, x, attr = case("gated edges")
    with pytest.raises(ValueError, match=f"edge_attr must have {E} rows, got 5"):
        layer(x[0], edges, attr[:5])
