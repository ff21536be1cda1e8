"""The boundaries of docs/design.md, read off the sources."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SUFFIXES = (".c", ".h", ".cu", ".cuh")
C_SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in SUFFIXES)
# A room may include headers of itself and of the rooms named here.
ALLOWED = {
    "core": set(),
    "cpu": {"core"},
    "cuda": {"core"},
    "offload": {"core"},
    "torch": {"core", "cpu", "cuda", "offload"},
}


def includes(path):
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.M)


def room(path):
    return path.relative_to(CSRC).parts[0] if path.parent != CSRC else "core"


def room_of_header(name):
    found = [path for path in C_SOURCES if path.name == Path(name).name]
    return room(found[0]) if found else None


@pytest.mark.parametrize("path", C_SOURCES, ids=lambda path: path.name)
def test_includes_stay_in_allowed_rooms(path):
    for name in includes(path):
        other = room_of_header(name)
        assert other in {None, "core", room(path)} | ALLOWED[room(path)], name


@pytest.mark.parametrize("path", C_SOURCES, ids=lambda path: path.name)
def test_only_the_torch_room_knows_python_and_only_cuda_files_know_cuda(path):
    names = includes(path)
    if room(path) != "torch":
        assert "Python.h" not in names
        assert not any(name.startswith(("torch/", "ATen/")) for name in names)
    if room(path) != "cuda" and path.stem not in ("cuda_runtime", "cuda_api"):
        assert not any(name.startswith(("cuda_runtime", "cuda.h")) for name in names)


def test_device_code_comes_through_one_header():
    """cuda.cuh has the only launch and the only CUDA headers; no PTX anywhere."""
    for path in CSRC.glob("cuda/*.cu*"):
        text = path.read_text()
        assert "asm" not in text and "__device_builtin__" not in text, path
        if path.name != "cuda.cuh":
            assert "<<<" not in text, path
            assert set(includes(path)) <= {
                "inttypes.h",
                "core/philox.h",  # which both compilers read
                *(f"cuda/{header.name}" for header in CSRC.glob("cuda/*.cuh")),
            }, path


def test_no_openmp_exit_abort_or_printf_in_the_core():
    forbidden = re.compile(r"#\s*pragma\s+omp|\b(?:exit|abort|printf)\s*\(")
    for path in C_SOURCES:
        if room(path) != "torch":
            code = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.S)
            assert not forbidden.search(code), path


def test_file_names_are_unique():
    repeated_by_design = {"__init__.py", "conftest.py", "README.md"}
    listed = subprocess.run(
        ["git", "ls-files", "*.c", "*.h", "*.cu", "*.cuh", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = Counter(Path(line).name for line in listed.stdout.splitlines())
    twice = {name for name, n in names.items() if n > 1} - repeated_by_design
    assert not twice


def test_no_test_imports_from_conftest():
    # There is one in each folder: which is meant depends on what pytest loaded first.
    for path in ROOT.glob("tests/*/*.py"):
        assert not re.search(r"^(from|import) conftest", path.read_text(), re.M), path
