"""Timing shared by the benchmarks: contenders interleaved in one process, CPU time,
per-round ratios, the STREAM triad, and the facts that make a number repeatable."""

import ctypes
import gc
import json
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path

import torch

from gnnoffload._cuda_lane import wait_for

CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results"


def recycle_memory():
    """Lets glibc keep freed blocks, for every contender alike.

    By default a block of 32 MiB or more goes back to the kernel when freed, and a fresh
    page costs more than the product that fills it: timings would compare page faults.
    """
    _allocator(mmap_threshold=2**30, trim_threshold=2**31 - 1, top_pad=2**28)


def plain_memory():
    """What glibc itself comes to in a process that sets nothing: blocks of 32 MiB or
    more are mapped anew each time, which every contender pays for its own."""
    _allocator(mmap_threshold=2**25, trim_threshold=2**26, top_pad=2**17)


def _allocator(**values):
    number = {"mmap_threshold": -3, "trim_threshold": -1, "top_pad": -2}
    try:
        libc = ctypes.CDLL("libc.so.6")
        for name, value in values.items():
            libc.mallopt(number[name], value)
    except (OSError, AttributeError):
        print("note: not glibc, freed memory may go back to the kernel")


def interleave(
    contenders,
    rounds,
    clock=time.process_time,
    sample=4e-3,
    every=None,
    settle=False,
):
    """Runs all contenders in rotating order; returns {name: seconds per round}.

    Args:
        contenders: {name: function without arguments}; one warm-up call each.
        sample: calls are repeated until one sample takes about this many seconds.
        every: {name: k}, the contender joins each k-th round only (NaN elsewhere).
        settle: one call before each sample, so that the allocator and the caches are as
            the contender's own last step left them, which is what a loop finds.
    """
    repeats = {}
    for name, run in contenders.items():
        run()
        start = clock()
        run()
        repeats[name] = max(1, round(sample / max(clock() - start, 1e-7)))
    names = list(contenders)
    seconds = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for k in range(len(names)):
                name = names[(k + turn) % len(names)]
                if turn % (every or {}).get(name, 1):
                    seconds[name].append(float("nan"))
                    continue
                run, n = contenders[name], repeats[name]
                if settle:
                    run()
                start = clock()
                for _ in range(n):
                    run()
                seconds[name].append((clock() - start) / n)
    finally:
        gc.enable()
    return seconds


def clock_of(device):
    """Seconds as a function: of this process on a CPU; on CUDA of the wall, once the
    device is idle."""
    if device.type == "cpu":
        return time.process_time

    def clock():
        wait_for(device)
        return time.perf_counter()

    return clock


def median(seconds):
    return statistics.median(s for s in seconds if s == s)


def ratios(theirs, ours):
    """Per-round ratio theirs / ours, for the rounds both ran."""
    return [t / o for t, o in zip(theirs, ours, strict=True) if t == t and o == o]


def quartiles(values):
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def triad_bandwidth(rounds=5, device=CPU):
    """Bytes per second of a = b + 3 c on float32 arrays far larger than the caches; all
    three count once (STREAM's convention: no write-allocate). Best of rounds."""
    n = 2**24 if device.type == "cpu" else 2**28
    a, b, c = (torch.ones(n, device=device) for _ in range(3))
    best, clock = float("inf"), clock_of(device)
    for _ in range(rounds):
        start = clock()
        torch.add(b, c, alpha=3, out=a)
        best = min(best, clock() - start)
    return 12 * n / best


def last_level_cache():
    """Bytes of the largest cache of CPU 0."""
    sizes = [2**20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]]
        sizes.append(int(text[:-1]) * unit)
    return max(sizes)


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def facts(packages, device=None):
    """What a reader needs to repeat the numbers: machine model, versions, commit."""
    import gnnoffload as go
    from gnnoffload import _C

    versions = {"python": platform.python_version(), "gnnoffload": go.__version__}
    for name in packages:
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            versions[name] = None
    gpu = {} if device is None or device.type == "cpu" else {"gpu": gpu_name(device)}
    return gpu | {
        "cpu": cpu_model(),
        "isa": _C.info()["isa"],
        "last_level_cache": last_level_cache(),
        "versions": versions,
        "commit": commit(),
    }


def commit():
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def gpu_name(device):
    return torch.cuda.get_device_properties(device).name


def save(name, result):
    """Writes benchmarks/results/<name>.json, on a GPU <name>-<its name>.json."""
    if "gpu" in result:
        name += "-" + re.sub(r"[^a-z0-9]+", "-", result["gpu"].lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten: benchmarks/results/{path.name}")
