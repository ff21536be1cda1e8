"""Our declarations of libtorch agree with the headers of the installed torch."""

import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

HERE = Path(__file__).parent
SOURCE = HERE / "declarations.cpp"
CSRC = HERE.parents[1] / "csrc"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def compile_check(*defines):
    flags = [f"-I{path}" for path in (*include_paths(), CSRC)]
    return subprocess.run(
        ["g++", "-std=c++20", "-fsyntax-only", *defines, *flags, SOURCE],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_declarations_match_torch():
    done = compile_check()
    assert done.returncode == 0, done.stderr


def test_a_wrong_declaration_is_found():
    done = compile_check("-DWRONG")
    assert done.returncode != 0
    assert "conflicting declaration" in done.stderr
