"""Builds the simulator, with or without the C library under test in it. Cached.

The cache is build/sim/<hash of everything that went in>/.
"""

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
C_FLAGS = ["-std=c11", "-fexceptions", "-Wall", "-Wextra"]
CPP_FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
COMMON = ["-O1", "-g", "-fPIC", "-D_GNU_SOURCE", f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
SIM = ["checker.cpp", "machine.cpp", "api.cpp", "allocator.cpp", "program.cpp"]


def library(*defines):
    """libsim.so: the simulator and csrc/{core,offload}, compiled with -D<define>."""
    sources = [HERE / name for name in SIM]
    for room in ("core", "offload"):
        sources += sorted((ROOT / "csrc" / room).glob("*.c"))
    return build("libsim.so", sources, [f"-D{define}" for define in defines])


def build(name, sources, flags=(), libraries=("-lpthread", "-ldl", "-lm")):
    """Compiles C and C++ sources into one shared library; returns its path."""
    sources = [path for path in sources if "cuda_runtime" not in path.name]
    headers = sorted([*(ROOT / "csrc").rglob("*.h"), *HERE.glob("*.h")])
    key = hashlib.sha256(repr((COMMON, C_FLAGS, CPP_FLAGS, flags)).encode())
    for path in [*sources, *headers]:
        key.update(path.name.encode() + path.read_bytes())
    folder = ROOT / "build" / "sim" / key.hexdigest()[:16]
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(path):
        cpp = path.suffix == ".cpp"
        compiler = os.environ.get("CXX", "g++") if cpp else os.environ.get("CC", "cc")
        out = folder / (path.stem + ".o")
        own = CPP_FLAGS if cpp else C_FLAGS
        run([compiler, *own, *COMMON, *flags, "-c", str(path), "-o", str(out)])
        return str(out)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    partial = folder / f"{name}.{os.getpid()}"  # two test runs may build at once
    run(["g++", "-shared", *objects, *libraries, "-o", str(partial)])
    partial.rename(target)
    return target


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
