"""What gpu-day records, checks and calibrates, with a simulated machine as its GPU."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "sim")]

import recording  # noqa: E402
from replay import replay  # noqa: E402
from simulator import profile  # noqa: E402
from torch_device import Device  # noqa: E402

from benchmarks import gpu_ledger, gpu_profile, gpu_trace  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize("machine", ["gh200", "pcie5"])
def test_calibration_finds_the_machine_that_is_simulated(machine, tmp_path):
    with Device("timed", machine=machine) as d:
        recorder = recording.Recorder(d.table)
        found = gpu_profile.calibrate(CPU, recorder, "a test", small=True)
    path = tmp_path / "found.json"
    gpu_profile.save(found, path)
    measured, known = profile(path), profile(machine)
    assert measured.out_rate == pytest.approx(known.out_rate, rel=0.02)
    assert measured.in_rate == pytest.approx(known.in_rate, rel=0.02)
    assert measured.both_percent == pytest.approx(known.both_percent, abs=5)
    assert measured.copy_latency == pytest.approx(known.copy_latency, rel=0.3)
    assert measured.call_cost > 0 and measured.kernel_latency > 0
    assert "numa_id" in found["assumed"] and "out_rate" not in found["assumed"]


@pytest.mark.law(8)
def test_recorded_steps_are_clean_and_predicted(tmp_path):
    kept = tmp_path / "trace.json.gz"
    found = gpu_trace.trace(CPU, True, "gh200", kept)["steps"]
    replay(recording.load(kept)).check()
    assert [row["violations"] for row in found.values()] == [[], [], []]
    plain, half, all_leave = found.values()
    assert plain["bytes_out"] == plain["left_out"] == 0
    assert 0 < half["bytes_out"] < all_leave["bytes_out"]
    for row in (half, all_leave):
        assert row["left_out"] >= row["noticed"] > 5
    assert 0 < plain["predicted"] < half["predicted"] < all_leave["predicted"]
    assert plain["measured"] is None  # by a host that computes itself


@pytest.mark.law(8)
def test_every_kept_trace_is_clean_and_its_profile_is_whole():
    for path in (gpu_ledger.FOLDER / "profiles").glob("*.trace.json.gz"):
        replay(recording.load(path)).check()
        assert profile(path.with_name(path.name.replace(".trace.json.gz", ".json")))


def test_a_race_fails_the_stage(monkeypatch):
    every = recording.Recorder.calls

    def calls(self):
        return [c for c in every(self) if c.entry != "stream_after"]

    monkeypatch.setattr(recording.Recorder, "calls", calls)
    with pytest.raises(RuntimeError, match=r"half stays: race: \d+ bytes at 0x"):
        gpu_trace.trace(CPU, True)
