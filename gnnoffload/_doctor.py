"""The facts that `show_config` and `python -m gnnoffload doctor` print."""

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

import torch

from gnnoffload import _C, _copy_matrix, _cuda_lane, config
from gnnoffload._copy_matrix import copy_matrix
from gnnoffload._gpu import gpu_facts
from gnnoffload._version import __version__
from gnnoffload.errors import SpillError, named

PROBE_BYTES = 256 * 2**20
OTHERS = ("torch_geometric", "numpy", "scipy", "matplotlib", "rich")


def facts(measure=True, spill_dir=None):
    """Collect them.

    Args:
        measure: write and read up to 256 MiB in the spill directory (2 seconds) and
            copy to and from each CUDA device (some seconds each).
        spill_dir: as `offload(spill_dir=...)`.

    Returns:
        Nested dict of what JSON can hold; bytes and bytes per second as numbers.
    """
    return {
        "gnnoffload": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "packages": {name: version(name) for name in OTHERS},
        "build": _C.build_facts(),
        "cpu": cpu_facts(),
        "torch": torch_facts(),
        "memory": memory_facts(),
        "spill": spill_facts(measure, spill_dir),
        "gpu": gpu_facts(),
        "copies": copy_facts() if measure else [],
    }


def copy_facts():
    """The copy matrix of each CUDA device that torch uses; [] without one."""
    if _cuda_lane.absence():
        return []
    return [copy_matrix(device) for device in range(torch.cuda.device_count())]


def version(name):
    try:
        return importlib.metadata.version(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_facts():
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {
        "model": model,
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "isa": _C.info()["isa"],
    }


def torch_facts():
    info = _C.info()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "bound": info["bound"],
        "missing": sorted(
            name for name, found in info["required"].items() if not found
        ),
        "entry_points": sum(info["required"].values()),
        "optional": info["optional"],
    }


def memory_facts():
    limits = config.memory_limits()
    settings = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    limits["malloc"] = {n: os.environ[n] for n in settings if n in os.environ}
    return limits | {"host_limit": config.default_host_limit()}


def spill_facts(measure, spill_dir):
    """Where tensors would spill to, how, and how fast; or `problem`, a sentence."""
    try:
        directory = config.spill_directory(spill_dir)
    except SpillError as error:
        return {"directory": None, "problem": str(error)}
    found = {"directory": directory, "problem": ""}
    try:
        free = shutil.disk_usage(directory).free
    except OSError:  # the probe will say it better
        free = 0
    try:
        probe = _C.spill_probe(directory, min(PROBE_BYTES, free // 4) if measure else 0)
    except RuntimeError as error:
        return found | {"problem": str(named(error))}
    found |= {"file_system": probe["file_system"], "free": free}
    found["direct_io"] = probe["direct"]
    if measure:
        found |= {"write_rate": probe["rate_out"], "read_rate": probe["rate_in"]}
    return found


# ----------------------------------------------------------------------------- as text


def render(found):
    """The facts as lines for people, one topic a line."""
    topics = {
        "gnnoffload": found["gnnoffload"],
        "build": _build_line(found["build"]),
        "platform": f"{found['platform']}, Python {found['python']}",
        "cpu": _cpu_line(found["cpu"]),
        "torch": _torch_line(found["torch"]),
        "packages": ", ".join(f"{n} {v or '-'}" for n, v in found["packages"].items()),
        "memory": _memory_line(found["memory"]),
        "spill": _spill_line(found["spill"]),
        "gpu": _gpu_line(found["gpu"]),
    }
    lines = [f"{name:<11} {line}" for name, line in topics.items()]
    for device, found_copies in enumerate(found["copies"]):
        lines += [f"copies of cuda:{device}", _copy_matrix.render(found_copies)]
    return "\n".join(lines)


def _build_line(build):
    cuda = f"CUDA {build['cuda']}" if build["cuda"] else "without CUDA"
    return f"{build['compiler']}, {cuda}, {build['flags']}"


def _cpu_line(cpu):
    cores = f"{cpu['usable_cores']} of {cpu['cores']} cores"
    return f"{cpu['model']}, {cores}, kernels for {cpu['isa']}"


def _torch_line(found):
    cuda = f"CUDA {found['cuda']}" if found["cuda"] else "CPU only"
    absent = [name for name, there in found["optional"].items() if not there]
    line = f"{found['version']} ({cuda}), {found['threads']} threads, "
    if not found["bound"]:
        return line + f"not bound: {', '.join(found['missing']) or 'bind() not called'}"
    line += f"{found['entry_points']} entry points found"
    return line + (f", without optional {', '.join(absent)}" if absent else "")


def _memory_line(memory):
    show = config.format_bytes
    line = f"{show(memory['available'])} of {show(memory['total'])} available"
    if memory["cgroup_limit"] is not None:
        used, limit = memory["cgroup_used"], memory["cgroup_limit"]
        line += (
            f", cgroup v{memory['cgroup_version']} {show(used)} of {show(limit)} used"
        )
    for key, name in (("address_space_limit", "address space"), ("data_limit", "data")):
        if memory[key] is not None:
            line += f", {name} limited to {show(memory[key])}"
    return line + f", host_limit by default {show(memory['host_limit'])}"


def _spill_line(spill):
    if spill["problem"]:
        return spill["problem"]
    direct = "direct I/O" if spill["direct_io"] else "through the page cache"
    free = config.format_bytes(spill["free"])
    line = f"{spill['directory']} ({spill['file_system']}, {direct}, {free} free)"
    if "write_rate" in spill:
        write, read = spill["write_rate"] / 1e9, spill["read_rate"] / 1e9
        line += f", writes {write:.2f} GB/s, reads {read:.2f} GB/s"
    return line


def _gpu_line(gpu):
    names = [
        f"{d['name']} ({config.format_bytes(d['memory'])}, {d['memory_model']})"
        for d in gpu["devices"]
    ]
    if not gpu["driver_version"] and "driver" not in gpu["problem"]:
        names.append("no NVIDIA driver")
    if gpu["driver_version"]:
        major, minor = divmod(gpu["driver_version"], 1000)
        release = f" {gpu['driver_release']}" if gpu["driver_release"] else ""
        names.append(f"driver{release} serves CUDA {major}.{minor // 10}")
    return "; ".join([*names, *([gpu["problem"]] if gpu["problem"] else [])])
