"""The real hooks, engine and link_cuda in whole steps on the simulated machine.

CPU tensors stand for device tensors; gradients must be those of plain torch bit for
bit, the trace clean, budgets and windows kept, nothing left over.
"""

import pytest
import torch
from simulator import MODES
from torch import nn
from torch_device import Device, offload
from training_steps import (
    BLOCK,
    MODELS,
    ROWS,
    WIDTH,
    assert_same,
    build,
    finish,
    gradients,
    inputs,
    offloaded,
    plain,
)

SCHEDULES = [
    *((mode, 0) for mode in (*MODES[:3], "behind")),
    *(("random", seed) for seed in range(4)),
]
SIZES = {  # budget, out_window, in_window
    "all, one at a time": (0, 0, 0),
    "all, windows": (0, 2 * BLOCK, 2 * BLOCK),
    "half": (2 * BLOCK, BLOCK, 3 * BLOCK),
    "nothing": (1 << 30, BLOCK, BLOCK),
}


@pytest.mark.law(4, 8)
@pytest.mark.parametrize("mode,seed", SCHEDULES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("model", MODELS)
def test_steps_are_plain_torch_s_and_clean(model, sizes, mode, seed):
    budget, out_window, in_window = SIZES[sizes]
    expected = plain(model, 3)
    with Device(mode, seed) as d:
        engine = d.engine(budget, out_window, in_window, min_bytes=1024)
        assert_same(offloaded(d, model, engine), expected)
        d.m.check()
        passes = finish(d, engine)
        d.m.check()
    assert len(passes) == 3
    for counters in passes:
        biggest = 3 * BLOCK  # qkv's storage
        windows = max(out_window, biggest) + max(in_window, biggest)
        assert counters["peak_counted"] <= budget + windows + 3 * biggest
        assert counters["over_budget"] <= 0
        assert (counters["bytes_out"] == 0) == (sizes == "nothing")
        if sizes == "all, windows":
            assert counters["prefetched"] > 0


@pytest.mark.law(4)
def test_the_device_s_peak_falls_by_what_left():
    peaks = {}
    for budget in (1 << 30, 0):
        with Device("timed") as d:
            engine = d.engine(budget, BLOCK, BLOCK, min_bytes=1024)
            net, x = build("mlp"), inputs()
            gradients(net, x, offload(engine))
            d.m.lib.sim_reset_peak()
            gradients(net, x, offload(engine))
            peaks[budget] = d.m.lib.sim_allocated(1)
            del net, x
            counters = finish(d, engine)[-1]
    windows, running = 2 * BLOCK, 3 * BLOCK
    assert counters["bytes_out"] > 8 * BLOCK
    saved = counters["bytes_out"] - windows - running
    assert peaks[0] <= peaks[1 << 30] - saved


@pytest.mark.law(5)
def test_a_steady_state_makes_nothing_and_never_waits():
    makers = ("event_create", "stream_create", "host_register", "host_alloc")
    waiters = ("event_wait", "stream_wait", "device_wait", "host_unregister")
    with Device("timed") as d:
        engine = d.engine(0, 2 * BLOCK, 2 * BLOCK, min_bytes=1024)
        net, x = build("mlp"), inputs()
        for step in range(6):
            before = [d.m.lib.sim_calls(name.encode()) for name in makers + waiters]
            gradients(net, x, offload(engine))
            after = [d.m.lib.sim_calls(name.encode()) for name in makers + waiters]
            assert step < 2 or after == before
        finish(d, engine)
        d.m.check()


# ------------------------------------------------------------------ ends, repetitions


@pytest.mark.law(6)
@pytest.mark.parametrize("mode", MODES)
def test_backward_twice_and_gradients_of_gradients(mode):
    def run(context):
        net, x = build("mlp"), inputs().requires_grad_()
        with context:
            loss = net(x).square().mean()
        loss.backward(retain_graph=True)
        loss.backward()
        with context:
            y = net(x).square().mean()
            (g,) = torch.autograd.grad(y, x, create_graph=True)
            z = g.square().sum()
        z.backward()
        return [x.grad.clone(), *(p.grad.clone() for p in net.parameters())]

    import contextlib

    expected = run(contextlib.nullcontext())
    with Device(mode) as d:
        engine = d.engine(0, BLOCK, BLOCK, min_bytes=1024)

        class Each:  # a pass per entry
            def __enter__(self):
                self.entry = offload(engine)
                return self.entry.__enter__()

            def __exit__(self, *exception):
                return self.entry.__exit__(*exception)

        assert_same([run(Each())], [expected])
        finish(d, engine)
        d.m.check()


@pytest.mark.law(6)
@pytest.mark.parametrize("mode", MODES)
def test_exceptions_unused_branches_and_passes_in_flight(mode):
    expected = plain("mlp")
    with Device(mode) as d:
        engine = d.engine(0, BLOCK, BLOCK, min_bytes=1024)
        net, x = build("mlp"), inputs()
        with pytest.raises(ZeroDivisionError), offload(engine):
            held = net(x)
            raise ZeroDivisionError
        del held
        with offload(engine):  # forward without backward
            unused = net(x)
        with offload(engine):
            torch.manual_seed(100)
            first = net(x).square().mean()
        with offload(engine):
            torch.manual_seed(100)
            second = net(x).square().mean()
        first.backward()
        assert_same([[first, *(p.grad for p in net.parameters())]], expected)
        net.zero_grad()
        second.backward()
        assert_same([[second, *(p.grad for p in net.parameters())]], expected)
        del unused, first, second
        finish(d, engine)
        d.m.check()


@pytest.mark.law(7)
@pytest.mark.parametrize("mode", MODES)
def test_a_change_in_place_raises(mode):
    with Device(mode) as d:
        engine = d.engine(0, BLOCK, BLOCK, min_bytes=1024)
        w = torch.ones(WIDTH, requires_grad=True)
        with offload(engine):
            y = (inputs() * w).exp()
            loss = y.sum()
        y.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        del y, loss
        finish(d, engine)


# ---------------------------------------------------------------------------- streams


def two_branches(d, net, x, side):
    """Half of the layers on the user's own stream, ordered as CUDA asks for."""
    half = len(net) // 2
    y = net[:half](x)
    d.m.join(side, 0)
    with d.on(side):
        y2 = net[half:](y)
        loss = y2.square().mean()
    d.record_stream(y, side)
    d.m.join(0, side)
    d.record_stream(y2, 0)
    d.record_stream(loss, 0)
    return loss


@pytest.mark.law(8)
@pytest.mark.parametrize("mode,seed", SCHEDULES)
def test_the_user_s_own_stream(mode, seed):
    expected = plain("mlp")
    with Device(mode, seed) as d:
        engine = d.engine(0, BLOCK, BLOCK, min_bytes=1024)
        net, x, side = build("mlp"), inputs(), d.m.stream("user's stream")
        for _ in range(3):
            net.zero_grad()
            with offload(engine):
                loss = two_branches(d, net, x, side)
            loss.backward()
            got = [loss.detach(), *(p.grad for p in net.parameters())]
            assert_same([got], expected)
            d.m.join(side, 0)
            del loss, got
        d.m.check()
        del net, x
        finish(d, engine)


@pytest.mark.law(8)
@pytest.mark.parametrize("mode,seed", SCHEDULES)
def test_unpack_on_another_stream_than_pack(mode, seed):
    expected = plain("mlp")
    with Device(mode, seed) as d:
        engine = d.engine(0, BLOCK, BLOCK, min_bytes=1024)
        net, x, side = build("mlp"), inputs(), d.m.stream("backward's stream")
        for _ in range(2):
            net.zero_grad(set_to_none=False)
            with offload(engine):
                loss = net(x).square().mean()
            d.m.join(side, 0)
            with d.on(side):
                loss.backward()
            d.m.join(0, side)
            got = [loss.detach(), *(p.grad for p in net.parameters())]
            assert_same([got], expected)
            del loss, got
        d.m.check()
        del net, x
        finish(d, engine)


@pytest.mark.law(8)
@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize("mode,seed", SCHEDULES)
def test_a_loader_s_stream_whose_memory_goes_back_to_it(budget, mode, seed):
    """A batch comes on a stream that never saves anything, and the loop keeps no name
    for it. Plain training is safe: the graph holds the batch until backward. So the
    engine, which lets it go during forward, must not give its memory back too early."""
    with Device(mode, seed) as d:
        engine = d.engine(budget, 0, 0, min_bytes=1024)
        net, loader = build("mlp"), d.m.stream("loader")
        for _ in range(3):
            with d.on(loader):
                x = inputs() * 1
            d.m.join(0, loader)
            with offload(engine):
                y = net[:3](x)
                del x
                y = net[3:](y)
                with d.on(loader):  # the next batches, ahead of time
                    ahead = [torch.ones(ROWS, WIDTH) for _ in range(4)]
                loss = y.square().mean()
                del y
            loss.backward()
            d.m.join(loader, 0)  # the loop's own order for what dies from here on
            del loss, ahead
        d.m.check()
        del net
        finish(d, engine)


# ------------------------------------------------------------------------- exhaustion


@pytest.mark.law(9)
def test_a_full_slab_keeps_tensors_on_the_device():
    expected = plain("mlp", 3)
    with Device("lazy", host_bytes=4 * BLOCK) as d:
        engine = d.engine(0, BLOCK, BLOCK, min_bytes=1024)
        with pytest.warns(RuntimeWarning, match="stay in memory and training goes on"):
            assert_same(offloaded(d, "mlp", engine), expected)
        passes = finish(d, engine)
        d.m.check()
    assert passes[0]["full"] > 0 and passes[0]["copies_out"] > 0


@pytest.mark.law(6, 9)
def test_no_memory_for_a_reload_is_torch_s_error_and_backward_runs_again():
    expected = plain("mlp")
    with Device("lazy") as d:
        engine = d.engine(0, BLOCK, BLOCK, min_bytes=1024)
        net, x = build("mlp"), inputs()
        torch.manual_seed(100)
        with offload(engine):
            loss = net(x).square().mean()
        limit = d.m.lib.sim_allocated(0)
        d.m.lib.sim_set_limits(limit, 1 << 30)
        with pytest.raises(torch.OutOfMemoryError, match="simulated device"):
            loss.backward(retain_graph=True)
        d.m.lib.sim_set_limits(1 << 30, 1 << 30)
        net.zero_grad()
        loss.backward()
        got = [loss.detach().clone(), *(p.grad.clone() for p in net.parameters())]
        assert_same([got], expected)
        del loss
        finish(d, engine)
        d.m.check()


def test_a_captured_graph_is_left_alone():
    with Device("lazy") as d:
        engine = d.engine(0, BLOCK, BLOCK, min_bytes=1024)
        net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        x = inputs()
        d.m.lib.sim_capture(0, 1)
        with offload(engine):
            loss = net(x).sum()
        d.m.lib.sim_capture(0, 0)
        loss.backward()
        del loss
        (counters,) = finish(d, engine)
        assert counters["skipped"]["capture"] > 0 and counters["copies_out"] == 0
        d.m.check()
