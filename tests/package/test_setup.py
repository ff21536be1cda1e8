"""What setup.py and tools/venv.sh say to machines they cannot serve."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_setup(before="pass", **environment):
    """The last line that setup.py prints, with `before` run ahead of it."""
    # setuptools first: it would trip over what `before` pretends.
    first = "import setuptools.command.build_ext, runpy, sys"
    code = f"{first}; sys.argv = ['', '--version']; {before}"
    said = subprocess.run(
        [sys.executable, "-c", f"{code}; runpy.run_path('setup.py')"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    return (said.stdout if said.returncode == 0 else said.stderr).splitlines()[-1]


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        ("sys.platform = 'darwin'", "gnnoffload runs on Linux only, this is "),
        ("sys.platform = 'win32'", "gnnoffload runs on Linux only, this is "),
        (
            "sys.version_info = (3, 10)",
            "gnnoffload needs Python 3.11 or newer, this is ",
        ),
        (
            "sys.maxsize = 2**31 - 1",
            "gnnoffload needs a 64-bit Python, this one has 32",
        ),
        (
            "import sysconfig as s; old = s.get_config_var; "
            "s.get_config_var = lambda n: 1 if n == 'Py_GIL_DISABLED' else old(n)",
            "gnnoffload does not support free-threaded Python yet, this is ",
        ),
    ],
)
def test_unsupported_machines_get_one_sentence(before, sentence):
    assert run_setup(before).startswith(sentence)


def test_supported_machine_gets_a_version():
    assert run_setup()[0].isdigit()


def test_switches_name_what_they_take():
    said = run_setup(GNNOFFLOAD_DEBUG="yes")
    assert said == "gnnoffload: GNNOFFLOAD_DEBUG must be 0 or 1, got 'yes'"
    said = run_setup(GNNOFFLOAD_CUDA="1", PATH="/nowhere")
    assert said.startswith("gnnoffload: GNNOFFLOAD_CUDA=1, but ")


@pytest.fixture
def make_venv(tmp_path):
    """Runs tools/venv.sh in a directory of its own; returns what it prints."""
    (tmp_path / "requirements-dev.txt").touch()

    def run(**environment):
        asked = {"VENV": "venv", "TORCH": "2.13.0", "PYTHON": sys.executable}
        said = subprocess.run(
            [ROOT / "tools" / "venv.sh"],
            cwd=tmp_path,
            env=os.environ | asked | environment,
            capture_output=True,
            text=True,
        )
        assert said.returncode == 1
        return said.stderr.strip()

    return run


def test_missing_packages_are_named_in_one_line(make_venv, tmp_path):
    python = tmp_path / "python3"
    lacks_venv = 'case "$*" in *ensurepip*) exit 1 ;; esac'
    python.write_text(f'#!/bin/sh\n{lacks_venv}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    said = make_venv(PYTHON=str(python), CC="/nowhere/cc")
    assert said.startswith(
        "gnnoffload: missing: venv, a C compiler. Run: sudo apt install"
    )
    assert said.endswith("-venv build-essential") and "\n" not in said


def test_a_directory_that_is_no_venv_is_left_alone(make_venv, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    said = make_venv(VENV="precious")
    assert said == "gnnoffload: VENV=precious exists and is not a virtual environment"
    assert (tmp_path / "precious" / "thesis.tex").exists()


def test_a_python_that_cannot_serve_is_named(make_venv):
    said = make_venv(PYTHON="/nowhere/python3")
    assert said.startswith("gnnoffload: PYTHON=/nowhere/python3 is not a Python 3.11")
