"""Softmax aggregation: values and gradients of x, edge and t against the slow form of
gnnoffload.reference, in every dtype and width; nothing of size E x F."""

import pytest
import torch
from graph_cases import GRAPHS, random_edges
from test_memory import Largest
from test_spmm_exact import DTYPES
from torch.autograd import gradcheck

import gnnoffload as go
from gnnoffload import _dispatch_softmax_aggregate as dispatch

NAN, INF = float("nan"), float("inf")


def graph_of(name):
    edges, size = GRAPHS[name]
    return go.Graph(edges, size)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradients(ops, graph, x, t, edge, **options):
    """[y, dx, dt or none, dedge or none]"""
    x = x.detach().clone().requires_grad_()
    t = t.detach().clone().requires_grad_() if isinstance(t, torch.Tensor) else t
    edge = None if edge is None else edge.detach().clone().requires_grad_()
    y = ops.softmax_aggregate(graph, x, t, edge, **options)
    grad = normal(*y.shape, seed=9).to(y.dtype)
    inputs = [v for v in (x, t, edge) if isinstance(v, torch.Tensor)]
    grads = torch.autograd.grad(y, inputs, grad, allow_unused=True)
    return [y, *(g for g in grads if g is not None)]


def check(graph, x, t, edge, dtype, **options):
    """Against float64 on the same rounded inputs."""
    x, edge = x.to(dtype), None if edge is None else edge.to(dtype)
    if isinstance(t, torch.Tensor):
        t = t.to(torch.float64 if dtype is torch.float64 else torch.float32)
    ours = gradients(go, graph, x, t, edge, **options)
    exact = gradients(
        go.reference,
        graph,
        x.double(),
        t.double() if isinstance(t, torch.Tensor) else t,
        None if edge is None else edge.double(),
        **options,
    )
    eps = torch.finfo(dtype).eps
    for got, want in zip(ours, exact, strict=True):
        assert got.shape == want.shape
        scale = max(1.0, float(want.detach().abs().max())) if want.numel() else 1.0
        few = 8 if dtype.itemsize == 2 else 64
        torch.testing.assert_close(
            got.double(), want, rtol=4 * eps, atol=few * eps * scale
        )


@pytest.mark.law(1)
def test_literal():
    x = torch.tensor([[0.0, 3.0], [1.0, -1.0], [5.0, 2.0]])
    edges = torch.tensor([[0, 1, 2], [1, 1, 0]])
    mean = go.softmax_aggregate(edges, x, t=0)
    assert mean.tolist() == [[5.0, 2.0], [0.5, 1.0], [0.0, 0.0]]
    y = go.softmax_aggregate(edges, x, t=torch.tensor([2.0, -100.0]))
    e2 = torch.tensor(2.0).exp()
    torch.testing.assert_close(
        y, torch.tensor([[5.0, 2.0], [e2 / (1 + e2), -1.0], [0.0, 0.0]])
    )


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_graph(edges_and_size, dtype):
    edges, size = edges_and_size
    graph = go.Graph(edges, size)
    edge = normal(edges.shape[1], 17, seed=2)
    check(graph, normal(size[0], 17), 0.7, edge, dtype, relu=True)


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("turn, width", [*enumerate([1, 3, 7, 16, 33, 65, 257])])
def test_widths(turn, width, dtype):
    """Rows around the split of heavy rows, both ways; every option in turn."""
    edges, (n_left, n_right) = GRAPHS["degrees"]
    turn += DTYPES.index(dtype)
    if turn % 2:
        edges, n_left, n_right = edges.flip(0), n_right, n_left
    graph = go.Graph(edges, (n_left, n_right))
    t = (1.0, normal(1, seed=3), normal(width, seed=3))[turn % 3]
    edge = normal(edges.shape[1], width, seed=4) if turn % 4 < 2 else None
    check(graph, normal(n_left, width), t, edge, dtype, relu=turn % 2 == 0)


@pytest.mark.law(1)
def test_semi_grad():
    """The weights are constants, also under torch.compile; t has no gradient."""
    graph, x = graph_of("random"), normal(50, 5)
    check(graph, x, 0.5, normal(300, 5, seed=1), torch.float64, semi_grad=True)
    t = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = x.requires_grad_()
    y = go.softmax_aggregate(graph, x, t, semi_grad=True)
    assert torch.autograd.grad(y.sum(), t, allow_unused=True) == (None,)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: go.softmax_aggregate(graph, x, 0.5, semi_grad=True),
        backend="aot_eager",
        fullgraph=True,
    )
    y = go.softmax_aggregate(graph, x, 0.5, semi_grad=True)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (y, compiled(x))]
    assert torch.equal(*grads)
    torch._dynamo.reset()


@pytest.mark.law(1)
def test_gradcheck():
    graph = graph_of("bipartite")
    x = normal(graph.num_src, 3).requires_grad_()
    edge = normal(graph.num_edges, 3, seed=1).requires_grad_()
    for t in (normal(3, seed=2).requires_grad_(), normal(1, seed=2).requires_grad_()):
        for relu in (False, True):

            def function(x, t, edge, relu=relu):
                return go.softmax_aggregate(graph, x, t, edge, relu=relu)

            assert gradcheck(function, (x, t, edge), fast_mode=True)
    assert gradcheck(lambda x: go.softmax_aggregate(graph, x, 0.3), (x,))


@pytest.mark.law(1)
def test_large_exponents_and_what_is_not_finite():
    x = torch.tensor([[1000.0, NAN, INF, -INF], [-1000.0, 1.0, 1.0, 1.0], [1.0] * 4])
    edges = torch.tensor([[0, 1, 2], [0, 0, 1]])
    y = go.softmax_aggregate(edges, x, size=(3, 2))
    assert y[0, 0] == 1000 and y[0, 1:].isnan().all() and (y[1] == 1).all()
    y = go.softmax_aggregate(edges, x[:, :1], 1e38, size=(3, 2))
    assert y[0].isnan() and y[1] == 1


@pytest.mark.law(2)
def test_threads_change_no_bit():
    edges = random_edges(300, 300, 40_000)
    edges[1, :5000] = 3
    edges[0, 5000:9000] = 7
    graph, x = go.Graph(edges, (300, 300)), normal(300, 33).float()
    edge, t = normal(40_000, 33, seed=1).float(), normal(33, seed=2).float()
    results, threads = [], torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(gradients(go, graph, x, t, edge, relu=True))
    torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.law(3)
def test_nothing_of_size_edges_by_features():
    graph = go.Graph(random_edges(40, 40, 5000), (40, 40))
    x, edge = normal(40, 32).float().requires_grad_(), normal(5000, 32).float()
    t = torch.ones(1, requires_grad=True)

    def step(ops):
        ops.softmax_aggregate(graph, x, t, edge, relu=True).square().sum().backward()

    with Largest() as ours:
        step(go)
    assert ours.elements <= 2 * 5000
    with Largest() as theirs:  # the mode would have seen it
        step(go.reference)
    assert theirs.elements >= 5000 * 32


@pytest.mark.law(1)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_compiled():
    torch._dynamo.reset()
    edges, size = GRAPHS["random"]
    x = normal(size[0], 16).float().requires_grad_()
    edge = normal(edges.shape[1], 16, seed=1).float().requires_grad_()
    t = torch.tensor([0.7], requires_grad=True)

    def function(x, t, edge):
        return go.softmax_aggregate(edges, x, t, edge, relu=True, size=size)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    got, expected = compiled(x, t, edge), function(x, t, edge)
    assert torch.equal(got, expected)
    ours, theirs = (
        torch.autograd.grad(y.square().sum(), (x, t, edge)) for y in (got, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


@pytest.mark.law(10)
def test_refusals():
    graph, x = graph_of("random"), torch.randn(50, 4, requires_grad=True)
    y = go.softmax_aggregate(graph, x)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    once = r"^softmax_aggregate: differentiable once"
    with pytest.raises(NotImplementedError, match=once):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match=r"^softmax_aggregate: torch\.func"):
        torch.func.grad(lambda x: go.softmax_aggregate(graph, x).sum())(x.detach())
    for arguments, error, text in (
        (dict(x=x[:3]), ValueError, "x must have 50 rows"),
        (dict(t=torch.ones(3)), ValueError, r"t must be .* \[1\] or \[4\], got \[3\]"),
        (dict(t=torch.ones(4).long()), TypeError, "t must be floating"),
        (dict(edge=torch.ones(300, 3)), ValueError, "edge must have 4 columns"),
    ):
        with pytest.raises(error, match=f"^softmax_aggregate: {text}"):
            go.softmax_aggregate(graph, **(dict(x=x) | arguments))
    args, absent, t = graph.args(with_csc=True), torch.empty(0), torch.ones(4)
    back, spec = go._dispatch.transposed(args), (False, 0.0, True, True, False, True)
    kept, tail = (y.detach(), y.detach(), y.detach()), (x.detach(), absent)
    with pytest.raises(RuntimeError, match="no gradient under semi_grad"):
        dispatch.softmax_vjp_op(*tail, t, *kept, *back, *spec)
    with pytest.raises(RuntimeError, match="lse must be as forward made"):
        kept = (*kept[:2], absent)
        dispatch.softmax_vjp_op(*tail, t, *kept, *back, *spec)
    with pytest.raises(RuntimeError, match="t must be given"):
        dispatch.softmax_op(*tail, absent, *args, False, 0.0, False, False)
