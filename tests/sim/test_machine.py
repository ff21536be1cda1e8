"""What each CUDA call does, where offloading trips over it, and the four modes.

The rules are NVIDIA's and torch's documented ones; where a document allows two
behaviours (pageable copies, frees that synchronise) neither gives an edge.
"""

import re
from pathlib import Path

import pytest
from simulator import ENTRIES, MODES, CudaError, Machine

N = 4096
DEVICE, NOMEM = 9, 5  # gnn_status


def kinds(m):
    return [v["kind"] for v in m.violations()]


def test_the_table_is_the_product_s():
    header = Path(__file__).parents[2] / "csrc/offload/cuda_api.h"
    struct = header.read_text().split("typedef struct gnn_cuda_api {")[1]
    names = re.findall(r"gnn_status \(\*(\w+)\)", struct.split("} gnn_cuda_api;")[0])
    assert names == list(ENTRIES)
    source = (Path(__file__).parents[2] / "csrc/gnn.h").read_text()
    statuses = re.findall(r"X\((GNN_\w+), \"", source.split("gnn_dtype")[0])
    assert statuses.index("GNN_EDEVICE") == DEVICE
    assert statuses.index("GNN_ENOMEM") == NOMEM


# --------------------------------------------------------------------------- events


def test_record_captures_at_the_call_and_again_does_not_change_earlier_waits():
    m = Machine("lazy")
    side, event, x, y = m.stream("side"), m.event(), m.alloc(N), m.alloc(N)
    m.kernel("a", writes=[x])
    m.record(event)
    m.after(side, event)  # waits for a alone
    m.kernel("b", writes=[y])
    m.record(event)
    m.kernel("reads a", side, reads=[x])
    assert kinds(m) == []
    m.kernel("reads b", side, reads=[y])
    assert kinds(m) == ["race"]


def test_an_event_never_recorded_orders_nothing_and_is_done():
    m = Machine("lazy")
    side, event, x = m.stream("side"), m.event(), m.alloc(N)
    m.kernel("a", writes=[x])
    assert m.call("event_done", 0, event)
    m.after(side, event)
    m.kernel("b", side, reads=[x])
    assert kinds(m) == ["race"]


def test_an_event_may_be_destroyed_while_a_stream_waits_for_it():
    m = Machine("lazy")
    side, event, x = m.stream("side"), m.event(), m.alloc(N)
    m.kernel("a", writes=[x])
    m.record(event)
    m.after(side, event)
    m.call("event_destroy", 0, event)
    m.kernel("b", side, reads=[x])
    m.finish()
    m.check()
    with pytest.raises(CudaError, match="event_record: cudaErrorInvalidResourceHandle"):
        m.record(event)
    assert kinds(m) == ["bad handle"]


def test_a_query_that_says_done_is_an_edge_and_not_yet_is_none():
    for answer in (0, 1):
        m = Machine("lazy")
        event, x, host = m.event(), m.alloc(N), m.pinned(N)
        m.copy_out(host, x)
        m.record(event)
        m.lib.sim_script(bytes([answer]), 1)
        assert m.call("event_done", 0, event) is bool(answer)
        m.host_read(host)
        assert kinds(m) == ([] if answer else ["race"])


def test_polling_ends_in_every_mode():
    for mode in MODES:
        m = Machine(mode)
        event, x, host = m.event(), m.alloc(N), m.pinned(N)
        m.copy_out(host, x)
        m.record(event)
        assert any(m.call("event_done", 0, event) for _ in range(100))


def test_seconds_between_timing_events():
    m = Machine("timed")
    begin, end, x = m.event(True), m.event(True), m.alloc(N)
    m.record(begin)
    m.kernel("a", writes=[x], cost=7000)
    m.record(end)
    with pytest.raises(CudaError, match="NotReady"):
        m.call("event_seconds", 0, begin, end)
    m.wait_event(end)
    assert m.call("event_seconds", 0, begin, end) == pytest.approx(7e-6, abs=1e-12)


# -------------------------------------------------------------------------- streams


def test_the_legacy_default_stream_joins_blocking_streams_only():
    for blocking in (True, False):
        m = Machine("lazy")
        side, x = m.stream("side", blocking=blocking), m.alloc(N)
        m.kernel("a", writes=[x])
        m.kernel("b", side, reads=[x], writes=[x])
        m.kernel("c", 0, reads=[x])
        assert kinds(m) == ([] if blocking else ["race", "race"])


def test_streams_of_another_device_are_refused():
    m = Machine("lazy", devices=2)
    other, event = m.stream("other", device=1), m.event()
    with pytest.raises(CudaError, match="event_record"):
        m.record(event, other)
    assert kinds(m) == ["bad handle"]


def test_a_capture_forbids_queries():
    m = Machine("lazy")
    event = m.event()
    m.record(event)
    m.lib.sim_capture(0, 1)
    assert m.call("stream_capturing", 0, 0)
    with pytest.raises(CudaError, match="StreamCaptureUnsupported"):
        m.call("event_done", 0, event)


def test_tokens_find_wait_cycles_and_waits_that_never_end():
    m = Machine("lazy")
    a, b = m.stream("a"), m.stream("b")
    ta, tb = m.lib.sim_token(), m.lib.sim_token()
    await_token = m.lib.sim_await  # a keyword of Python
    await_token(a, tb), m.lib.sim_signal(a, ta)
    await_token(b, ta), m.lib.sim_signal(b, tb)
    m.finish()
    assert "wait cycle" in kinds(m)
    m = Machine("timed")
    m.lib.sim_await(0, m.lib.sim_token())
    m.finish()
    assert kinds(m) == ["waits for ever"]


# --------------------------------------------------------------------------- memory


def test_the_host_must_wait_for_a_pinned_copy():
    m = Machine("lazy")
    x, host = m.alloc(N), m.pinned(N)
    x.fill(3)
    m.copy_out(host, x)
    m.host_read(host)
    assert kinds(m) == ["race"]
    m = Machine("lazy")
    x, host = m.alloc(N), m.pinned(N)
    x.fill(3)
    m.copy_out(host, x)
    m.call("stream_wait", 0, 0)
    assert m.host_read(host) == bytes([3]) * N
    m.check()


def test_pageable_memory_in_a_queued_copy_is_refused():
    m = Machine("lazy")
    x, pageable = m.alloc(N), m.alloc(N)
    with pytest.raises(CudaError):
        m.copy_out(pageable, x)
    assert kinds(m) == ["pageable"]


def test_a_real_free_must_come_after_every_access():
    for waits in (False, True):
        m = Machine("lazy")
        x, host = m.alloc(N), m.pinned(N)
        m.copy_out(host, x)
        if waits:
            m.call("device_wait", 0)
        m.call("host_free", 0, host.address)
        assert kinds(m) == ([] if waits else ["race"])


def test_use_after_free_and_a_second_free():
    m = Machine("lazy")
    x = m.alloc(N)
    m.free(x)
    m.kernel("late", writes=[x])
    assert kinds(m) == ["freed memory"]
    m.free(x)
    assert kinds(m) == ["freed memory", "freed twice"]


def test_accesses_end_inside_their_block():
    m = Machine("lazy")
    x = m.alloc(N)
    m.kernel("long", writes=[type(x)(x.address, N + 512)])
    assert kinds(m) == ["out of bounds"]


def test_the_allocator_gives_a_block_to_its_home_stream_at_once():
    m = Machine("lazy")
    side, x = m.stream("side"), m.alloc(N)
    m.free(x)
    assert m.alloc(N, side).address != x.address
    assert m.alloc(N).address == x.address
    assert m.lib.sim_allocated(0) == 2 * N


def test_record_stream_keeps_a_block_until_that_stream_has_passed():
    m = Machine("lazy")
    side, x = m.stream("side"), m.alloc(N)
    m.join(side, 0)
    m.kernel("uses", side, reads=[x])
    m.record_stream(x, side)
    m.free(x)
    assert m.alloc(N).address != x.address
    m.finish()
    again = m.alloc(N)
    assert again.address == x.address
    m.kernel("next", writes=[again])
    m.check()


def test_blocks_split_and_merge():
    m = Machine("lazy")
    whole = m.alloc(1 << 21)
    m.free(whole)
    parts = [m.alloc(1 << 19) for _ in range(4)]
    assert {p.address - whole.address for p in parts} == {0, 1 << 19, 1 << 20, 3 << 19}
    for part in parts:
        m.free(part)
    assert m.alloc(1 << 21).address == whole.address
    assert m.lib.sim_allocated(1) == 1 << 21


def test_memory_ends_and_that_does_not_stick():
    m = Machine("lazy", device_bytes=1 << 20, host_bytes=1 << 20)
    with pytest.raises(CudaError, match="host_alloc: cudaErrorMemoryAllocation") as e:
        m.pinned(2 << 20)
    assert e.value.args[0] == NOMEM
    with pytest.raises(MemoryError):
        m.alloc(2 << 20)
    m.free(m.alloc(1 << 20))
    m.call("host_free", 0, m.pinned(1 << 20).address)
    assert m.leaks() == {}


# --------------------------------------------------------------------------- faults


def test_the_nth_call_fails_and_the_next_one_works():
    m = Machine("lazy")
    m.fail("event_create", 2, "cudaErrorUnknown")
    m.event()
    with pytest.raises(
        CudaError, match="cuda: event_create: cudaErrorUnknown"
    ) as error:
        m.event()
    assert error.value.args[0] == DEVICE
    m.event()
    m.fail("", 1, "cudaErrorInvalidValue", times=-1)
    for _ in range(3):
        with pytest.raises(CudaError):
            m.event()


def test_a_fault_of_the_device_sticks():
    m = Machine("lazy")
    event = m.event()
    m.lib.sim_stick(b"cudaErrorIllegalAddress")
    for call in (m.event, lambda: m.call("event_destroy", 0, event)):
        with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
            call()
    m.fail("copy_out", 1, "cudaErrorLaunchFailure")
    m.lib.sim_stick(b"")
    x, host = m.alloc(N), m.pinned(N)
    with pytest.raises(CudaError, match="cudaErrorLaunchFailure"):
        m.copy_out(host, x)
    with pytest.raises(CudaError, match="event_create: cudaErrorLaunchFailure"):
        m.event()


# ----------------------------------------------------------------------------- time


def test_virtual_time_is_what_the_profile_says():
    m = Machine(
        "timed", out_rate=10**9, in_rate=2 * 10**9, copy_latency=100, call_cost=0
    )
    out, back, x, host = m.stream("o"), m.stream("i"), m.alloc(8000), m.pinned(8000)
    m.copy_out(host[0:4000], x[0:4000], out)
    m.copy_in(x[4000:8000], host[4000:8000], back)
    m.call("stream_wait", 0, out)
    assert m.lib.sim_now() == 4100
    m.call("stream_wait", 0, back)
    ops = [op for op in m.report(trace=True)["ops"] if op["bytes"]]
    assert [op["begun"] for op in ops] == [0, 0]  # each way its own engine
    assert ops[1]["ended"] == 100 + 2222  # slower while the other way copies, 90 %
    m.copy_out(host[0:4000], x[0:4000], back)
    m.copy_out(host[4000:8000], x[4000:8000], out)
    m.finish()
    ops = [op for op in m.report(trace=True)["ops"] if op["bytes"]][2:]
    assert ops[1]["begun"] == ops[0]["ended"]  # one way, one engine: first ready first


def test_lazy_waits_eager_hurries():
    for mode, value in (("lazy", 1), ("eager", 3)):
        m = Machine(mode)
        side, x, host = m.stream("side"), m.alloc(N), m.pinned(N)
        host.fill(3), x.fill(1)
        m.copy_in(x, host, side)
        assert x.read() == bytes([value]) * N
    m = Machine("eager")
    x = m.alloc(N)
    x.fill(1)
    m.kernel("late", writes=[x])
    assert x.read() == bytes([1]) * N


def test_kernels_of_different_names_or_inputs_write_different_bytes():
    m = Machine("lazy")
    made = [m.alloc(N) for _ in range(16)]
    for i, x in enumerate(made):
        m.kernel(f"make {i}", writes=[x])
    used = [m.alloc(N) for _ in made]
    for x, y in zip(made, used, strict=True):
        m.kernel("use", reads=[x], writes=[y])
    m.finish()
    for tensors in (made, used):
        assert len({x.read() for x in tensors}) == len(tensors)


def test_a_seed_is_one_history():
    def history(seed):
        m = Machine("random", seed)
        streams = [m.stream(f"s{i}") for i in range(4)]
        x = m.alloc(N)
        for i in range(40):
            m.kernel(f"k{i}", streams[i % 4], writes=[x[i * 64 : i * 64 + 64]])
        m.finish()
        return [(op["begun"], op["ended"]) for op in m.report(trace=True)["ops"]]

    assert history(3) == history(3)
    assert len({tuple(history(seed)) for seed in range(8)}) > 4


def test_a_source_that_changes_during_its_copy_is_seen():
    seen = set()
    for seed in range(40):
        m = Machine("random", seed)
        out, x, host = m.stream("out"), m.alloc(N), m.pinned(N)
        m.copy_out(host, x, out)
        m.kernel("overwrites", writes=[x])
        m.finish()
        seen |= set(kinds(m))
    assert seen == {"race", "torn copy"}
