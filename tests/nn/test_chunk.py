"""chunk: any layer over ranges of destinations, with the layer's own results."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch_geometric import EdgeIndex

import gnnoffload as go
import gnnoffload.nn as ours
from gnnoffload import _fallback
from gnnoffload.testing import Each, compare

N, E, F, D = 60, 900, 8, 3
HISTOGRAM = torch.ones(30, dtype=torch.long)


def mlp(*widths):
    first, hidden, last = widths
    return nn.Sequential(nn.Linear(first, hidden), nn.SiLU(), nn.Linear(hidden, last))


class Own(pyg.MessagePassing):
    """Everything a message() may ask for, and a parameter that only it uses."""

    def __init__(self, aggr="sum", **kwargs):
        super().__init__(aggr=aggr, **kwargs)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, F))
        self.table = nn.Parameter(torch.randn(N, F))

    def forward(self, x, edge_index, edge_weight=None, size=None):
        return self.propagate(
            edge_index, x=x, edge_weight=edge_weight, size=size, alone=x
        )

    def message(self, x_i, x_j, edge_weight, index, edge_index_j, dim_size):
        count = torch.bincount(index, minlength=dim_size)[index].view(-1, 1)
        message = (x_i * self.scale + x_j.sin()) / count
        message = message + self.table[edge_index_j]
        return message if edge_weight is None else message * edge_weight.view(-1, 1)

    def update(self, inputs, alone):
        first = alone if isinstance(alone, torch.Tensor) else alone[1]
        return inputs + first


# name: (layer, number of extra arguments by kind)
LAYERS = {
    "GATConv": (lambda: pyg.GATConv(F, 4, heads=2, edge_dim=D), "attr"),
    "GATConv mean": (lambda: pyg.GATConv(F, 4, heads=2, concat=False), ""),
    "GATv2Conv": (lambda: pyg.GATv2Conv(F, 4, heads=2, edge_dim=D), "attr"),
    "TransformerConv": (lambda: _transformer(), "attr"),
    "SuperGATConv": (lambda: pyg.SuperGATConv(F, 4, heads=2), ""),
    "FAConv": (lambda: _fa(), ""),
    "EdgeConv": (lambda: pyg.EdgeConv(mlp(2 * F, 9, 5)), ""),
    "NNConv": (lambda: pyg.NNConv(F, 4, nn.Linear(D, 4 * F), aggr="mean"), "attr"),
    "PNAConv": (
        lambda: pyg.PNAConv(
            *(F, 4, ["mean", "min", "max", "std", "var"]),
            *(["identity", "amplification", "linear"], HISTOGRAM),
            **{"edge_dim": D, "pre_layers": 2, "towers": 2},
        ),
        "attr",
    ),
    "GENConv": (
        lambda: pyg.GENConv(F, 6, edge_dim=D, learn_t=True, norm="layer"),
        "attr",
    ),
    "CGConv": (lambda: pyg.CGConv(F, dim=D), "attr"),
    "ResGatedGraphConv": (lambda: pyg.ResGatedGraphConv(F, 5, edge_dim=D), "attr"),
    "GCNConv": (lambda: pyg.GCNConv(F, 5), "weight"),
    "SAGEConv lists": (lambda: pyg.SAGEConv(F, 5, aggr=["max", "softmax"]), ""),
    "GeneralConv": (lambda: pyg.GeneralConv(F, 6, D, attention=True, heads=2), "attr"),
    "own": (Own, "weight"),
    "own max": (lambda: Own("max"), "weight"),
    "own, reversed": (lambda: Own("mean", flow="target_to_source"), "weight"),
}


def _transformer():
    layer = pyg.TransformerConv(F, 4, heads=2, edge_dim=D)
    layer.lin_key.bias.requires_grad_(False)  # its gradient is 0: nothing but rounding
    return layer


def _fa():
    layer = pyg.FAConv(F)
    layer.cached = False

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = layer

        def forward(self, x, edge_index):
            return self.conv(x, x.cos(), edge_index)

    return Net()


def inputs_of(kind, n_edges=E, sort=False, seed=1):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(N - 3, (2, n_edges), generator=generator)
    if sort:
        edges = edges[:, edges[1].sort(stable=True).indices]
    x = torch.randn(N, F, dtype=torch.float64, generator=generator)
    rest = {"attr": (D,), "weight": ()}
    rest = [
        torch.rand(n_edges, *rest[kind], dtype=torch.float64, generator=generator)
        for kind in [kind] * bool(kind)
    ]
    return tuple(t if t is edges else t.requires_grad_() for t in (x, edges, *rest))


def pair_of(name, bound):
    """(chunked layer, the layer), the same weights."""
    torch.manual_seed(0)
    layer = LAYERS[name][0]().double()
    chunked = copy.deepcopy(layer)
    conv = next(m for m in chunked.modules() if isinstance(m, pyg.MessagePassing))
    assert go.chunk(conv, bound) is conv
    return chunked, layer


@pytest.fixture
def n_ranges(monkeypatch):
    """Numbers of ranges, one for each call that is cut."""
    from gnnoffload import _chunk

    numbers = []

    def counted(graph, most):
        found = go._ranges.ranges(graph, most)
        numbers.append(len(found))
        return found

    monkeypatch.setattr(_chunk, "ranges_of", counted)
    return numbers


# ------------------------------------------------------------------------------ results


@pytest.mark.law(1)
@pytest.mark.parametrize("sort", [False, True], ids=["any order", "sorted"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_all_gradients_are_the_layers_own(
    name, sort, n_ranges, no_fallback
):
    chunked, layer = pair_of(name, 40_000)
    inputs = inputs_of(LAYERS[name][1], sort=sort)
    compare(chunked, layer, inputs, tolerance=1e-10)
    assert n_ranges and min(n_ranges) >= 4
    if name in ("GATConv", "GCNConv", "own", "own max"):  # no product of [n, ...]
        assert torch.equal(chunked(*inputs), layer(*inputs))  # one order of summation


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes(dtype, n_ranges):
    chunked, layer = pair_of("GATv2Conv", 20_000)
    inputs = [
        t if t.dtype is torch.int64 else t.detach().to(dtype).requires_grad_()
        for t in inputs_of("attr")
    ]
    compare(chunked.to(dtype), layer.to(dtype), tuple(inputs))
    assert n_ranges


@pytest.mark.law(1)
def test_bipartite_and_a_size(n_ranges, no_fallback):
    generator = torch.Generator().manual_seed(1)
    edges = torch.stack(
        [torch.randint(40, (E,), generator=generator) for _ in range(2)]
    )
    edges[0] += 20
    x = torch.randn(N, F, dtype=torch.float64, requires_grad=True)
    x_dst = torch.randn(45, F, dtype=torch.float64, requires_grad=True)
    layer = pyg.GATv2Conv((F, F), 3, add_self_loops=False).double()
    compare(go.chunk(copy.deepcopy(layer), 20_000), layer, ((x, x_dst), edges))
    layer = pyg.SAGEConv(F, 3, aggr="max").double()
    chunked = go.chunk(copy.deepcopy(layer), 20_000)
    inputs = {"x": (x, None), "edge_index": edges, "size": (N, 45)}
    compare(chunked, layer, inputs)
    assert len(n_ranges) == 3
    for module in (layer, chunked):
        with pytest.raises(ValueError, match="expected size"):
            module(x, edges, size=(N + 1, 45))


@pytest.mark.law(1)
@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv"])
def test_attention_weights_are_put_together_again(name, n_ranges):
    chunked, layer = pair_of(name, 20_000)
    x, edges, attr = inputs_of("attr")
    results = []
    for module in (chunked, layer):
        y, (index, alpha) = module(x, edges, attr, return_attention_weights=True)
        leaves = [x, attr, *(p for p in module.parameters() if p.requires_grad)]
        loss = y.sum() + (alpha * alpha).sum()  # weights carry a gradient
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        results.append([y, index, alpha, *(g for g in grads if g is not None)])
    assert n_ranges
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    assert getattr(chunked, "_alpha", None) is None


@pytest.mark.law(1)
def test_differentiable_twice(n_ranges):
    for name in ("own", "TransformerConv"):
        chunked, layer = pair_of(name, 10_000)
        kind = LAYERS[name][1]
        x, edges, rest = inputs_of(kind, 80)
        results = []
        for module in (chunked, layer):
            y = module(x, edges, rest)
            (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            results.append(torch.autograd.grad(grad.square().sum(), [x, rest]))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert n_ranges


@pytest.mark.law(6)
def test_backward_twice_and_of_some_inputs():
    chunked, _ = pair_of("EdgeConv", 20_000)
    x, edges = inputs_of("")
    y = chunked(x, edges)
    weight = chunked.nn[0].weight
    first = torch.autograd.grad(y.sum(), [x, weight], retain_graph=True)
    (alone,) = torch.autograd.grad(y.sum(), weight, retain_graph=True)
    again = torch.autograd.grad(y.sum(), [x, weight])
    assert all(map(torch.equal, first, again)) and torch.equal(alone, first[1])


@pytest.mark.law(2)
def test_dropout_is_the_same_in_the_second_pass(n_ranges):
    """Attention dropout: the gradient is that of the forward that was drawn."""
    torch.manual_seed(0)
    layer = pyg.GATConv(F, 4, dropout=0.5, add_self_loops=False).double()
    go.chunk(layer, 20_000)
    x, edges = inputs_of("")

    def loss(x):
        torch.manual_seed(5)
        return layer(x, edges).square().sum()

    grads = []
    for _ in range(2):
        value = loss(x)
        torch.rand(7)  # the generator moves on before backward
        grads.append(torch.autograd.grad(value, x)[0])
    assert torch.equal(*grads)
    direction, step = torch.randn_like(x), 1e-6
    slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    torch.testing.assert_close(
        slope.detach(), (grads[0] * direction).sum(), rtol=1e-5, atol=0
    )
    assert n_ranges


@pytest.mark.law(2)
def test_threads_and_history_change_no_bit():
    chunked, _ = pair_of("EdgeConv", 20_000)
    x, edges = inputs_of("")
    results, threads = [], torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        y = chunked(x, edges)
        leaves = [x, *chunked.parameters()]
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


# ------------------------------------------------------------------------------- memory


def live_peak(function):
    """The most bytes alive at once among those that torch allocates in function()."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    events = [
        (e.start_ns(), e.nbytes())
        for e in seen.profiler.kineto_results.events()
        if e.name() == "[memory]"
    ]
    live = peak = 0
    for _, n in sorted(events, key=lambda event: event[0]):
        live += n
        peak = max(peak, live)
    return peak


@pytest.mark.law(3)
@pytest.mark.parametrize("name", ["EdgeConv", "GATv2Conv", "TransformerConv", "own"])
def test_a_step_stays_below_the_bound(name, n_ranges):
    width, n, n_edges, bound = 32, 300, 30_000, 2 << 20
    layers = {
        "EdgeConv": lambda: pyg.EdgeConv(mlp(2 * width, 2 * width, width)),
        "GATv2Conv": lambda: pyg.GATv2Conv(width, 16, heads=2, add_self_loops=False),
        "TransformerConv": lambda: pyg.TransformerConv(width, 16, heads=2),
        "own": lambda: pyg.NNConv(width, 4, nn.Linear(2, 4 * width)),
    }
    layer = layers[name]()
    edges = torch.randint(n, (2, n_edges))
    x = torch.randn(n, width, requires_grad=True)
    rest = [torch.randn(n_edges, 2)] if name == "own" else []

    def step():
        layer(x, edges, *rest).square().sum().backward()

    step()
    whole = live_peak(step)
    go.chunk(layer, bound)
    step()  # the graph is built, the bytes are measured
    outside = 12 * x.nbytes + 48 * n_edges  # results, their gradients; scores [E, H]
    assert live_peak(step) <= bound + outside
    assert whole > 4 * (bound + outside)  # what the bound rules out
    assert min(n_ranges) >= 4


def test_a_hub_runs_alone_and_warns_once():
    layer = Own().double()
    x, edges, weight = inputs_of("weight", 3000)
    edges[1, 200:2000] = 7
    chunked = go.chunk(copy.deepcopy(layer), 100_000)
    with pytest.warns(RuntimeWarning, match="destination 7 has 18.. edges") as caught:
        compare(chunked, layer, (x, edges, weight), tolerance=1e-10)
        chunked(x, edges, weight)
    assert len(caught) == 1


@pytest.mark.law(3)
def test_nothing_outlives_its_graph():
    chunked, _ = pair_of("TransformerConv", 20_000)
    x, edges, attr = inputs_of("attr")
    alive = []
    for backward in (False, True):
        y = chunked(x, edges, attr)
        if backward:
            y.sum().backward()
        alive.append(weakref.ref(y))
        del y
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


# ----------------------------------------------------------- what is as it was, and not


def test_the_layer_stays_what_it_was():
    layer = pyg.GATConv(F, 4)
    keys, text = list(layer.state_dict()), repr(layer)
    assert go.chunk(layer) is layer
    assert isinstance(layer, pyg.GATConv) and repr(layer) == text
    assert list(layer.state_dict()) == keys
    assert type(go.chunk(layer, "1MiB")).__mro__.count(pyg.GATConv) == 1
    assert type(go.chunk(layer, None)) is pyg.GATConv


def test_copies_and_pickles(n_ranges):
    chunked, _ = pair_of("GATv2Conv", 20_000)
    inputs = inputs_of("attr")
    expected = chunked(*inputs)
    for other in (copy.deepcopy(chunked), pickle.loads(pickle.dumps(chunked))):
        before = len(n_ranges)
        assert torch.equal(other(*inputs), expected)
        assert len(n_ranges) == before + 2  # scores, then messages
        assert other.lin_l.weight is not chunked.lin_l.weight


@pytest.mark.law(3)
def test_what_fits_is_not_cut(n_ranges):
    chunked, layer = pair_of("own", "1GiB")
    inputs = inputs_of("weight")
    compare(chunked, layer, inputs)
    empty = torch.empty(2, 0, dtype=torch.long)
    compare(chunked, layer, (inputs[0], empty, inputs[2][:0]))
    assert not n_ranges


@pytest.mark.law(11)
def test_our_layers_keep_their_fast_path(n_ranges, no_fallback):
    layer = go.chunk(ours.SAGEConv(F, 4), 1000)
    x, edges = inputs_of("")
    layer(x.float(), edges).sum().backward()
    assert _fallback.counts()["SAGEConv"]["fast"] == 1 and not n_ranges


def test_an_edge_index_of_pyg(n_ranges, no_fallback):
    chunked, layer = pair_of("EdgeConv", 20_000)
    x, edges = inputs_of("")
    form = EdgeIndex(edges, sparse_size=(N, N))
    compare(chunked, layer, (x, Each(form, edges)))
    assert n_ranges


@pytest.mark.law(11)
@pytest.mark.parametrize(
    "case", ["hooks", "explain", "decomposed", "static", "sparse", "func"]
)
def test_what_runs_whole_says_so(case, n_ranges):
    x, edges = inputs_of("")
    layer = go.chunk(pyg.GCNConv(F, 4, bias=False).double(), 20_000)
    expected, reason = layer(x, edges), case
    n_before = len(n_ranges)
    if case == "hooks":
        layer.register_message_forward_hook(lambda *args: None)
    elif case == "explain":
        layer.explain, layer._edge_mask = True, torch.ones(E, dtype=torch.float64)
        layer._apply_sigmoid = False
        layer._loop_mask = torch.ones(E, dtype=torch.bool)
        edges = edges[:, edges[0] != edges[1]]
        layer._edge_mask = torch.ones(edges.shape[1], dtype=torch.float64)
        layer._loop_mask = layer._edge_mask.bool()
        expected = None
    elif case == "decomposed":
        layer.decomposed_layers = 2
    elif case == "static":
        x, expected = torch.stack([x, x]), torch.stack([expected, expected])
    elif case == "sparse":
        edges = torch.unique(edges, dim=1)
        layer = go.chunk(pyg.GATConv(F, 4).double(), 20_000)
        expected = layer(x, edges)
        n_before = len(n_ranges)
        ones = torch.ones(edges.shape[1], dtype=torch.float64)
        edges = torch.sparse_coo_tensor(edges.flip(0), ones, (N, N)).coalesce()
    if case == "func":
        torch.func.vmap(lambda x: layer(x, edges))(x[None])
    else:
        got = layer(x, edges)
        if expected is not None:
            torch.testing.assert_close(got, expected)
    assert len(n_ranges) == n_before
    (row,) = [r for n, r in _fallback.counts().items() if n.startswith("chunk(")]
    assert any(reason in text for text in row["fallback"])


# ------------------------------------------------------------------------------- errors


@pytest.mark.law(10)
def test_bad_input_is_named():
    layer = pyg.GCNConv(2, 2)
    for bound in (0, -1, "many", "12 miles", 1.5, "0MiB"):
        with pytest.raises(ValueError, match="bytes must be a positive number"):
            go.chunk(layer, bound)
    with pytest.raises(TypeError, match="must be a MessagePassing layer, got Linear"):
        go.chunk(nn.Linear(2, 2))
    from gnnoffload._chunk import _bytes

    sizes = [_bytes(text) for text in ("256MiB", "1GB", "1.5 KiB", "7", 12)]
    assert sizes == [256 << 20, 10**9, 1536, 7, 12]


@pytest.mark.law(10)
def test_statistics_over_all_edges_are_refused():
    x, edges = inputs_of("")
    for norm in (nn.BatchNorm1d(5), pyg.BatchNorm(5), pyg.GraphNorm(5)):
        net = nn.Sequential(nn.Linear(2 * F, 5), norm)
        layer = go.chunk(pyg.EdgeConv(net).double(), 20_000)
        with pytest.raises(ValueError, match="need all messages at once"):
            layer(x, edges)
        assert not any(m._forward_pre_hooks for m in layer.modules())
        if not isinstance(norm, pyg.GraphNorm):
            layer.eval()(x, edges)


@pytest.mark.law(10)
def test_results_that_cannot_be_cut_are_named():
    class Leaves(Own):
        def message(self, x_j):
            self.seen = x_j.mean()
            return x_j

    class Whole(Own):
        def aggregate(self, inputs, index):
            return inputs

    x, edges = inputs_of("")
    with pytest.raises(ValueError, match="leaves 'seen' on the layer"):
        go.chunk(Leaves().double(), 20_000)(x, edges)
    with pytest.raises(ValueError, match="one row per destination"):
        go.chunk(Whole().double(), 20_000)(x, edges)
    with pytest.raises(go.GraphError, match="edge"):
        bad = edges.clone()
        bad[0, 5] = N
        go.chunk(Own().double(), 20_000)(x, bad)
