"""The whole demonstration, small, as a user starts it."""

import json
import subprocess
import sys

import pytest

FIELDS = {
    "peak_resident_bytes",
    "peak_saved_bytes",
    "seconds_per_step",
    "bytes_out",
    "bytes_in",
    "hidden_fraction",
    "max_grad_diff",
}


@pytest.mark.slow
@pytest.mark.law(4)
@pytest.mark.timeout(600)
def test_demo(tmp_path):
    command = [
        sys.executable,
        "-m",
        "gnnoffload",
        "demo",
        "--out",
        str(tmp_path / "o u t"),
    ]
    shape = ["--level", "4", "--width", "64", "--layers", "10", "--steps", "1"]
    done = subprocess.run(
        [*command, *shape, "--train-steps", "5"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "memory demo, not a weather model" in done.stdout
    found = json.loads((tmp_path / "o u t" / "demo.json").read_text())
    rows = found["variants"]
    assert set(rows) == {"stock", "plain", "checkpoint", "offload"}
    assert all(set(row) >= FIELDS for row in rows.values())
    assert set(found["rollout"]) == {"l2_model", "l2_persistence", "l2_upwind"}

    offload, plain = rows["offload"], rows["plain"]
    assert offload["same_bits"] and offload["max_grad_diff"] == 0
    assert found["all_rows"]["plain again"]["same_bits"]
    assert offload["bytes_out"] > 0 and 0 <= offload["hidden_fraction"] <= 1
    assert offload["peak_saved_bytes"] < plain["peak_saved_bytes"]
    assert 0 < rows["stock"]["max_grad_diff"] < 1e-3 * plain["max_grad"]
    if found["spill"]["direct_io"]:
        assert offload["peak_resident_bytes"] < plain["peak_resident_bytes"]
        assert not found["limited"]["plain"]["finished"]
        assert "memory" in found["limited"]["plain"]["error"]
        assert found["limited"]["offload"]["finished"]
        assert found["limited"]["offload"]["max_grad_diff"] == 0
    picture = tmp_path / "o u t" / "demo.png"
    pytest.importorskip("matplotlib")
    assert picture.read_bytes()[1:4] == b"PNG"
