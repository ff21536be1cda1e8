"""The calls of training steps with go.offload, recorded and checked.

A recording table (tests/sim/recorder.c) goes in front of the CUDA runtime's, torch's
ops are written down beside it, and the happens-before checker of the simulator plays
the trace again: clean, it is free of races for every timing that the device may choose.
With a calibrated profile the same trace says how long a step should take.

On a dry run the simulated machine stands for the GPU.
"""

import contextlib
import functools
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import torch

import gnnoffload as go
from benchmarks import gpu_stages
from gnnoffload import _C, _cuda_lane
from gnnoffload._cuda_lane import wait_for
from gnnoffload.mesh import icosphere
from gnnoffload.nn import InteractionNetwork

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "sim"))

SHAPE = {"level": 5, "width": 256, "layers": 4}
SMALL = {"level": 1, "width": 16, "layers": 2}
BUDGETS = {"plain": None, "half stays": 0.5, "all leaves": 0}  # of the saved bytes
STEPS = 10  # measured, without the ops written down
LEFT_OUT = 40  # waits that are left out, one at a time, to see that the checker sees


def trace(device, small, profile=None, keep=None):
    """Checks the traces of training with and without offload.

    Args:
        profile: path of this machine's profile, for predictions.
        keep: path for the last trace, which anybody can then check again.

    Raises:
        RuntimeError: a trace has a race, or one without a needed wait has none.
    """
    from recording import save

    found = {"shape": SMALL if small else SHAPE, "steps": {}}
    for name, share in BUDGETS.items():
        row, calls = variant(device, found["shape"], share, profile)
        found["steps"][name] = row
        if keep is not None:
            save(calls, keep)
        if row["violations"]:
            raise RuntimeError(f"{name}: {row['violations'][0]}")
        if share is not None and not row["noticed"]:
            raise RuntimeError(f"{name}: no wait that is left out is noticed")
    return found


def variant(device, shape, share, profile):
    """(row, calls).

    A row: calls of a step, bytes_out, violations, left_out and noticed waits, seconds
    measured and predicted of a step (None where there is no such thing).
    """
    from replay import replay
    from simulator import explain

    with recorded(device) as (recorder, announced, elapsed):
        step, context = job(device, shape, share)
        marks = []
        with announced:
            for _ in range(3):  # the third is as all later ones
                step()
                marks.append(len(recorder))
        wait_for(device)
        announced.settle(elapsed)
        calls = recorder.calls()
        row = {"calls": marks[2] - marks[1], "measured": seconds(device, step)}
        row["bytes_out"] = context.report().bytes_out if context else 0
    calls = calls[: marks[2]]
    row["violations"] = [explain(v) for v in replay(calls).violations()]
    row |= without_waits(calls, marks[1])
    row["predicted"] = None
    if profile is not None:
        one, two = (ends_at(calls[:mark], profile) for mark in marks[1:])
        row["predicted"] = two - one
    return row, calls


def ends_at(calls, profile):
    """Virtual seconds until a trace has run on the machine of that profile."""
    from replay import replay

    return 1e-9 * replay(calls, mode="timed", machine=profile).lib.sim_now()


def without_waits(calls, first):
    """Leaves out waits between streams from the call `first` on, one at a time: how
    many, and how often a race was found."""
    from replay import replay, waits

    places = [
        i for i in waits(calls) if i >= first and calls[i].entry == "stream_after"
    ]
    places = places[:: max(1, len(places) // LEFT_OUT)]
    noticed = sum(bool(replay(calls, without={i}).violations()) for i in places)
    return {"left_out": len(places), "noticed": noticed}


def job(device, shape, share):
    """(a function that makes one step, its context or None), gradients compared."""
    mesh = icosphere(shape["level"])
    n = mesh.num_nodes
    graph = go.Graph(mesh.edge_index, (n, n)).to(device)
    torch.manual_seed(0)
    x = torch.randn(n, shape["width"], device=device, requires_grad=True)
    e = torch.randn(mesh.num_edges, shape["width"], device=device, requires_grad=True)
    model = gpu_stages.Processor(shape, InteractionNetwork).to(device)
    step = functools.partial(gpu_stages.step, model, (x, graph, e))
    if share is None:
        return functools.partial(step, None), None
    keep = {"store": "host", "min_bytes": 1024, "host_limit": "8GiB"}
    counting = go.offload("8TiB", **keep)
    expected = step(counting)
    saved = counting.report().block_bytes
    windows = {"inflight": saved // 8, "prefetch": saved // 8}
    context = go.offload(int(share * saved), **keep, **windows)
    if not torch.equal(step(context), expected):
        raise RuntimeError("offload changed a gradient")
    return functools.partial(step, context), context


def seconds(device, step):
    """The median; None where there is no device to wait for."""
    if device.type != "cuda":
        return None
    samples = []
    for _ in range(STEPS):
        wait_for(device)
        begin = time.perf_counter()
        step()
        wait_for(device)
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


# ---------------------------------------------------------------------------- recording


def recorded(device):
    """(Recorder, Announced, elapsed) around the CUDA runtime, or on a dry run around
    the simulated machine."""
    return on_cuda(device) if device.type == "cuda" else on_simulated()


@contextlib.contextmanager
def on_cuda(device):
    from recording import Announced, Recorder
    from torch_device import close_lanes

    recorder = Recorder(_C.cuda_api_address())
    stream = functools.partial(torch._C._cuda_getCurrentRawStream, device.index)
    given = _cuda_lane.arguments(device.index) | {"api": recorder.table}
    announced = Announced(recorder, stream, device, timing_event)
    with mock.patch.object(_cuda_lane, "arguments", lambda number: given):
        try:
            yield recorder, announced, lambda a, b: a.elapsed_time(b) / 1e3
        finally:
            close_lanes()


def timing_event():
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@contextlib.contextmanager
def on_simulated():
    from recording import Announced, Recorder
    from torch_device import Device, as_cuda

    with Device("timed") as d:
        recorder = Recorder(d.table)
        stream = d.memory.torch_memory_current
        with as_cuda(d, recorder.table):
            yield recorder, Announced(recorder, stream, torch.device("cpu")), None
