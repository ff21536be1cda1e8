"""A whole two-layer step with offload whose n-th call of some kind fails, for every n.

Run by test_countdown.py in a process of its own. For n = 0, 1, 2, ...: let the call
after n more fail, once and then for ever; the step must succeed, bit for bit, or raise
what its row allows; then without faults the same engine must do it again, bit for bit,
and everything taken must have been given back. Ends where n was not reached.

    python faulty_step.py allocations|tensors|files ram|file
"""

import ctypes
import errno
import gc
import os
import sys
import threading
import time
import warnings
from itertools import count
from pathlib import Path

import torch

import gnnoffload as go
from gnnoffload import _C, _offload

# what a step may raise when this kind of call fails
ALLOWED = {
    "allocations": (MemoryError,),
    "tensors": (MemoryError, RuntimeError),  # torch's own: "can't allocate memory"
    "files": (go.SpillError, go.OffloadError),
}


class Shim:
    """Allocations of one loaded object, through the preloaded malloc_shim.c."""

    def __init__(self, name, aligned):
        self.library = ctypes.CDLL(None)
        for function in ("shim_disarm", "shim_alive", "shim_calls"):
            getattr(self.library, function).restype = ctypes.c_int64
        self.library.shim_watch.restype = ctypes.c_bool
        assert self.library.shim_watch(name.encode(), aligned), name

    def variants(self):
        return [False, True]

    def arm(self, n, ever):
        self.library.shim_arm(ctypes.c_int64(n), ever)

    def disarm(self):
        return self.library.shim_disarm()

    def alive(self):
        return self.library.shim_alive()


class Files:
    """System calls of the file link."""

    CALLS = "openat", "pread", "pwrite", "fallocate", "ftruncate", "sync_file_range"
    ERRORS = errno.EIO, errno.ENOSPC, errno.EINTR

    def variants(self):
        return [
            (call, error, times)
            for call in self.CALLS
            for error in self.ERRORS
            for times in (1, -1)
            if (error, times) != (errno.EINTR, -1)  # for ever interrupted: never ends
        ]

    def arm(self, n, fault):
        call, error, times = fault
        _C.inject_file_fault(call, error, n, times)

    def disarm(self):
        hits = _C.file_fault_hits()
        _C.inject_file_fault()
        return hits

    def alive(self):
        return 0


def build(store, on_full):
    where = {"spill_dir": os.environ["SPILL"]} if store == "file" else {}
    return go.offload(
        4096,
        store=store,
        min_bytes=1,
        inflight=1 << 13,
        prefetch=1 << 13,
        host_limit="4MiB",
        on_full=on_full,
        **where,
    )


class Step:
    """Two message-passing layers; parameters, graph and input stay the same."""

    def __init__(self, length):
        torch.manual_seed(0)
        self.length = length  # more operations, each of which saves a tensor
        self.graph = go.Graph(torch.randint(30, (2, 100)), (30, 30))
        self.graph.args(with_csc=True)
        self.x = torch.randn(30, 16)
        self.edge = torch.randn(100, 16)
        self.layers = [torch.nn.Linear(16, 16) for _ in range(2)]
        self.parameters = [p for layer in self.layers for p in layer.parameters()]

    def run(self, off):
        h = self.x
        with off:
            for layer in self.layers:
                h = go.gine(self.graph, layer(h).tanh(), self.edge).exp().log1p()
            for _ in range(self.length):
                h = h.sin()
            loss = (h * h).sum()
        return [loss.detach(), *torch.autograd.grad(loss, self.parameters)]


def attempt(step, store, on_full):
    """(the step's results or the exception's type, the engine or None). Nothing of a
    failed step is referred to any more."""
    off = None
    try:
        off = build(store, on_full)
        return step.run(off), off
    except Exception as error:
        return type(error), off


def threads(expected=None):
    """Threads of this process; one that was joined may take a moment to go."""
    end = time.monotonic() + 10
    while True:
        n = len(os.listdir("/proc/self/task"))
        if expected is None or n <= expected or time.monotonic() > end:
            return n
        time.sleep(0.001)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def drop_engines():
    _offload._lanes.clear()
    gc.collect()


def is_empty(off):
    off._lane.engine.drain()
    state = off.state()
    held = ("resident", "outward", "inward", "owned", "kept", "blocks", "passes")
    return not any(state[key] for key in held)


def same(ours, expected):
    return all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def countdown(kind, store, on_full, faults):
    # the engine's tables begin with room for 64 blocks, and must grow
    step = Step(80 if kind == "allocations" else 0)
    expected = step.run(build(store, on_full))
    for _ in range(3):
        assert same(attempt(step, store, on_full)[0], expected)
        drop_engines()
    before = faults.alive(), descriptors(), threads()
    tried = raised = 0
    for variant in faults.variants():
        for n in count():
            what = f"{kind}, {store}, {on_full}: {variant} after {n}"
            faults.arm(n, variant)
            result, off = attempt(step, store, on_full)
            reached = faults.disarm() > 0
            tried += reached
            if isinstance(result, type):
                assert issubclass(result, ALLOWED[kind]), f"{what}: {result}"
                assert reached, f"{what}: {result} without a fault"
                raised += 1
            else:
                assert same(result, expected), f"{what}: other bits"
            result = None
            if off is not None:
                assert is_empty(off), f"{what}: {off.state()}"
                again = step.run(off)
                assert same(again, expected), f"{what}: other bits afterwards"
                assert is_empty(off), f"{what}: {off.state()} afterwards"
            off = again = None
            drop_engines()
            after = faults.alive(), descriptors(), threads(before[2])
            assert after == before, f"{what}: blocks, files, threads {before} {after}"
            if not reached:
                break
    return tried, raised


def main(kind, store):
    warnings.simplefilter("ignore")  # "stays in memory", once per engine
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what is there now need not be looked at again
    assert threading.active_count() == 1
    if kind == "files":
        faults = Files()
    elif kind == "tensors":
        faults = Shim("libc10.so", True)
    else:
        faults = Shim(Path(_C.__file__).name, False)
    for on_full in ("keep", "raise"):
        tried, raised = countdown(kind, store, on_full, faults)
        print(f"{kind} {store} {on_full}: {tried} faults, {raised} exceptions")


if __name__ == "__main__":
    main(*sys.argv[1:])
