"""Every CUDA call of a training step fails once: the step is right or says why not.

One loop over n: the n-th call since the engine was opened fails, a whole step runs,
then the same step again with nothing armed. Either gradients are plain torch's, or
the exception names the call and CUDA's error; nothing hangs, all is given back.
"""

import gc
import re
import warnings

import pytest
import torch
from torch import nn
from torch_device import Device
from training_steps import BLOCK, WIDTH, assert_same, gradients, inputs, offload

STRIDE = 5  # of n per case: the cases together walk every n


def build():
    torch.manual_seed(7)
    layers = [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH))


def attempt(net, x, engine):
    """(results, None) or (None, what was raised)."""
    try:
        return gradients(net, x, offload(engine)), None
    except RuntimeError as error:
        return None, error


@pytest.mark.slow
@pytest.mark.law(9)
@pytest.mark.parametrize("first", range(1, STRIDE + 1))
@pytest.mark.parametrize("error", ["cudaErrorUnknown", "cudaErrorIllegalAddress"])
def test_each_call_of_a_step_fails(error, first):
    expected = gradients(build(), inputs())
    sticks = error == "cudaErrorIllegalAddress"
    named, n = set(), first
    while True:
        with Device("lazy", seed=n) as d, warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", RuntimeWarning
            )  # what could not leave stays
            engine = d.engine(0, BLOCK, BLOCK, min_bytes=1024)
            net, x = build(), inputs()
            before = d.m.lib.sim_calls(b"")
            d.m.fail("", n, error)
            got, raised = attempt(net, x, engine)
            reached = d.m.lib.sim_calls(b"") - before >= n
            if raised is None:
                assert_same([got], [expected])
            else:
                assert error in str(raised), (n, raised)
                named |= set(re.findall(r"cuda: (\w+):", str(raised)))
            del raised
            got, raised = attempt(net, x, engine)
            if raised is None:
                assert_same([got], [expected])
            else:  # a fault that the link remembers
                assert error in str(raised), (n, raised)
            kinds = {v["kind"] for v in d.m.violations()}
            assert sticks or not kinds & {"race", "freed memory"}, (n, kinds)
            d.m.fail("", 0)  # what sticks goes on: all is given back nevertheless
            del got, raised, net, x, engine
            gc.collect()
            assert d.m.leaks() == {}, n
        if not reached:
            break
        n += STRIDE
    assert n > 60 and named, (n, named)
