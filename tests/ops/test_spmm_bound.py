"""The bound rule: real data, float64 oracle, error at most gamma_d * sum |w x|."""

import pytest
import torch
from graph_cases import GRAPHS

import gnnoffload as go

pytestmark = pytest.mark.law(1)

STORE = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def gamma(d, u=2.0**-24):
    return d * u / (1 - d * u)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("dtype", STORE, ids=str)
@pytest.mark.parametrize("name", ["random", "bipartite", "degrees"])
def test_spmm(name, dtype, reduce):
    edges, size = GRAPHS[name]
    graph = go.Graph(edges, size)
    torch.manual_seed(0)
    x, weight = (
        torch.randn(size[0], 33).to(dtype),
        torch.randn(edges.shape[1]).to(dtype),
    )
    y = go.spmm(graph, x, weight, reduce).double()
    exact = go.reference.spmm(graph, x.double(), weight.double(), reduce)
    size_of_terms = go.reference.spmm(
        graph, x.double().abs(), weight.double().abs(), reduce
    )
    # d products and additions, for the mean a scale rounded and applied; then the store
    bound = gamma(graph.degree[:, None].double() + 3) * size_of_terms
    bound = bound * (1 + STORE[dtype]) + STORE[dtype] * exact.abs()
    error = (y - exact).abs()
    assert (error <= bound).all()
    assert error.max() > 0  # the rule was put to work


@pytest.mark.parametrize("dtype", STORE, ids=str)
def test_sddmm(dtype):
    edges, size = GRAPHS["random"]
    torch.manual_seed(0)
    a, b = torch.randn(size[1], 65).to(dtype), torch.randn(size[0], 65).to(dtype)
    z = go.sddmm(edges, a, b).double()
    exact = go.reference.sddmm(edges, a.double(), b.double())
    terms = go.reference.sddmm(edges, a.double().abs(), b.double().abs())
    bound = gamma(66) * terms * (1 + STORE[dtype]) + STORE[dtype] * exact.abs()
    assert ((z - exact).abs() <= bound).all()


def test_nan_and_inf_reach_only_the_rows_that_touch_them():
    edges = torch.tensor([[0, 1, 2, 3, 1], [0, 0, 1, 2, 3]])
    x = torch.ones(4, 40)
    x[1, 5], x[2, 7] = torch.nan, torch.inf
    y = go.spmm(edges, x)
    bad = torch.zeros(4, 40, dtype=torch.bool)
    bad[0, 5] = bad[3, 5] = bad[1, 7] = True
    assert torch.equal(~y.isfinite(), bad)
    assert y[1, 7] == torch.inf and y[0, 5].isnan()


def test_denormals_are_kept():
    x = torch.full((1, 20), 1e-40)
    assert (go.spmm(torch.tensor([[0], [0]]), x) == x).all() and (x > 0).all()


@pytest.mark.parametrize(
    "x_dtype, w_dtype, result",
    [
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
    ],
)
def test_promotion(x_dtype, w_dtype, result):
    """The dtype rule of x * weight, and gradients in the dtypes of the leaves."""
    edges, size = GRAPHS["random"]
    x = torch.randn(size[0], 5).to(x_dtype).requires_grad_()
    weight = torch.randn(edges.shape[1]).to(w_dtype).requires_grad_()
    y = go.spmm(edges, x, weight)
    assert y.dtype is result
    y.sum().backward()
    assert x.grad.dtype is x_dtype and weight.grad.dtype is w_dtype
