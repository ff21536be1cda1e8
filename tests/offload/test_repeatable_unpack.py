"""Law 6: unpack is repeatable until the graph dies, whatever happens in between."""

import contextlib
import threading

import pytest
import torch
from offload_steps import assert_empty, assert_same, gradients, x
from torch import nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.law(4, 6)


def deep(width=32, depth=5):
    layers = [nn.Linear(width, width)]
    for _ in range(depth):
        layers += [nn.Tanh(), nn.Linear(width, width)]
    return nn.Sequential(*layers)


def both(step, off):
    """`step(context)` without and with offload, from the same seed."""
    torch.manual_seed(1)
    plain = step(contextlib.nullcontext())
    torch.manual_seed(1)
    ours = step(off)
    assert_same(ours, plain)
    assert_empty(off)


def grads_of(model):
    return [p.grad for p in model.parameters()]


def test_retain_graph(move_all):
    def step(context):
        model, h = deep(), x(64, 32)
        with context:
            loss = model(h).square().sum()
        for _ in range(3):
            loss.backward(retain_graph=True)
        loss.backward()
        return grads_of(model)

    both(step, move_all)
    report = move_all.report()
    assert report.copies_in > report.copies_out  # reloads were dropped and came again
    assert report.dropped_clean > 0


@pytest.mark.parametrize("backward_inside", [False, True])
def test_double_backward(move_all, backward_inside):
    def step(context):
        model, h = deep(), x(64, 32, grad=True)
        with context:
            energy = model(h).square().sum()
            if backward_inside:
                force = torch.autograd.grad(energy, h, create_graph=True)[0]
        if not backward_inside:
            force = torch.autograd.grad(energy, h, create_graph=True)[0]
        (force.square().sum() + energy).backward()
        return [h.grad, *grads_of(model)]

    both(step, move_all)


def test_branch_never_back_propagated(move_all):
    def step(context):
        model, h = deep(), x(64, 32)
        with context:
            left, right = model(h).sum(), model(h + 1).exp().sum()
        left.backward()
        del right
        return grads_of(model)

    both(step, move_all)


def test_rollout_with_one_pass_per_step(move_all):
    def step(context):
        model, h, losses = deep(), x(64, 32), []
        for _ in range(4):
            with context:
                h = model(h)
                losses.append(h.square().mean())
        sum(losses).backward()
        return grads_of(model)

    both(step, move_all)
    assert sum(report.bytes_in for report in move_all.history) > 0


def test_forwards_in_flight_end_in_any_order(move_all):
    def step(context):
        model, losses = deep(), []
        for i in range(4):
            with context:
                losses.append(model(x(64, 32) + i).square().mean())
        for i in (2, 0, 3, 1):
            losses[i].backward()
        return grads_of(model)

    both(step, move_all)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_checkpoint(move_all, reentrant, backward_inside):
    def step(context):
        blocks, h = [deep(depth=2) for _ in range(3)], x(64, 32, grad=True)
        with context:
            y = h
            for block in blocks:
                y = checkpoint(block, y, use_reentrant=reentrant)
            loss = y.square().sum()
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        return [h.grad, *(g for block in blocks for g in grads_of(block))]

    both(step, move_all)
    assert move_all.report().checkpoint_saves > 0


def test_offload_inside_a_checkpoint(move_all):
    def step(context):
        model, h = deep(), x(64, 32, grad=True)

        def region(y):
            with context:
                return model(y)

        checkpoint(region, h, use_reentrant=False).square().sum().backward()
        return [h.grad, *grads_of(model)]

    both(step, move_all)


class Boom(torch.autograd.Function):
    """Identity that raises in backward while `armed`."""

    armed = False

    @staticmethod
    def forward(ctx, y):
        return y * 1

    @staticmethod
    def backward(ctx, grad):
        if Boom.armed:
            raise KeyError("boom")
        return grad


def test_exception_in_forward(move_all):
    model = deep()
    with pytest.raises(ZeroDivisionError), move_all:
        y = model(x(64, 32)).exp()
        raise ZeroDivisionError
    del y
    assert_empty(move_all)
    test_rollout_with_one_pass_per_step(move_all)


def test_exception_in_backward_and_backward_again(move_all):
    plain = gradients(deep, [x(64, 32)])
    torch.manual_seed(7)
    model = deep()
    Boom.armed = True
    with move_all:
        loss = Boom.apply(model[:5](x(64, 32)))
        loss = model[5:](loss).square().sum()
    with pytest.raises(KeyError):
        loss.backward(retain_graph=True)
    Boom.armed = False
    model.zero_grad()
    loss.backward()
    assert_same(grads_of(model), plain[1:-1])
    del loss
    assert_empty(move_all)


def test_forward_without_backward(move_all):
    for _ in range(3):
        with move_all:
            y = deep()(x(64, 32)).exp()
        del y
    assert_empty(move_all)
    assert move_all.report().number >= 3


def test_ten_thousand_temporaries_of_one_size(move_all):
    """Freed storages come back at the same address: that must not be identity."""

    def step(context):
        w = torch.ones(128, requires_grad=True)
        total = 0
        with context:
            for i in range(10_000):
                total = total + (w * torch.full((128,), float(i))).sin().sum()
        total.backward()
        return [w.grad]

    both(step, move_all)
    assert move_all.report().copies_out > 9_000


def test_threads_share_an_engine(move_all):
    plain = [gradients(deep, [x(64, 32) + i], steps=3) for i in range(4)]
    results, errors = [None] * 4, []
    barrier = threading.Barrier(4)
    models = [deep() for _ in range(4)]  # seeded below: building is not thread-safe
    for model in models:
        torch.manual_seed(7)
        model.load_state_dict(deep().state_dict())

    def work(i):
        try:
            barrier.wait()
            results[i] = gradients(
                lambda: models[i], [x(64, 32) + i], move_all, steps=3
            )
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for ours, theirs in zip(results, plain, strict=True):
        assert_same(ours, theirs)
    assert_empty(move_all)


def test_gan_updates_in_place(move_all):
    """Parameters change between a network's graphs, as in a GAN's alternating steps."""

    def step(context):
        g, d = deep(), deep()
        adam_g = torch.optim.Adam(g.parameters(), foreach=False)
        adam_d = torch.optim.Adam(d.parameters(), foreach=False)
        for i in range(3):
            with context:
                fake = g(x(64, 32) + i)
                loss_d = d(fake.detach()).square().mean() - d(x(64, 32)).mean()
            adam_d.zero_grad()
            loss_d.backward()
            adam_d.step()
            with context:
                loss_g = -d(fake).mean()
            adam_g.zero_grad()
            loss_g.backward()
            adam_g.step()
        return [*g.parameters(), *d.parameters()]

    both(step, move_all)


@pytest.mark.slow
def test_compile_around_the_call(move_all):
    def step(context):
        torch._dynamo.reset()
        model = deep()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for i in range(2):
            with context:
                loss = compiled(x(64, 32) + i).square().sum()
            loss.backward()
        return grads_of(model)

    both(step, move_all)


@pytest.mark.slow
def test_context_inside_a_compiled_function(move_all):
    """A graph break, then the same gradients."""

    def step(context):
        torch._dynamo.reset()
        model = deep()

        @torch.compile(backend="aot_eager")
        def loss_of(h):
            with context:
                return model(h).square().sum()

        loss_of(x(64, 32)).backward()
        return grads_of(model)

    both(step, move_all)
