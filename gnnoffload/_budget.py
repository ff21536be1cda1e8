"""Byte quantities: what people write, what the machine has, what "auto" decides."""

import os
import re
from pathlib import Path

from gnnoffload import _C

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}
_UNITS |= {f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:e[0-9]+)?)\s*([A-Za-z%]*)\s*", re.ASCII)
_PROBE_BYTES = 64 << 20


def parse_bytes(name, value, percent_of=None):
    """Bytes of ``value``: an int, "8GiB", "500MB" or, where that means something, "40%".

    Example:
        >>> parse_bytes("budget", "1.5KiB")
        1536
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"offload: {name} must be bytes or text like '8GiB', got {value!r}")
    if not isinstance(value, str):
        if value < 0 or value != int(value):
            raise ValueError(f"offload: {name} must be 0 or more bytes, got {value!r}")
        return int(value)
    match = _QUANTITY.fullmatch(value)
    if match is None:
        raise ValueError(
            f"offload: {name} must be bytes or text like '8GiB', got {value!r}"
        )
    number, unit = float(match[1]), match[2]
    if unit == "%":
        if percent_of is None or number > 100:
            raise ValueError(f"offload: {name} cannot be {value!r}")
        return int(number / 100 * percent_of())
    if unit not in _UNITS:
        near = [u for u in _UNITS if u and u[0].lower() == unit[0].lower()]
        hint = f"; did you mean {match[1]}{near[0]}?" if near else ""
        raise ValueError(f"offload: {name} has no unit {unit!r} in {value!r}{hint}")
    return int(number * _UNITS[unit])


def format_bytes(n):
    """Text like "1.5 GiB".

    Example:
        >>> format_bytes(1536)
        '1.5 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


# --------------------------------------------------------------------- what the machine has


def _read(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _meminfo(key):
    match = re.search(rf"^{key}:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _cgroup():
    """(limit, use) of this process's memory cgroup, or None; version 2 or 1."""
    for limit, use in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        text = _read(limit).strip()
        if text.isdigit() and int(text) < 2**60:
            return int(text), int(_read(use).strip() or 0)
    return None


def memory_total():
    """Bytes of memory that this process may use at all."""
    cgroup = _cgroup()
    return min(_meminfo("MemTotal"), cgroup[0]) if cgroup else _meminfo("MemTotal")


def memory_available():
    """Bytes of memory that are free for this process now."""
    cgroup = _cgroup()
    free = _meminfo("MemAvailable")
    return max(0, min(free, cgroup[0] - cgroup[1])) if cgroup else free


def default_host_limit(store, spill_dir):
    """80 % of what is free on the far side, divided among the processes of this machine."""
    if store == "ram":
        free = memory_available()
    else:
        try:
            status = os.statvfs(spill_dir)
            free = status.f_bavail * status.f_frsize
        except OSError:
            free = 1 << 40  # opening the file will say what is wrong with the directory
    return int(0.8 * free) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def default_spill_dir():
    """$GNNOFFLOAD_SPILL_DIR, else the first candidate that is not memory-backed."""
    chosen = os.environ.get("GNNOFFLOAD_SPILL_DIR")
    if chosen:
        return chosen
    for directory in ("/var/tmp", os.getcwd()):
        if os.access(directory, os.W_OK) and not _C.file_system(directory)[1]:
            return directory
    return "/var/tmp"  # refused by name when it is opened


# -------------------------------------------------------------------------- budget="auto"


class AutoBudget:
    """As much leaves as the link hides: X = 0.9 min(B_out T_f, B_in T_b); the rest stays.

    B are the measured rates of the link, T_f and T_b the last pass's seconds in forward and
    backward without its stalls. The first pass keeps everything and is measured.
    """

    def __init__(self, engine):
        self.engine = engine
        self.rates = None
        self.budget = None

    def learn(self, counters):
        """Takes a finished pass's counters."""
        if not counters["block_bytes"] or not counters["backward_seconds"]:
            return
        if self.rates is None:
            self.rates = self.engine.measure(_PROBE_BYTES)
        rate_out, rate_in = self.rates
        forward = counters["forward_seconds"] - counters["stall_out"]
        backward = counters["backward_seconds"] - counters["stall_in"]
        hidden = 0.9 * max(0.0, min(rate_out * forward, rate_in * backward))
        self.budget = max(0, counters["block_bytes"] - int(hidden))

    def apply(self):
        """Sets the engine's budget for the pass that begins."""
        if self.budget is not None:
            self.engine.set_budget(self.budget)
