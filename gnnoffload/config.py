"""Sizes, memory limits and the spill directory: what users set and machines have.

`parse_size` and `parse_bytes` read "8GiB" and "40%"; `memory_limits` knows cgroups;
`spill_directory` chooses where tensors spill to; `show_config` prints all of it.
"""

import os
import re
import resource
from pathlib import Path

from gnnoffload import _C
from gnnoffload.errors import SpillError

__all__ = [
    "Share",
    "default_host_limit",
    "device_bytes",
    "format_bytes",
    "memory_limits",
    "parse_bytes",
    "parse_size",
    "show_config",
    "spill_directory",
]

UNITS = {"": 1, "B": 1}
UNITS |= {f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}
UNITS |= {f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}
SIZE = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]*)")
SHARE = re.compile(r"(\d+(?:\.\d+)?)%")


class Share(float):
    """A part of the device's memory, 0 to 1: what "40%" means."""


def parse_bytes(value, name="size"):
    """Read a number of bytes.

    Args:
        value: an int of at least 0, or text such as "8GiB", "1.5GB", "1MiB", "4096".
        name: the argument's name, for the message.

    Returns:
        The bytes as an int.

    Raises:
        ValueError: text of another form, or a negative number.
        TypeError: neither int nor str.

    >>> parse_bytes("1.5KiB")
    1536
    """
    return _parse(value, name, 'such as 1048576, "8GiB" or "512MB"')


def parse_size(value, name="budget"):
    """Read a budget: bytes, a share of the device, or "auto".

    Args:
        value: as `parse_bytes`, or "40%" (0% to 100%), or "auto".
        name: the argument's name, for the message.

    Returns:
        int bytes, a `Share` (0.4 for "40%"), or the string "auto".

    >>> parse_size("40%"), parse_size("auto"), parse_size(0)
    (0.4, 'auto', 0)
    """
    forms = 'such as 1048576, "8GiB" or "512MB", a share such as "40%", or "auto"'
    if value == "auto":
        return value
    share = SHARE.fullmatch(value) if isinstance(value, str) else None
    if share and float(share[1]) <= 100:
        return Share(float(share[1]) / 100)
    return _parse(value, name, forms)


def _parse(value, name, forms):
    if isinstance(value, bool) or not isinstance(value, int | str):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a number of bytes {forms}; got a {kind}")
    if isinstance(value, int) and value >= 0:
        return value
    found = SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2] not in UNITS:
        raise ValueError(f"{name} must be a number of bytes {forms}; got {value!r}")
    return int(float(found[1]) * UNITS[found[2]]) if found[2] else int(float(found[1]))


def format_bytes(count):
    """Bytes as people read them, which `parse_bytes` reads back.

    >>> format_bytes(8 * 1024**3), format_bytes(1536), format_bytes(7)
    ('8.0GiB', '1.5KiB', '7B')
    """
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(count) >= UNITS[unit]:
            return f"{count / UNITS[unit]:.1f}{unit}"
    return f"{int(count)}B"


# ------------------------------------------------------------------------------ memory


def memory_limits(root="/"):
    """Memory of this machine and what the control groups of this process leave of it.

    Args:
        root: where /proc and /sys are, for tests.

    Returns:
        dict of bytes: total, available, cgroup_limit (None: no limit), cgroup_used
        (without page cache that can go), cgroup_version (None, 1 or 2), and
        address_space_limit and data_limit (RLIMIT_AS, RLIMIT_DATA; None: no limit).
    """
    root = Path(root)
    meminfo = _keyed_numbers(root / "proc/meminfo", scale=1024)
    limits = {
        "total": meminfo.get("MemTotal", 0),
        "available": meminfo.get("MemAvailable", meminfo.get("MemFree", 0)),
        "cgroup_limit": None,
        "cgroup_used": None,
        "cgroup_version": None,
    }
    for version, folders, names in _cgroups(root):
        limits["cgroup_version"] = version
        for folder in folders:
            limit = _number(folder / names[0])
            smallest = limits["cgroup_limit"]
            if limit is not None and limit < limits["total"]:
                if smallest is None or limit < smallest:
                    limits["cgroup_limit"] = limit
                    limits["cgroup_used"] = _cgroup_use(folder, names[1])
    return limits | _process_limits()


def device_bytes():
    """What "40%" is a share of on CPU: the memory that this process could fill.

    The smallest of the machine's memory, the control group's limit and the process's
    own limits (RLIMIT_AS, RLIMIT_DATA).
    """
    limits = memory_limits()
    names = ("total", "cgroup_limit", "address_space_limit", "data_limit")
    return min(limits[name] for name in names if limits[name] is not None)


def default_host_limit():
    """Bytes of host memory that one process may fill: 80 % of what is free.

    Free is the smaller of available memory and cgroup limit minus use, divided by
    LOCAL_WORLD_SIZE, the number of processes a launcher started on this machine.
    """
    limits = memory_limits()
    free = limits["available"]
    if limits["cgroup_limit"] is not None:
        free = min(free, limits["cgroup_limit"] - limits["cgroup_used"])
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    processes = int(processes) if processes.isdecimal() and int(processes) > 0 else 1
    return int(0.8 * max(free, 0)) // processes


def _cgroups(root):
    """(version, folders from the process's group up, (limit, use)) per hierarchy."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0" and controllers == "":
            base, version = root / "sys/fs/cgroup", 2
            names = ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, version = root / "sys/fs/cgroup/memory", 1
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inside = base / group.lstrip("/")
        # In a container the path may name a place outside of its mount: use the mount.
        folders = [inside, *inside.parents] if inside.is_dir() else [base]
        folders = [f for f in folders if f == base or base in f.parents]
        if any((folder / names[1]).exists() for folder in folders):
            yield version, folders, names


def _cgroup_use(folder, name):
    statistics = _keyed_numbers(folder / "memory.stat")
    cache = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
    return max((_number(folder / name) or 0) - cache, 0)


def _process_limits():
    limits = {
        "address_space_limit": resource.RLIMIT_AS,
        "data_limit": resource.RLIMIT_DATA,
    }
    soft = {name: resource.getrlimit(which)[0] for name, which in limits.items()}
    return {n: None if v == resource.RLIM_INFINITY else v for n, v in soft.items()}


def _number(path):
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _keyed_numbers(path, scale=1):
    """{name: number} of lines such as `MemTotal:  24684084 kB`."""
    try:
        pairs = [line.split()[:2] for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {p[0].rstrip(":"): int(p[1]) * scale for p in pairs if len(p) == 2}


# --------------------------------------------------------------------- spill directory


def spill_directory(spill_dir=None):
    """Choose where spill files go.

    Args:
        spill_dir: the user's choice; None: $GNNOFFLOAD_SPILL_DIR, else the first of
            /var/tmp and the working directory that is a writable directory on a disk.

    Returns:
        The directory as an absolute path. A choice of the user is returned as it is:
        opening it refuses what is missing, not writable or memory-backed, by name.

    Raises:
        SpillError: nothing was chosen and neither place can be used.
    """
    chosen = (
        spill_dir if spill_dir is not None else os.environ.get("GNNOFFLOAD_SPILL_DIR")
    )
    if chosen:
        return os.path.abspath(os.fspath(chosen))
    reasons = []
    for place in ("/var/tmp", os.getcwd()):
        if not os.path.isdir(place):
            reasons.append(f"{place} does not exist")
            continue
        kind, memory_backed = _C.file_system(place)
        if memory_backed:
            reasons.append(f"{place} is on {kind}, which keeps files in memory")
        elif not os.access(place, os.W_OK | os.X_OK):
            reasons.append(f"{place} is not writable")
        else:
            return place
    raise SpillError(
        f"no spill directory: {', '.join(reasons)}; name one on a disk with spill_dir= "
        "or GNNOFFLOAD_SPILL_DIR"
    )


def show_config(file=None):
    """Print versions, build, CPU, torch entry points, memory, spill directory and GPU.

    Args:
        file: where to print to; None: standard output.

    Measures nothing; `python -m gnnoffload doctor` adds the disk's bandwidth.
    """
    from gnnoffload._doctor import facts, render

    print(render(facts(measure=False)), file=file)
