"""Finite differences once and twice, torch's own op checks, and errors in backward."""

import pytest
import torch
from graph_cases import GRAPHS
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import gnnoffload as go
from gnnoffload import _dispatch

pytestmark = pytest.mark.law(1)

SMALL = torch.tensor([[0, 2, 2, 1, 0, 4], [1, 1, 0, 1, 1, 3]])
SIZE = (5, 4)


def leaf(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_spmm_twice_differentiable(reduce):
    graph = go.Graph(SMALL, SIZE)
    s, t = torch.rand(4).double(), torch.rand(5).double()

    def weighted(x, weight):
        return go.spmm(graph, x, weight, reduce, row_scale=s, col_scale=t)

    def plain(x):
        return go.spmm(graph, x, reduce=reduce)

    assert gradcheck(weighted, (leaf(5, 3), leaf(6)))
    assert gradgradcheck(weighted, (leaf(5, 3), leaf(6)))
    assert gradcheck(plain, (leaf(5, 3),)) and gradgradcheck(plain, (leaf(5, 3),))


def test_sddmm_twice_differentiable():
    graph = go.Graph(SMALL, SIZE)
    s, t = torch.rand(4).double(), torch.rand(5).double()

    def product(a, b):
        return go.sddmm(graph, a, b, row_scale=s, col_scale=t)

    assert gradcheck(product, (leaf(4, 3), leaf(5, 3, seed=1)))
    assert gradgradcheck(product, (leaf(4, 3), leaf(5, 3, seed=1)))


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
def test_registered_formulas_equal_the_eager_ones(needs):
    """The two routes of `_dispatch` give one gradient."""
    graph = go.Graph(SMALL, SIZE)
    grads = []
    for op in ("eager", "registered"):
        x = leaf(5, 3).detach().requires_grad_(needs[0])
        weight = leaf(6).detach().requires_grad_(needs[1])
        if op == "eager":
            y = go.spmm(graph, x, weight)
        else:
            none = torch.empty(0)
            y = _dispatch.spmm_op(x, weight, none, none, *graph.args(True))
        (y * y).sum().backward()
        grads.append((x.grad, weight.grad))
    for eager, registered in zip(*grads, strict=True):
        assert (eager is None) == (registered is None)
        assert eager is None or torch.equal(eager, registered)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "bipartite",
        pytest.param("random", marks=pytest.mark.slow),
        pytest.param("no edges", marks=pytest.mark.slow),
    ],
)
def test_opcheck(name, dtype):
    edges, size = GRAPHS[name]
    args = go.Graph(edges, size).args(with_csc=True)
    none = torch.empty(0)
    s, t = torch.rand(size[1]), torch.rand(size[0])
    if dtype is torch.float64:
        s, t = s.double(), t.double()
    x = torch.randn(size[0], 3, dtype=dtype)
    a = torch.randn(size[1], 3, dtype=dtype)
    weight = torch.randn(edges.shape[1], dtype=dtype)
    for grad in (False, True):
        x, a = x.detach().requires_grad_(grad), a.detach().requires_grad_(grad)
        weight = weight.detach().requires_grad_(grad)
        opcheck(_dispatch.spmm_op, (x, weight, s, t, *args))
        opcheck(_dispatch.spmm_op, (x, none, none, none, *args))
        opcheck(_dispatch.sddmm_op, (a, x, s, t, *args))
    opcheck(_dispatch.graph_build_op, (edges[0], edges[1], *size))
    opcheck(_dispatch.graph_transpose_op, (*args[:3], size[0]))
    opcheck(_dispatch.graph_check_op, (*args[:2], size[1], size[0]))


def test_retain_graph_and_inputs_that_need_no_gradient():
    graph = go.Graph(SMALL, SIZE)
    x, weight = leaf(5, 3), leaf(6)
    y = go.spmm(graph, x, weight).sum()
    first = torch.autograd.grad(y, (x, weight), retain_graph=True)
    second = torch.autograd.grad(y, (x, weight))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
    assert not go.spmm(graph, x.detach(), weight.detach()).requires_grad
    with torch.no_grad():
        assert not go.spmm(graph, x, weight).requires_grad


@pytest.mark.law(7)
@pytest.mark.parametrize("which", ["x", "weight", "row_scale"])
def test_in_place_change_of_a_saved_tensor_raises(which):
    x, weight = leaf(5, 3), leaf(6)
    saved = {"x": x * 1, "weight": weight * 1, "row_scale": torch.ones(4).double()}
    scale = saved["row_scale"]
    y = go.spmm(
        go.Graph(SMALL, SIZE), saved["x"], saved["weight"], row_scale=scale
    ).sum()
    with torch.no_grad():
        saved[which].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.law(3)
def test_only_what_a_gradient_needs_is_saved():
    graph = go.Graph(SMALL, SIZE)
    for x_grad, w_grad, expected in (
        (True, False, [(6,)]),
        (False, True, [(5, 3)]),
        (True, True, [(5, 3), (6,)]),
    ):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(tuple(t.shape)) or t, lambda t: t
        ):
            x = leaf(5, 3).detach().requires_grad_(x_grad)
            weight = leaf(6).detach().requires_grad_(w_grad)
            go.spmm(graph, x, weight)
        assert saved == expected


def test_an_error_in_backward_is_a_python_exception_with_our_text():
    """The raw op with an unbuilt CSC: forward works, the kernel of backward refuses."""
    graph = go.Graph(SMALL, SIZE)
    none = torch.empty(0)
    x = leaf(5, 3)
    y = _dispatch.spmm_op(x, none, none, none, *graph.args())
    with pytest.raises(RuntimeError, match=r"^spmm: rowptr must have 6 entries, got 0"):
        y.sum().backward()
    assert x.grad is None
    go.spmm(graph, x).sum().backward()  # nothing was broken by it
    assert x.grad is not None


def test_a_layer_under_autocast():
    graph = go.Graph(SMALL, SIZE)
    linear = torch.nn.Linear(3, 2)
    x = torch.randn(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = go.spmm(graph, linear(x))
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert linear.weight.grad.dtype is torch.float32
