"""link_cuda, the real one, on the simulated machine.

Random programs of puts and gets in every mode must be clean and give the bytes that
plain synchronous copies give; leaving out any order that the contract names must be
found; every CUDA call may fail at any time without a leak or a hang.
"""

import re
from ctypes import byref, c_double
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_driver import MISTAKES, OPS, Link, Steps
from simulator import MODES, CudaError, Machine

DEVICE = 9

program = st.lists(
    st.tuples(
        st.sampled_from(["make", "make", "put", "put", "get", "use", "forget", "poll"]),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    max_size=40,
)


def test_the_entries_are_the_product_s():
    header = (Path(__file__).parents[2] / "csrc/offload/link.h").read_text()
    struct = header.split("typedef struct gnn_link_ops {")[1].split("} gnn_link_ops")[0]
    names = re.findall(r"(?:gnn_status|void) \(\*(\w+)\)", struct)
    assert names == list(OPS)


def play(mode, steps, seed=0, mistake=None, **settings):
    m = Machine(mode, seed, **settings)
    link = Link(m, 1 << 22)
    s = Steps(m, link, mistake)
    result = s.play(steps)
    s.end()
    link.close()
    return m, result


@pytest.mark.law(8)
@given(program, st.sampled_from((*MODES, "behind")), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_every_program_is_clean_and_gives_the_same_bytes(steps, mode, seed):
    m, result = play(mode, steps, seed)
    m.check()
    assert m.leaks() == {}
    # Kernels early, copies at once: the order in which the program is written.
    plain, expected = play("timed", steps, call_cost=10**9)
    plain.check()
    assert result == expected


CYCLE = [
    *[("make", 0, 4), ("put", 0, 0)] * 3,
    *[("get", 0, 1), ("get", 1, 0), ("get", 2, 0), *[("use", 0, 0)] * 3] * 2,
    *[("forget", 0, 0)] * 3,
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_caller_that_breaks_the_contract_is_found(mistake, mode):
    """Few questions and free calls: an end that the host has seen is an order too."""
    cycle = [("make", 0, 4), ("put", 0, 0), ("make", 0, 4), ("get", 0, 1)]
    cycle += [("use", 0, 0), ("get", 0, 1), ("use", 0, 0)]
    m, _ = play(mode, cycle, call_cost=0)
    m.check()
    m, _ = play(mode, cycle, mistake=mistake, call_cost=0)
    assert "race" in {v["kind"] for v in m.violations()}


def test_slots_that_are_used_again_wait_for_the_copies_that_read_them():
    """Forgotten at once after the get was queued, the slot is the next put's."""
    steps = [("make", 0, 4), ("put", 0, 0), ("get", 0, 0), ("forget", 0, 0)] * 4
    for mode in (*MODES, "behind"):
        m, _ = play(mode, steps)
        m.check()
        copies = [op for op in m.report(True)["ops"] if op["kind"] == "copy_out"]
        assert len({op["accesses"][1][0] for op in copies}) == 1  # it is one slot


@pytest.mark.parametrize("mode", MODES)
def test_the_host_sees_a_copy_s_end_by_wait_or_poll(mode):
    for how in ("wait", "poll"):
        m = Machine(mode)
        link = Link(m)
        x = m.alloc(4096)
        m.kernel("make", writes=[x])
        mark, slot = link.mark(0), link.slot_alloc(4096)
        ticket = link.put(slot, x, mark)
        link.ops.mark_free(link.pointer, mark)
        if how == "wait":
            link.call("wait", ticket)
        else:
            assert any(link.poll(ticket) for _ in range(200))
        m.host_read(x)  # after the copy, which is after the kernel
        assert link.stats().copies_out == 1
        assert link.stats().bytes_out == 4096
        link.call("slot_free", slot)
        link.close()
        m.check()
        assert m.leaks() == {}


def test_steady_state_makes_nothing():
    """Law 5: the third cycle creates no event, stream or pinned memory, and waits for
    nothing."""
    m = Machine("timed")
    link = Link(m)
    steps = Steps(m, link)
    makers = ("event_create", "stream_create", "host_register", "host_alloc")
    waiters = ("event_wait", "stream_wait", "device_wait", "host_unregister")

    def count():
        return [m.lib.sim_calls(name.encode()) for name in makers + waiters]

    for cycle in range(6):
        before = count()
        steps.play(CYCLE)
        if cycle >= 2:
            assert count() == before
    link.close()
    m.check()


def test_rates_and_stalls_are_those_of_the_machine():
    m = Machine("timed", machine="pcie5", call_cost=0)
    link = Link(m)
    out, back = c_double(), c_double()
    link.check(link.ops.measure(link.pointer, 64 << 20, byref(out), byref(back)))
    assert out.value == pytest.approx(54e9, rel=0.05)
    assert back.value == pytest.approx(55e9, rel=0.05)
    steps = Steps(m, link)
    for _ in range(5):  # the ends are seen when the link looks again
        steps.play([("make", 0, 5), ("put", 0, 0), ("get", 0, 0), ("use", 0, 0)])
    assert link.stats().stall_in > 0 and link.stats().busy_in > 0
    assert link.stats().busy_in < 1e-9 * m.lib.sim_now()
    steps.end()
    link.close()
    m.check()
    assert m.leaks() == {}


# --------------------------------------------------------------------------- faults

ERRORS = ("cudaErrorUnknown", "cudaErrorInvalidValue", "cudaErrorMemoryAllocation")


def walk(m):
    """Open, one cycle, close, whatever fails; the exceptions that came."""
    came = []

    def attempt(call, *args):
        try:
            return call(*args)
        except CudaError as error:
            came.append(error)

    link = attempt(Link, m, 1 << 22)
    if link:
        steps = Steps(m, link)
        for step in CYCLE * 2:
            attempt(steps.play, [step])
        attempt(steps.end)
        link.close()
    return came


@pytest.mark.law(9)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", ERRORS)
def test_each_call_fails_once_at_every_place(error, mode):
    """The countdown: call 1, 2, ... fails, until a run has no such call any more. Each
    failure names the call and the error; nothing hangs, leaks, races or crashes."""
    nth, seen = 0, set()
    while True:
        nth += 1
        m = Machine(mode, seed=nth)
        before = m.lib.sim_calls(b"")
        m.fail("", nth, error)
        came = walk(m)
        if m.lib.sim_calls(b"") - before < nth:
            break
        for exception in came:
            assert error in exception.args[1] or "tier is full" in exception.args[1]
            seen |= set(re.findall(r"cuda: (\w+):", exception.args[1]))
        closing = {"stream_destroy", "event_destroy", "host_unregister", "host_free"}
        hit = leaked_by(m)
        assert m.leaks() == {} or hit <= closing, (nth, m.leaks())
        assert "race" not in {v["kind"] for v in m.violations()}, nth
    assert seen >= {"stream_create", "event_create", "event_record", "copy_out"}
    assert nth > 100


def leaked_by(m):
    """Which entries could have failed for what is left."""
    names = {"streams": "stream_destroy", "events": "event_destroy"}
    names |= {"registered": "host_unregister", "pinned": "host_free"}
    return {names[kind] for kind in m.leaks()}


@pytest.mark.parametrize("mode", MODES)
def test_a_sticky_fault_is_raised_and_close_still_ends(mode):
    for nth in range(1, 120, 7):
        m = Machine(mode, seed=nth)
        m.fail("", nth, "cudaErrorIllegalAddress")
        came = walk(m)
        assert came and all("IllegalAddress" in e.args[1] for e in came)
        assert all(e.args[0] == DEVICE for e in came)


def test_pinned_memory_may_end():
    m = Machine("lazy", host_bytes=1 << 20)
    link = Link(m, 1 << 30)
    with pytest.raises(CudaError, match="tier is full") as error:
        link.slot_alloc(2 << 20)
    assert error.value.args[0] == 6  # GNN_EFULL, which callers answer
    link.call("slot_free", link.slot_alloc(1 << 20))
    link.close()
    assert m.leaks() == {}
