"""doctor, show_config and the command line: facts are there, sentences are right."""

import ctypes
import io
import json
import subprocess
import sys

import pytest

import gnnoffload
from gnnoffload import _C, _doctor, _gpu, _platform, cli, config


def run(*words):
    command = [sys.executable, "-m", "gnnoffload", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_doctor_measures_and_prints_json():
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["gnnoffload"] == gnnoffload.__version__
    assert found["torch"]["bound"] and found["torch"]["missing"] == []
    assert found["torch"]["entry_points"] > 10
    assert found["memory"]["total"] >= found["memory"]["available"] > 0
    assert found["spill"]["write_rate"] > 0 and found["spill"]["read_rate"] > 0
    assert isinstance(found["spill"]["direct_io"], bool)
    assert found["build"]["compiler"] and found["cpu"]["isa"]


@pytest.mark.parametrize(
    "place, sentence",
    [
        ("/nope", "spill directory /nope does not exist"),
        ("/etc/passwd", "spill directory /etc/passwd is not a directory"),
        (
            "/dev/shm",
            "spill directory /dev/shm is on tmpfs, which keeps files in memory",
        ),
    ],
)
def test_doctor_says_why_a_directory_cannot_be_used(place, sentence):
    found = _doctor.spill_facts(True, place)
    assert found["problem"].startswith(sentence)
    assert cli.main(["doctor", "--quick", "--spill-dir", place]) == 1


def test_show_config_prints_every_topic(capsys):
    config.show_config()
    printed = capsys.readouterr().out
    for topic in ("build", "platform", "cpu", "torch", "memory", "spill", "gpu"):
        assert any(line.startswith(topic) for line in printed.splitlines()), topic
    assert "GB/s" not in printed  # it measures nothing
    target = io.StringIO()
    config.show_config(target)
    assert target.getvalue().splitlines()[0] == printed.splitlines()[0]


def test_command_line_without_or_with_a_wrong_command(capsys):
    assert cli.main([]) == 0
    assert "doctor" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["banana"])
    assert stop.value.code == 2 and "'banana'" in capsys.readouterr().err


def test_demo_gets_its_words_unread(monkeypatch):
    seen = []
    demo = type(sys)("gnnoffload.demo")
    demo.main = lambda words: seen.append(words) or 3
    monkeypatch.setitem(sys.modules, "gnnoffload.demo", demo)
    assert cli.main(["demo", "--help", "-x"]) == 3 and seen == [["--help", "-x"]]


def test_bench_lists_and_runs(monkeypatch, tmp_path, capsys):
    package, folder = tmp_path / "gnnoffload", tmp_path / "benchmarks"
    folder.mkdir()
    monkeypatch.setattr(cli, "__file__", str(package / "cli.py"))
    assert cli.main(["bench"]) == 1
    (folder / "bench_toy.py").write_text(
        '"""A toy."""\nimport sys\nprint(sys.argv[1:])'
    )
    capsys.readouterr()
    assert cli.main(["bench"]) == 0 and "toy          A toy." in capsys.readouterr().out
    assert cli.main(["bench", "nope"]) == 2
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["bench", "toy", "--x"]) == 0
    assert capsys.readouterr().out == "['--x']\n"


# --------------------------------------------------------------------------------- GPU


class FakeDriver:
    """A libcuda that serves one version, starts with `started`, and shows one GPU."""

    def __init__(self, version, started=0, devices=1):
        self.version, self.started, self.devices = version, started, devices

    def cuDriverGetVersion(self, target):
        target._obj.value = self.version
        return 0

    def cuInit(self, flags):
        return self.started

    def cuDeviceGetCount(self, target):
        target._obj.value = self.devices
        return 0

    def cuDeviceGet(self, target, index):
        return 0

    def cuDeviceGetName(self, text, size, device):
        text.value = b"NVIDIA H200"
        return 0

    def cuDeviceTotalMem_v2(self, target, device):
        target._obj.value = 141 * 2**30
        return 0

    def cuDeviceGetAttribute(self, target, number, device):
        target._obj.value = 9 if number == 75 else 0
        return 0

    def cuGetErrorName(self, error, target):
        target._obj.value = b"CUDA_ERROR_SYSTEM_NOT_READY"
        return 0


def absent(name):
    raise OSError(f"{name}: cannot open shared object file")


@pytest.fixture
def built_with_cuda_13(monkeypatch):
    """The sentences of a build with CUDA, from the table in C."""
    texts = {
        (0, 0): "no NVIDIA driver was found on this machine",
        (12080, 1): "the NVIDIA driver is too old: it serves CUDA 12.8, this gnnoffload"
        " was built with CUDA 13.0",
        (13000, 0): "the NVIDIA driver shows no GPU to this process",
        (13000, 1): "",
    }
    fake = type(sys)("_C")
    fake.cuda_absence = lambda version, devices: texts[version, devices]
    monkeypatch.setattr(_gpu, "_C", fake)


@pytest.mark.usefixtures("built_with_cuda_13")
def test_old_driver_no_gpu_no_driver_and_a_broken_one_are_four_answers():
    def line(load):
        return _doctor._gpu_line(_gpu.gpu_facts(load))

    assert line(absent) == "no NVIDIA driver was found on this machine"
    assert line(lambda name: FakeDriver(12080)).endswith(
        "driver serves CUDA 12.8; the NVIDIA driver is too old: it serves CUDA 12.8, "
        "this gnnoffload was built with CUDA 13.0"
    )
    assert line(lambda name: FakeDriver(12080)).startswith(
        "NVIDIA H200 (141.0GiB, discrete)"
    )
    shows_none = (
        "driver serves CUDA 13.0; the NVIDIA driver shows no GPU to this process"
    )
    assert line(lambda name: FakeDriver(13000, started=100)) == shows_none
    assert line(lambda name: FakeDriver(13000, devices=0)) == shows_none
    broken = line(lambda name: FakeDriver(13000, started=802))
    assert broken.endswith("does not start: CUDA_ERROR_SYSTEM_NOT_READY (802)")
    assert line(lambda name: FakeDriver(13000)) == (
        "NVIDIA H200 (141.0GiB, discrete); driver serves CUDA 13.0"
    )


@pytest.mark.skipif(bool(_C.build_facts()["cuda"]), reason="built with CUDA")
def test_a_build_without_cuda_still_names_the_gpu():
    facts = _gpu.gpu_facts(lambda name: FakeDriver(13000))
    assert facts["devices"][0]["compute_major"] == 9
    line = _doctor._gpu_line(facts)
    assert line.startswith("NVIDIA H200") and line.endswith("was built without CUDA")
    assert _doctor._gpu_line(_gpu.gpu_facts(absent)) == (
        "no NVIDIA driver; this gnnoffload was built without CUDA"
    )


def test_the_real_driver_is_asked_without_a_crash():
    facts = _gpu.gpu_facts()
    assert isinstance(facts["problem"], str) and isinstance(facts["devices"], list)
    assert ctypes.sizeof(ctypes.c_size_t) == 8


# ---------------------------------------------------------------------------- platform


def test_unsupported_platforms_get_one_sentence():
    assert _platform.obstacle() is None
    text = _platform.obstacle(version=(3, 9, 2))
    assert text == "gnnoffload needs Python 3.11 or newer; this is Python 3.9.2"
    text = _platform.obstacle(system="darwin", machine="arm64")
    assert text == (
        "gnnoffload runs on 64-bit Linux on x86-64 or Arm; this is darwin on arm64"
    )
    assert "64-bit" in _platform.obstacle(pointer_max=2**31 - 1)
    text = _platform.obstacle(has_module=lambda name: name != "torch")
    assert text == "gnnoffload needs torch 2.10 or newer: pip install torch"
    text = _platform.obstacle(has_module=lambda name: name == "torch")
    assert text.startswith("gnnoffload._C is not built: run `pip install .`")
