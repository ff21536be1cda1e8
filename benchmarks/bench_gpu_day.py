"""Everything to do with one GPU for eight minutes, into benchmarks/ledger/.

    make gpu-day
    python -m gnnoffload bench gpu-day --dry-run      # small, on a CPU: tests itself

Builds, tests, measures; needs no network. Stages that fail say so in the ledger and the
rest goes on; what would not fit the time is skipped by name.
"""

import argparse
import functools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

import gnnoffload as go
from benchmarks import (
    gpu_attention,
    gpu_ledger,
    gpu_profile,
    gpu_stages,
    gpu_trace,
)
from gnnoffload._cuda_lane import device_named

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 8 * 60  # seconds of the whole
CHECKED = """
import torch, gnnoffload as go
graph = go.Graph(torch.randint(0, 300, (2, 4000)), (300, 300)).to("cuda")
for features in (1, 7, 32, 257):
    x = torch.randn(300, features, device="cuda", requires_grad=True)
    w = torch.rand(4000, device="cuda", requires_grad=True)
    go.spmm(graph, x, w).square().sum().backward()
    statistics = go.aggregate(graph, x, ("mean", "min", "max", "std"))
    sum(y.square().sum() for y in statistics).backward()
    go.gated(graph, x, torch.cat([x, x], dim=1)).square().sum().backward()
    go.softmax_aggregate(graph, x, 0.5).square().sum().backward()
    go.edge_softmax(graph, w).square().sum().backward()
    if features == 257:
        continue
    heads = [
        torch.randn(300, 3, features, device="cuda", requires_grad=True)
        for _ in range(3)
    ]
    att = torch.randn(3, features, device="cuda", requires_grad=True)
    go.dot_attention(graph, *heads, dropout=0.5).square().sum().backward()
    go.gatv2(graph, *heads[:2], att).square().sum().backward()
    scores = torch.randn(2, 300, 3, device="cuda", requires_grad=True).unbind(0)
    go.gat(graph, heads[0], *scores).square().sum().backward()
torch.cuda.synchronize()
"""


def command(words, seconds, **environment):
    """The end of what it printed; RuntimeError with it where it failed."""
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=seconds,
        env={**os.environ, **environment},
    )  # fmt: skip
    tail = (done.stdout + done.stderr).strip().splitlines()[-8:]
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[:4])}: " + " | ".join(tail))
    return {"said": tail[-1] if tail else ""}


def build(device, small):
    if small:
        raise gpu_stages.Skip("a dry run measures what is built")
    words = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return command(words, 180, GNNOFFLOAD_CUDA="1", TORCH_CUDA_ARCH_LIST=_own_arch())


def _own_arch():
    return "{}.{}".format(*torch.cuda.get_device_capability())


def tests(device, small):
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
    ]
    words += ["tests/config/test_sizes.py"] if small else []
    return command(words, 60 if small else 200, OMP_WAIT_POLICY="passive")


def sanitizer(device, small):
    tool = shutil.which("compute-sanitizer")
    if device.type != "cuda" or not tool:
        raise gpu_stages.Skip("compute-sanitizer is not on PATH, or there is no GPU")
    words = [tool, "--tool", "memcheck", "--error-exitcode", "9"]
    return command([*words, sys.executable, "-c", CHECKED], 90)


def golden(device, small):
    """What each device function answers, on the GPU and in the tests' executor."""
    if device.type != "cuda":
        raise gpu_stages.Skip("golden vectors need a CUDA device")
    return command([sys.executable, "tests/cuda_on_cpu/golden.py"], 120)


def profile(device, small, path):
    """Writes this machine's profile for the simulator."""
    with gpu_trace.recorded(device) as (recorder, _, _):
        about = "a dry run: copies simulated, the rest of this CPU"
        if device.type == "cuda":
            about = torch.cuda.get_device_properties(device).name + ", measured"
        found = gpu_profile.calibrate(device, recorder, about, small)
    gpu_profile.save(found, path)
    return {"profile": found, "file": path.name}


def trace(device, small, path):
    """Keeps the trace beside the profile."""
    known = path if path.exists() else None
    return gpu_trace.trace(device, small, known, path.with_suffix(".trace.json.gz"))


# name: function, seconds it may need, part of `bench --share`
STAGES = {
    "build": (build, 60, False),
    "copies": (gpu_stages.copies, 40, True),
    "profile": (profile, 20, True),
    "trace": (trace, 50, True),
    "spmm": (gpu_stages.spmm, 30, True),
    "reductions": (gpu_stages.reductions, 20, True),
    "attention": (gpu_attention.attention, 60, True),
    "offload": (gpu_stages.offload, 120, True),
    "golden": (golden, 40, False),
    "sanitizer": (sanitizer, 30, False),
    "tests": (tests, 120, False),
}


def play(name, stage, device, small):
    """A stage's entry in the ledger."""
    begin, result, problem, status = time.monotonic(), None, None, "ok"
    try:
        result = stage(device, small)
    except gpu_stages.Skip as reason:
        status, problem = "skipped", str(reason)
    except Exception as error:  # the rest of the day goes on
        status = "failed"
        problem = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - begin
    print(f"{name:<10} {status:<8} {seconds:6.1f} s  {problem or ''}", flush=True)
    return {"status": status, "seconds": seconds, "problem": problem, "result": result}


def main(argv=None, share=False):
    """Returns the path of the ledger file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--dry-run", action="store_true", help="small, on the CPU")
    parser.add_argument("--out", type=Path, default=gpu_ledger.FOLDER)
    text = "where the machine's profile goes; default <out>/profiles/"
    parser.add_argument("--profile", type=Path, help=text)
    options = parser.parse_args(argv)
    try:
        device = device_named("cpu" if options.dry_run else options.device)
    except go.DeviceError as error:
        parser.error(f"{error}; --dry-run runs small on the CPU")
    begin = time.monotonic()
    ledger = gpu_ledger.new(device, options.dry_run, share)
    path = gpu_ledger.new_path(ledger, options.out / "profiles")
    path = options.profile or path
    given = {"profile": {"path": path}, "trace": {"path": path}}
    for name, (stage, seconds, shared) in STAGES.items():
        left = LIMIT - (time.monotonic() - begin)
        if share and not shared:
            continue
        if seconds > left and not options.dry_run:
            text = f"{left:.0f} s are left, it may need {seconds} s"
            ledger["stages"][name] = {
                "status": "skipped", "seconds": 0.0, "problem": text, "result": None,
            }  # fmt: skip
            continue
        stage = functools.partial(stage, **given.get(name, {}))
        ledger["stages"][name] = play(name, stage, device, options.dry_run)
    path = gpu_ledger.save(ledger, options.out)
    print(f"written: {path}")
    if share:
        print("thank you; please send it with a pull request to benchmarks/ledger/")
    return path


if __name__ == "__main__":
    main()
