"""Laws 4 and 5: what the engine holds, and what a steady state allocates."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from offload_steps import assert_empty, gradients, x
from torch import nn

import gnnoffload as go

ROWS, WIDTH, DEPTH = 256, 64, 12
BLOCK = ROWS * WIDTH * 4


def model():
    layers = []
    for _ in range(DEPTH):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    return nn.Sequential(*layers)


@pytest.mark.law(4)
@pytest.mark.parametrize("window", [0, BLOCK, 3 * BLOCK])
@pytest.mark.parametrize("budget", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK, 100 * BLOCK])
def test_held_bytes_stay_within_budget_and_windows(budget, window):
    off = go.offload(
        budget, store="ram", min_bytes=1024, inflight=window, prefetch=window
    )
    gradients(model, [x(ROWS, WIDTH)], off, steps=3)
    for report in off.history[-3:]:
        running = 2 * BLOCK  # Tanh's output, Linear's input
        windows = 2 * max(window, BLOCK)  # one block always fits
        assert report.peak_counted <= budget + windows + running
        assert report.over_budget <= 0
        if budget >= 100 * BLOCK:  # what fits is never copied
            assert report.bytes_out == 0
            assert "budget was not reached" in report.nothing_moved_because()
        else:
            stays = budget + 3 * BLOCK
            assert report.bytes_out >= report.block_bytes - stays
    assert_empty(off)


@pytest.mark.law(4)
def test_what_is_owned_elsewhere_is_not_copied():
    off = go.offload(0, store="ram", min_bytes=1024)
    features = x(ROWS, WIDTH)  # held by the caller
    w = torch.ones(WIDTH, requires_grad=True)
    with off:
        loss = sum((features * w).sum() for _ in range(10))
    loss.backward()
    report = off.report()
    assert (report.bytes_out, report.owned) == (0, 1)
    assert report.deduplicated == 9
    assert "somebody else holds" in str(report)


@pytest.mark.law(4)
def test_one_storage_leaves_once():
    """ReLU's output is Linear's input; the three chunks of qkv share one storage."""
    off = go.offload(0, store="ram", min_bytes=1024)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    with off:
        a, b, c = (net(x(ROWS, WIDTH)) * 2).chunk(3, dim=1)
        loss = (a * a).sum()
        loss = loss + (b * b).sum() + (c * c).sum()
        del a, b, c
    loss.backward()
    report = off.report()
    # net's input, ReLU's output and the product that was chunked
    assert report.blocks == 3
    assert report.bytes_out == 3 * BLOCK


@pytest.mark.law(5)
def test_a_steady_state_allocates_nothing(move_all):
    def facts():
        move_all._lane.engine.drain()
        state = move_all.state()
        tasks = len(os.listdir("/proc/self/task"))
        files = len(os.listdir("/proc/self/fd"))
        return (
            state["tier_bytes"],
            state["slot_peak"],
            tasks,
            files,
            threading.active_count(),
        )

    gradients(model, [x(ROWS, WIDTH)], move_all, steps=2)
    before = facts()
    gradients(model, [x(ROWS, WIDTH)], move_all, steps=10)
    assert facts() == before


@pytest.mark.law(5)
def test_the_store_holds_no_more_than_what_is_out():
    off = go.offload(0, store="ram", min_bytes=1024, inflight=BLOCK, prefetch=BLOCK)
    gradients(model, [x(ROWS, WIDTH)], off, steps=4)
    report = off.report()
    assert 0 < report.store_high_water <= 1.05 * report.peak_out


@pytest.mark.law(4)
def test_equal_arguments_share_an_engine():
    a = go.offload("3MiB", store="ram", min_bytes=1234)
    b = go.offload(3 << 20, store="ram", min_bytes="1234")
    assert a._lane is b._lane
    assert a._lane is not go.offload("4MiB", store="ram", min_bytes=1234)._lane


PEAK = """
import contextlib, sys, torch
import gnnoffload as go

def high_water():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

MIB = 1 << 20
torch.set_num_threads(1)
kind, spill_dir = sys.argv[1:]
context = contextlib.nullcontext()
if kind == "offload":
    window = {"inflight": 8 * MIB, "prefetch": 8 * MIB}
    context = go.offload(8 * MIB, spill_dir=spill_dir, **window)
w = torch.full((1024, 1024), 1e-3, requires_grad=True)
(w * 2).sum().backward()
before = high_water()
with context:
    h = w
    for _ in range(40):
        h = (h * 1.001).sin()
    loss = h.sum()
    del h
loss.backward()
print(high_water() - before, float(w.grad.sum()))
"""


@pytest.mark.law(4)
def test_peak_resident_memory_falls(tmp_path):
    """By the operating system's count; glibc must give freed memory back for that."""
    if not os.access("/var/tmp", os.W_OK):
        pytest.skip("no /var/tmp")

    def run(kind):
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        out = subprocess.run(
            [sys.executable, "-c", PEAK, kind, "/var/tmp"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.split()
        return int(out[0]), out[1]

    mib = 1 << 20
    plain, plain_grad = run("plain")
    ours, our_grad = run("offload")
    assert our_grad == plain_grad
    assert plain >= 150 * mib  # 40 tensors of 4 MiB are saved
    # budget, windows, the running node's two tensors and their gradients, I/O buffers
    assert ours <= (8 + 8 + 8 + 4 * 4 + 24) * mib
