"""`_C` imports alone, binds to the torch of the process, and says what it misses.

Each case runs in its own process and loads the extension file by its path, without the
package (which imports torch).
"""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from gnnoffload import _C

ROOT = Path(__file__).parents[2]

LOAD_C = f"""
    import ctypes, importlib.util, sys
    spec = importlib.util.spec_from_file_location("gnnoffload._C", {_C.__file__!r})
    C = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(C)
"""


def run(code):
    """Standard output of a fresh Python that has loaded `_C` as C."""
    source = textwrap.dedent(LOAD_C) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_without_torch():
    out = run("""
        assert "torch" not in sys.modules
        facts = C.info()
        assert not facts["bound"] and facts["abi_version"] is None
        assert not any(facts["required"].values())
        try:
            C.bind("/nonexistent/libtorch_cpu.so")
        except ImportError as error:
            print(error)
    """)
    assert "libtorch_cpu.so not found" in out and "import torch" in out


needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="needs gcc for a fake libtorch"
)


def fake_libtorch(path, soname, without=None):
    """A library with every required entry point but one; each does nothing."""
    names = [name for name in _C.info()["required"] if name != without]
    source = path.with_suffix(".c")
    source.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in names))
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-w", source, "-o", path, f"-Wl,-soname,{soname}"],
        check=True,
        timeout=60,
    )


@needs_gcc
@pytest.mark.parametrize("missing", ["aoti_torch_abi_version", "torch_parallel_for"])
def test_missing_symbol_is_named(tmp_path, missing):
    assert missing in _C.info()["required"]
    library = tmp_path / "libtorch_cpu.so"
    fake_libtorch(library, "libtorch_cpu.so", without=missing)
    out = run(f"""
        ctypes.CDLL({str(library)!r})
        try:
            C.bind()
        except ImportError as error:
            print(error)
        assert not C.info()["bound"]
        assert not any(C.info()["required"].values())
    """)
    assert f"{missing} not found" in out


@needs_gcc
def test_found_by_path_when_the_soname_is_unknown(tmp_path):
    library = tmp_path / "renamed.so"
    fake_libtorch(library, "renamed.so")
    run(f"""
        ctypes.CDLL({str(library)!r})
        try:
            C.bind()
        except ImportError:
            C.bind({str(library)!r})
        facts = C.info()
        assert facts["bound"] and all(facts["required"].values())
        assert not any(facts["optional"].values())
    """)


def test_binds_after_import_torch():
    out = run("""
        import torch
        C.bind()
        C.bind()  # a second bind does nothing
        facts = C.info()
        assert facts["bound"] and all(facts["required"].values())
        print(hex(facts["abi_version"]), torch.ops.gnnoffload.spmm.default._schema)
    """)
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    assert out.startswith(f"0x{major:x}{minor:02x}")
    assert "gnnoffload::spmm" in out


def test_second_copy_of_the_extension_is_refused(tmp_path):
    """Another file of the same module may not define the ops again."""
    copy = tmp_path / Path(_C.__file__).name
    shutil.copy(_C.__file__, copy)
    out = run(f"""
        import torch
        C.bind()
        spec = importlib.util.spec_from_file_location("other._C", {str(copy)!r})
        other = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(other)
        try:
            other.bind()
        except ImportError as error:
            print(error)
        print(torch.ops.gnnoffload.spmm.default.name())
    """)
    assert "another copy" in out and "gnnoffload::spmm" in out


def test_info():
    facts = _C.info()
    assert facts["bound"] and all(facts["required"].values())
    assert facts["build_version"] == 0x020A << 48
    assert facts["isa"] in ("avx512", "avx2", "neon", "sve", "c")
