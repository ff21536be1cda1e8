"""Helpers of the offload tests: one way to run a step with and without offload."""

import contextlib

import torch


def x(*shape, grad=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(*shape, generator=generator, dtype=torch.float32).to(dtype)
    return value.requires_grad_(grad)


def sum_of_squares(out):
    return out.float().square().sum()


def gradients(build, inputs, context=None, steps=1, loss_of=sum_of_squares):
    """Losses, then gradients of parameters and inputs, of accumulated steps."""
    torch.manual_seed(7)
    model = build()
    inputs = [
        x.detach().clone().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x
        for x in inputs
    ]
    losses = []
    for step in range(steps):
        torch.manual_seed(100 + step)  # dropout
        with context if context is not None else contextlib.nullcontext():
            loss = loss_of(model(*inputs))
        loss.backward()
        losses.append(loss.detach())
    leaves = [*model.parameters(), *(x for x in inputs if torch.is_tensor(x))]
    return [*losses, *(leaf.grad for leaf in leaves)]


def assert_same(ours, theirs):
    """Equal bit for bit, None included."""
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert (a is None) == (b is None), f"result {i}: {a} against {b}"
        assert a is None or torch.equal(a, b), f"result {i} differs"


def assert_empty(off, retired=0):
    """Nothing is held any more: no slot, block, pass or byte, without the cyclic gc."""
    off._lane.engine.drain()
    state = off.state()
    held = {k: state[k] for k in ("resident", "outward", "inward", "owned", "kept")}
    assert not any(held.values()), held
    assert state["blocks"] == 0 and state["passes"] == 0, state
    assert state["slot_bytes"] == retired, state
