"""`go.offload(store="host")`, its lane and its reports, over the simulated machine."""

import pytest
import torch
from torch_device import Device, as_cuda
from training_steps import BLOCK, assert_same, build, gradients, inputs, plain

import gnnoffload as go
from gnnoffload import _cuda_lane


@pytest.fixture
def device():
    """A simulated machine that stands where the lane asks torch.cuda."""
    with Device("timed") as d:
        with as_cuda(d):
            yield d
        d.m.check()


def steps(off, n=3):
    net, x = build("mlp"), inputs()
    return [gradients(net, x, off, step) for step in range(n)]


@pytest.mark.law(4, 8)
def test_everything_leaves_and_the_report_has_the_device_s_times(device):
    off = go.offload(0, store="host", min_bytes=1024, host_limit="64MiB")
    assert_same(steps(off), plain("mlp", 3))
    assert off.report().number == 3 and len(off.history) == 3
    for report in off.history:
        assert report.bytes_out > 8 * BLOCK and report.bytes_in > 8 * BLOCK
        # Microseconds of virtual time; the host's clock has run for milliseconds.
        assert 0 < report.forward_seconds < 1e-3 and 0 < report.busy_out < 1e-3
        assert report.tier_bytes >= report.store_high_water >= report.peak_out
        assert report.peak_allocated == 7 and "page-locked" in str(report)


def test_auto_is_the_default_and_follows_the_link_s_rates(device):
    off = go.offload(store="host", min_bytes=1024, prefetch=BLOCK, inflight=BLOCK)
    assert_same(steps(off, 4), plain("mlp", 4))
    first, *_, last = off.history
    assert first.budget == 1 << 30 and first.bytes_out == 0
    rate_out, rate_in = off._lane.auto.rates
    assert rate_out == pytest.approx(350e9, rel=0.2)  # the profile's, less latency
    assert rate_in == pytest.approx(375e9, rel=0.2)
    assert 0 <= last.budget < last.block_bytes and last.bytes_out > 0
    hidden = 0.9 * rate_out * first.forward_seconds
    assert first.block_bytes - off.history[1].budget <= hidden + 1


def test_a_share_is_of_the_device(device, monkeypatch):
    monkeypatch.setattr(_cuda_lane, "total_bytes", lambda device: 40 * BLOCK)
    off = go.offload("10%", store="host", min_bytes=1024)
    assert off._lane.settings["budget"] == 4 * BLOCK
    assert_same(steps(off, 1), plain("mlp", 1))
    assert off.report().budget == 4 * BLOCK and off.report().bytes_out > 0
    with pytest.raises(ValueError, match='spill_dir has no meaning with store="host"'):
        go.offload(0, store="host", spill_dir="/var/tmp")


def test_while_a_graph_is_captured_everything_stays(device):
    off = go.offload(0, store="host", min_bytes=1024)
    expected = plain("mlp", 1)
    device.m.lib.sim_capture(0, 1)
    calls = (b"event_record", b"event_done", b"copy_out", b"stream_after")
    before = [device.m.lib.sim_calls(name) for name in calls]
    assert_same(steps(off, 1), expected)
    assert [device.m.lib.sim_calls(name) for name in calls] == before
    device.m.lib.sim_capture(0, 0)
    assert off.report().number == 0  # no pass was begun
    assert_same(steps(off, 1), expected)
    assert off.report().bytes_out > 0


def test_a_capture_that_begins_inside_the_context_skips_what_it_saves(device):
    off = go.offload(0, store="host", min_bytes=1024, inflight=1)
    x = torch.rand(128, 64, requires_grad=True)
    with off:
        y = (x / 2).exp().tanh().exp().tanh()  # the last two that left are under way
        device.m.lib.sim_capture(0, 1)
        z = (x * 3).exp()
        device.m.lib.sim_capture(0, 0)
        loss = (y + z).sum()
    device.m.lib.sim_capture(0, 1)
    with pytest.raises(go.OffloadError, match="while a CUDA graph is captured"):
        torch.autograd.grad(y.sum(), x, retain_graph=True)
    device.m.lib.sim_capture(0, 0)
    loss.backward()
    assert off.report().skipped["capture"] == 1
    assert off.report().bytes_out > 0
