"""The ledger: what one run on one GPU found, as JSON that a program has checked.

    format    1
    date      2026-01-31           dry_run, share   true or false
    machine   gpu, driver, compute, memory_model, device_bytes, cpu, clocks
    versions  gnnoffload, torch, cuda, python            commit
    stages    name -> status (ok | failed | skipped), seconds, problem, result

A stage that failed or was skipped says why in `problem`. Step times come as a median
and a 95th percentile of at least 20 steps, beside the bytes allocated, reserved and
pinned.
"""

import datetime
import json
import math
import platform
import re
import statistics
import subprocess
from pathlib import Path

import torch

import gnnoffload as go
from benchmarks import measure
from gnnoffload import _C
from gnnoffload._gpu import gpu_facts

FOLDER = Path(__file__).parent / "ledger"
FORMAT = 1
STEPS = 20
STATUS = ("ok", "failed", "skipped")
MACHINE = ("gpu", "driver", "compute", "memory_model", "device_bytes", "cpu", "clocks")
VERSIONS = ("gnnoffload", "torch", "cuda", "python")
FIGURES = ("peak_allocated", "peak_reserved", "pinned")


def new(device, dry_run=False, share=False):
    """A ledger without stages."""
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "dry_run": dry_run,
        "share": share,
        "machine": machine(device),
        "versions": {
            "gnnoffload": go.__version__,
            "torch": torch.__version__,
            "cuda": _C.build_facts()["cuda"],
            "python": platform.python_version(),
        },
        "commit": measure.commit(),
        "stages": {},
    }


def machine(device):
    """GPU, driver and clocks; on a dry run the CPU stands in for the GPU."""
    found = dict.fromkeys(MACHINE) | {"cpu": measure.cpu_model()}
    facts = gpu_facts()
    found["driver"] = facts["driver_release"]
    if device.type != "cuda":
        return found | {"gpu": "none"}
    properties = torch.cuda.get_device_properties(device)
    found |= {
        "gpu": properties.name,
        "compute": f"{properties.major}.{properties.minor}",
        "device_bytes": properties.total_memory,
        "clocks": clocks(device),
    }
    same = [d for d in facts["devices"] if d["name"] == properties.name]
    return found | {"memory_model": same[0]["memory_model"] if same else None}


def clocks(device):
    """MHz now and at most, and the power limit, of nvidia-smi; None without it."""
    names = [
        "clocks.sm",
        "clocks.mem",
        "clocks.max.sm",
        "clocks.max.mem",
        "power.limit",
    ]
    command = ["nvidia-smi", f"--id={device.index}", f"--query-gpu={','.join(names)}"]
    command += ["--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in said.stdout.split(",")]
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else None


def figures(seconds, **memory):
    """Median and p95 of step times with FIGURES of memory, for a result."""
    ordered = sorted(seconds)
    at = math.ceil(0.95 * len(ordered)) - 1
    return {
        "steps": len(seconds),
        "median": statistics.median(seconds),
        "p95": ordered[at],
        "seconds": list(seconds),
        **{name: memory.get(name) for name in FIGURES},
        **{name: value for name, value in memory.items() if name not in FIGURES},
    }


# ------------------------------------------------------------------------------ checks


def problems(ledger):
    """What is wrong with a ledger, as sentences; [] when nothing is."""
    found = []
    for name in ("date", "machine", "versions", "commit", "stages"):
        if not ledger.get(name):
            found.append(f"{name} is missing")
    if found:
        return found
    if ledger.get("format") != FORMAT:
        found.append(f"format must be {FORMAT}, got {ledger.get('format')!r}")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", ledger["date"]):
        found.append(f"date must look like 2026-01-31, got {ledger['date']!r}")
    for flag in ("dry_run", "share"):
        if not isinstance(ledger.get(flag), bool):
            found.append(f"{flag} must be true or false")
    found += [f"machine.{n} is missing" for n in MACHINE if n not in ledger["machine"]]
    found += [
        f"versions.{n} is missing" for n in VERSIONS if n not in ledger["versions"]
    ]
    if not ledger.get("dry_run"):
        known = ("gpu", "driver", "compute", "device_bytes")
        found += [
            f"machine.{n} is empty" for n in known if not ledger["machine"].get(n)
        ]
        if ledger["machine"].get("gpu") == "none":
            found.append("machine.gpu: a run without a GPU is a dry run")
    for name, stage in ledger["stages"].items():
        found += [f"stages.{name}: {text}" for text in _stage_problems(stage)]
    return found


def _stage_problems(stage):
    if stage.get("status") not in STATUS:
        yield f"status must be one of {', '.join(STATUS)}"
    elif stage["status"] != "ok" and not stage.get("problem"):
        yield f"{stage['status']} without a problem"
    if not isinstance(stage.get("seconds"), int | float):
        yield "seconds is missing"
    for name, row in (stage.get("result") or {}).get("variants", {}).items():
        if "problem" in row:
            continue
        if row.get("steps", 0) < STEPS or len(row.get("seconds", ())) != row["steps"]:
            yield f"{name}: at least {STEPS} steps, got {row.get('steps')}"
        elif not 0 < row["median"] <= row["p95"]:
            yield f"{name}: median and p95 do not fit"
        for figure in FIGURES:
            if figure not in row:
                yield f"{name}: {figure} is missing"


def save(ledger, folder=FOLDER):
    """Writes <date>-<gpu>.json, never over another run. Returns the path.

    Raises:
        ValueError: the ledger has problems; the first one.
    """
    wrong = problems(ledger)
    if wrong:
        raise ValueError(f"ledger: {wrong[0]}" + f" (of {len(wrong)})")
    folder.mkdir(parents=True, exist_ok=True)
    path = new_path(ledger, folder)
    path.write_text(json.dumps(ledger, indent=1) + "\n")
    return path


def new_path(ledger, folder):
    """<folder>/<date>-<gpu>.json, with a number where there is one already."""
    gpu = re.sub(r"[^a-z0-9]+", "-", ledger["machine"]["gpu"].lower()).strip("-")
    stem = f"{ledger['date']}-{gpu}" + ("-dry" if ledger["dry_run"] else "")
    path, n = folder / f"{stem}.json", 2
    while path.exists():
        path, n = folder / f"{stem}-{n}.json", n + 1
    return path
