"""SAGEConv, PNAConv, GENConv, EdgeConv, ResGatedGraphConv and CGConv: PyG's results and
weights by any statistic, and no messages where the docstrings say so."""

import itertools

import pytest
import torch
import torch_geometric.nn as pyg
from cases import F_IN, N_DST, N_SRC, D, edges, form_of, unique_edges
from test_layer_memory import LargestTensor
from torch import nn

import gnnoffload.nn as ours
from gnnoffload import Graph, _fallback
from gnnoffload.testing import compare

pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting sparse tensor"),
    pytest.mark.filterwarnings("ignore:Sparse"),
]
ALL = ["sum", "mean", "min", "max", "var", "std"]
SCALERS = ["identity", "amplification", "attenuation", "linear", "inverse_linear"]
HISTOGRAM = torch.tensor([1, 0, 3, 5, 2, 0, 1])


def mlp(kind):
    """A network for EdgeConv; 2 * F_IN features in."""
    wide, relu, last = nn.Linear(2 * F_IN, 9), nn.ReLU(inplace=True), nn.Linear(9, 4)
    return {
        "linear": lambda: nn.Sequential(wide),
        "relu": lambda: nn.Sequential(wide, relu),
        "leaky": lambda: nn.Sequential(wide, nn.LeakyReLU(0.3)),
        "silu": lambda: nn.Sequential(wide, nn.SiLU()),
        "two": lambda: nn.Sequential(wide, relu, nn.Identity(), last),
        "plain": lambda: nn.Sequential(wide, nn.Tanh(), nn.Linear(9, 4, bias=False)),
        "three": lambda: nn.Sequential(wide, relu, last, nn.LayerNorm(4), nn.ELU()),
        "norm": lambda: nn.Sequential(wide, nn.BatchNorm1d(9), relu, last).eval(),
        "own": lambda: pyg.MLP([2 * F_IN, 9, 4], norm=None),
        "dropout": lambda: nn.Sequential(wide, nn.Dropout(0.0), last),
    }[kind]()


EDGE = ("linear", "relu", "leaky", "silu", "two", "plain", "three", "norm", "own")
OPTIONS = {
    "EdgeConv": [
        {"nn": kind, "aggr": aggr}
        for kind, aggr in itertools.product(EDGE, ("max", "sum", "mean", "min"))
    ]
    + [
        {"nn": "two", "aggr": "median"},
        {"nn": "dropout", "aggr": "max"},
        {"nn": "two", "aggr": ["max", "std"]},
        {"nn": "two", "flow": "target_to_source"},
        {"nn": "own", "flow": "target_to_source"},
    ],
    "SAGEConv": [
        {"aggr": "max"},
        {"aggr": "min", "normalize": True},
        {"aggr": "std", "project": True},
        {"aggr": "var", "root_weight": False},
        {"aggr": ALL},
        {"aggr": ["max"], "flow": "target_to_source", "project": True},
    ],
    "PNAConv": [
        {},
        {"edge_dim": D},
        {"edge_dim": D, "towers": 5, "divide_input": True, "post_layers": 2},
        {"edge_dim": D, "towers": 2, "train_norm": True},
        {"towers": 5, "divide_input": True},
        {"pre_layers": 2, "edge_dim": D, "act": "elu"},
        {"flow": "target_to_source", "edge_dim": D},
        {"flow": "target_to_source", "pre_layers": 2},
        {"aggregators": ["mean"], "scalers": ["attenuation"]},
    ],
    "ResGatedGraphConv": [
        {},
        {"edge_dim": D},
        {"aggr": "mean", "bias": False, "edge_dim": D},
        {"aggr": "max", "root_weight": False},
        {"act": nn.Tanh(), "out_channels": 2},
        {"act": nn.ReLU(inplace=True)},
        {"flow": "target_to_source", "edge_dim": D},
    ],
    "CGConv": [
        {},
        {"dim": D},
        {"dim": D, "aggr": "max", "bias": False},
        {"batch_norm": True, "aggr": "mean"},
        {"flow": "target_to_source", "dim": D},
    ],
    "GENConv": [
        {"aggr": aggr} | more
        for aggr in ("softmax", "powermean", "add", "mean", "max", "min", ALL, "median")
        for more in (
            {},
            {"edge_dim": D, "msg_norm": True, "learn_msg_scale": True},
            {"edge_dim": 6, "out_channels": 6, "num_layers": 3, "expansion": 1},
        )
    ]
    + [
        {"aggr": "softmax", "learn_t": True, "edge_dim": D},
        {"aggr": "softmax", "t": 0.3, "norm": "layer"},
        {"aggr": "softmax_sg", "edge_dim": D},
        {"aggr": "powermean", "p": 2.0},
        {"aggr": "power", "learn_p": True, "bias": True, "norm": "layer"},
        {"aggr": "max", "flow": "target_to_source", "edge_dim": D},
        {"aggr": "std", "flow": "target_to_source", "edge_dim": D},
    ],
}
FORMS = ("edge_index", "EdgeIndex", "Graph", "coo", "csr")


def make(module, name, options, dtype=torch.float64):
    options = dict(options)
    width = options.pop("out_channels", 6 if name == "PNAConv" else 7)
    torch.manual_seed(0)
    if name == "EdgeConv":
        return module.EdgeConv(mlp(options.pop("nn")), **options).to(dtype)
    if name == "CGConv":
        return module.CGConv(F_IN, **options).to(dtype)
    if name == "PNAConv":
        if not options.get("towers", 1) == 5:
            width = 6
        else:
            width = 10
        names = options.pop("aggregators", ALL)
        scalers = options.pop("scalers", SCALERS)
        layer = module.PNAConv(F_IN, width, names, scalers, HISTOGRAM, **options)
        return layer.to(dtype)
    return getattr(module, name)(F_IN, width, **options).to(dtype)


def inputs_of(name, options, form, dtype=torch.float64, bipartite=False):
    """None where PyG has no such call."""
    sparse = form in ("coo", "csr")
    if sparse and options.get("flow"):
        return None
    if bipartite and (name == "PNAConv" or options.get("flow")):
        return None
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape):
        tensor = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return tensor.to(dtype).requires_grad_()

    n_src = N_SRC if bipartite else N_DST
    index = (unique_edges if sparse else edges)(n_src, N_DST)
    x = (leaf(n_src, F_IN), leaf(N_DST, F_IN)) if bipartite else leaf(n_src, F_IN)
    ones = torch.ones(index.shape[1], dtype=dtype)
    inputs = [x, form_of(form, index, (n_src, N_DST), ones)]
    for key in ("edge_dim", "dim"):
        if key in options:
            inputs.append(leaf(index.shape[1], options[key]))
    return tuple(inputs)


# ------------------------------------------------------------------------------ results


@pytest.mark.law(1)
@pytest.mark.parametrize("name", OPTIONS)
def test_outputs_and_gradients_are_those_of_pyg(name):
    compared = 0
    cases = itertools.product(enumerate(OPTIONS[name]), FORMS, (False, True))
    for (number, options), form, bipartite in cases:
        if number % 4 and form in FORMS[number % 3 :: 2]:
            continue  # each option with three or four forms, every fourth with all
        inputs = inputs_of(name, options, form, bipartite=bipartite)
        if inputs is not None:
            layers = [make(module, name, options) for module in (ours, pyg)]
            try:
                compare(*layers, inputs, tolerance=1e-9)
            except AssertionError as error:
                where = f"{name} {options} {form} {bipartite=}"
                raise AssertionError(f"{where}: {error}") from error
            compared += 1
    assert compared >= 20
    (row,) = _fallback.counts().values()
    slow = sum(row["fallback"].values())
    allowed = ("sparse matrix with aggr=", "act=ReLU(inplace")
    assert all(reason.startswith(allowed) for reason in row["fallback"])
    assert row["fast"] >= 0.8 * (row["fast"] + slow)


@pytest.mark.law(1)
@pytest.mark.parametrize("name", OPTIONS)
def test_float32_and_bfloat16(name):
    for options in OPTIONS[name]:
        inputs = inputs_of(name, options, "edge_index", torch.float32)
        layers = [make(m, name, options, torch.float32) for m in (ours, pyg)]
        compare(*layers, inputs, tolerance=2e-3)  # std: a root near 0
        if "std" in str(options) or name == "PNAConv":
            continue  # rounding to 8 bits decides whether a small variance is none
        expected = layers[1](*inputs).detach()
        low = [t if t.dtype is torch.int64 else t.bfloat16() for t in inputs]
        got = layers[0].bfloat16()(*low).float()
        scale = expected.abs().max()
        assert (got - expected).abs().max() <= 0.1 * scale, options


@pytest.mark.law(1)
@pytest.mark.parametrize("name", OPTIONS)
def test_state_dict_and_repr_are_those_of_pyg(name):
    for options in OPTIONS[name]:
        a, b = (make(module, name, options) for module in (ours, pyg))
        assert repr(a) == repr(b)
        assert a.state_dict().keys() == b.state_dict().keys()
        for key, value in b.state_dict().items():
            assert torch.equal(a.state_dict()[key], value), key


@pytest.mark.law(1)
@pytest.mark.parametrize("name", OPTIONS)
def test_no_edges_and_inputs_without_gradient(name):
    for options in OPTIONS[name]:
        if "median" in str(options):
            continue  # PyG's own fails on no messages
        layers = [make(module, name, options) for module in (ours, pyg)]
        x, index, *rest = inputs_of(name, options, "edge_index")
        compare(*layers, (x.detach(), index, *(t.detach() for t in rest)))
        none = torch.empty(2, 0, dtype=torch.long)
        compare(*layers, (x, none, *(t[:0].detach() for t in rest)), tolerance=1e-9)


@pytest.mark.law(1)
@pytest.mark.parametrize("aggr", ["max", "min"])
def test_equal_neighbours_share_the_gradient(aggr, no_fallback):
    index = torch.tensor([[0, 1, 2, 2, 3], [0, 0, 0, 0, 1]])
    x = torch.ones(4, F_IN, dtype=torch.float64)
    x[3] = 2.0
    for name, options in (("SAGEConv", {}), ("EdgeConv", {"nn": "three"})):
        layers = [make(m, name, options | {"aggr": aggr}) for m in (ours, pyg)]
        compare(*layers, (x.clone().requires_grad_(), index))


@pytest.mark.law(1)
@pytest.mark.parametrize("aggr", ["sum", "mean"])
def test_edge_mlps_are_differentiable_twice(aggr):
    layer = make(ours, "EdgeConv", {"nn": "silu", "aggr": aggr})
    x, index = inputs_of("EdgeConv", {}, "edge_index")
    assert torch.autograd.gradgradcheck(lambda x: layer(x, index), x)
    options = {"edge_dim": D, "aggr": aggr}
    layer = make(ours, "ResGatedGraphConv", options)
    x, index, attr = inputs_of("ResGatedGraphConv", options, "edge_index")
    pair = (x[:, :2].detach().requires_grad_(), attr[:6].detach().requires_grad_())
    layer = ours.ResGatedGraphConv(2, 2, edge_dim=D, aggr=aggr).double()
    check = torch.autograd.gradgradcheck
    assert check(lambda x, attr: layer(x, index[:, :6], attr), pair)


# ------------------------------------------------------------------------------- ranges


@pytest.mark.law(1, 2)
@pytest.mark.parametrize("aggr", ["max", "mean"])
def test_many_ranges_of_edge_conv(aggr, monkeypatch):
    """Any cut gives the same, and any number of threads the same bits."""
    from gnnoffload.nn import _edge_mlp

    monkeypatch.setattr(_edge_mlp, "RANGE_BYTES", 1 << 14)
    torch.manual_seed(1)
    n, n_edges = 200, 6000
    index = torch.randint(n - 5, (2, n_edges))
    index[1, :1000] = 3
    graph = Graph(index, (n, n))
    x = torch.randn(n, F_IN, dtype=torch.float64, requires_grad=True)
    layers = [make(m, "EdgeConv", {"nn": "three", "aggr": aggr}) for m in (ours, pyg)]
    compare(*layers, (x, index), tolerance=1e-10)
    assert len(_edge_mlp.parts(graph, 9 * 8)) > 10
    results, threads = [], torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        y = layers[0](x, graph)
        results.append([y, *torch.autograd.grad(y.square().sum(), x)])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.law(3)
@pytest.mark.parametrize(
    "name, options",
    [
        ("EdgeConv", {"nn": "two", "aggr": "max"}),
        ("EdgeConv", {"nn": "relu", "aggr": "max"}),
        ("EdgeConv", {"nn": "two", "aggr": "mean"}),
        ("ResGatedGraphConv", {}),
        ("CGConv", {}),
        ("SAGEConv", {"aggr": ALL}),
        ("PNAConv", {}),
        ("GENConv", {"aggr": "max"}),
        ("GENConv", {"aggr": "softmax", "learn_t": True}),
        ("GENConv", {"aggr": "powermean", "learn_p": True}),
    ],
)
def test_nothing_of_size_edges_by_features(name, options, no_fallback, monkeypatch):
    from gnnoffload.nn import _edge_mlp

    monkeypatch.setattr(_edge_mlp, "RANGE_BYTES", 1 << 16)
    n, n_edges = 300, 30_000
    index = torch.randint(n, (2, n_edges))
    graph, x = Graph(index, (n, n)), torch.randn(n, F_IN, requires_grad=True)
    layer = make(ours, name, options, torch.float32)
    with LargestTensor() as largest:
        layer(x, graph).sum().backward()
    narrowest = 4 if name == "EdgeConv" else 5
    assert largest.elements <= 2 * n_edges  # indices
    with LargestTensor() as largest:
        make(pyg, name, options, torch.float32)(x, index).sum().backward()
    assert largest.elements >= narrowest * n_edges  # what the bound rules out


# ---------------------------------------------------------------------------- fallbacks


@pytest.mark.law(11)
def test_what_is_left_to_pyg_says_so():
    x, index = torch.randn(N_DST, F_IN), edges(N_DST, N_DST)
    net = nn.Sequential(nn.Linear(2 * F_IN, 4), nn.BatchNorm1d(4))
    layer = ours.EdgeConv(net)
    compare(layer, pyg.EdgeConv(net), (x.requires_grad_(), index))
    hooked = make(ours, "PNAConv", {}, torch.float32)
    hooked.pre_nns[0][0].register_forward_hook(lambda *args: None)
    hooked(x, index)
    with pytest.raises(RuntimeError):
        make(ours, "PNAConv", {"edge_dim": D}, torch.float32)(x, index)
    rows = _fallback.counts()
    assert rows["EdgeConv"]["fallback"] == {"a norm over all edges": 1}
    assert sorted(rows["PNAConv"]["fallback"]) == [
        "a Linear has hooks, is lazy or runs under autocast",
        "edge_attr and edge_dim go together",
    ]


def test_hooks_inside_the_network_of_edge_conv_see_messages():
    """They run in chunks: the network is not split."""
    x, index = torch.randn(N_DST, F_IN), edges(N_DST, N_DST)
    layer, seen = make(ours, "EdgeConv", {"nn": "two"}, torch.float32), []
    expected = layer(x, index)
    layer.nn[0].register_forward_hook(lambda m, i, out: seen.append(out.shape))
    torch.testing.assert_close(layer(x, index), expected)
    assert seen and seen[-1] == (index.shape[1], 9)
