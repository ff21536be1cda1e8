"""Builds kernels for the executor with g++, and drives it.

library = Library(build("spmm", ["csrc/cuda/spmm_cuda.cu"]))
library.set_order("random", seed=3)
with Memory(library) as memory:
    x = memory.input("x", tensor)
    y, result = memory.output("y", (7, 3), torch.float32)
    library.call("gnn_spmm_cuda", args, 0)
"""

import ctypes
import hashlib
import math
import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cuda_on_cpu"
CXX, CC = os.environ.get("CXX", "g++"), os.environ.get("CC", "cc")

WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-attributes"]
# Thread-local variables of the library are the shared memory of its kernels.
C_FLAGS = ["-std=c11", "-O2", "-g", "-fPIC", "-D_GNU_SOURCE", "-D_Thread_local="]
EXECUTOR_FLAGS = ["-std=c++17", "-O2", "-g", "-fPIC", *WARNINGS]
# Loads of 16 bytes stay one access only without scalar replacement of aggregates.
KERNEL_FLAGS = [
    *["-x", "c++", "-std=c++17", "-O1", "-g", "-fPIC", *WARNINGS],
    *["-DGNN_CUDA_ON_CPU", "-fno-tree-sra", "-fno-stack-protector"],
]
HOOKS = (
    "-fsanitize=thread,alignment,bounds,signed-integer-overflow,shift,"
    "integer-divide-by-zero"
)


class NoToolkit(RuntimeError):
    pass


@cache
def toolkit_include():
    """The folder of cuda_fp16.h: nvcc's toolkit, else the pip packages."""
    places = []
    if home := os.environ.get("CUDA_HOME"):
        places.append(Path(home, "include"))
    if nvcc := shutil.which("nvcc"):
        command = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True).stderr
        places += [Path(p) for p in re.findall(r'INCLUDES="-I(\S+?)"', said)]
        places.append(Path(nvcc).resolve().parents[1] / "include")
    packages = Path(sysconfig.get_path("purelib"), "nvidia")
    places += sorted(packages.glob("*/include"))
    for place in places:
        if (place / "cuda_fp16.h").exists():
            return place.resolve()
    raise NoToolkit(
        "the executor needs CUDA's headers (cuda_fp16.h): install a CUDA toolkit, or "
        "`pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl`; no GPU or "
        "driver is needed"
    )


def text_with_includes(path, seen):
    """The text of a file and, once each, of those of ours that it includes."""
    seen.add(path)
    text = path.read_text()
    for name in re.findall(r'^\s*#\s*include "(.+)"', text, re.M):
        for folder in (path.parent, HERE, ROOT / "csrc"):
            if (folder / name).exists() and (folder / name).resolve() not in seen:
                text += text_with_includes((folder / name).resolve(), seen)
    return text


class CompileError(RuntimeError):
    pass


def run(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"{' '.join(map(str, command))}\n{done.stderr}")


def made(name, told, make):
    """The file <name>-<hash of told>, made if there is none; older ones go."""
    digest = hashlib.sha256("\0".join(map(str, told)).encode()).hexdigest()[:16]
    target = BUILD / f"{name}-{digest}"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = BUILD / f"part-{os.getpid()}-{target.name}"
        make(unfinished)
        for old in BUILD.glob(f"{name}-{'?' * 16}"):
            old.unlink(missing_ok=True)
        unfinished.rename(target)
    return target


def compile_one(compiler, flags, source):
    """The object file of a source, made again if anything it includes has changed."""
    flags = [*flags, "-Itests/cuda_on_cpu", "-Icsrc", f"-isystem{toolkit_include()}"]
    kind = hashlib.sha256(" ".join([compiler, *flags]).encode()).hexdigest()[:6]
    told = [compiler, *flags, text_with_includes(ROOT / source, set())]
    return made(
        f"{Path(source).stem}-{kind}.o",
        told,
        lambda out: run([compiler, *flags, "-c", source, "-o", out]),
    )


def build(name, kernels, *, flags=(), sanitize=HOOKS, program=None):
    """A shared library of kernels and executor, or with `program` (a C++ file with a
    main) an executable. Returns its path."""
    relative = [str(p.relative_to(ROOT)) for p in sorted(HERE.glob("exec*.cpp"))]
    core = [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("csrc/core/*.c"))]
    own = [] if sanitize == HOOKS else [sanitize]
    jobs = [(CXX, [*KERNEL_FLAGS, sanitize, *flags], k) for k in kernels]
    own += [flag for flag in flags if flag.startswith("-DEXEC_")]
    jobs += [(CXX, [*EXECUTOR_FLAGS, *own], source) for source in relative]
    jobs += [(CC, [*C_FLAGS, *own], source) for source in core]
    if program:
        jobs.append((CXX, [*EXECUTOR_FLAGS, *own], program))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda job: compile_one(*job), jobs))
    link = [CXX, *([] if program else ["-shared"]), *own, *objects]
    kind = hashlib.sha256(" ".join([*flags, *own]).encode()).hexdigest()[:6]
    return made(
        f"{name}-{kind}",
        link,
        lambda out: run([*link, "-ldl", "-lpthread", "-lm", "-o", out]),
    )


class Refused(RuntimeError):
    """A launch ended with an error; the text is the executor's."""


class Library:
    def __init__(self, path):
        self.dll = ctypes.CDLL(str(path))
        self.dll.gnn_message.restype = ctypes.c_char_p
        self.dll.exec_order_text.restype = ctypes.c_char_p
        self.dll.exec_traffic.restype = ctypes.c_int64
        self.orders = []
        while text := self.dll.exec_order_text(len(self.orders)):
            self.orders.append(text.decode())

    def set_order(self, order="ascending", seed=0):
        self.dll.exec_set_order(self.orders.index(order), ctypes.c_uint64(seed))

    def reset(self):
        self.set_order()
        self.set_budget()
        self.set_blocks()
        self.count_traffic(False)

    def set_budget(self, budget=2**36):
        self.dll.exec_set_budget(ctypes.c_uint64(budget))

    def set_blocks(self, columns=()):
        """Only blocks with these blockIdx.x run, -1 is the last; () is all of them."""
        numbers = (ctypes.c_int64 * len(columns))(*columns)
        self.dll.exec_set_blocks(numbers, ctypes.c_int64(len(columns)))

    def call(self, function, *args):
        """Calls a launcher; Refused with its text unless it returns GNN_OK."""
        if getattr(self.dll, function)(*args):
            raise Refused(self.dll.gnn_message().decode())

    def register(self, address, n_bytes, name, output=False):
        self.dll.exec_memory(
            ctypes.c_void_p(address),
            ctypes.c_int64(n_bytes),
            name.encode(),
            int(output),
        )

    def free(self, address):
        self.dll.exec_free(ctypes.c_void_p(address))

    def count_traffic(self, on):
        self.dll.exec_count_traffic(int(on))

    def traffic(self, address, written=False):
        """(sectors of 32 bytes, requests of a warp) at the memory that begins there."""
        return tuple(
            self.dll.exec_traffic(ctypes.c_void_p(address), int(written), which)
            for which in (0, 1)
        )


class Memory:
    """Device memory for one call: copies of tensors, each alone between two wide gaps.

    Addresses are multiples of 256 bytes, as CUDA's own are, plus `offset` bytes. Freed
    with the context; what an error names are the names given here.
    """

    GAP = 8192

    def __init__(self, library):
        self.library, self.buffers = library, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for address, _ in self.buffers:
            self.library.free(address)

    def _place(self, name, n_bytes, offset, output):
        buffer = torch.empty(n_bytes + 2 * self.GAP + 256 + offset, dtype=torch.uint8)
        start = self.GAP + -(buffer.data_ptr() + self.GAP) % 256 + offset
        held = buffer[start : start + n_bytes]
        address = buffer.data_ptr() + start
        self.library.register(address, n_bytes, name, output)
        self.buffers.append((address, buffer))
        return address, held

    def input(self, name, tensor, offset=0):
        """The address of a copy of the tensor, with the strides that it has."""
        spans = zip(tensor.shape, tensor.stride(), strict=True)
        n = 1 + sum((size - 1) * stride for size, stride in spans)
        flat = tensor.detach().as_strided((n if tensor.numel() else 0,), (1,))
        address, held = self._place(
            name, flat.numel() * flat.element_size(), offset, False
        )
        held.copy_(flat.view(torch.uint8))
        return address

    def output(self, name, shape, dtype, offset=0):
        """(address, tensor) of memory whose contents count as unwritten."""
        n_bytes = math.prod(shape) * dtype.itemsize
        address, held = self._place(name, n_bytes, offset, True)
        held.fill_(0xFF)
        return address, held.view(dtype).view(shape)
