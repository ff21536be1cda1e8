"""The checker against an oracle that is slow and obvious.

Random programs over streams, events and host memory are played on the simulated machine
and, beside it, drawn as a graph. Two accesses race when neither reaches the other.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import MODES, Machine, RaceError

STREAMS, EVENTS, SLICES = 3, 3, 6
SLICE = 64


def steps():
    stream = st.integers(0, STREAMS - 1)
    event = st.integers(0, EVENTS - 1)
    part = st.tuples(st.integers(0, SLICES - 1), st.integers(1, 3))
    return st.one_of(
        st.tuples(st.just("kernel"), stream, part, part),
        st.tuples(st.just("out"), stream, part),
        st.tuples(st.just("in"), stream, part),
        st.tuples(st.just("record"), stream, event),
        st.tuples(st.just("after"), stream, event),
        st.tuples(st.just("wait"), event),
        st.tuples(st.just("ask"), event),
        st.tuples(st.just("read"), part),
        st.tuples(st.just("write"), part),
    )


class Oracle:
    """Actions as a graph: `before[i]` is the set of actions before action i."""

    def __init__(self):
        self.before, self.accesses = [], []  # per action
        self.last = {}  # actor -> its newest action
        self.captured = {}  # event -> action

    def act(self, actor, reads=(), writes=(), after=()):
        before = set()
        for i in [self.last.get(actor), *after]:
            if i is not None:
                before |= self.before[i] | {i}
        self.before.append(before)
        self.accesses.append(([*reads], [*writes]))
        self.last[actor] = len(self.before) - 1
        return self.last[actor]

    def issue(self, actor, **what):
        return self.act(actor, after=[self.act("host")], **what)

    def races(self):
        def meet(ones, others):
            return any(a < d and c < b for a, b in ones for c, d in others)

        for j, (reads, writes) in enumerate(self.accesses):
            for i in set(range(j)) - self.before[j]:
                r, w = self.accesses[i]
                if meet(writes, r + w) or meet(reads, w):
                    return True
        return False


def play(m, program, oracle=None):
    """Plays a program; what the host read, and all memory at the end."""
    o = oracle or Oracle()
    streams = [0, *(m.stream(f"s{i}") for i in range(1, STREAMS))]
    events = [m.event() for _ in range(EVENTS)]
    device, host = m.alloc(SLICE * 8), m.pinned(SLICE * 8)
    device.fill(7), host.fill(9)
    seen = []

    def part(memory, where):
        lo, n = where[0] * SLICE, where[1] * SLICE
        base = 0 if memory is device else 1 << 20
        return memory[lo : lo + n], [(base + lo, base + lo + n)]

    for step, (what, *args) in enumerate(program):
        if what == "kernel":
            (x, reads), (y, writes) = part(device, args[1]), part(device, args[2])
            m.kernel(f"k{step}", streams[args[0]], reads=[x], writes=[y])
            o.issue(args[0], reads=reads, writes=writes)
        elif what in ("out", "in"):
            (x, near), (h, far) = part(device, args[1]), part(host, args[1])
            copy = m.copy_out if what == "out" else m.copy_in
            copy(*((h, x) if what == "out" else (x, h)), streams[args[0]])
            near, far = (near, far) if what == "out" else (far, near)
            o.issue(args[0], reads=near, writes=far)
        elif what == "record":
            m.record(events[args[1]], streams[args[0]])
            o.captured[args[1]] = o.issue(args[0])
        elif what == "after":
            m.after(streams[args[0]], events[args[1]])
            o.act(args[0], after=[o.act("host"), o.captured.get(args[1])])
        elif what == "wait":
            m.wait_event(events[args[0]])
            o.act("host", after=[o.captured.get(args[0])])
        elif what == "ask":
            if m.call("event_done", 0, events[args[0]]):
                o.act("host", after=[o.captured.get(args[0])])
        elif what == "read":
            h, reads = part(host, args[0])
            seen.append(m.host_read(h))
            o.act("host", reads=reads)
        elif what == "write":
            h, writes = part(host, args[0])
            m.host_write(h, step)
            o.act("host", writes=writes)
    m.finish()
    return [*seen, device.read(), host.read()]


@given(st.lists(steps(), max_size=25), st.sampled_from(MODES), st.integers(0, 9))
@settings(max_examples=600, deadline=None)
def test_a_program_is_clean_exactly_when_the_oracle_says_so(program, mode, seed):
    m, oracle = Machine(mode, seed), Oracle()
    play(m, program, oracle)
    kinds = {v["kind"] for v in m.violations()} - {"torn copy"}
    assert kinds == ({"race"} if oracle.races() else set())


@pytest.mark.law(2, 8)
@given(st.lists(steps(), min_size=5, max_size=25))
@settings(max_examples=300, deadline=None)
def test_a_clean_program_gives_the_same_bytes_in_every_mode(program):
    program = [step for step in program if step[0] != "ask"]  # whose answer is a fork
    m = Machine("timed")
    expected = play(m, program)
    if m.violations():
        return
    schedules = [("lazy", 0), ("eager", 0), *(("random", seed) for seed in range(5))]
    for mode, seed in schedules:
        m = Machine(mode, seed)
        assert play(m, program) == expected
        m.check()


def test_what_a_report_says():
    m = Machine("lazy", seed=5)
    side, event = m.stream("transfer"), m.event()
    x, host = m.alloc(4096), m.pinned(4096)
    m.label("warm-up")
    m.kernel("first", writes=[x])
    m.record(event)
    m.after(side, event)
    m.label("step 3")
    m.kernel("second", writes=[x[1024:2048]])
    m.copy_out(host[0:1536], x[0:1536], side)
    with pytest.raises(RaceError) as error:
        m.check()
    text = str(error.value)
    assert f"race: 512 bytes at {x.address + 1024:#x}" in text
    assert "earlier: default writes in second (step 3)" in text
    assert "later: transfer reads in copy_out (step 3)" in text
    assert "knows up to: event_record (warm-up)" in text
    assert "mode='lazy', seed=5" in text


def test_host_threads_are_actors_when_asked():
    import threading

    for ordered in (False, True):
        m = Machine()
        m.lib.sim_separate_hosts(1)
        host = m.pinned(64)
        m.lib.sim_publish(1)  # starting a thread is an edge

        def other(m=m, host=host, ordered=ordered):
            m.lib.sim_acquire(1)
            m.host_write(host, 1)
            if ordered:
                m.lib.sim_publish(2)

        thread = threading.Thread(target=other)
        thread.start(), thread.join()
        m.lib.sim_acquire(2)
        m.host_read(host)
        assert bool(m.violations()) is not ordered


def test_a_hundred_thousand_operations():
    """Quadratic would take hours: the map follows the ranges in use, not the trace."""
    m = Machine("lazy")
    out, back = m.stream("out"), m.stream("in")
    x, host = m.alloc(1 << 16), m.pinned(1 << 16)
    left, ready = m.event(), m.event()
    n = 100_000
    for i in range(n // 10):
        part = slice(i % 64 * 1024, i % 64 * 1024 + 1024)
        m.kernel("k", writes=[x[part]])
        m.record(ready), m.after(out, ready)
        m.copy_out(host[part], x[part], out)
        m.record(left, out), m.after(back, left)
        m.copy_in(x[part], host[part], back)
        m.record(left, back), m.after(0, left)
        m.kernel("k", reads=[x[part]])
    m.finish()
    m.check()
    assert m.lib.sim_intervals() <= 2 * 64
