"""Sums of gated messages: against the reference in float64, checked by torch, without a
tensor of size E x F besides arguments and gradients."""

import math

import pytest
import torch
from graph_cases import GRAPHS
from test_memory import Largest
from test_spmm_exact import LAYOUTS
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import gnnoffload as go
from gnnoffload import _dispatch, _dispatch_gated

SMALL = torch.tensor([[0, 2, 2, 1, 0, 4], [1, 1, 0, 1, 1, 3]])
SIZE = (5, 4)
# rounding of inputs and outputs aside: some tens of operations in a row
UNIT = {
    torch.float32: 2**-24,
    torch.float64: 2**-53,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}
OPTIONS = [(v, r) for v in ("identity", "softplus") for r in ("sum", "mean")]


def randoms(edges, size, width, *, wide, has_edge, scale=1.0, seed=0):
    """(u, v, edge or None) in float64"""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows, columns):
        shape = rows, columns
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    u = draw(size[1], 2 * width if wide else width)
    return (
        u,
        draw(size[0], 2 * width),
        (draw(edges.shape[1], 2 * width) if has_edge else None),
    )


def results(ops, graph, inputs, grad, **options):
    """[y, gradients of the inputs that there are]"""
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = ops.gated(graph, *inputs, **options)
    wanted = [t for t in inputs if t is not None]
    return [y, *torch.autograd.grad(y, wanted, grad.to(y.dtype), allow_unused=True)]


def check(edges, size, inputs, dtype, **options):
    """Ours in `dtype` against the reference in float64 of the same numbers."""
    inputs = [None if t is None else t.to(dtype) for t in inputs]
    graph = go.Graph(edges, size)
    grad = torch.randn(size[1], inputs[1].shape[1] // 2).to(dtype)
    ours = results(go, graph, inputs, grad, **options)
    exact = [None if t is None else t.double() for t in inputs]
    theirs = results(go.reference, graph, exact, grad.double(), **options)
    longest = max(1, int(graph.degree.max())) if graph.num_edges else 1
    for got, want in zip(ours, theirs, strict=True):
        assert got.dtype is dtype and got.shape == want.shape
        accumulated = 2**-53 if dtype is torch.float64 else 2**-24
        large = want.abs().max().item() if want.numel() else 0
        error = (64 + math.sqrt(longest)) * accumulated + UNIT[dtype]
        torch.testing.assert_close(
            got.double(), want, rtol=UNIT[dtype], atol=error * max(large, 1) * 4
        )


# ------------------------------------------------------------------------------- values


@pytest.mark.law(1)
def test_literal():
    """sigmoid(0) = 1/2, sigmoid(log 3) = 3/4, softplus(0) = log 2, of 30 it is 30."""
    log3, log2 = math.log(3), math.log(2)
    u = torch.tensor([[0.0], [log3], [0.0]])
    v = torch.tensor([[0.0, 2.0], [-log3, 4.0], [100.0, 30.0]])
    edges = torch.tensor([[0, 1, 2, 1], [0, 1, 1, 0]])
    y = go.gated(edges, u, v)
    expected = torch.tensor([[0.5 * 2 + 0.25 * 4], [0.5 * 4 + 30], [0]])
    torch.testing.assert_close(y, expected)
    v[:, 1] = torch.tensor([0.0, 0.0, 30.0])
    y = go.gated(edges, u, v, value="softplus", reduce="mean")
    expected = torch.tensor([[0.75 * log2 / 2], [(0.5 * log2 + 30) / 2], [0]])
    torch.testing.assert_close(y, expected)
    y = go.gated(edges, torch.cat([u, u + 1], 1), v * 0, torch.ones(4, 2))
    gate = torch.tensor([1.0, 1 + log3]).sigmoid()
    expected = torch.tensor([[2 * gate[0] * 2], [2 * gate[1] * (2 + log3)], [0]])
    torch.testing.assert_close(y, expected)


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", UNIT, ids=str)
def test_graphs(edges_and_size, dtype):
    edges, size = edges_and_size
    for k, (value, reduce) in enumerate(OPTIONS):
        for wide, has_edge in ((k % 2 == 0, True), (k % 2 == 1, False)):
            inputs = randoms(edges, size, 9, wide=wide, has_edge=has_edge)
            check(edges, size, inputs, dtype, value=value, reduce=reduce)


@pytest.mark.law(1)
@pytest.mark.parametrize("width", [1, 7, 31, 32, 33, 257])
def test_widths(width):
    """Rows around the split of heavy rows, both ways: forward has the hubs as rows,
    the transposed graph has them as rows of backward."""
    forward, (n_left, n_right) = GRAPHS["degrees"]
    for edges, size in ((forward, (n_left, n_right)), (forward.flip(0), (n_right, 40))):
        for k, dtype in enumerate(UNIT):
            value, reduce = OPTIONS[(k + width) % 4]
            inputs = randoms(edges, size, width, wide=k % 2 == 0, has_edge=k > 1)
            check(edges, size, inputs, dtype, value=value, reduce=reduce)


@pytest.mark.law(1)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    edges, size = GRAPHS["bipartite"]
    inputs = randoms(edges, size, 6, wide=True, has_edge=True)
    expected = results(go, go.Graph(edges, size), inputs, torch.ones(size[1], 6))
    strided = [LAYOUTS[layout](t) for t in inputs]
    grad = LAYOUTS[layout](torch.ones(size[1], 6, dtype=torch.float64))
    given = results(go, go.Graph(edges, size), strided, grad)
    same = [bool((t == s).all()) for t, s in zip(inputs, strided, strict=True)]
    for ours, theirs in zip(given, expected, strict=True):
        assert ours.shape == theirs.shape
        if all(same):  # the layout kept the numbers
            assert torch.equal(ours, theirs)


@pytest.mark.law(1)
@pytest.mark.parametrize("value", ["identity", "softplus"])
def test_far_from_zero(value):
    """Gates that close, values that overflow no exponential, as in torch."""
    edges, size = GRAPHS["random"]
    inputs = randoms(edges, size, 5, wide=True, has_edge=True, scale=60.0)
    for dtype in (torch.float32, torch.float64):
        check(edges, size, inputs, dtype, value=value)
    inputs = randoms(edges, size, 5, wide=True, has_edge=True)
    small = [t - 4 for t in inputs]  # softplus is near e^-12: its digits stay
    exact = [t.float().double() for t in small]
    graph = go.Graph(edges, size)
    ours = go.gated(graph, *(t.float() for t in small), value=value)
    theirs = go.reference.gated(graph, *exact, value=value)
    if value == "softplus":
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=0)


@pytest.mark.law(1)
@pytest.mark.parametrize("value", ["identity", "softplus"])
def test_what_is_not_finite(value):
    """NaN and infinities stay in their rows and columns and are torch's."""
    inf, nan = float("inf"), float("nan")
    v = torch.tensor(
        [[inf, 1.0], [-inf, 1.0], [0.0, inf], [0.0, -inf], [nan, 1.0], [0.0, nan]]
    )
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [0, 1, 2, 3, 4, 5, 6]])
    graph = go.Graph(edges, (6, 8))
    u = torch.zeros(8, 1)
    grad = torch.ones(8, 1)
    ours = results(go, graph, (u, v), grad, value=value)
    theirs = results(go.reference, graph, (u, v), grad, value=value)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.law(1)
def test_promotes():
    graph = go.Graph(SMALL, SIZE)
    u, v, edge = randoms(SMALL, SIZE, 3, wide=False, has_edge=True)
    y = go.gated(graph, u.bfloat16(), v.float(), edge)
    assert y.dtype is torch.float64
    expected = go.gated(graph, u.bfloat16().double(), v.float().double(), edge)
    assert torch.equal(y, expected)


@pytest.mark.law(2)
def test_threads_change_no_bit():
    torch.manual_seed(0)
    edges = torch.randint(300, (2, 40_000))
    edges[1, :5000] = 3
    edges[0, 5000:10_000] = 7
    graph = go.Graph(edges, (300, 300))
    inputs = [torch.randn(300, 33), torch.randn(300, 66), torch.randn(40_000, 66)]
    found, threads = [], torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(results(go, graph, inputs, torch.randn(300, 33) * 0 + 1))
    torch.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


# -------------------------------------------------------------------------- derivatives


@pytest.mark.law(1)
@pytest.mark.parametrize("value, reduce", OPTIONS)
def test_twice_differentiable(value, reduce):
    graph = go.Graph(SMALL, SIZE)
    for wide in (False, True):
        u, v, edge = randoms(SMALL, SIZE, 2, wide=wide, has_edge=True)

        def function(u, v, edge=None):
            return go.gated(graph, u, v, edge, value=value, reduce=reduce)

        leaves = [t.requires_grad_() for t in (u, v, edge)]
        assert gradcheck(function, leaves) and gradgradcheck(function, leaves)
        assert gradcheck(function, leaves[:2])
        for k in range(3):  # one of them alone
            some = [t if n == k else t.detach() for n, t in enumerate(leaves)]
            assert gradcheck(function, some) and gradgradcheck(function, some)
    assert gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.law(1)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_transforms():
    graph = go.Graph(SMALL, SIZE)
    u, v, edge = randoms(SMALL, SIZE, 2, wide=True, has_edge=True)

    def loss(ops, v):
        return ops.gated(graph, u, v, edge, value="softplus").square().sum()

    for function in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        ours = function(lambda v: loss(go, v))(v)
        torch.testing.assert_close(ours, function(lambda v: loss(go.reference, v))(v))


@pytest.mark.law(1)
@pytest.mark.parametrize(
    "name", ["bipartite", pytest.param("no edges", marks=pytest.mark.slow)]
)
def test_opcheck(name):
    edges, size = GRAPHS[name]
    args = go.Graph(edges, size).args(with_csc=True)
    absent, scale = torch.empty(0), torch.rand(size[1])
    grad = torch.randn(size[1], 3)
    for wide, has_edge in ((False, False), (True, True)):
        inputs = randoms(edges, size, 3, wide=wide, has_edge=has_edge)
        u, v, edge = (absent if t is None else t.float() for t in inputs)
        for needs in (False, True):
            u, v = u.detach().requires_grad_(needs), v.detach().requires_grad_(needs)
            opcheck(_dispatch_gated.gated_op, (u, v, edge, scale, *args, wide, needs))
        given = grad, u.detach(), v.detach(), edge, absent
        back = _dispatch.transposed(args)
        for wants in ((True, has_edge), (False, True)):
            opcheck(_dispatch_gated.gated_vjp_op, (*given, *back, wide, *wants))


# ------------------------------------------------------------------------------- memory


@pytest.mark.law(3)
def test_nothing_of_size_edges_by_features():
    torch.manual_seed(0)
    edges = torch.randint(40, (2, 5000))
    graph = go.Graph(edges, (40, 40))
    u = torch.randn(40, 64, requires_grad=True)
    v = torch.randn(40, 64, requires_grad=True)

    def step(ops):
        y = ops.gated(graph, u, v, value="softplus")
        torch.autograd.grad(y.square().sum(), (u, v))

    with Largest() as ours:
        step(go)
    assert ours.elements <= 2 * 5000
    with Largest() as theirs:  # the mode would have seen it
        step(go.reference)
    assert theirs.elements >= 5000 * 32


@pytest.mark.law(3)
def test_what_is_saved():
    graph, saved = go.Graph(SMALL, SIZE), []
    inputs = randoms(SMALL, SIZE, 3, wide=False, has_edge=True)
    u, v, edge = (t.requires_grad_() for t in inputs)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t) or t, lambda t: t
    ):
        go.gated(graph, u, v, edge)
    pointers = [t.data_ptr() for t in (u, v, edge)]
    assert [t.data_ptr() for t in saved[:3]] == pointers
    assert [t.shape for t in saved[3:]] == [u.shape]


# ------------------------------------------------------------------------ torch.compile


@pytest.mark.law(1, 3)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["Graph", "edge_index"])
@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_compiled(form):
    """One graph, the same bits as eager."""
    torch._dynamo.reset()
    edges, size = GRAPHS["random"]
    graph = go.Graph(edges, size) if form == "Graph" else edges
    inputs = randoms(edges, size, 5, wide=False, has_edge=True)
    inputs = [t.float() for t in inputs]

    def function(u, v, edge):
        options = {"value": "softplus", "reduce": "mean"}
        options["size"] = None if form == "Graph" else size
        return go.gated(graph, u, v, edge, **options)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        leaves = [t.clone().requires_grad_() for t in inputs]
        got, expected = compiled(*leaves), function(*leaves)
        assert torch.equal(got, expected)
        for a, b in zip(
            torch.autograd.grad(got.square().sum(), leaves),
            torch.autograd.grad(expected.square().sum(), leaves),
            strict=True,
        ):
            assert torch.equal(a, b)
    torch._dynamo.reset()


# ------------------------------------------------------------------------------- errors


@pytest.mark.law(10)
@pytest.mark.parametrize(
    "u, v, edge, error, text",
    [
        ((3, 3), (5, 6), None, ValueError, "u must have 4 rows, one per destination, "),
        ((4, 3), (4, 6), None, ValueError, "v must have 5 rows, one per source, got 4"),
        ((4, 3), (5, 7), None, ValueError, "v must have an even number of columns, "),
        ((4, 4), (5, 6), None, ValueError, "u must have 3 or 6 columns, got 4"),
        ((4, 3), (5, 6), (5, 6), ValueError, "edge must have 6 rows, one per edge, "),
        ((4, 3), (5, 6), (6, 3), ValueError, "edge must have 6 columns as v has, got"),
        ((4, 3), (30,), None, ValueError, r"v must have 2 dimensions \[5, F\], got "),
    ],
)
def test_refusals(u, v, edge, error, text):
    edge = edge if edge is None else torch.randn(edge)
    with pytest.raises(error, match=f"^gated: {text}"):
        go.gated(go.Graph(SMALL, SIZE), torch.randn(u), torch.randn(v), edge)


@pytest.mark.law(10)
def test_refused_words():
    u, v = torch.randn(4, 3), torch.randn(5, 6)
    graph = go.Graph(SMALL, SIZE)
    with pytest.raises(ValueError, match=r"^gated: value must be 'identity' or 'soft"):
        go.gated(graph, u, v, value="relu")
    with pytest.raises(
        ValueError, match=r"^gated: reduce must be 'sum' or 'mean', got"
    ):
        go.gated(graph, u, v, reduce="max")
    with pytest.raises(TypeError, match=r"^gated: v must be a tensor, got NoneType"):
        go.gated(graph, u, None)


@pytest.mark.law(10)
def test_the_raw_ops_refuse_what_does_not_fit():
    args = go.Graph(SMALL, SIZE).args(with_csc=True)
    back = _dispatch.transposed(args)
    u, v, no = torch.randn(4, 3), torch.randn(5, 6), torch.empty(0)
    refused = [
        ((u[:3], v, no, no, *args), "gated: u must have 4 rows, got 3"),
        ((u, v[:, :5], no, no, *args), "v must have an even number of columns"),
        ((u[:, :2], v, no, no, *args), "u must have 3 or 6 columns, got 2"),
        ((u, v, v, no, *args), "edge must have 6 rows, got 5"),
        ((u, v, no, u[:, 0].double(), *args), "scale must be float32, got float64"),
        ((u, v, no, v[:, 0], *args), "scale must be a vector of length 4, got 5"),
    ]
    for given, text in refused:
        with pytest.raises(RuntimeError, match=text):
            _dispatch_gated.gated_op(*given, False, True)
    with pytest.raises(RuntimeError, match="grad must have 3 columns, got 2"):
        _dispatch_gated.gated_vjp_op(u[:, :2], u, v, no, no, *back, False, True, False)
