"""Softmax over the edges of a destination, spmm and sddmm head by head: values, any
number of derivatives, memory, threads, refusals."""

import math

import pytest
import torch
from attention_cases import ROUNDING, SIZE, SMALL, assert_near
from graph_cases import GRAPHS
from test_memory import Largest
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import gnnoffload as go
from gnnoffload import _dispatch_heads


@pytest.mark.law(1)
def test_edge_softmax_literal():
    edges = torch.tensor([[0, 2, 1, 0], [1, 1, 0, 1]])
    scores = torch.tensor([[0.0, 1e4], [math.log(2), 1e4], [7.0, -3.0], [0.0, -1e4]])
    alpha = go.edge_softmax(edges, scores)
    expected = torch.tensor([[0.25, 0.5], [0.5, 0.5], [1.0, 1.0], [0.25, 0.0]])
    torch.testing.assert_close(alpha, expected)
    torch.testing.assert_close(go.edge_softmax(edges, scores[:, 0]), expected[:, 0])


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_edge_softmax(edges_and_size, dtype):
    edges, size = edges_and_size
    graph = go.Graph(edges, size)
    generator = torch.Generator().manual_seed(0)
    scores = (4 * torch.randn(edges.shape[1], 3, generator=generator)).to(dtype)
    grad = torch.randn(edges.shape[1], 3, generator=generator).to(dtype)
    leaf, wide = scores.clone().requires_grad_(), scores.double().requires_grad_()
    alpha, exact = go.edge_softmax(graph, leaf), go.reference.edge_softmax(graph, wide)
    assert_near(alpha, exact, dtype)
    (ours,) = torch.autograd.grad(alpha, leaf, grad)
    (theirs,) = torch.autograd.grad(exact, wide, grad.double())
    assert_near(ours, theirs, dtype, 8 if dtype.itemsize == 2 else 1)  # alpha is too


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_products_by_head(edges_and_size, dtype):
    edges, size = edges_and_size
    graph = go.Graph(edges, size)
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    for heads, channels in ((1, 7), (4, 16), (3, 33)):
        x, weight = randn(size[0], heads, channels), randn(edges.shape[1], heads)
        a, grad = randn(size[1], heads, channels), randn(size[1], heads, channels)
        for reduce in ("sum", "mean"):
            results = []
            for ops, to in ((go, dtype), (go.reference, torch.float64)):
                inputs = [t.to(to).requires_grad_() for t in (x, weight)]
                y = ops.spmm(graph, *inputs, reduce)
                results.append(
                    (y.detach(), *torch.autograd.grad(y, inputs, grad.to(to)))
                )
            for got, exact in zip(*results, strict=True):
                assert_near(got, exact, dtype, 2 if reduce == "mean" else 1)
        z = go.sddmm(graph, a, x)
        assert_near(z, go.reference.sddmm(graph, a.double(), x.double()), dtype)
        y = go.spmm(graph, x)
        assert_near(y, go.reference.spmm(graph, x.double()), dtype)


@pytest.mark.law(1)
def test_no_head_and_no_channel():
    graph = go.Graph(SMALL, SIZE)
    assert go.spmm(graph, torch.ones(5, 0, 3), torch.ones(7, 0)).shape == (4, 0, 3)
    assert go.sddmm(graph, torch.ones(4, 0, 3), torch.ones(5, 0, 3)).shape == (7, 0)
    assert go.edge_softmax(graph, torch.ones(7, 0)).shape == (7, 0)
    assert go.spmm(graph, torch.ones(5, 2, 0), torch.ones(7, 2)).shape == (4, 2, 0)
    z = go.sddmm(graph, torch.ones(4, 2, 0), torch.ones(5, 2, 0))
    assert torch.equal(z, torch.zeros(7, 2))


@pytest.mark.law(1)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_odd_scores(value):
    """A NaN or +inf makes its row and head NaN; -inf counts for nothing, unless the row
    has nothing else."""
    edges = torch.tensor([[0, 1, 2, 0], [0, 0, 0, 1]])
    scores = torch.randn(4, 2)
    plain = go.edge_softmax(edges, scores)
    scores[1, 1] = value
    alpha = go.edge_softmax(edges, scores)
    rest = torch.ones(4, 2, dtype=torch.bool)
    rest[:3, 1] = False
    assert torch.equal(alpha[rest], plain[rest])
    if value == -math.inf:
        assert alpha[1, 1] == 0
        without = go.edge_softmax(edges[:, [0, 2]], scores[[0, 2]])
        torch.testing.assert_close(alpha[[0, 2], 1], without[:, 1])
        scores[3, 0] = value
        assert go.edge_softmax(edges, scores)[3, 0].isnan()
    else:
        assert alpha[1, 1].isnan()


# -------------------------------------------------------------------------- derivatives


def leaf(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return made.requires_grad_()


@pytest.mark.law(1)
def test_edge_softmax_twice():
    graph = go.Graph(SMALL, SIZE)

    def softmax(scores):
        return go.edge_softmax(graph, scores)

    assert gradcheck(softmax, leaf(7, 3), check_forward_ad=True)
    assert gradgradcheck(softmax, leaf(7, 3)) and gradgradcheck(softmax, leaf(7))


@pytest.mark.law(1)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_products_by_head_twice(reduce):
    graph = go.Graph(SMALL, SIZE)

    def spmm(x, weight):
        return go.spmm(graph, x, weight, reduce)

    inputs = leaf(5, 2, 3), leaf(7, 2)
    assert gradcheck(spmm, inputs, check_forward_ad=True)
    assert gradgradcheck(spmm, inputs)

    def sddmm(a, b):
        return go.sddmm(graph, a, b)

    inputs = leaf(4, 2, 3), leaf(5, 2, 3, seed=1)
    assert gradcheck(sddmm, inputs, check_forward_ad=True)
    assert gradgradcheck(sddmm, inputs)


@pytest.mark.law(1)
def test_softmax_thrice():
    graph = go.Graph(SMALL, SIZE)
    scores, weight = leaf(7, 2), leaf(7, 2, seed=1).detach()

    def gradient(ops, scores):
        loss = (ops.edge_softmax(graph, scores).square() * weight).sum()
        for _ in range(2):
            (g,) = torch.autograd.grad(loss, scores, create_graph=True)
            loss = (g.square() * weight).sum()
        return torch.autograd.grad(loss, scores)[0]

    torch.testing.assert_close(gradient(go, scores), gradient(go.reference, scores))


@pytest.mark.law(1)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_transforms():
    graph = go.Graph(SMALL, SIZE)
    x = leaf(5, 2, 3).detach()

    def loss(ops, x):
        z = ops.sddmm(graph, x[:4], x)
        return ops.spmm(graph, x, ops.edge_softmax(graph, z)).square().sum()

    for function in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        ours = function(lambda x: loss(go, x))(x)
        torch.testing.assert_close(ours, function(lambda x: loss(go.reference, x))(x))


@pytest.mark.law(1)
@pytest.mark.parametrize("needs", [pytest.param(False, marks=pytest.mark.slow), True])
def test_opcheck(needs):
    edges, size = GRAPHS["bipartite"]
    args = go.Graph(edges, size).args(with_csc=True)
    x, a = torch.randn(size[0], 6), torch.randn(size[1], 6)
    weight = torch.randn(edges.shape[1], 2)
    x, a, weight = (t.requires_grad_(needs) for t in (x, a, weight))
    opcheck(_dispatch_heads.edge_softmax_op, (weight, *args))
    grad = torch.randn_like(weight, requires_grad=needs)
    opcheck(_dispatch_heads.edge_softmax_vjp_op, (grad, weight, *args))
    opcheck(_dispatch_heads.heads_spmm_op, (x, weight, *args))
    opcheck(_dispatch_heads.heads_sddmm_op, (a, x, *args, 2, False))
    half = x.detach().bfloat16().requires_grad_(needs)
    opcheck(_dispatch_heads.heads_spmm_op, (half, weight, *args))


# ------------------------------------------------------------------------------- limits


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.law(3)
def test_products_by_head_make_nothing_of_that_size():
    n, n_edges, heads, channels = 40, 5000, 2, 32
    graph = go.Graph(torch.randint(n, (2, n_edges)), (n, n))
    x = torch.randn(n, heads, channels, requires_grad=True)
    with Largest() as ours:
        alpha = go.edge_softmax(graph, go.sddmm(graph, x, x))
        loss = go.spmm(graph, x, alpha).square().sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        grad.sum().backward()
    assert heads * n_edges <= ours.elements <= 2 * heads * n_edges


@pytest.mark.law(2)
def test_threads_change_no_bit_by_head(threads):
    torch.manual_seed(0)
    edges = torch.randint(300, (2, 20_000))
    edges[1, :4000] = 3
    edges[0, 4000:8000] = 5
    x, results = torch.randn(300, 3, 9), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        leaf = x.clone().requires_grad_()
        graph = go.Graph(edges, (300, 300))
        alpha = go.edge_softmax(graph, go.sddmm(graph, leaf, leaf))
        y = go.spmm(graph, leaf, alpha)
        results.append([alpha, y, *torch.autograd.grad(y.square().sum(), leaf)])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


X, S, E = torch.ones(5, 2, 3), torch.ones(4, 2), torch.ones(7, 2)
REFUSED = [
    (
        "edge_softmax",
        (S,),
        {},
        r"scores must have shape \[7, H\], one row per edge, got",
    ),
    ("edge_softmax", (S[:, 0],), {}, r"scores must have shape \[7\], one row per edge"),
    ("edge_softmax", ([1.0],), {}, "scores must be a tensor, got list"),
    ("edge_softmax", (E.long(),), {}, "scores must be float32"),
    (
        "spmm",
        (X[:4], E),
        {},
        r"x must have shape \[5, H, C\], one row per source, got ",
    ),
    ("spmm", (X, S), {}, r"weight must have shape \[7, 2\], one row per edge, got"),
    ("spmm", (X, E[:, 0]), {}, r"weight must have shape \[7, 2\]"),
    ("spmm", (X, E), dict(row_scale=S[:, 0]), "row_scale and col_scale are for matr"),
    ("spmm", (X, E), dict(reduce="mul"), "reduce must be"),
    ("sddmm", (X, X), {}, r"a must have shape \[4, H, C\], one row per destination"),
    ("sddmm", (X[:4], X[:, :1]), {}, r"b must have shape \[5, 2, 3\]"),
    ("sddmm", (X[:4], X), dict(col_scale=S[:, 0]), "row_scale and col_scale are for"),
]


@pytest.mark.law(10)
@pytest.mark.parametrize("op, arguments, options, text", REFUSED)
def test_refusals(op, arguments, options, text):
    error = TypeError if "must be a tensor" in text or "float32" in text else ValueError
    with pytest.raises(error, match=f"^{op}: {text}") as raised:
        getattr(go, op)(go.Graph(SMALL, SIZE), *arguments, **options)
    assert raised.type is error


@pytest.mark.law(10)
def test_the_raw_ops_refuse_what_does_not_fit():
    args, x, q = go.Graph(SMALL, SIZE).args(True), X.flatten(1), X[:4].flatten(1)
    softmax, vjp = _dispatch_heads.edge_softmax_op, _dispatch_heads.edge_softmax_vjp_op
    spmm, sddmm = _dispatch_heads.heads_spmm_op, _dispatch_heads.heads_sddmm_op
    for op, tensors, text in [
        (softmax, (S, *args), "scores must have 7 rows, got 4"),
        (softmax, (torch.ones(7, 4)[:, :2], *args), "scores must be contiguous"),
        (vjp, (torch.ones(7, 3), E, *args), "grad must have 2 columns as alpha has"),
        (vjp, (E.double(), E, *args), "grad must be float32, got float64"),
        (spmm, (x[:, :5], E, *args), "x must have a multiple of 2 columns, got 5"),
        (spmm, (x, E.double(), *args), "weight must be float32 or its accumulator"),
        (sddmm, (q, x[:, :4], *args, 2, False), "b must have 6 columns as a has, got"),
        (sddmm, (q, x, *args, 4, False), "a must have a multiple of 4 columns, got 6"),
    ]:
        with pytest.raises(RuntimeError, match=text):
            op(*tensors)
