"""Public bug reports of activation offloading as programs for the simulated machine.

Each pattern is one function that plays the report's calls; with `fixed=True` it plays
the repair. They are modelled from the reports' text, not replayed from those projects'
code. What they return are the bytes somebody would have trained on.

`pair` names the two operations that a race report must show, earlier one first; a
pattern without a pair leaks instead.
"""

from collections.abc import Callable
from dataclasses import dataclass

SIZE = 1 << 16
PATTERNS = []


@dataclass(frozen=True)
class Pattern:
    report: str
    story: str
    pair: tuple[str, str] | None
    play: Callable

    @property
    def name(self):
        return self.play.__name__


def pattern(report, pair):
    def add(play):
        PATTERNS.append(Pattern(report, " ".join(play.__doc__.split()), pair, play))
        return play

    return add


def begin(m):
    """The streams and the tensor that every story has."""
    out, back = m.stream("out"), m.stream("in")
    x, host = m.alloc(SIZE), m.pinned(SIZE)
    m.label("forward")
    m.kernel("layer", writes=[x], cost=40_000)
    return out, back, x, host


def result(m, *memories):
    m.finish()
    return b"".join(memory.read() for memory in memories)


@pattern("Megatron-LM #7398", ("copy_out", "copy_in"))
def reload_before_the_copy_out(m, fixed):
    """Reloading inline issues the copy back with no edge from the tensor's own copy
    out: another stream reads the host buffer while it is still being filled."""
    out, back, x, host = begin(m)
    m.join(out, 0)
    m.copy_out(host, x, out)
    left = m.event()
    m.record(left, out)
    m.label("backward")
    y = m.alloc(SIZE)
    m.join(back, 0)
    if fixed:
        m.after(back, left)
    m.copy_in(y, host, back)
    m.join(0, back)
    m.kernel("gradient", reads=[y], writes=[y])
    return result(m, y)


@pattern("TRL #7195 (a)", ("layer", "copy_out"))
def stream_cached_at_construction(m, fixed):
    """The current stream is read once, when the offloader is made. The model then runs
    on another one, so the copy waits for a stream that does nothing."""
    out, user = m.stream("out"), m.stream("user's stream")
    cached = 0
    x, host = m.alloc(SIZE, user), m.pinned(SIZE)
    m.label("forward")
    m.kernel("layer", user, writes=[x], cost=40_000)
    m.join(out, user if fixed else cached)
    m.copy_out(host, x, out)
    return result(m, host)


@pattern("TRL #7195 (b)", ("contiguous", "copy_out"))
def clone_after_the_snapshot(m, fixed):
    """The copy stream waits for the compute stream, and only then a contiguous clone is
    queued there: what is copied is made after what was waited for."""
    out, _, x, host = begin(m)
    clone = m.alloc(SIZE)
    if not fixed:
        m.join(out, 0)
    m.kernel("contiguous", reads=[x], writes=[clone], cost=20_000)
    if fixed:
        m.join(out, 0)
    m.copy_out(host, clone, out)
    return result(m, host)


@pattern("axolotl #3833", ("gradient", "copy_in"))
def clone_in_the_transfer_pool(m, fixed):
    """The restored tensor is cloned on the transfer stream, so the clone's memory
    belongs to that stream's pool. Freed by the host, it is the target of the next
    restore while the compute stream still reads it."""
    back, host, other = m.stream("in"), m.pinned(SIZE), m.pinned(SIZE)
    m.host_write(host, 1)
    m.host_write(other, 2)
    m.label("restore 1")
    restored = m.alloc(SIZE, back)
    m.copy_in(restored, host, back)
    clone = m.alloc(SIZE, back)
    m.kernel("clone", back, reads=[restored], writes=[clone])
    m.join(0, back)
    gradient = m.alloc(SIZE)
    m.kernel("gradient", reads=[clone], writes=[gradient], cost=60_000)
    if fixed:
        m.record_stream(clone, 0)
    m.free(clone)
    m.label("restore 2")
    again = m.alloc(SIZE, back)
    m.copy_in(again, other, back)
    return result(m, gradient)


@pattern("diffusers #13502", ("copy_in", "gradient"))
def compute_never_waits(m, fixed):
    """Blocks are brought in on a transfer stream, and nothing makes the compute stream
    wait for it."""
    back, host = m.stream("in"), m.pinned(SIZE)
    m.host_write(host, 3)
    m.label("backward")
    y, gradient = m.alloc(SIZE), m.alloc(SIZE)
    m.join(back, 0)
    m.copy_in(y, host, back)
    if fixed:
        m.join(0, back)
    m.kernel("gradient", reads=[y], writes=[gradient])
    return result(m, gradient)


@pattern("torchtitan #2581", ("copy_out", "next layer"))
def waits_for_itself(m, fixed):
    """Inside `with stream(out)` the current stream is `out` itself, so the wait that
    should protect a buffer is a wait of `out` for `out`. The next step's layer writes
    the buffer while it is copied."""
    out, _, buffer, host = begin(m)
    m.join(out, 0)
    m.copy_out(host, buffer, out)
    current = 0 if fixed else out
    m.join(current, out)
    m.label("next step")
    m.kernel("next layer", writes=[buffer], cost=10_000)
    return result(m, host)


@pattern("pytorch #106360", ("gradient", "copy_in"))
def restore_target_of_the_copy_stream(m, fixed):
    """The target of a restore is allocated while the copy stream is current, so its
    memory goes back to that stream's pool and is the next target before the gradient
    kernel has read it."""
    back, host, other = m.stream("in"), m.pinned(SIZE), m.pinned(SIZE)
    m.host_write(host, 1)
    m.host_write(other, 2)
    home = 0 if fixed else back
    gradient = m.alloc(SIZE)

    def restore(values):
        target = m.alloc(SIZE, home)
        if fixed:  # memory of the compute stream: its earlier work comes first
            m.join(back, 0)
        m.copy_in(target, values, back)
        m.join(0, back)
        return target

    m.label("restore 1")
    first = restore(host)
    m.kernel("gradient", reads=[first], writes=[gradient], cost=60_000)
    m.free(first)
    m.label("restore 2")
    restore(other)
    return result(m, gradient)


@pattern("pytorch #180665", ("copy_out", "next layer"))
def freed_at_return(m, fixed):
    """A buffer of the compute stream is copied out on another stream and dies when the
    function returns; the next layer gets its memory while the copy still reads it."""
    out, _, x, host = begin(m)
    m.join(out, 0)
    m.copy_out(host, x, out)
    if fixed:
        m.record_stream(x, out)
    m.free(x)
    m.label("next step")
    y = m.alloc(SIZE)
    m.kernel("next layer", writes=[y], cost=10_000)
    return result(m, host)


@pattern("our own first sketch", ("copy_out", "disk write"))
def spilled_before_it_arrived(m, fixed):
    """A disk thread writes the pinned buffer to the spill file without waiting for the
    event of the copy that fills the buffer."""
    out, _, x, host = begin(m)
    disk, file = m.worker("disk thread"), m.pinned(SIZE)
    m.join(out, 0)
    m.copy_out(host, x, out)
    if fixed:
        m.join(disk, out)
    m.disk_write(disk, file, host)
    return result(m, file)


@pattern("torchtune #1867", ("next node", "copy_in"))
def view_of_the_restored_tensor(m, fixed):
    """The restored tensor is let go when its node has run. But the node returned a view
    of it, which the next node reads: the transfer stream, ordered after the first node
    only, fills the memory anew."""
    back, host, other = m.stream("in"), m.pinned(SIZE), m.pinned(SIZE)
    m.host_write(host, 1)
    m.host_write(other, 2)
    m.label("restore 1")
    restored, gradient = m.alloc(SIZE, back), m.alloc(SIZE)
    m.copy_in(restored, host, back)
    m.join(0, back)
    m.kernel("node", reads=[restored], cost=20_000)
    m.join(back, 0)  # the stash goes when the node is done
    m.kernel("next node", reads=[restored], writes=[gradient], cost=40_000)
    if fixed:
        m.record_stream(restored, 0)
    m.free(restored)
    m.label("restore 2")
    m.copy_in(m.alloc(SIZE, back), other, back)
    return result(m, gradient)


@pattern("torchtune #1936", ("copy_out", "next layer"))
def stash_dropped_too_early(m, fixed):
    """The stash that keeps a source alive is emptied by the host before anything is
    ordered after the copy out; the repair is the one that our engine uses too: the
    compute stream waits for the copy, then the source goes."""
    out, _, x, host = begin(m)
    m.join(out, 0)
    m.copy_out(host, x, out)
    if fixed:
        m.join(0, out)
    m.free(x)
    m.label("next step")
    y = m.alloc(SIZE)
    m.kernel("next layer", writes=[y], cost=10_000)
    return result(m, host)


@pattern("TRL #5700", None)
def leak_at_exit(m, fixed):
    """Leaving the context by an exception forgets the buffers and events of what was
    saved and never restored."""
    out = m.stream("out")
    x, host, left = m.alloc(SIZE), m.pinned(SIZE), m.event()
    m.kernel("layer", writes=[x])
    ready = m.event()
    m.record(ready)
    m.after(out, ready)
    m.call("event_destroy", 0, ready)
    m.copy_out(host, x, out)
    m.record(left, out)
    if fixed:
        m.wait_event(left)
        m.call("event_destroy", 0, left)
        m.call("host_free", 0, host.address)
    return b""
