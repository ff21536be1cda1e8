"""The GPU day runs small on a CPU; a ledger is checked before it is kept."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import bench_gpu_day, gpu_ledger, gpu_stages
from gnnoffload import _cuda_lane, cli

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    """Of a dry run of all stages but build and tests."""
    measured = {n: s for n, s in bench_gpu_day.STAGES.items() if n != "tests"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_gpu_day, "STAGES", measured)
        out = tmp_path_factory.mktemp("ledger")
        path = bench_gpu_day.main(["--dry-run", "--out", str(out)])
    return json.loads(path.read_text())


def test_a_dry_run_is_a_valid_ledger_that_claims_no_gpu(ledger):
    assert gpu_ledger.problems(ledger) == []
    assert ledger["dry_run"] and ledger["machine"]["gpu"] == "none"
    status = {name: stage["status"] for name, stage in ledger["stages"].items()}
    assert status == {
        "build": "skipped",
        "copies": "skipped",
        "profile": "ok",
        "trace": "ok",
        "spmm": "ok",
        "reductions": "ok",
        "attention": "ok",
        "offload": "ok",
        "golden": "skipped",
        "sanitizer": "skipped",
    }
    assert all(s["problem"] for s in ledger["stages"].values() if s["status"] != "ok")


def test_the_offload_stage_has_every_variant(ledger):
    result = ledger["stages"]["offload"]["result"]
    names = ["plain", "checkpoint", "save_on_cpu", "slide"]
    assert list(result["variants"]) == [*names, "offload quarter", "offload auto"]
    for row in result["variants"].values():
        assert row["steps"] == len(row["seconds"]) == 20 and row["median"] <= row["p95"]
    quarter = result["variants"]["offload quarter"]
    assert quarter["budget"] == result["saved_bytes"] // 4
    assert quarter["bytes_out"] > 0 and quarter["pinned"] >= quarter["live_peak"]


def test_a_stage_that_raises_does_not_end_the_day():
    def broken(device, small):
        raise RuntimeError("no such kernel")

    entry = bench_gpu_day.play("broken", broken, CPU, True)
    assert entry["status"] == "failed"
    assert entry["problem"] == "RuntimeError: no such kernel"


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda x: x.pop("commit"), "commit is missing"),
        (lambda x: x.update(format=0), "format must be 1, got 0"),
        (lambda x: x.update(date="31.1.2026"), "date must look like 2026-01-31"),
        (lambda x: x.update(dry_run=False), "machine.driver is empty"),
        (lambda x: x["machine"].pop("clocks"), "machine.clocks is missing"),
        (
            lambda x: x["stages"]["spmm"].update(status="good"),
            "stages.spmm: status must be one of ok, failed, skipped",
        ),
        (
            lambda x: x["stages"]["copies"].update(problem=""),
            "stages.copies: skipped without a problem",
        ),
        (
            lambda x: x["stages"]["offload"]["result"]["variants"]["plain"].update(
                steps=3
            ),
            "stages.offload: plain: at least 20 steps, got 3",
        ),
        (
            lambda x: x["stages"]["offload"]["result"]["variants"]["slide"].pop(
                "pinned"
            ),
            "stages.offload: slide: pinned is missing",
        ),
    ],
)
def test_what_is_missing_is_named_and_not_saved(ledger, tmp_path, change, problem):
    bad = copy.deepcopy(ledger)
    change(bad)
    assert any(text.startswith(problem) for text in gpu_ledger.problems(bad))
    with pytest.raises(ValueError, match="ledger: "):
        gpu_ledger.save(bad, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_ledger_that_is_kept_is_valid():
    for path in gpu_ledger.FOLDER.glob("*.json"):
        kept = json.loads(path.read_text())
        assert gpu_ledger.problems(kept) == [] and not kept["dry_run"], path.name


def test_a_second_run_of_a_day_does_not_replace_the_first(ledger, tmp_path):
    paths = [gpu_ledger.save(ledger, tmp_path).name for _ in range(3)]
    stem = f"{ledger['date']}-none-dry"
    assert paths == [f"{stem}.json", f"{stem}-2.json", f"{stem}-3.json"]


def test_profile_of_a_known_matrix():
    out, back, latency = 2e11, 4e11, 2e-6
    sizes = [65536, 1 << 26]
    rows = [[s / (s / rate + latency) for rate in (out, back, 5e11)] for s in sizes]
    matrix = {"sizes": sizes, "pinned": rows, "pageable": "absent"}
    profile = gpu_stages.profile_of(matrix)
    assert profile["out_rate"] == pytest.approx(out, rel=0.01)
    assert profile["in_rate"] == pytest.approx(back, rel=0.02)
    assert profile["copy_latency"] == pytest.approx(2000, rel=0.02)
    assert profile["both_percent"] == pytest.approx(100 * 5 / 6, rel=0.02)


def test_share_without_a_gpu_says_so(capsys, monkeypatch):
    if _cuda_lane.absence() == "":
        pytest.skip("there is a CUDA device")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--share"])
    assert stop.value.code == 2
    assert "--device cuda: " in capsys.readouterr().err
