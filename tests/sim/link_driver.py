"""link_cuda on the simulated machine: its calls, and a program that keeps its contract.

`Steps` is what an engine would do with the link: tensors are computed on a stream,
put away, dropped once that is ordered, brought back before they are used. `MISTAKES`
are the orders that the caller owes the link; leaving one out must be found.
"""

import ctypes
from ctypes import CFUNCTYPE, POINTER, byref

from simulator import CudaError, Machine, flag, i32, i64, ptr, real, u64


class Slot(ctypes.Structure):
    _fields_ = [("offset", i64), ("bytes", i64)]


class Stats(ctypes.Structure):
    _fields_ = [
        (name, real if name.startswith(("busy", "stall")) else i64)
        for name in (
            "bytes_out bytes_in copies_out copies_in busy_out busy_in stall_out "
            "stall_in slot_bytes slot_peak tier_bytes page_cache"
        ).split()
    ]


# Entries of gnn_link_ops after `name` and `ordered`, in their order.
OPS = {
    "slot_alloc": (i32, [i64, POINTER(Slot)]),
    "slot_free": (i32, [Slot]),
    "mark": (i32, [u64, POINTER(u64)]),
    "mark_free": (None, [u64]),
    "capturing": (i32, [u64, POINTER(flag)]),
    "clock": (i32, [u64, POINTER(u64)]),
    "seconds": (i32, [u64, u64, flag, POINTER(flag), POINTER(real)]),
    "put": (i32, [Slot, ptr, u64, POINTER(u64)]),
    "get": (i32, [Slot, ptr, u64, u64, POINTER(u64)]),
    "poll": (i32, [u64, POINTER(flag)]),
    "order": (i32, [u64, u64]),
    "wait": (i32, [u64]),
    "wait_for": (i32, [u64, real, POINTER(flag)]),
    "ticket_free": (None, [u64]),
    "stats": (None, [POINTER(Stats)]),
    "measure": (i32, [i64, POINTER(real), POINTER(real)]),
    "close": (None, []),
}


class Ops(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("ordered", flag),
        *((name, CFUNCTYPE(res, ptr, *args)) for name, (res, args) in OPS.items()),
    ]


class Options(ctypes.Structure):
    _fields_ = [("api", ptr), ("device", i32), ("limit", i64)]


class Link:
    """A gnn_link over the machine's table; failures raise CudaError(status, text)."""

    def __init__(self, m: Machine, limit=1 << 30, device=0):
        self.m = m
        api = ctypes.cast(m.lib.gnn_sim_api(), ptr)
        self.pointer = ptr()
        self.check(
            m.lib.gnn_link_cuda_open(
                byref(Options(api, device, limit)), byref(self.pointer)
            )
        )
        self.ops = ctypes.cast(self.pointer, POINTER(POINTER(Ops)))[0][0]

    def check(self, status):
        if status:
            raise CudaError(status, self.m.message())

    def call(self, name, *args, out=None):
        extra = () if out is None else (byref(out),)
        self.check(getattr(self.ops, name)(self.pointer, *args, *extra))
        return out if out is None or isinstance(out, Slot) else out.value

    def slot_alloc(self, size):
        return self.call("slot_alloc", size, out=Slot())

    def mark(self, stream):
        return self.call("mark", stream, out=u64())

    def put(self, slot, near, after):
        return self.call("put", slot, near.address, after, out=u64())

    def get(self, slot, near, after, after_put):
        return self.call("get", slot, near.address, after, after_put, out=u64())

    def poll(self, ticket):
        return self.call("poll", ticket, out=flag())

    def stats(self):
        out = Stats()
        self.ops.stats(self.pointer, byref(out))
        return out

    def close(self):
        self.ops.close(self.pointer)


MISTAKES = (
    "no ready",  # put does not wait for the values
    "no left",  # the source goes before its stream is ordered after the copy
    "no free",  # get does not wait for its target's memory
    "no put",  # get does not wait for its own put
    "no back",  # the values are used before the copy in
)


class Steps:
    """Tensors that leave and come back, each a counter of its own bytes."""

    def __init__(self, m, link, mistake=None, streams=2, device=0):
        self.m, self.link, self.mistake, self.device = m, link, mistake, device
        names = [f"compute {i}" for i in range(1, streams)]
        self.streams = [m.default_stream(device), *(m.stream(n, device) for n in names)]
        self.near = {}  # name -> (memory, stream)
        self.far = {}  # name -> (slot, put's ticket)
        self.backs = []  # (memory, stream, ticket)
        self.made = 0
        self.result = m.alloc(
            1 << 16, self.streams[0], device
        )  # what the uses have computed, one byte each
        self.used = 0

    def make(self, stream, size):
        """A kernel computes a tensor."""
        s = self.streams[stream]
        x = self.m.alloc(size, s, self.device)
        self.m.kernel(f"make {self.made}", s, writes=[x], cost=5000)
        self.near[self.made] = (x, s)
        self.made += 1

    def put(self, name):
        """It leaves: copied when ready, dropped when the home stream is ordered."""
        x, s = self.near[name]
        slot = self.link.slot_alloc(x.bytes)
        ready = 0
        try:
            ready = self.link.mark(s)
            after = 0 if self.mistake == "no ready" else ready
            ticket = self.link.put(slot, x, after)
        except CudaError:  # it stays
            self.link.call("slot_free", slot)
            raise
        finally:
            self.link.ops.mark_free(self.link.pointer, ready)
        self.far[name] = slot, ticket
        del self.near[name]
        if self.mistake != "no left":
            self.link.call("order", ticket, s)
        self.m.free(x)

    def get(self, name, stream):
        """It comes back, to be used later on that stream."""
        slot, put = self.far[name]
        s = self.streams[stream]
        y = self.m.alloc(slot.bytes, s, self.device)
        room = 0
        try:
            room = self.link.mark(s)
            after = 0 if self.mistake == "no free" else room
            after_put = 0 if self.mistake == "no put" else put
            ticket = self.link.get(slot, y, after, after_put)
        finally:
            self.link.ops.mark_free(self.link.pointer, room)
        self.backs.append((y, s, ticket))

    def use(self):
        """The oldest reload is read by a kernel and dropped."""
        y, s, ticket = self.backs.pop(0)
        if self.mistake != "no back":
            self.link.call("order", ticket, s)  # if this fails the values are lost
        to = self.result[self.used : self.used + 1]
        self.used += 1
        self.m.kernel("use", s, reads=[y], writes=[to], cost=5000)
        self.m.free(y)

    def forget(self, name):
        slot, _ = self.far.pop(name)
        self.link.call("slot_free", slot)

    def play_one(self, what, a, b):
        """A step; one that makes no sense at its place is left out."""
        if what == "make":
            self.make(a % len(self.streams), 512 << (b % 6))
        elif what == "put" and self.near:
            self.put(sorted(self.near)[a % len(self.near)])
        elif what == "get" and self.far:
            names = sorted(self.far)
            self.get(names[a % len(names)], b % len(self.streams))
        elif what == "use" and self.backs:
            self.use()
        elif what == "forget" and self.far:
            self.forget(sorted(self.far)[a % len(self.far)])
        elif what == "poll" and self.far:
            _, ticket = self.far[sorted(self.far)[a % len(self.far)]]
            self.link.poll(ticket)

    def play(self, program):
        for step in program:
            self.play_one(*step)
        return self.results()

    def results(self):
        """The bytes that all uses have computed."""
        while self.backs:
            self.use()
        self.m.finish()
        return self.result[0 : self.used].read() if self.used else b""

    def end(self):
        for name in sorted(self.far):
            self.forget(name)
