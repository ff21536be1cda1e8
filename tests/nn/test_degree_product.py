"""PNA's product by ranges of one degree is the product of each scaler."""

import pytest
import torch

from gnnoffload import Graph
from gnnoffload.nn import _degree_product as module

pytestmark = pytest.mark.law(1)
NAMES = ("sum", "mean", "min", "max", "var", "std")
N, F, F_OUT = 40, 5, 3


@pytest.fixture
def small_ranges(monkeypatch):
    """Ranges of several sizes, degrees with a range and rare ones, on a small graph."""
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "FEW_ROWS", 4)
    monkeypatch.setattr(module, "RANGE_ROWS", 7)


def graph_of_degrees():
    """20 rows of degree 2, 9 of degree 1, 8 isolated, one each of 3, 4 and 5."""
    degree = torch.tensor([2] * 20 + [1] * 9 + [0] * 8 + [3, 4, 5])
    degree = degree[torch.randperm(N)]
    destination = torch.repeat_interleave(degree)
    return Graph(
        torch.stack([torch.randint(N, destination.shape), destination]), (N, N)
    )


def scales(degree):
    logs = torch.log(degree + 1)
    return torch.stack([torch.ones_like(degree), logs / 1.3, 1.3 / (logs + 1)], dim=1)


def inputs(dtype=torch.float64):
    shapes = [(3, len(NAMES), F, F_OUT), *[(N, F)] * (1 + len(NAMES))]
    return [torch.randn(s, dtype=dtype).requires_grad_() for s in shapes]


def run(graph, weight, shift, *ys):
    return module.degree_product(
        graph, dict(zip(NAMES, ys, strict=True)), shift, scales, weight
    )


def results(function, tensors, grad):
    y = function(*tensors)
    return y, *torch.autograd.grad(y, tensors, grad)


def test_it_is_the_product_of_each_scaler(small_ranges):
    graph, tensors = graph_of_degrees(), inputs()
    grad = torch.randn(N, F_OUT, dtype=torch.float64)
    ranges = module._ranges(graph)
    assert len(ranges.rows) == 3 + 2 + 2 and len(ranges.rare) == 1
    got = results(lambda *t: run(graph, *t), tensors, grad)
    want = results(
        lambda *t: module._all_scalers(NAMES, graph.degree, scales, *t), tensors, grad
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_only_what_needs_a_gradient_gets_one(small_ranges):
    graph, tensors = graph_of_degrees(), inputs()
    whole = torch.autograd.grad(run(graph, *tensors).sum(), tensors)
    for k in range(len(tensors)):
        some = [t.detach().requires_grad_(i == k) for i, t in enumerate(tensors)]
        (alone,) = torch.autograd.grad(run(graph, *some).sum(), some[k])
        assert torch.equal(alone, whole[k])


def test_second_derivatives(small_ranges):
    graph, tensors = graph_of_degrees(), inputs()
    assert torch.autograd.gradgradcheck(
        lambda w, s, y: run(graph, w, s, y, *tensors[3:]), tensors[:3], fast_mode=True
    )


def test_learned_scales_get_their_gradient(small_ranges):
    graph, (weight, shift, *ys) = graph_of_degrees(), inputs()
    factor = torch.ones(1, dtype=torch.float64, requires_grad=True)
    statistics = dict(zip(NAMES, ys, strict=True))
    out = module.degree_product(
        graph, statistics, shift, lambda degree: scales(degree) * factor, weight
    )
    out.sum().backward()
    torch.testing.assert_close(factor.grad, out.sum().view(1))


def test_sums_over_ranges_are_in_float32(small_ranges):
    """bfloat16: as near to float64 as rounding each product once."""
    graph, tensors = graph_of_degrees(), inputs(torch.bfloat16)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    grad = torch.randn(N, F_OUT).bfloat16()
    got = results(lambda *t: run(graph, *t), tensors, grad)
    want = results(lambda *t: run(graph, *t), exact, grad.double())
    for a, b in zip(got, want, strict=True):
        assert a.dtype is torch.bfloat16
        assert (a.double() - b).norm() <= 2e-2 * b.norm()
