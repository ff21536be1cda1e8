"""Conversions, packs and bits of the executor against torch, all 65,536 patterns."""

import shutil

import pytest
import torch
from golden import ULPS, build_for_gpu, differences, floats, on_executor, questions


def answer(library, wanted):
    for name, function, x, (shape, dtype), args in questions():
        if name == wanted:
            return x, on_executor(library, function, x, shape, dtype, args)
    raise LookupError(wanted)


def test_widening(right):
    x, (half, bf16) = answer(right, "widen")
    assert differences(half, x.view(torch.float16).float()) == 0
    assert differences(bf16, x.view(torch.bfloat16).float()) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrowing_rounds_to_nearest_even(right, dtype):
    x, y = answer(right, f"narrow to {dtype}")
    assert differences(y, x.to(dtype)) == 0
    assert torch.equal(x.view(torch.int32), floats().view(torch.int32))
    assert x.isnan().any() and x.isinf().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_functions_are_near_the_rounded_ones(right, dtype):
    x, y = answer(right, f"exp, log, sqrt {dtype}")
    for got, function in zip(y, (torch.exp, torch.log, torch.sqrt), strict=True):
        exact = function(x.double()).to(dtype)
        assert differences(got, exact, ULPS) == 0
        if dtype is torch.float32:
            far = torch.nextafter(exact, exact + exact.abs())
            far = far + 4 * (far - exact)
            assert differences(far, exact, ULPS) > x.numel() / 10  # it can fail


def test_packs_and_bits(right):
    x, y = answer(right, "packs and bits")
    assert torch.equal(y[:128].view(32, 4), x.view(32, 4).flip(1))
    ones = [bin(v & 0xFFFFFFFF).count("1") for v in x.view(32, 4)[:, 0].tolist()]
    assert y[128:].tolist() == ones


def test_every_question_has_an_answer(right):
    names = [question[0] for question in questions()]
    assert len(set(names)) == len(names) > 1500


def test_nvcc_takes_the_same_file():
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not installed")
    assert build_for_gpu("sm_90").exists()
