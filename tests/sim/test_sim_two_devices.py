"""Two devices in one process: a link and an engine each, a model cut in two."""

import pytest
from link_driver import Link, Steps
from simulator import MODES, CudaError, Machine
from torch_device import Device, offload
from training_steps import BLOCK, assert_same, build, inputs

CYCLE = [
    *[("make", 0, 4), ("put", 0, 0)] * 3,
    *[("get", 2, 1), ("get", 1, 0), ("use", 0, 0), ("get", 0, 0), *[("use", 0, 0)] * 2],
    *[("forget", 0, 0)] * 3,
] * 2


@pytest.mark.law(8)
@pytest.mark.parametrize("mode", MODES)
def test_a_link_on_each_device(mode):
    alone = Machine("timed", call_cost=10**9)
    expected = Steps(alone, Link(alone, 1 << 22)).play(CYCLE)
    m = Machine(mode, devices=2)
    programs = [Steps(m, Link(m, 1 << 22, device), device=device) for device in (0, 1)]
    for step in CYCLE:  # in turn
        for program in programs:
            program.play_one(*step)
    m.finish()
    for program in programs:
        assert program.results() == expected
        program.end()
        program.link.close()
    m.check()
    assert m.leaks() == {}
    streams = {op["stream"] for op in m.report(True)["ops"] if op["kind"] == "copy_out"}
    assert len(streams) == 2


def test_a_handle_of_another_device_is_refused():
    m = Machine("lazy", devices=2)
    link, event = Link(m, 1 << 22, 1), m.event()
    with pytest.raises(CudaError):
        link.mark(m.stream("of device 0", 0))
    with pytest.raises(CudaError):
        m.record(event, m.stream("of device 1", 1), device=0)
    assert [v["kind"] for v in m.violations()] == ["bad handle"] * 2


class Pipeline:
    """The first half of a model on device 0, the second on device 1, an engine each."""

    def __init__(self, d, joined=True):
        self.d, self.joined = d, joined
        self.streams = [d.m.default_stream(device) for device in (0, 1)]
        sizes = {"budget": 0, "out_window": BLOCK, "in_window": BLOCK}
        self.engines = [d.engine(device=i, min_bytes=1024, **sizes) for i in (0, 1)]

    def join(self, device):
        """It goes on after what the other device has queued."""
        if self.joined:
            self.d.m.lib.sim_join(self.streams[device], self.streams[1 - device])

    def step(self, net, x):
        d, half = self.d, len(net) // 2
        net.zero_grad()
        with d.on(self.streams[0]), offload(self.engines[0]):
            y = net[:half](x)
        self.join(1)
        with d.on(self.streams[1]):
            y1 = (y.detach() * 1).requires_grad_()  # the copy between the devices
            with offload(self.engines[1]):
                loss = net[half:](y1).square().mean()
            loss.backward()
        self.join(0)
        with d.on(self.streams[0]):
            y.backward(y1.grad * 1)
        self.join(1)  # what dies here was of both
        return [loss.detach().clone(), *(p.grad.clone() for p in net.parameters())]


@pytest.mark.law(4, 8)
@pytest.mark.parametrize("mode, seed", [*((m, 0) for m in MODES[:3]), ("random", 1)])
def test_a_model_on_two_devices(mode, seed):
    net, x = build("mlp"), inputs()
    half = len(net) // 2
    y = net[:half](x)
    y1 = y.detach().requires_grad_()
    loss = net[half:](y1).square().mean()
    loss.backward()
    y.backward(y1.grad)
    expected = [loss.detach(), *(p.grad.clone() for p in net.parameters())]
    with Device(mode, seed, devices=2) as d:
        net, x, pipeline = build("mlp"), inputs(), Pipeline(d)
        d.m.lib.sim_join(pipeline.streams[1], pipeline.streams[0])  # its parameters
        got = [pipeline.step(net, x) for _ in range(2)]
        assert_same(got, [expected] * 2)
        d.m.check()
        del net, x, got
        for engine in pipeline.engines:
            (first, second) = finish_one(engine)
            assert first["bytes_out"] == second["bytes_out"] > 2 * BLOCK
        assert d.m.leaks() == {}


def finish_one(engine):
    passes = engine.take_finished(True)
    engine.shutdown()
    return passes


def test_devices_that_do_not_wait_for_each_other_are_found():
    with Device("lazy", devices=2) as d:
        net, x, pipeline = build("mlp"), inputs(), Pipeline(d, joined=False)
        pipeline.step(net, x)
        assert "race" in {v["kind"] for v in d.m.violations()}
        del net, x
        for engine in pipeline.engines:
            finish_one(engine)
