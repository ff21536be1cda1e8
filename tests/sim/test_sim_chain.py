"""Device to host to disk and back: link_cuda's slots, emptied by a disk thread.

The link orders a disk thread as it orders any stream: `order` makes it wait for the
copy out. What the disk thread reads or writes is the caller's to order: a slot goes
back, or is copied in from, only when the host knows that the disk is done with it. Each
of those orders, left out, must be found.
"""

import pytest
from link_driver import Link
from simulator import MODES, Machine, Memory

SIZE, TENSORS = 1 << 14, 5
ROOM = (
    2 * SIZE
)  # of the slab: every third tensor needs a slot that the disk has emptied
MISTAKES = {  # what is left out: a pair of operations that then race
    "disk waits for the copy out": ("copy_out", "disk write"),
    "slot goes when it is on disk": ("disk write", "copy_out"),
    "copy in waits for the disk": ("disk read", "copy_in"),
    "slot goes when it is in": ("copy_in", "disk read"),
}


class Chain:
    """Tensors that leave for the disk and come back, over one slab."""

    def __init__(self, m, without=None):
        self.m, self.without = m, without
        self.link, self.base = Link(m, ROOM), None
        self.disk, self.compute = m.worker("disk thread"), m.default_stream(0)
        self.file = [m.pinned(SIZE) for _ in range(TENSORS)]  # pages of the spill file
        self.written = []  # slots that the disk thread reads, oldest first

    def wait_for_disk(self):
        """The host waits until the disk thread has done what it has."""
        event = self.m.event()
        self.m.record(event, self.disk)
        self.m.wait_event(event)
        self.m.call("event_destroy", 0, event)

    def slot(self):
        """Where the slab is full the oldest slot that went to disk goes back."""
        if len(self.written) == ROOM // SIZE:
            if self.without != "slot goes when it is on disk":
                self.wait_for_disk()
            self.link.call("slot_free", self.written.pop(0))
        return self.link.slot_alloc(SIZE)

    def host(self, slot):
        """A slot's memory, from where the first copy went: offset 0 is there."""
        if self.base is None:
            ops = self.m.report(True)["ops"]
            (copy,) = (op for op in ops if op["kind"] == "copy_out")
            self.base = copy["accesses"][1][0] - slot.offset
        return Memory(self.base + slot.offset, SIZE)

    def spill(self, i):
        x, slot = self.m.alloc(SIZE), self.slot()
        self.m.kernel(f"make {i}", writes=[x], cost=5000)
        ready = self.link.mark(self.compute)
        ticket = self.link.put(slot, x, ready)
        self.link.ops.mark_free(self.link.pointer, ready)
        self.link.call("order", ticket, self.compute)
        self.m.free(x)
        if self.without != "disk waits for the copy out":
            self.link.call("order", ticket, self.disk)
        self.m.disk_write(self.disk, self.file[i], self.host(slot))
        self.written.append(slot)

    def fetch(self, i, result):
        slot, y = self.slot(), self.m.alloc(SIZE)
        self.m.disk_read(self.disk, self.host(slot), self.file[i])
        if self.without != "copy in waits for the disk":
            self.wait_for_disk()
        room = self.link.mark(self.compute)
        ticket = self.link.get(slot, y, room, 0)
        self.link.ops.mark_free(self.link.pointer, room)
        self.link.call("order", ticket, self.compute)
        self.m.kernel("use", reads=[y], writes=[result], cost=5000)
        self.m.free(y)
        if self.without != "slot goes when it is in":
            self.link.call("wait", ticket)
        self.link.call("slot_free", slot)

    def play(self):
        """Forward and backward, twice; the bytes that were computed."""
        results = [self.m.alloc(256) for _ in range(2 * TENSORS)]
        for turn in range(2):
            for i in range(TENSORS):
                self.spill(i)
            for i in reversed(range(TENSORS)):
                self.fetch(i, results[turn * TENSORS + i])
        self.m.finish()
        for slot in self.written:
            self.link.call("slot_free", slot)
        self.link.close()
        return b"".join(result.read() for result in results)


@pytest.mark.law(8)
@pytest.mark.parametrize("mode", MODES)
def test_the_chain_is_clean_and_gives_the_same_bytes(mode):
    plain = Machine("timed", call_cost=10**9)
    expected = Chain(plain).play()
    assert len({expected[i : i + 256] for i in range(0, len(expected), 256)}) == TENSORS
    for seed in range(8 if mode == "random" else 1):
        m = Machine(mode, seed)
        assert Chain(m).play() == expected
        m.check()
        assert m.leaks() == {"pinned": TENSORS}  # the file's pages are the test's


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("without", MISTAKES)
def test_an_order_that_is_left_out_is_found(without, mode):
    m = Machine(mode, call_cost=0)
    Chain(m, without).play()
    races = [v for v in m.violations() if v["kind"] == "race"]
    pairs = {(v["first"]["site"]["what"], v["second"]["site"]["what"]) for v in races}
    assert MISTAKES[without] in pairs
