"""A machine profile for the simulator (tests/sim/profiles), measured on this machine.

Copies come from the copy matrix, memory and launches from torch, the cost of a call
from the host's clock, the disk from the spill directory. What cannot be measured here
keeps its value of `BASE` and is listed under "assumed".
"""

import functools
import json
import statistics
import time
from pathlib import Path

import torch

from benchmarks import gpu_stages
from gnnoffload import _C, config
from gnnoffload._copy_matrix import copy_matrix
from gnnoffload._cuda_lane import wait_for
from gnnoffload._gpu import gpu_facts

PROFILES = Path(__file__).resolve().parents[1] / "tests" / "sim" / "profiles"
BASE = "gh200"
SIZES = [65536, 1 << 20, 64 << 20]
CALLS = 200


def calibrate(device, recorder, about, small=False):
    """Everything that a profile has, as the dict of its file.

    Args:
        device: torch.device; on a dry run the CPU, and a simulated machine's copies.
        recorder: in front of the device's table of CUDA calls.
        about: what machine this is, one line.
    """
    base = json.loads((PROFILES / f"{BASE}.json").read_text())
    number, seconds = device.index or 0, 0.0005 if small else 0.02
    matrix = copy_matrix(number, SIZES, seconds, recorder.table)
    found = gpu_stages.profile_of(matrix)
    if "problem" in found:
        raise RuntimeError(found["problem"])
    found |= {"memory_rate": gpu_stages.memory_rate(device, small)}
    found |= {"kernel_latency": round(1e9 * launch_seconds(device))}
    found |= {"call_cost": call_cost(recorder)}
    found |= disk(small) | memory(device) | attributes(device)
    if device.type == "cuda":
        found["pageable_waits"] = pageable_waits(device)
    assumed = sorted(base.keys() - found.keys() - {"about", "assumed", "devices"})
    return base | found | {"about": about, "assumed": assumed}


def launch_seconds(device):
    """Of a kernel with nothing to do, many in a row."""
    x = torch.zeros(1, device=device)
    return gpu_stages.clock(device, functools.partial(x.add_, 1), calls=CALLS)


def call_cost(recorder):
    """Nanoseconds of a call that queues something: the median of a trace's."""
    queued = ("event_record", "stream_after", "copy_out", "copy_in")
    took = [c.end - c.begin for c in recorder.calls() if c.entry in queued]
    return round(statistics.median(took))


def disk(small):
    """Of the spill directory: disk_rate (the slower way), disk_latency."""
    try:
        directory = config.spill_directory(None)
        large = _C.spill_probe(directory, (1 << 20) if small else (256 << 20))
        page = _C.spill_probe(directory, 4096)
    except (OSError, RuntimeError):
        return {}
    rate = min(large["rate_out"], large["rate_in"])
    latency = 4096 / page["rate_out"] - 4096 / rate
    return {"disk_rate": rate, "disk_latency": max(0, round(1e9 * latency))}


def memory(device):
    """device_bytes, host_bytes."""
    found = {"host_bytes": config.memory_limits()["total"]}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device_bytes"] = properties.total_memory
    return found


def attributes(device):
    """What the driver says of the device, by the profile's names."""
    if device.type != "cuda":
        return {}
    name = torch.cuda.get_device_properties(device).name
    facts = next(d for d in gpu_facts()["devices"] if d["name"] == name)
    found = {
        "pageable_access": facts["pageable_memory_access"],
        "numa_id": -1 if facts["numa_node"] is None else facts["numa_node"],
        "host_numa_id": facts["host_numa_node"],
        **{key: facts[key] for key in ("copy_engines", "host_page_tables")},
        **{key: facts[key] for key in ("integrated", "compute_major", "compute_minor")},
    }
    return {key: value for key, value in found.items() if value is not None}


def pageable_waits(device, size=64 << 20):
    """1: copying plain host memory in holds the host until about its end."""
    host = torch.zeros(size, dtype=torch.uint8)
    near = host.to(device)
    near.copy_(host, non_blocking=True)
    wait_for(device)
    begin = time.perf_counter()
    near.copy_(host, non_blocking=True)
    returned = time.perf_counter() - begin
    wait_for(device)
    return int(returned > 0.5 * (time.perf_counter() - begin))


def save(profile, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(profile, indent=2) + "\n")
