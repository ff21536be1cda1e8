"""The MLP sweep runs small on a CPU, compares gradients, finds where copies hide."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import bench_mlp_sweep as sweep
from gnnoffload import _cuda_lane

SMALL = ["--widths", "16,32", "--rows", "256", "--depth", "2", "--rounds", "1"]


def test_every_variant_at_every_width(capsys):
    result = sweep.main([*SMALL, "--min-bytes", "1KiB"])
    assert list(result["widths"]) == [16, 32]
    for width, rows in result["widths"].items():
        assert list(rows) == ["plain", "offload", "recompute", "both"]
        assert all(row["median"] > 0 for row in rows.values())
        # Linear, GELU, Linear save their inputs; recomputing saves the block's.
        assert rows["offload"]["bytes_out"] > rows["both"]["bytes_out"] > 0
        assert rows["both"]["bytes_out"] >= 256 * width * 4
    assert "hides" in capsys.readouterr().out.splitlines()[-1]


def test_a_changed_gradient_stops_the_sweep(monkeypatch):
    real = sweep.step

    def wrong(model, x, recompute, off):
        seconds = real(model, x, recompute, off)
        if off is not None:
            next(model.parameters()).grad.add_(1e-3)
        return seconds

    monkeypatch.setattr(sweep, "step", wrong)
    with pytest.raises(SystemExit, match="changed a gradient"):
        sweep.main([*SMALL, "--min-bytes", "1KiB"])


def test_hides_from_is_the_start_of_the_last_unbroken_run():
    def at(offload):
        return {"plain": {"median": 1.0}, "offload": {"median": offload}}

    assert sweep.hides_from({256: at(1.0), 512: at(2.0), 1024: at(1.04)}) == 1024
    assert sweep.hides_from({256: at(1.01), 512: at(1.05)}) == 256
    assert sweep.hides_from({256: at(1.0), 512: at(2.0)}) is None


def test_a_device_that_is_not_there_is_named(capsys):
    if _cuda_lane.absence() == "":
        pytest.skip("there is a CUDA device")
    with pytest.raises(SystemExit):
        sweep.main(["--device", "cuda"])
    assert "--device cuda: " in capsys.readouterr().err
    with pytest.raises(_cuda_lane.DeviceError, match="must be cpu, cuda or cuda:N"):
        _cuda_lane.device_named("banana")
    assert _cuda_lane.device_named("cpu") == torch.device("cpu")
