"""The sum of relu messages with edge features: exact on integers, differentiable twice,
checked by torch, without a tensor of size E x F besides its arguments and gradients."""

import pytest
import torch
from graph_cases import GRAPHS, integers
from test_memory import Largest
from test_spmm_exact import DTYPES, LAYOUTS, WIDTHS
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import gnnoffload as go
from gnnoffload import _dispatch_gine

SMALL = torch.tensor([[0, 2, 2, 1, 0, 4], [1, 1, 0, 1, 1, 3]])
SIZE = (5, 4)


def leaf(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        *shape, generator=generator, dtype=torch.float64
    ).requires_grad_()


def oracle(edges, n_dst, x, edge, grad_y=None):
    """y, and with grad_y the gradients of x and edge, in int64."""
    source, destination = edges.long()
    message = x[source] + edge
    y = torch.zeros(n_dst, x.shape[1], dtype=torch.int64)
    y.index_add_(0, destination, message.clamp(min=0))
    if grad_y is None:
        return y
    grad_edge = torch.where(message > 0, grad_y[destination], 0)
    return y, torch.zeros_like(x).index_add(0, source, grad_edge), grad_edge


# ------------------------------------------------------------------------------- values


@pytest.mark.law(1)
def test_literal():
    x = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    edge = torch.tensor([[1.0, 0.0], [-3.0, 5.0], [0.0, -50.0], [-4.0, 1.0]])
    y = go.gine(torch.tensor([[0, 1, 2, 2], [1, 1, 0, 1]]), x, edge)
    assert y.tolist() == [[4.0, 0.0], [2.0, 76.0], [0.0, 0.0]]


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact(edges_and_size, dtype):
    edges, (n_src, n_dst) = edges_and_size
    x, edge = integers(n_src, 17), integers(edges.shape[1], 17, seed=2)
    grad_y = integers(n_dst, 17, seed=1)
    x_float = x.to(dtype).requires_grad_()
    edge_float = edge.to(dtype).requires_grad_()
    y = go.gine(go.Graph(edges, (n_src, n_dst)), x_float, edge_float)
    y.backward(grad_y.to(dtype))
    got = y, x_float.grad, edge_float.grad
    for ours, exact in zip(got, oracle(edges, n_dst, x, edge, grad_y), strict=True):
        assert ours.dtype is dtype
        assert torch.equal(ours, exact.float().to(dtype))


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(width, dtype):
    """Rows around the split of heavy rows, both ways: forward has the hubs as rows,
    the transposed graph has them as rows of backward."""
    forward, (n_left, n_right) = GRAPHS["degrees"]
    for edges, n_src, n_dst in (
        (forward, n_left, n_right),
        (forward.flip(0), n_right, n_left),
    ):
        x, edge = integers(n_src, width), integers(edges.shape[1], width, seed=1)
        grad_y = integers(n_dst, width, seed=2)
        args = go.Graph(edges, (n_src, n_dst)).args(with_csc=True)
        x_float, edge_float, grad = x.to(dtype), edge.to(dtype), grad_y.to(dtype)
        y, grad_x, grad_edge = oracle(edges, n_dst, x, edge, grad_y)
        got = _dispatch_gine.gine(x_float, edge_float, args)
        assert torch.equal(got, y.float().to(dtype))
        for wants in ((True, False), (False, True), (True, True)):
            both = _dispatch_gine.gine_vjp(grad, x_float, edge_float, args, *wants)
            for ours, exact, want in zip(both, (grad_x, grad_edge), wants, strict=True):
                assert (
                    torch.equal(ours, exact.float().to(dtype))
                    if want
                    else (ours.numel() == 0)
                )


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype):
    edges, (n_src, n_dst) = GRAPHS["bipartite"]
    x = LAYOUTS[layout](integers(n_src, 12).to(dtype)).detach().requires_grad_()
    edge = LAYOUTS[layout](integers(edges.shape[1], 12, seed=1).to(dtype))
    edge = edge.detach().requires_grad_()
    grad = LAYOUTS[layout](integers(n_dst, 12, seed=2).to(dtype))
    y = go.gine(go.Graph(edges, (n_src, n_dst)), x, edge)
    got = y, *torch.autograd.grad(y, (x, edge), grad)
    exact = oracle(edges, n_dst, x.long(), edge.long(), grad.long())
    for ours, theirs in zip(got, exact, strict=True):
        assert torch.equal(ours, theirs.float().to(dtype))


@pytest.mark.law(1)
def test_nan_reaches_only_its_rows_and_zero_has_no_gradient():
    x = torch.tensor([[1.0], [-1.0], [2.0], [float("nan")]], requires_grad=True)
    edge = torch.tensor([[-1.0], [0.0], [1.0], [0.0]], requires_grad=True)
    y = go.gine(torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]]), x, edge)
    assert torch.equal(y[:2], torch.tensor([[0.0], [3.0]]))
    assert y[2].isnan() and y[3] == 0
    y.backward(torch.ones_like(y))
    expected = torch.tensor([[0.0], [0.0], [1.0], [1.0]])  # relu passes NaN's too
    assert torch.equal(x.grad, expected) and torch.equal(edge.grad, expected)


@pytest.mark.law(2)
def test_threads_change_no_bit():
    torch.manual_seed(0)
    edges = torch.randint(300, (2, 40_000))
    edges[1, :5000] = 3
    graph = go.Graph(edges, (300, 300))
    x, edge = torch.randn(300, 33, requires_grad=True), torch.randn(40_000, 33)
    results, threads = [], torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        y = go.gine(graph, x, edge)
        results.append([y, *torch.autograd.grad((y * y).sum(), x)])
    torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


# -------------------------------------------------------------------------- derivatives


@pytest.mark.law(1)
def test_twice_differentiable():
    graph = go.Graph(SMALL, SIZE)
    inputs = leaf(5, 3), leaf(6, 3, seed=1)
    for wanted in (inputs, (inputs[0], inputs[1].detach())):

        def function(x, edge):
            return go.gine(graph, x, edge)

        assert gradcheck(function, wanted) and gradgradcheck(function, wanted)
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.law(1)
@pytest.mark.parametrize("wants", [(True, False), (False, True), (True, True)])
def test_the_derivatives_are_each_others(wants):
    """gine_jvp and gine_vjp are linear: three times differentiable and adjoint."""
    graph = go.Graph(SMALL, SIZE)
    args = graph.args(with_csc=True)
    x, edge = leaf(5, 3).detach(), leaf(6, 3, seed=1).detach()
    dx, dedge = leaf(5, 3, seed=2), leaf(6, 3, seed=3)
    tangents = tuple(t for t, want in zip((dx, dedge), wants, strict=True) if want)
    grad = leaf(4, 3, seed=4)

    def jvp(*given):
        given = iter(given)
        return _dispatch_gine.gine_jvp(
            x, edge, *(next(given) if want else None for want in wants), args
        )

    def vjp(grad):
        outputs = _dispatch_gine.gine_vjp(grad, x, edge, args, *wants)
        return tuple(o for o, want in zip(outputs, wants, strict=True) if want)

    assert gradcheck(jvp, tangents) and gradgradcheck(jvp, tangents)
    assert gradcheck(vjp, (grad,)) and gradgradcheck(vjp, (grad,))
    pairs = zip(vjp(grad), tangents, strict=True)
    torch.testing.assert_close(
        (jvp(*tangents) * grad).sum(), sum((a * b).sum() for a, b in pairs)
    )


@pytest.mark.law(1)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_transforms():
    graph = go.Graph(SMALL, SIZE)
    x, edge = leaf(5, 3).detach(), leaf(6, 3, seed=1).detach()

    def loss(ops, x, edge):
        return ops.gine(graph, x, edge).square().sum()

    for function in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        ours = function(lambda x: loss(go.ops, x, edge))(x)
        torch.testing.assert_close(
            ours, function(lambda x: loss(go.reference, x, edge))(x)
        )


@pytest.mark.law(1)
def test_registered_formulas_equal_the_eager_ones():
    args = go.Graph(SMALL, SIZE).args(with_csc=True)
    results = []
    for op in (
        lambda x, e: _dispatch_gine.gine(x, e, args),
        lambda x, e: _dispatch_gine.gine_op(x, e, *args),
    ):
        x, edge = leaf(5, 3), leaf(6, 3, seed=1)
        grads = torch.autograd.grad(
            op(x, edge).square().sum(), (x, edge), create_graph=True
        )
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), (x, edge))
        results.append([*grads, *second])
    for eager, registered in zip(*results, strict=True):
        assert torch.equal(eager, registered)


@pytest.mark.law(1)
@pytest.mark.parametrize(
    "name", ["bipartite", pytest.param("no edges", marks=pytest.mark.slow)]
)
def test_opcheck(name):
    edges, size = GRAPHS[name]
    args = go.Graph(edges, size).args(with_csc=True)
    x, edge = torch.randn(size[0], 3), torch.randn(edges.shape[1], 3)
    grad, absent = torch.randn(size[1], 3), torch.empty(0)
    for needs in (False, True):
        x, edge, grad = (t.detach().requires_grad_(needs) for t in (x, edge, grad))
        opcheck(_dispatch_gine.gine_op, (x, edge, *args))
        tangents = (x.detach() * 2).requires_grad_(needs), (edge.detach() * 2)
        opcheck(
            _dispatch_gine.gine_jvp_op, (x.detach(), edge.detach(), *tangents, *args)
        )
        opcheck(
            _dispatch_gine.gine_jvp_op,
            (x.detach(), edge.detach(), tangents[0], absent, *args),
        )
        back = go._dispatch.transposed(args)
        for wants in ((True, True), (False, True)):
            opcheck(
                _dispatch_gine.gine_vjp_op,
                (grad, x.detach(), edge.detach(), *back, *wants),
            )


# ------------------------------------------------------------------------------- memory


@pytest.mark.law(3)
def test_nothing_of_size_edges_by_features():
    """With a constant `edge`, no op of forward or backward returns E x F, twice."""
    torch.manual_seed(0)
    edges = torch.randint(40, (2, 5000))
    graph, edge = go.Graph(edges, (40, 40)), torch.randn(5000, 32)
    x = torch.randn(40, 32, requires_grad=True)

    def twice(ops):
        y = ops.gine(graph, x, edge)
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        grad.sum().backward()

    with Largest() as ours:
        twice(go.ops)
    assert ours.elements <= 2 * 5000
    with Largest() as theirs:  # the mode would have seen it
        twice(go.reference)
    assert theirs.elements >= 5000 * 32


@pytest.mark.law(3)
def test_only_the_inputs_are_saved():
    graph, saved = go.Graph(SMALL, SIZE), []
    x, edge = leaf(5, 3), leaf(6, 3, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t) or t, lambda t: t
    ):
        go.gine(graph, x, edge)
    assert [t.data_ptr() for t in saved] == [x.data_ptr(), edge.data_ptr()]


# ------------------------------------------------------------------------ torch.compile


@pytest.mark.law(1, 3)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["Graph", "edge_index"])
@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_compiled(form):
    """One graph, the same bits as eager, and no E x F tensor in it."""
    torch._dynamo.reset()
    edges, size = GRAPHS["random"]
    graph = go.Graph(edges, size) if form == "Graph" else edges
    x = torch.randn(size[0], 16, requires_grad=True)
    edge = torch.randn(edges.shape[1], 16)
    largest = []

    def backend(module, inputs):
        def look(module, inputs):
            for node in module.graph.nodes:
                value = node.meta.get("val")
                if node.op == "call_function" and isinstance(value, torch.Tensor):
                    largest.append(value.numel())
            return module.forward

        return torch._dynamo.backends.common.aot_autograd(fw_compiler=look)(
            module, inputs
        )

    def function(x, edge):
        return go.gine(graph, x, edge, size=None if form == "Graph" else size)

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for _ in range(2):
        got, expected = compiled(x, edge), function(x, edge)
        assert torch.equal(got, expected)
        ours = torch.autograd.grad(got.square().sum(), x)
        assert torch.equal(*ours, *torch.autograd.grad(expected.square().sum(), x))
    assert largest and max(largest) < edge.numel()
    torch._dynamo.reset()


# ------------------------------------------------------------------------------- errors


@pytest.mark.law(10)
@pytest.mark.parametrize(
    "x, edge, error, text",
    [
        ((4, 3), (6, 3), ValueError, "gine: x must have 5 rows, one per source, got 4"),
        (
            (5, 3),
            (7, 3),
            ValueError,
            "gine: edge must have 6 rows, one per edge, got 7",
        ),
        ((5, 3), (6, 2), ValueError, "gine: edge must have 3 columns as x has, got 2"),
        (
            (5, 3),
            (6,),
            ValueError,
            r"gine: edge must have 2 dimensions \[6, F\], got \[6\]",
        ),
        ((5, 3), None, TypeError, "gine: edge must be a tensor, got NoneType"),
    ],
)
def test_refusals(x, edge, error, text):
    edge = edge if edge is None else torch.randn(edge)
    with pytest.raises(error, match=f"^{text}$"):
        go.gine(go.Graph(SMALL, SIZE), torch.randn(x), edge)


@pytest.mark.law(10)
def test_the_raw_ops_refuse_what_does_not_fit():
    args = go.Graph(SMALL, SIZE).args(with_csc=True)
    x, edge, absent = torch.randn(5, 3), torch.randn(6, 3), torch.empty(0)
    refused = [
        (_dispatch_gine.gine_op, (x, edge[:5], *args), "edge must have 6 rows, got 5"),
        (_dispatch_gine.gine_op, (x, edge.double(), *args), "edge must be float32"),
        (_dispatch_gine.gine_jvp_op, (x, edge, x[:4], absent, *args), "dx must have 5"),
        (_dispatch_gine.gine_jvp_op, (x, edge, absent, absent, *args), "dx or dedge"),
        (
            _dispatch_gine.gine_vjp_op,
            (x[:4, :2], x, edge, *go._dispatch.transposed(args), True, True),
            "grad must have 3 columns",
        ),
    ]
    for op, given, text in refused:
        with pytest.raises(RuntimeError, match=text):
            op(*given)
