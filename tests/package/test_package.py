"""What the sdist and the wheel contain, and that the first builds the second."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
NOT_SHIPPED = {".gitignore", ".ci/run"}
GENERATED = {"PKG-INFO", "setup.cfg"}


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return set(listed.stdout.decode().split("\0")) - {""}


def build(what, source, out):
    """Runs the PEP 517 hook without isolation, so that no network is needed."""
    code = (
        f"from setuptools import build_meta as b; print(b.build_{what}({str(out)!r}))"
    )
    # Fast to compile; without optimisation gcc's own AVX-512 macros warn.
    fast = os.environ | {
        "GNNOFFLOAD_DEBUG": "1",
        "GNNOFFLOAD_WERROR": "0",
        "TORCH_CUDA_ARCH_LIST": "9.0",
    }
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env=fast,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    return out / said.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("a checkout")
    for name in tracked_files():
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp / name)
    return build("sdist", tmp, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("from sdist")
    shutil.unpack_archive(sdist, tmp)
    (source,) = tmp.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_sdist_holds_the_tracked_files_and_no_others(sdist):
    with tarfile.open(sdist) as archive:
        paths = [member.name for member in archive.getmembers() if member.isfile()]
    names = {path.partition("/")[2] for path in paths}
    names = {name for name in names if ".egg-info/" not in name}
    assert names == (tracked_files() - NOT_SHIPPED) | GENERATED


def test_wheel_holds_the_package_and_one_abi3_extension(wheel):
    assert "-cp311-abi3-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(n for n in archive.namelist() if n.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    package = {name for name in tracked_files() if name.startswith("gnnoffload/")}
    assert names == package | {"gnnoffload/_C.abi3.so"}
    assert "Requires-Dist: torch>=2.10" in text
    assert "Provides-Extra: pyg" in text


@pytest.mark.skipif(not shutil.which("nm"), reason="binutils are not installed")
def test_extension_exports_its_init_alone_and_needs_libc_alone(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract("gnnoffload/_C.abi3.so", tmp_path)
    run = {"capture_output": True, "text": True, "check": True}
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], **run).stdout
    assert [line.split()[-1] for line in symbols.splitlines()] == ["PyInit__C"]
    dynamic = subprocess.run(["readelf", "-d", library], **run).stdout
    needed = {
        line.split("[")[1][:-1] for line in dynamic.splitlines() if "NEEDED" in line
    }
    allowed = (
        "libc.so",
        "libm.so",
        "libpthread.so",
        "libdl.so",
        "librt.so",
        "ld-linux",
    )
    assert all(name.startswith(allowed) for name in needed), needed
