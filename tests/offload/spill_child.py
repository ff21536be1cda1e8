"""What the subprocesses of test_process.py share: a chain of layers whose saved tensors
have a known size, and looks at this process from the operating system's side."""

import ctypes
import glob
import mmap
import os
import re

import torch

MIB = 2**20


def chain(x, weights):
    """Each layer saves two new tensors of x's size; the sum needs none."""
    for weight in weights:
        x = torch.sin(x * weight)
    return x.sum()


def leaves(layers, mib, seed=0):
    """x of `mib` MiB and one scalar weight a layer, all needing gradients."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(mib * MIB // 4, generator=generator).requires_grad_()
    weights = torch.rand(layers, generator=generator) + 0.5
    return x, [w.clone().requires_grad_() for w in weights]


def gradients(layers, mib, context=None):
    """Gradients of x and the weights, with `context` around the forward."""
    x, weights = leaves(layers, mib)
    if context is None:
        loss = chain(x, weights)
    else:
        with context:
            loss = chain(x, weights)
    loss.backward()
    return [x.grad, *(w.grad for w in weights)]


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def spill_descriptor(directory):
    """The descriptor of the nameless file in `directory`."""
    for link in glob.glob("/proc/self/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith(directory) and target.endswith("(deleted)"):
            return int(os.path.basename(link))
    raise AssertionError(f"no spill file in {directory}")


def cached_bytes(descriptor):
    """Bytes of a file that are in the page cache now."""
    size = os.fstat(descriptor).st_size
    pages = -(-size // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3]
    libc.mmap.argtypes += [ctypes.c_long]
    view = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    assert view not in (None, ctypes.c_void_p(-1).value)
    resident = (ctypes.c_ubyte * pages)()
    view, size = ctypes.c_void_p(view), ctypes.c_size_t(size)
    assert libc.mincore(view, size, resident) == 0
    assert libc.munmap(view, size) == 0
    return sum(flag & 1 for flag in resident) * mmap.PAGESIZE


def peak_resident():
    """VmHWM in bytes: the most memory this process ever had resident."""
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1]) * 1024
