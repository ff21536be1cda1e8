"""Pieces of the demonstration: variants, counters, options, sentences."""

import contextlib
import gc
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from gnnoffload import Graph, demo
from gnnoffload.demo import memory, offload_peers, run, table, variants
from gnnoffload.demo.advection import tilted
from gnnoffload.demo.model import advance
from gnnoffload.demo.skill import TILT, Plan, rollout, train
from gnnoffload.demo.worker import Trace, data
from gnnoffload.mesh import icosphere


def first_gradients(variant):
    mesh = icosphere(2)
    model = variants.build(variant, 8, 3)
    graph = mesh.edge_index
    if variant != "stock":
        graph = Graph(graph, (mesh.num_nodes, mesh.num_nodes))
    (wind, edges), now, later = data(mesh)
    stencil = model(wind, graph, edges)
    (advance(graph, stencil, now) - later).square().mean().backward()
    return variants.gradients(model)


def test_stock_has_the_same_weights_and_gradients():
    stock, plain = first_gradients("stock"), first_gradients("plain")
    torch.testing.assert_close(stock, plain, rtol=1e-4, atol=1e-5)
    assert plain.abs().max() > 1e-3


def test_checkpoint_has_the_same_bits():
    assert torch.equal(first_gradients("checkpoint"), first_gradients("plain"))


def test_gradients_cover_every_parameter():
    model = variants.build("plain", 8, 3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    vector = variants.gradients(model)
    assert vector.numel() == sum(p.numel() for p in model.parameters())


def test_saved_bytes():
    """exp saves its result, once for two users; both are given back."""
    x = torch.zeros(1000, requires_grad=True)
    counter = memory.SavedBytes([])
    with counter.counting():
        y = x.exp()
        z = (y * y).sum()
    assert counter.now == counter.peak == 4000
    z.backward()
    del y, z
    gc.collect()
    assert counter.now == 0 and counter.peak == 4000


def test_saved_bytes_leaves_parameters_out():
    linear = torch.nn.Linear(10, 10)
    counter = memory.SavedBytes(linear.parameters())
    with counter.counting():
        linear(torch.zeros(3, 10)).sum().backward()
    assert counter.peak == 3 * 10 * 4


def test_status_knows_this_process():
    now = memory.status()
    assert now["VmHWM"] >= now["VmRSS"] > 10 * 2**20


def test_limit_stops_a_process():
    code = (
        "import torch\nfrom gnnoffload.demo import memory\n"
        "memory.limit_data(100 * 2**20)\n"
        "x = torch.empty(50 * 2**20, dtype=torch.uint8)\n"
        "try: torch.empty(100 * 2**20, dtype=torch.uint8)\n"
        "except RuntimeError as e: print('stopped', e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("stopped"), done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "banana"], "banana"),
        (["--budget", "-1"], "-1"),
        (["--spill-dir", "/nope"], "/nope"),
        (["--device", "banana"], "--device: must be cpu, cuda or cuda:N"),
        (["--level", "0"], "--level: must be 1 to 9, got 0"),
        (["--steps", "0"], "--steps: must be"),
    ],
    ids=str,
)
def test_bad_options_are_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        demo.main(options)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last and last.startswith("python -m gnnoffload demo: error:")


def row(**changes):
    return {
        "baseline_bytes": 300 * 2**20,
        "peak_resident_bytes": 1000 * 2**20,
        "peak_saved_bytes": 900 * 2**20,
        "seconds_per_step": 2.0,
        "first_step_seconds": 2.0,
        "bytes_out": 0,
        "bytes_in": 0,
        "hidden_fraction": None,
        "mmap_threshold_fixed": True,
        "max_grad_diff": 0.0,
        "same_bits": True,
        "budget": None,
    } | changes


def found(**offload):
    moved = {"bytes_out": 2**20, "bytes_in": 2**20, "hidden_fraction": 0.9}
    report = {"report": {"page_cache": False}, "budget": 450 * 2**20}
    half = {"peak_resident_bytes": 550 * 2**20, "seconds_per_step": 3.0}
    rows = {
        "stock": row(same_bits=False, max_grad_diff=1e-6),
        "plain": row(),
        "plain again": row(seconds_per_step=None),
        "checkpoint": row(seconds_per_step=2.5),
        "offload 1/2": row(**(moved | report | half | offload)),
    }
    return {
        "rows": rows,
        "limited": {"plain": {"finished": False, "error": "no memory"}},
        "limit": 2**30,
        "file_system": "ext4",
        "settings": {"spill_dir": "/var/tmp", "device": "cpu"},
    }


def test_sentences_say_what_is():
    said = " ".join(table.sentences(found()))
    assert "0.55x the peak of plain at 1.50x its time" in said
    assert "slower than checkpointing every block: 1.20x" in said
    assert "bit for bit" in said and "direct I/O" in said
    assert "plain was stopped: no memory" in said


def test_sentences_on_cuda_name_the_device():
    rows = found()
    rows["settings"] = {"spill_dir": None, "device": "cuda:0"}
    said = " ".join(table.sentences(rows))
    assert "allocated on cuda:0" in said and "VmHWM" not in said
    assert "page-locked" in said and "Spill file" not in said
    assert "of the device's memory for torch, plain was stopped" in said


def test_the_picture_on_cuda_is_of_the_device(tmp_path):
    picture = pytest.importorskip("gnnoffload.demo.picture")
    rows = found()
    rows["settings"] = {"device": "cuda:0", "level": 1, "width": 8, "layers": 2}
    rows["samples"] = {}
    points = [[10.0 + k, (k % 5) << 20] for k in range(12)]
    for name, *_, timed in run.measured(run.Settings(device="cuda:0")):
        row = rows["rows"].setdefault(name, dict(rows["rows"]["plain"]))
        row |= {"windows": [[10.0, 20.0]], "trace": points, "budget": 1 << 20}
        row |= {"seconds_per_step": 1.0 if timed else None}
        rows["samples"][name] = points
    picture.draw(rows, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes()[1:4] == b"PNG"
    row = rows["rows"]["plain"] | {"baseline_bytes": 1 << 40}  # of a process: not here
    seconds, held = picture._last_step(row, points, True)
    assert seconds[0] == 0 and len(seconds) == 11 and held.max() == 4


def test_a_trace_notes_both_ways():
    net = torch.nn.Module()
    net.processor = torch.nn.ModuleList([Doubled() for _ in range(3)])
    trace = Trace(lambda: len(trace.points))
    trace.watch(net)
    x = e = torch.ones(4, 2, requires_grad=True)
    for block in net.processor:
        x, e = block(x, e)
    assert [value for _, value in trace.points] == [0, 1, 2, 3, 4, 5]
    (x + e).sum().backward()
    assert len(trace.points) == 9


class Doubled(torch.nn.Module):
    def forward(self, x, e):
        return x * 2, e * 2


def test_cuda_adds_how_others_offload():
    on_cpu = [name for name, *_ in run.measured(run.Settings())]
    on_cuda = [
        variant for _, variant, *_ in run.measured(run.Settings(device="cuda:0"))
    ]
    assert "offload 1/2" in on_cpu and not set(on_cpu) & set(offload_peers.PEERS)
    assert on_cuda[-3:] == ["save_on_cpu", "slide", "slide_async"]


@pytest.mark.parametrize("name", ["save_on_cpu", "slide"])
def test_peers_change_no_gradient(name):
    def gradients(context):
        torch.manual_seed(0)
        layers = torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 1)
        model = torch.nn.Sequential(*layers)
        with context:
            loss = model(torch.randn(16, 8)).exp().sum()
        loss.backward()
        return [p.grad for p in model.parameters()]

    plain = gradients(contextlib.nullcontext())
    moved = gradients(offload_peers.peer(name, torch.device("cpu")))
    assert all(map(torch.equal, plain, moved))
    with pytest.raises(ValueError, match="no streams on the CPU"):
        offload_peers.peer("slide_async", torch.device("cpu"))


def test_sentences_admit():
    said = " ".join(table.sentences(found(same_bits=False, seconds_per_step=2.0)))
    assert "ARE NOT PLAIN'S" in said
    assert "0.80x the time of checkpointing" in said
    said = " ".join(table.sentences(found(report={"page_cache": True})))
    assert "No memory claim is made" in said and "the peak of plain" not in said


@pytest.mark.parametrize("rich", [True, False])
def test_table_prints_every_row(rich, capsys, monkeypatch):
    if not rich:
        monkeypatch.setattr(table.importlib.util, "find_spec", lambda name: None)
    table.report(found())
    lines = capsys.readouterr().out.splitlines()
    assert sum("offload 1/2" in line and "1.50" in line for line in lines) == 1
    assert any("not a weather model" in line for line in lines)


def test_training_reduces_the_loss_and_repeats():
    plan = Plan(level=2, width=8, layers=1, steps=80, unrolled=1, seed=3)
    runs = []
    for _ in range(2):
        losses = []
        stepper = train(plan, lambda done, loss, to=losses: to.append(loss))
        runs.append(losses)
    assert runs[0] == runs[1]
    assert np.median(runs[0][-15:]) < 0.9 * np.median(runs[0][:15])
    result = rollout(stepper, tilted(TILT), steps=12)
    assert set(result) == {1, 12, "fields"}
    assert json.dumps(result[12])
