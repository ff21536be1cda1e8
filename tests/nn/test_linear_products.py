"""Linear layers by `_linear`: torch's results and gradients, whichever library."""

import pytest
import torch
from torch import nn

from gnnoffload.nn import _linear

pytestmark = pytest.mark.law(1)


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
    assert _linear.is_tall(x, weight) == (rows == 5000)
    tensors = (x, whole, bias)
    check(
        gradients(_linear.projected(x, weight, bias), *tensors),
        gradients(nn.functional.linear(x, weight, bias), *tensors),
    )


@pytest.mark.skipif(_linear._onednn is None, reason="torch has no oneDNN here")
def test_tall_products_go_to_onednn(monkeypatch):
    seen = []
    right = _linear._onednn

    def spy(x, *rest):
        seen.append(tuple(x.shape))
        return right(x, *rest)

    monkeypatch.setattr(_linear, "_onednn", spy)
    x = torch.randn(5000, 24, requires_grad=True)
    weight = torch.randn(16, 24)
    _linear.projected(x, weight).sum().backward()
    assert seen == [(5000, 24), (5000, 16)]
    _linear.projected(x.detach().double(), weight.double())
    _linear.projected(x[:10], weight)
    assert len(seen) == 2


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


def test_a_second_derivative():
    x = torch.randn(40, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda x, w: _linear.linears(x, (w, None), (2 * w, None)),
        (x, weight),
        fast_mode=True,
    )
