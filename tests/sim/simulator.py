"""The simulated machine, as Python sees it.

A test writes a program against `Machine`: streams, events, copies, kernels with the
byte ranges they read and write, an allocator, a host. Then `check()` says whether every
conflicting pair of accesses was ordered.

Example:
    >>> m = Machine(mode="lazy")
    >>> side, event = m.stream("transfer"), m.event()
    >>> x, host = m.alloc(1 << 20), m.pinned(1 << 20)
    >>> m.kernel("relu", writes=[x])
    >>> m.record(event); m.after(side, event)
    >>> m.copy_out(host, x, side)
    >>> m.check()
"""

import ctypes
import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sim_build import library

MODES = ("timed", "lazy", "eager", "random")
u64, i64, i32, ptr = ctypes.c_uint64, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
flag, real = ctypes.c_bool, ctypes.c_double
REF = ctypes.POINTER

# The table of csrc/offload/cuda_api.h, in its order; test_simulator checks the names.
ENTRIES = {
    "runtime_version": [REF(i32)],
    "driver_version": [REF(i32)],
    "device_count": [REF(i32)],
    "device_name": [i32, ptr, u64],
    "device_pci": [i32, ptr, u64],
    "device_attribute": [i32, i32, REF(i32)],
    "device_memory": [i32, REF(i64), REF(i64)],
    "device_in_use": [i32, REF(flag)],
    "device_wait": [i32],
    "stream_create": [i32, flag, REF(u64)],
    "stream_destroy": [i32, u64],
    "stream_done": [i32, u64, REF(flag)],
    "stream_wait": [i32, u64],
    "stream_after": [i32, u64, u64],
    "stream_capturing": [i32, u64, REF(flag)],
    "event_create": [i32, flag, REF(u64)],
    "event_destroy": [i32, u64],
    "event_record": [i32, u64, u64],
    "event_done": [i32, u64, REF(flag)],
    "event_wait": [i32, u64],
    "event_seconds": [i32, u64, u64, REF(real)],
    "host_alloc": [i32, i64, REF(ptr)],
    "host_free": [i32, ptr],
    "host_register": [i32, ptr, i64],
    "host_unregister": [i32, ptr],
    "device_alloc": [i32, i64, REF(ptr)],
    "device_free": [i32, ptr],
    "managed_alloc": [i32, i64, REF(ptr)],
    "managed_free": [i32, ptr],
    "pointer_device": [ptr, REF(i32)],
    "copy_out": [i32, ptr, ptr, i64, u64],
    "copy_in": [i32, ptr, ptr, i64, u64],
    "copy_any": [i32, ptr, ptr, i64, u64],
}
OUTPUTS = {name for name, types in ENTRIES.items() if hasattr(types[-1], "contents")}
OUTPUTS -= {"device_memory"}


class Profile(ctypes.Structure):
    _fields_ = [
        (name, i64)
        for name in (
            "out_rate in_rate both_percent pageable_rate memory_rate disk_rate "
            "copy_latency disk_latency kernel_latency call_cost device_bytes "
            "host_bytes copy_engines pageable_access host_page_tables numa_id "
            "host_numa_id integrated compute_major compute_minor devices pageable_waits"
        ).split()
    ]


class Range(ctypes.Structure):
    _fields_ = [("address", u64), ("bytes", i64), ("write", i64)]


class Table(ctypes.Structure):
    _fields_ = [
        (name, ctypes.CFUNCTYPE(i32, *types)) for name, types in ENTRIES.items()
    ]


@functools.cache
def load(*defines):
    lib = ctypes.CDLL(str(library(*defines)))
    lib.gnn_sim_api.restype = REF(Table)
    lib.gnn_message.restype = ctypes.c_char_p
    lib.sim_report.restype = ptr
    lib.sim_free_text.argtypes = [ptr]
    lib.sim_alloc.restype = ptr
    lib.sim_alloc.argtypes = [i32, i64, u64]
    lib.sim_free.argtypes = [ptr]
    lib.sim_record_stream.argtypes = [ptr, u64]
    lib.sim_open.argtypes = [REF(Profile), i32, u64, i32]
    lib.sim_kernel.argtypes = [u64, ctypes.c_char_p, i64, ptr, i64, ptr, ptr]
    lib.sim_launch_end.argtypes = [u64, ctypes.c_char_p, i64, ptr]
    lib.sim_disk.argtypes = [u64, i32, ptr, ptr, i64]
    lib.sim_announce.argtypes = [u64, ctypes.c_char_p, i64, ptr, i64]
    lib.sim_copy.argtypes = [u64, i32, u64, u64, i64]
    lib.sim_region.argtypes = [u64, i64, ctypes.c_char_p]
    lib.sim_region_end.argtypes = [u64]
    lib.sim_host_access.argtypes = [u64, i64, i32]
    lib.sim_fail.argtypes = [ctypes.c_char_p, i64, i64, ctypes.c_char_p]
    lib.sim_name_stream.argtypes = [u64, ctypes.c_char_p]
    for name in ("launch_begin", "join", "signal", "await", "capture"):
        getattr(lib, f"sim_{name}").argtypes = [u64] + [u64] * (name != "launch_begin")
    for name in ("now", "violations", "intervals", "calls", "asked", "allocated"):
        getattr(lib, f"sim_{name}").restype = i64
    for name in ("stream", "default_stream", "worker", "token"):
        getattr(lib, f"sim_{name}").restype = u64
    for name in ("publish", "acquire"):
        getattr(lib, f"sim_{name}").argtypes = [i64]
    lib.sim_set_limits.argtypes = [i64, i64]
    lib.sim_set_fail.argtypes = [ptr]
    lib.sim_set_fail(ctypes.cast(lib.gnn_fail, ptr))
    return lib


def profile(name, **changes):
    """Of profiles/<name>.json, or of the file at a Path, as gpu-day writes it."""
    if not isinstance(name, Path):
        name = Path(__file__).parent / "profiles" / f"{name}.json"
    values = json.loads(name.read_text())
    values |= changes
    return Profile(*(int(values[field]) for field, _ in Profile._fields_))


class CudaError(Exception):
    """A call of the fake failed: (status, message)."""


class RaceError(AssertionError):
    """The trace is not clean."""


@dataclass(frozen=True)
class Memory:
    """Bytes [address, address + bytes)."""

    address: int
    bytes: int

    def __getitem__(self, part):
        begin, end, step = part.indices(self.bytes)
        assert step == 1
        return Memory(self.address + begin, end - begin)

    def read(self):
        return ctypes.string_at(self.address, self.bytes)

    def fill(self, value):
        ctypes.memset(self.address, value, self.bytes)


class Machine:
    """One process's GPU, host and disk; making a new one ends the one before.

    mode: of MODES, or "behind": lazy, and every query says "not yet" until the host has
    waited for that or does nothing but ask, as of a device far behind its host. Then a
    trace has the fewest edges that it can have.
    """

    newest = None

    def __init__(
        self, mode="lazy", seed=0, machine="gh200", changes=3, defines=(), **settings
    ):
        self.lib = load(*defines)
        self.table = self.lib.gnn_sim_api().contents
        self.profile = profile(machine, **settings)
        self.mode, self.seed = mode, seed
        behind = mode == "behind"
        number = MODES.index("lazy" if behind else mode)
        self.lib.sim_open(ctypes.byref(self.profile), number, seed, changes)
        self.lib.sim_behind(behind)
        self.lib.sim_script(None, 0)
        Machine.newest = self
        self.label("")

    # ------------------------------------------------------------------ CUDA's entries

    def call(self, name, *args):
        """An entry of the table; its output, if it has one, comes back."""
        out = ENTRIES[name][-1]._type_() if name in OUTPUTS else None
        extra = () if out is None else (ctypes.byref(out),)
        status = getattr(self.table, name)(*args, *extra)
        if status:
            raise CudaError(status, self.message())
        return None if out is None else out.value

    def message(self):
        return self.lib.gnn_message().decode()

    def event(self, timing=False, device=0):
        return self.call("event_create", device, timing)

    def record(self, event, stream=0, device=0):
        self.call("event_record", device, event, stream)

    def after(self, stream, event, device=0):
        self.call("stream_after", device, stream, event)

    def join(self, stream, other):
        """wait_stream: later work on `stream` runs after what `other` has queued."""
        event = self.event()
        self.record(event, other)
        self.after(stream, event)
        self.call("event_destroy", 0, event)

    def wait_event(self, event, device=0):
        self.call("event_wait", device, event)

    def copy_out(self, host, memory, stream=0, device=0):
        size = min(host.bytes, memory.bytes)
        self.call("copy_out", device, host.address, memory.address, size, stream)

    def copy_in(self, memory, host, stream=0, device=0):
        size = min(host.bytes, memory.bytes)
        self.call("copy_in", device, memory.address, host.address, size, stream)

    def pinned(self, size):
        return Memory(self.call("host_alloc", 0, size), size)

    # --------------------------------------------------------------- the program around

    def label(self, text):
        self.lib.sim_label(text.encode())

    def stream(self, name, device=0, blocking=False):
        return self.lib.sim_stream(device, name.encode(), blocking)

    def default_stream(self, device):
        return self.lib.sim_default_stream(device)

    def worker(self, name="disk"):
        return self.lib.sim_worker(name.encode())

    def alloc(self, size, stream=0, device=0):
        address = self.lib.sim_alloc(device, size, stream)
        if not address:
            raise MemoryError(f"no {size} bytes of device memory")
        return Memory(address, size)

    def free(self, memory):
        self.lib.sim_free(memory.address)

    def record_stream(self, memory, stream):
        self.lib.sim_record_stream(memory.address, stream)

    def kernel(self, name, stream=0, reads=(), writes=(), cost=-1):
        self.lib.sim_kernel(
            stream, name.encode(), *ranges(reads, writes), cost, None, None
        )

    def announce(self, name, stream, reads=(), writes=(), cost=-1):
        """A kernel of a recorded trace: it takes its time and touches nothing."""
        self.lib.sim_announce(stream, name.encode(), *ranges(reads, writes), cost)

    def disk_write(self, worker, disk, memory):
        self.lib.sim_disk(worker, 1, disk.address, memory.address, memory.bytes)

    def disk_read(self, worker, memory, disk):
        self.lib.sim_disk(worker, 0, memory.address, disk.address, memory.bytes)

    def host_read(self, memory):
        self.lib.sim_host_access(memory.address, memory.bytes, 0)
        return memory.read()

    def host_write(self, memory, value):
        self.lib.sim_host_access(memory.address, memory.bytes, 1)
        memory.fill(value)

    def fail(self, entry, nth, error="cudaErrorUnknown", times=1):
        self.lib.sim_fail(entry.encode(), nth, times, error.encode())

    def finish(self):
        self.lib.sim_finish_all()

    # ------------------------------------------------------------------- what was seen

    def report(self, trace=False):
        assert self is Machine.newest, "this machine ended when another was made"
        text = self.lib.sim_report(trace)
        try:
            return json.loads(ctypes.string_at(text))
        finally:
            self.lib.sim_free_text(text)

    def violations(self):
        return self.report()["violations"]

    def check(self):
        """Raises RaceError unless the trace is clean."""
        report = self.report()
        if report["violations"]:
            texts = [explain(v) for v in report["violations"]]
            replay = f"replay: mode={report['mode']!r}, seed={report['seed']}"
            raise RaceError("\n\n".join([*texts, replay]))

    def leaks(self):
        return {kind: n for kind, n in self.report()["leaks"].items() if n}


def ranges(reads, writes):
    """(number, array) for the C side."""
    all_of = [(m, 0) for m in reads] + [(m, 1) for m in writes]
    array = (Range * len(all_of))(*((m.address, m.bytes, w) for m, w in all_of))
    return len(all_of), ctypes.cast(array, ptr)


def explain(violation):
    """A violation as a paragraph."""
    first, second = violation["first"], violation["second"]
    size = violation["hi"] - violation["lo"]
    where = f"{size} bytes at {violation['lo']:#x}"
    lines = [f"{violation['kind']}: {where}"]
    if violation["text"]:
        lines.append(f"  {violation['text']}")
    for party, when in ((first, "earlier"), (second, "later")):
        if party["site"]:
            who = party["actor"] or "the allocator"
            verb = "writes" if party["write"] else "reads"
            lines.append(f"  {when}: {who} {verb} in {place(party['site'])}")
    if violation["kind"] == "race":
        common = violation["common"]
        known = place(common) if common else "nothing at all"
        lines.append(f"  of {first['actor']}, {second['actor']} knows up to: {known}")
    return "\n".join(lines)


def place(site):
    """What an action was: its label, its name, and the line of C that called."""
    text = site["what"] + (f" ({site['label']})" if site["label"] else "")
    if "file" not in site or "libffi" in site["file"]:  # Python called
        return text
    return f"{text} from {line(site['file'], site['offset'])}"


@functools.cache
def line(path, offset):
    """file:line of a return address by addr2line, or its offset."""
    command = ["addr2line", "-s", "-f", "-e", path, hex(offset - 1)]
    try:
        function, where = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.splitlines()[:2]
    except (OSError, ValueError, subprocess.CalledProcessError):
        return f"{Path(path).name}+{offset:#x}"
    known = not where.startswith("?")
    return f"{function} {where}" if known else f"{Path(path).name}+{offset:#x}"
