"""Recorded traces: what the recorder writes down, the checker can judge.

The table that is recorded here is the simulator's; on a GPU it is the CUDA runtime's
(`make gpu-day`). A trace of a training step must be clean, and stop being so when any
wait between streams is left out of it.
"""

import ctypes
import gzip
import itertools

import pytest
import torch
from corpus import PATTERNS
from recording import Announced, Recorder, load, save
from replay import replay, waits
from simulator import ENTRIES, CudaError, Machine, Table
from torch_device import Device, as_cuda
from training_steps import BLOCK, assert_same, build, gradients, inputs, plain

import gnnoffload as go


def record(model="mlp", budget=0, window=0, steps=2):
    """The calls of training steps with go.offload, whose gradients are plain's."""
    with Device("timed") as d:
        recorder = Recorder(d.table)
        stream = d.memory.torch_memory_current
        announced = Announced(recorder, stream, torch.device("cpu"))
        with as_cuda(d, recorder.table), announced:
            off = go.offload(
                budget,
                store="host",
                min_bytes=1024,
                inflight=window,
                prefetch=window,
                host_limit="64MiB",
            )
            net, x = build(model), inputs()
            results = [gradients(net, x, off, step) for step in range(steps)]
            assert off.report().bytes_out > 0
        assert_same(results, plain(model, steps))
        d.m.check()
    return recorder.calls()


@pytest.fixture(scope="module")
def trace():
    return record()


def test_every_call_is_there_in_its_order(trace):
    kinds = {call.entry for call in trace}
    assert kinds <= {*ENTRIES, "kernel"}
    assert {"kernel", "copy_out", "copy_in", "event_record", "stream_after"} <= kinds
    assert all(a.end <= b.end for a, b in itertools.pairwise(trace))
    assert all(call.status == 0 and call.begin <= call.end for call in trace)
    (pages,) = (c for c in trace if c.entry == "host_register")
    copies = [c for c in trace if c.entry == "copy_out"]
    assert copies and all(
        pages.to <= c.to and c.to + c.bytes <= pages.to + pages.bytes for c in copies
    )
    forward = [c.name for c in trace if c.entry == "kernel"]
    assert forward.index("aten::tanh") < forward.index("aten::tanh_backward")


@pytest.mark.law(8)
@pytest.mark.parametrize("model, budget, window", [("attention", 0, 2), ("gin", 1, 1)])
def test_a_step_s_trace_is_clean(model, budget, window):
    m = replay(record(model, budget * BLOCK, window * BLOCK))
    m.check()
    assert m.leaks() == {}


@pytest.mark.law(8)
def test_a_trace_without_one_of_its_waits_is_not_clean(trace):
    replay(trace).check()
    between_streams = [i for i in waits(trace) if trace[i].entry == "stream_after"]
    assert len(between_streams) > 20
    for wait in between_streams:
        races = {v["kind"] for v in replay(trace, without={wait}).violations()}
        assert races == {"race"}, trace[wait]


def test_a_trace_whose_pages_go_too_early_is_not_clean(trace):
    copies = [i for i, call in enumerate(trace) if call.entry == "copy_in"]
    (end,) = (i for i, call in enumerate(trace) if call.entry == "host_unregister")
    early = [*trace[: copies[-1] + 1], trace[end]]  # the lanes are not waited for
    assert "race" in {v["kind"] for v in replay(early).violations()}


# ----------------------------------------------------- programs written for the machine


class RecordedMachine(Machine):
    """Its table and its kernels go through a recorder."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.recorder = Recorder(ctypes.addressof(self.table))
        self.table = Table.from_address(self.recorder.table)

    def kernel(self, name, stream=0, reads=(), writes=(), cost=-1):
        super().kernel(name, stream, reads, writes, cost)
        number = self.recorder.kernel(0, stream, name, reads, writes)
        self.recorder.set_cost(number, cost * 1e-9)


# A trace has neither what the host touches nor a disk, and no leak of torch's.
TRACEABLE = [p for p in PATTERNS if p.pair and "disk write" not in p.pair]


@pytest.mark.parametrize("pattern", TRACEABLE, ids=lambda pattern: pattern.name)
def test_public_bugs_are_found_in_their_traces(pattern):
    m = RecordedMachine("lazy")
    pattern.play(m, fixed=False)
    races = replay(m.recorder.calls()).violations()
    pairs = {(v["first"]["site"]["what"], v["second"]["site"]["what"]) for v in races}
    assert pairs == {pattern.pair}
    m = RecordedMachine("lazy")
    pattern.play(m, fixed=True)
    replay(m.recorder.calls()).check()


@pytest.mark.parametrize("machine", ["gh200", "pcie5"])
@pytest.mark.parametrize("pattern", TRACEABLE, ids=lambda pattern: pattern.name)
def test_a_timed_replay_predicts_how_long_it_takes(pattern, machine):
    m = RecordedMachine("timed", machine=machine)
    pattern.play(m, fixed=True)
    took, calls = m.lib.sim_now(), m.recorder.calls()
    assert took > 0
    assert replay(calls, mode="timed", machine=machine).lib.sim_now() == took


def test_what_failed_is_written_down_and_not_played():
    m = RecordedMachine("lazy")
    event = m.event()
    m.fail("event_record", 1, "cudaErrorUnknown")
    with pytest.raises(CudaError):
        m.record(event)
    m.record(event)
    calls = m.recorder.calls()
    assert [(c.entry, c.status != 0) for c in calls] == [
        ("event_create", False),
        ("event_record", True),
        ("event_record", False),
    ]
    assert len(replay(calls).report(trace=True)["ops"]) == 1


# --------------------------------------------------------------------------------- kept


def test_a_trace_is_kept_and_read_again(trace, tmp_path):
    path = tmp_path / "trace.json.gz"
    save(trace, path)
    assert load(path) == trace
    path.write_bytes(gzip.compress(b'{"format": 0, "calls": []}'))
    with pytest.raises(ValueError, match="format must be 1, got 0"):
        load(path)
