"""Traces of the CUDA calls and kernels of a program, on a real or simulated device.

`Recorder` stands between link_cuda and a table of CUDA calls; `Announced` adds the ops
that torch queues, with the bytes that they read and write. `replay.py` checks a trace.

What a trace does not have: memory that an op takes and gives back inside itself, and
kernels that no op of torch stands for.
"""

import ctypes
import functools
import gzip
import json
from dataclasses import astuple, dataclass
from pathlib import Path

from sim_build import HERE, build
from simulator import ENTRIES, Range, i32, i64, ptr, ranges, u64
from torch.utils._python_dispatch import TorchDispatchMode
from torch_device import footprint

NAMES = list(ENTRIES)
FORMAT = 1


@dataclass(frozen=True)
class Call:
    """One line of a trace. `entry` of cuda_api.h, or "kernel"."""

    entry: str
    device: int
    status: int  # gnn_status; 0: it worked
    answer: int  # of a question: 1 yes, 0 no
    stream: int
    event: int
    to: int
    source: int
    bytes: int
    begin: int  # nanoseconds of the host's clock
    end: int
    name: str = ""  # of a kernel
    ranges: tuple = ()  # (address, bytes, written) of a kernel
    cost: int = -1  # nanoseconds that the kernel took on the device, -1: not known


def save(calls, path):
    """As gzipped JSON, which `load` reads."""
    text = json.dumps({"format": FORMAT, "calls": [astuple(call) for call in calls]})
    Path(path).write_bytes(gzip.compress(text.encode(), mtime=0))


def load(path):
    kept = json.loads(gzip.decompress(Path(path).read_bytes()))
    if kept["format"] != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT}, got {kept['format']}")
    return [
        Call(*line[:-2], ranges=tuple(map(tuple, line[-2])), cost=line[-1])
        for line in kept["calls"]
    ]


class Line(ctypes.Structure):  # rec_call
    _fields_ = [
        *((name, i32) for name in ("entry", "device", "status", "answer")),
        *((name, u64) for name in ("stream", "event", "to", "source")),
        *((name, i64) for name in ("bytes", "begin", "end", "ranges", "name")),
        *((name, i64) for name in ("n_ranges", "cost")),
    ]


@functools.cache
def library():
    lib = ctypes.CDLL(str(build("librecorder.so", [HERE / "recorder.c"])))
    lib.rec_open.restype, lib.rec_open.argtypes = ptr, [ptr]
    lib.rec_kernel.restype = i64
    lib.rec_kernel.argtypes = [i32, u64, ctypes.c_char_p, i64, ptr]
    lib.rec_set_cost.argtypes = [i64, i64]
    lib.rec_calls.restype = lib.rec_ranges.restype = lib.rec_lost.restype = i64
    lib.rec_name.restype, lib.rec_name.argtypes = ctypes.c_char_p, [i64]
    return lib


class Recorder:
    """One per process. `api`: the address of a table; give `table` to the engine."""

    def __init__(self, api):
        self.lib = library()
        self.table = self.lib.rec_open(api)

    def __len__(self):
        return self.lib.rec_calls(ctypes.byref(ctypes.POINTER(Line)()))

    def kernel(self, device, stream, name, reads, writes):
        """Queued by the program. Returns its number, for `set_cost`."""
        n, array = ranges(reads, writes)
        return self.lib.rec_kernel(device, stream, name.encode(), n, array)

    def set_cost(self, kernel, seconds):
        self.lib.rec_set_cost(kernel, round(1e9 * seconds))

    def calls(self):
        """The trace so far, oldest first."""
        lines, spans = ctypes.POINTER(Line)(), ctypes.POINTER(Range)()
        n = self.lib.rec_calls(ctypes.byref(lines))
        self.lib.rec_ranges(ctypes.byref(spans))
        if self.lib.rec_lost():
            raise MemoryError("the trace has holes")
        return [self._call(lines[i], spans) for i in range(n)]

    def _call(self, line, spans):
        kernel = line.entry < 0
        parts = spans[line.ranges : line.ranges + line.n_ranges] if kernel else ()
        return Call(
            entry="kernel" if kernel else NAMES[line.entry],
            **{n: getattr(line, n) for n in ("device", "status", "answer", "stream")},
            **{n: getattr(line, n) for n in ("event", "to", "source", "bytes")},
            begin=line.begin,
            end=line.end,
            name=self.lib.rec_name(line.name).decode() if kernel else "",
            ranges=tuple((s.address, s.bytes, s.write) for s in parts),
            cost=line.cost if kernel else -1,
        )


class Announced(TorchDispatchMode):
    """Writes each op of torch down as a kernel on the stream that is current.

    stream: answers the current stream's handle. device: whose tensors count; CPU
    tensors where they stand for a device's. clock: called around each op; with two of
    its results `elapsed` says the seconds between them later (CUDA events).
    """

    def __init__(self, recorder, stream, device, clock=None):
        super().__init__()
        self.recorder, self.stream, self.device = recorder, stream, device
        self.clock, self.timed = clock, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        begin = self.clock() if self.clock else None
        out = func(*args, **kwargs)
        on = self.device.type
        reads, writes = footprint(func._schema, args, kwargs, out, on)
        if reads or writes:
            number, name = self.device.index or 0, func._schema.name
            kernel = self.recorder.kernel(number, self.stream(), name, reads, writes)
            if self.clock:
                self.timed.append((kernel, begin, self.clock()))
        return out

    def settle(self, elapsed):
        """Once the device is idle: what each op took there."""
        for kernel, begin, end in self.timed:
            self.recorder.set_cost(kernel, elapsed(begin, end))
        self.timed.clear()
