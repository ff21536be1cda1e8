"""Builds the simulator, with or without the C library under test in it. Cached.

Objects are kept under the hash of everything that went in, in build/objects/sim, the
libraries in build/sim.
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
OBJECTS = ROOT / "build" / "objects" / "sim"
COMMON = ["-O1", "-g", "-fPIC", "-D_GNU_SOURCE", "-Icsrc", "-Itests/sim"]
SIM = ["checker", "machine", "api", "api_memory", "allocator", "program"]


def library(*defines):
    """libsim.so: the simulator and csrc/{core,offload}, compiled with -D<define>."""
    sources = [HERE / f"{name}.cpp" for name in SIM]
    for room in ("core", "offload"):
        sources += sorted((ROOT / "csrc" / room).glob("*.c"))
    return build("libsim.so", sources, [f"-D{define}" for define in defines])


def build(name, sources, flags=(), libraries=("-lpthread", "-ldl", "-lm")):
    """Compiles C and C++ sources into one shared library; returns its path."""
    sources = [path for path in sources if "cuda_runtime" not in path.name]
    headers = sorted([*(ROOT / "csrc").rglob("*.h"), *HERE.glob("*.h")])
    shared = hashlib.sha256(repr((COMMON, C_FLAGS, CPP_FLAGS, flags)).encode())
    for path in headers:
        shared.update(path.name.encode() + path.read_bytes())
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda path: compile_one(path, shared, flags), sources))
    key = hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
    target = ROOT / "build" / "sim" / key / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        put_in_place(["g++", "-shared", *objects, *libraries], target)
    return target


def compile_one(path, shared, flags):
    """The object of one source, from the cache where it is there."""
    key = shared.copy()
    key.update(path.name.encode() + path.read_bytes())
    target = OBJECTS / f"{path.stem}-{key.hexdigest()[:16]}.o"
    if not target.exists():
        OBJECTS.mkdir(parents=True, exist_ok=True)
        cpp = path.suffix == ".cpp"
        compiler = os.environ.get("CXX", "g++") if cpp else os.environ.get("CC", "cc")
        own = CPP_FLAGS if cpp else C_FLAGS
        put_in_place([compiler, *own, *COMMON, *flags, "-c", str(path)], target)
    return str(target)


def put_in_place(command, target):
    """Runs `command -o target` so that another test run sees all of it or nothing."""
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    run([*command, "-o", str(partial)])
    partial.rename(target)


def run(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
