"""Countdown over everything that can fail under a whole step: see faulty_step.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gnnoffload as go

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.law(9),
    pytest.mark.skipif(sys.platform != "linux", reason="preloads a library of glibc's"),
]


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The library that makes allocations fail."""
    compiler = os.environ.get("CC", "cc").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("shim") / "malloc_shim.so"
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    source = str(HERE / "malloc_shim.c")
    subprocess.run([*compiler, *flags, source, "-o", str(library)], check=True)
    return str(library)


def run(kind, store, spill, preload=""):
    """The counts that faulty_step.py printed: [(faults, exceptions), ...]"""
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            str(HERE / "faulty_step.py"),
            kind,
            store,
        ],
        env={
            **os.environ,
            "LD_PRELOAD": preload,
            "PYTHONPATH": str(Path(go.__file__).parents[1]),
            "SPILL": str(spill),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    words = [line.split() for line in done.stdout.splitlines()]
    return [(int(line[3]), int(line[5])) for line in words]


@pytest.mark.parametrize("store", ["ram", "file"])
@pytest.mark.parametrize(
    "kind", ["allocations", pytest.param("tensors", marks=pytest.mark.slow)]
)
def test_memory_runs_out_at_every_call(kind, store, shim, tmp_path):
    counts = run(kind, store, tmp_path, shim)
    assert len(counts) == 2
    for faults, exceptions in counts:
        assert faults > 20 and exceptions > 20  # the step allocates, and it is noticed


@pytest.mark.slow
def test_every_system_call_of_the_file_link_fails(tmp_path):
    keep, stop = run("files", "file", tmp_path)
    assert keep[0] > 20 and stop[0] > 20
    assert 0 < keep[1] < stop[1]  # failed reads raise; failed writes when told to
