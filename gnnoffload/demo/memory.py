"""What the operating system says of a process's memory, and what autograd saves."""

import contextlib
import ctypes
import resource

import torch
from torch import Tensor

MMAP_THRESHOLD = 64 * 1024
_M_MMAP_THRESHOLD = -3  # malloc.h


def status(pid: int | str = "self") -> dict[str, int]:
    """Bytes by name from /proc/<pid>/status: VmRSS, VmHWM (its peak), VmData, ..."""
    with open(f"/proc/{pid}/status") as file:
        rows = (line.split() for line in file)
        return {r[0][:-1]: 1024 * int(r[1]) for r in rows if r[0].startswith("Vm")}


def fix_mmap_threshold() -> bool:
    """Makes glibc map each block from 64 KiB on by itself: freeing gives it back.

    By default the threshold grows with use, and freed tensors stay in the process: then
    the peak of the process is not the peak of what it holds. False: not a glibc.
    """
    try:
        return ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD) == 1
    except AttributeError:
        return False


def limit_data(extra: int) -> int:
    """Lets this process grow by `extra` bytes of private memory (RLIMIT_DATA)."""
    limit = status()["VmData"] + extra
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return limit


def limit(most: int, device: torch.device) -> None:
    """On CPU `most` bytes more for this process; on CUDA all that torch may reserve."""
    if device.type == "cpu":
        limit_data(most)
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), device)


def device_peak(device: torch.device) -> int | None:
    """Most bytes that torch had allocated on a CUDA device; None on CPU."""
    return None if device.type == "cpu" else torch.cuda.max_memory_allocated(device)


class SavedBytes:
    """Counts the bytes that autograd keeps alive for backward, each storage once.

    Parameters are left out: they live anyway. `peak` is the most at any time, also of
    what a reentrant checkpoint saves while backward recomputes.
    """

    def __init__(self, parameters):
        self.now = self.peak = 0
        self._known = {p.untyped_storage().data_ptr() for p in parameters}
        self._users: dict[int, int] = {}

    @contextlib.contextmanager
    def counting(self):
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield self

    def _pack(self, tensor: Tensor):
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self._known or tensor.layout is not torch.strided:
            return tensor.detach()
        users = self._users.get(key, 0)
        if users == 0:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
        self._users[key] = users + 1
        return _Held(self, tensor.detach(), key)

    @staticmethod
    def _unpack(held) -> Tensor:
        return held.tensor if isinstance(held, _Held) else held

    def _release(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if self._users[key] == 0:
            del self._users[key]
            self.now -= size


class _Held:
    """A saved tensor; the end of this object is the end of its life."""

    def __init__(self, counter: SavedBytes, tensor: Tensor, key: int):
        self.counter, self.tensor, self.key = counter, tensor, key

    def __del__(self):
        self.counter._release(self.key, self.tensor.untyped_storage().nbytes())
