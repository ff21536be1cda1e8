"""Kernels and executor under AddressSanitizer and UndefinedBehaviorSanitizer."""

import subprocess

import pytest
from cuda_executor import ROOT, build

pytestmark = pytest.mark.slow

SANITIZE = "-fsanitize=address,undefined,float-cast-overflow"
# Left out: what takes long to compile.
LESS = ["-fno-sanitize-recover=all", "-fno-sanitize=null,object-size,vptr"]


@pytest.fixture(scope="module")
def program():
    return build(
        "address-sanitizer",
        sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/*.cu")),
        flags=LESS,
        sanitize=SANITIZE,
        program="tests/cuda_on_cpu/address_sanitizer.cpp",
    )


def run(program, *args):
    return subprocess.run([program, *args], capture_output=True, text=True, timeout=120)


def test_the_kernels_are_clean(program):
    done = run(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "112 runs\n", "")


def test_a_short_buffer_is_noticed(program):
    done = run(program, "short")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
    assert "lanes.cuh" in done.stderr
