"""Linear maps, several of one x as one node: values, gradients, what stays alone."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from gnnoffload.nn import _linear

pytestmark = pytest.mark.law(1)
N, F = 5300, 64  # blocks of both sizes and a rest
SIZES = 64, 3  # one weight with ONEDNN_FROM entries and one below


def problem(dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(N, F).to(dtype).requires_grad_()
    weights = [torch.randn(n, F).to(dtype).requires_grad_() for n in SIZES]
    bias = torch.randn(SIZES[0]).to(dtype).requires_grad_()
    return x, list(zip(weights, (bias, None), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("onednn", [True, False])
def test_values_and_gradients(dtype, onednn, monkeypatch):
    assert F * SIZES[0] >= _linear.ONEDNN_FROM > F * SIZES[1]
    if not onednn:
        monkeypatch.setattr(_linear, "_onednn", None)
    x, maps = problem(dtype)
    leaves = [x, *(t for pair in maps for t in pair if t is not None)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    y = _linear.linears(x, *maps)
    right = linear(exact[0], exact[1], exact[2]), linear(exact[0], exact[3])
    loss, sure = (sum(t.square().mean() for t in ts) for ts in (y, right))
    grads, true = torch.autograd.grad(loss, leaves), torch.autograd.grad(sure, exact)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}
    for got, want in zip((*y, *grads), (*right, *true), strict=True):
        assert got.dtype is dtype
        assert (got.double() - want).norm() <= tolerance[dtype] * want.norm()


def test_an_output_that_nobody_uses():
    x, maps = problem()
    first, _ = _linear.linears(x, *maps)
    grads = torch.autograd.grad(first.sum(), (x, maps[1][0]), allow_unused=True)
    torch.testing.assert_close(grads[0], maps[0][0].detach().sum(0).expand(N, -1))
    assert grads[1] is None


def test_second_derivatives():
    x, maps = problem()
    y = sum(t.pow(3).sum() for t in _linear.linears(x, *maps))
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    got = torch.autograd.grad(grad.square().mean(), (x, maps[0][0]))
    y = sum(linear(x, weight, bias).pow(3).sum() for weight, bias in maps)
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    want = torch.autograd.grad(grad.square().mean(), (x, maps[0][0]))
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_gradients_of_x_do_not_change_what_others_hold():
    x, maps = problem()
    parts = []
    first, second = _linear.linears(x, *maps)
    x.register_hook(lambda grad: parts.append(grad.clone()))
    (first.sum() + second.sum()).backward(retain_graph=True)
    once = x.grad.clone()
    (first.sum() + second.sum()).backward()
    assert torch.equal(x.grad, 2 * once)
    assert torch.equal(parts[0], parts[1])


def gradients(y, *tensors):
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator).to(y.dtype)
    return y, *torch.autograd.grad(y, tensors, grad)


def check(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [3, 5000])
@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "slice"])
def test_a_product_and_its_gradients_are_torch_s(rows, sliced):
    """A slice of a weight is neither row- nor column-major."""
    x = torch.randn(rows, 24, requires_grad=True)
    whole = torch.randn(16, 50, requires_grad=True)
    weight = whole[:, 10:34] if sliced else whole[:, :24].contiguous()
    bias = torch.randn(16, requires_grad=True)
    tensors = (x, whole, bias)
    check(
        gradients(_linear.projected(x, weight, bias), *tensors),
        gradients(linear(x, weight, bias), *tensors),
    )


def test_onednn_sees_few_numbers_of_rows(monkeypatch):
    """It compiles for each; a mini-batch has another every time."""
    seen = []

    def spy(x, weight, bias, *rest):
        seen.append(tuple(x.shape))
        return linear(x, weight, bias)

    monkeypatch.setattr(_linear, "_onednn", spy)
    x = torch.randn(7200, 24, requires_grad=True)
    weight = torch.randn(16, 24)
    y = _linear.projected(x, weight)
    forward, seen[:] = list(seen), []
    assert forward == [(4096, 24), *[(1024, 24)] * 3]
    torch.testing.assert_close(y, linear(x, weight))
    y.sum().backward()
    assert seen == [(4096, 16), *[(1024, 16)] * 3]
    seen.clear()
    _linear.projected(x.detach().double(), weight.double())
    _linear.projected(x[:10], weight)
    assert not seen


def test_modules_in_turn_are_the_modules():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(16, 8), nn.Tanh())
    model = nn.Sequential(nn.Linear(24, 16), nn.BatchNorm1d(16), inner)
    x = torch.randn(5000, 24, requires_grad=True)
    tensors = (x, *model.parameters())
    check(gradients(_linear.through(model, x), *tensors), gradients(model(x), *tensors))


def test_hooks_are_called():
    inner = nn.Sequential(nn.Linear(16, 8), nn.Tanh())
    model, calls = nn.Sequential(nn.Linear(24, 16), inner), []
    inner.register_forward_hook(lambda *_: calls.append("inner"))
    inner[0].register_forward_hook(lambda *_: calls.append("linear"))
    _linear.through(model, torch.randn(5000, 24))
    assert calls == ["linear", "inner"]
