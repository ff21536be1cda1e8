"""Law 7: an in-place change of a saved tensor raises at its use, although hooks switch
autograd's own check off; and only there."""

import pytest
import torch
from offload_steps import assert_empty

import gnnoffload as go

pytestmark = pytest.mark.law(7)
MODIFIED = "modified by an inplace operation.*is at version 1; expected version 0"


class Grab(torch.autograd.Function):
    """Identity that hands out what it unpacked."""

    kept = None

    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y * 1

    @staticmethod
    def backward(ctx, grad):
        Grab.kept.append(ctx.saved_tensors[0])
        return grad


@pytest.fixture
def off():
    """Nothing leaves unless a test asks for it: a budget that holds everything."""
    return go.offload(
        "1GiB", store="ram", min_bytes=4096, inflight="1GiB", host_limit="64MiB"
    )


@pytest.fixture
def eager():
    """What plain PyTorch raises, so that the texts stay alike."""
    w = torch.ones(4, requires_grad=True)
    y = w.exp()
    z = y * y
    y.add_(1)
    with pytest.raises(RuntimeError, match=MODIFIED) as error:
        z.sum().backward()
    return str(error.value)


def hint(text):
    """The advice at the end; torch 2.10 does not yet name check_nan, which it has."""
    return text.split("Hint")[1].replace(", check_nan=False", "")


def move(off, budget=0):
    """Lets what is resident start to leave, at the next save."""
    off._lane.engine.set_budget(budget)


def test_a_skipped_parameter(off, eager):
    p = torch.nn.Parameter(torch.ones(10_000))
    with off:
        loss = (p * 3 * p).sum()
    with torch.no_grad():
        p.add_(1)
    with pytest.raises(RuntimeError, match=MODIFIED) as error:
        loss.backward()
    assert hint(eager) == hint(str(error.value))


def test_a_skipped_small_tensor(off):
    w = torch.ones(4, requires_grad=True)
    with off:
        y = w.exp()
        loss = (y * y).sum()
    y.detach().add_(1)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


def test_a_resident_block(off):
    w = torch.ones(10_000, requires_grad=True)
    with off:
        y = w.exp()
        loss = (y * y).sum()
    y.detach().add_(1)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()
    del loss, y
    assert_empty(off)


def test_a_view_of_a_resident_block(off):
    w = torch.ones(100, 100, requires_grad=True)
    with off:
        y = w.exp()
        loss = (y[:50] * y[50:]).sum()
    y.detach()[0, 0] = 5
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


def test_a_buffer_saved_again_after_a_change_leaves_like_any_other():
    """The block of the old values does not stand for the new ones, nor in their way."""
    off = go.offload(0, store="ram", min_bytes=4096, inflight=0, host_limit="64MiB")
    w = torch.ones(10_000, requires_grad=True)
    with off:
        y = w * 1
        old = y.square()
        y.detach().add_(1)
        new = y.square().sum()
        del y
    new.backward()
    assert torch.equal(w.grad, torch.full_like(w, 4.0))
    with pytest.raises(RuntimeError, match=MODIFIED):
        old.sum().backward()
    del old, new
    report = off.report()
    assert "alias" not in report.skipped and report.bytes_out == 40_000
    assert_empty(off)


def test_a_leaving_block(off):
    """Its owner hands it out again after the copy began: through a first backward."""
    Grab.kept = kept = []
    off._lane.engine.hold(True)
    try:
        move(off)
        w = torch.ones(10_000, requires_grad=True)
        with off:
            loss = Grab.apply(w * 2).sum()
        assert off.state()["outward"] == 40_000
        loss.backward(retain_graph=True)
        assert off.state()["outward"] == 40_000
        kept[0].add_(1)
        with pytest.raises(RuntimeError, match=MODIFIED):
            loss.backward()
    finally:
        off._lane.engine.hold(False)
        move(off, 1 << 30)
    del loss
    kept.clear()
    assert_empty(off)


def test_a_reloaded_block(off):
    Grab.kept = kept = []
    move(off)
    w = torch.ones(10_000, requires_grad=True)
    with off:
        loss = Grab.apply(w * 2).sum()
    off._lane.engine.drain()
    assert off.state()["slot_bytes"] > 0 and off.state()["outward"] == 0
    loss.backward(retain_graph=True)
    kept[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    move(off, 1 << 30)


def test_a_block_that_was_overwritten_and_saved_again(off):
    w = torch.ones(10_000, requires_grad=True)
    with off:
        y = w.exp()
        first = (y * 2 * y).sum()
        with torch.no_grad():
            y.add_(1)
        second = (y.detach() * w).sum()
    second.backward()
    assert torch.equal(w.grad, torch.ones(10_000).exp() + 1)
    with pytest.raises(RuntimeError, match=MODIFIED):
        first.backward()


def test_a_block_that_left_cleanly_keeps_its_values(off):
    """Nobody else held it when it left, so nobody could change it."""
    move(off)
    w = torch.ones(10_000, requires_grad=True)
    with off:
        loss = (w * 2).exp().sum()
    off._lane.engine.drain()
    loss.backward()
    assert torch.equal(w.grad, 2 * torch.full((10_000,), 2.0).exp())
    move(off, 1 << 30)


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_a_branch_never_back_propagated_does_not_raise(off, budget):
    move(off, budget)
    w = torch.ones(10_000, requires_grad=True)
    with off:
        y = w.exp()
        unused = (y * y).sum()
        loss = (w * 3).sum()
    y.detach().add_(1)
    with off:  # another save looks at what may leave
        (w.sin() * w).sum()
    loss.backward()
    assert torch.equal(w.grad, torch.full((10_000,), 3.0))
    del unused
    move(off, 1 << 30)


def test_the_change_is_seen_at_eviction_too(off):
    """The version moves, then the owner goes: it must not leave as if unchanged."""
    w = torch.ones(10_000, requires_grad=True)
    with off:
        y = w.exp()
        loss = (y * y).sum()
        y.detach().add_(1)
        del y
        move(off)
        (w.sin() * 2).sum()
    assert off.state()["slot_bytes"] == 0
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()
    del loss
    assert off.report().poisoned == 1
    move(off, 1 << 30)
