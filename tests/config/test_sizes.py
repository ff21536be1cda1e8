"""Sizes as users write them, memory limits of made-up machines, the spill choice."""

import os

import pytest

from gnnoffload import config
from gnnoffload.errors import SpillError


@pytest.mark.parametrize(
    "text, expected",
    [
        (0, 0),
        (123, 123),
        ("0", 0),
        ("4096", 4096),
        ("7B", 7),
        ("8GiB", 8 * 2**30),
        ("1.5KiB", 1536),
        ("1MiB", 2**20),
        ("2TiB", 2**41),
        ("1MB", 10**6),
        ("3GB", 3 * 10**9),
    ],
)
def test_bytes_are_read(text, expected):
    assert config.parse_bytes(text) == expected
    assert config.parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    ["banana", "8 gb", "8gb", "8GIB", "-1", -1, "", "GiB", "1e9", "8GiB ", "1,5GiB"],
)
def test_bad_text_is_answered_with_the_valid_forms(text):
    with pytest.raises(ValueError) as bytes_error:
        config.parse_bytes(text, "min_bytes")
    assert str(bytes_error.value) == (
        'min_bytes must be a number of bytes such as 1048576, "8GiB" or "512MB"; '
        f"got {text!r}"
    )
    with pytest.raises(ValueError) as size_error:
        config.parse_size(text)
    assert str(size_error.value) == (
        'budget must be a number of bytes such as 1048576, "8GiB" or "512MB", a share '
        f'such as "40%", or "auto"; got {text!r}'
    )


@pytest.mark.parametrize("value", [0.4, None, True, b"8GiB"])
def test_wrong_types_are_named(value):
    with pytest.raises(TypeError, match=f"got a {type(value).__name__}"):
        config.parse_size(value)


def test_shares():
    assert config.parse_size("40%") == 0.4 and config.parse_size("0%") == 0
    assert isinstance(config.parse_size("100%"), config.Share)
    for text in ("101%", "-5%", "%", "40 %"):
        with pytest.raises(ValueError, match='such as "40%"'):
            config.parse_size(text)
    with pytest.raises(ValueError):
        config.parse_bytes("40%")


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 8 * 2**30, 3 * 2**40])
def test_format_is_read_back(count):
    assert config.parse_bytes(config.format_bytes(count)) == count


MEMINFO = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 600 kB\n"


def machine(root, cgroup, files):
    """Memory limits of a made-up /proc and /sys/fs/cgroup."""
    contents = {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup}
    contents |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return config.memory_limits(root)


def test_no_cgroup_limit(tmp_path):
    files = {"memory.current": "5", "a/memory.max": "max", "a/memory.current": "5"}
    limits = machine(tmp_path, "0::/a\n", files)
    assert limits["total"] == 1024000 and limits["available"] == 614400
    assert limits["cgroup_limit"] is None and limits["cgroup_version"] == 2


def test_cgroup_v2_takes_the_smallest_limit_up_the_tree(tmp_path):
    files = {
        "a/memory.max": "300000",
        "a/memory.current": "200000",
        "a/memory.stat": "anon 90000\ninactive_file 80000\n",
        "a/b/memory.max": "400000",
        "a/b/memory.current": "7",
    }
    limits = machine(tmp_path, "0::/a/b\n", files)
    assert (limits["cgroup_limit"], limits["cgroup_used"]) == (300000, 120000)


def test_cgroup_v1(tmp_path):
    files = {
        "memory/job/memory.limit_in_bytes": "500000",
        "memory/job/memory.usage_in_bytes": "60000",
        "memory/job/memory.stat": "total_inactive_file 10000\n",
        "memory/memory.limit_in_bytes": str(2**63 - 4096),
        "memory/memory.usage_in_bytes": "60000",
    }
    cgroup = "5:cpu,cpuacct:/x\n4:memory:/job\n"
    limits = machine(tmp_path, cgroup, files)
    assert (limits["cgroup_limit"], limits["cgroup_used"]) == (500000, 50000)
    assert limits["cgroup_version"] == 1


def test_cgroup_path_of_the_host_seen_from_a_container(tmp_path):
    files = {"memory.max": "300000", "memory.current": "100000"}
    limits = machine(tmp_path, "0::/docker/0123abcd\n", files)
    assert (limits["cgroup_limit"], limits["cgroup_used"]) == (300000, 100000)


def test_host_limit_is_shared_by_the_processes_of_a_machine(monkeypatch):
    limits = {"available": 1000, "cgroup_limit": 700, "cgroup_used": 200}
    monkeypatch.setattr(config, "memory_limits", lambda: limits)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert config.default_host_limit() == 400
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert config.default_host_limit() == 100
    limits["cgroup_limit"] = None
    assert config.default_host_limit() == 200


def test_a_share_is_of_what_the_process_could_fill(monkeypatch):
    limits = {"total": 1000, "cgroup_limit": None, "address_space_limit": None}
    limits |= {"data_limit": None}
    monkeypatch.setattr(config, "memory_limits", lambda: limits)
    assert config.device_bytes() == 1000
    for name in ("cgroup_limit", "address_space_limit", "data_limit"):
        monkeypatch.setitem(limits, name, 700)
        assert config.device_bytes() == 700
        monkeypatch.setitem(limits, name, None)


def test_spill_directory_of_this_machine_is_a_place_to_write():
    place = config.spill_directory()
    assert os.path.isabs(place) and os.access(place, os.W_OK)


def test_spill_directory_is_the_users_else_the_first_on_a_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("GNNOFFLOAD_SPILL_DIR", "/from/env")
    assert config.spill_directory() == "/from/env"
    assert config.spill_directory("/dev/shm") == "/dev/shm"  # opening it refuses it
    monkeypatch.delenv("GNNOFFLOAD_SPILL_DIR")
    monkeypatch.chdir(tmp_path)
    kinds = {"/var/tmp": ("ext4", False), str(tmp_path): ("xfs", False)}
    monkeypatch.setattr(config, "_C", type("C", (), {"file_system": kinds.get}))
    assert config.spill_directory() == "/var/tmp"
    kinds["/var/tmp"] = ("tmpfs", True)
    assert config.spill_directory() == str(tmp_path)
    assert config.spill_directory("relative") == os.path.join(tmp_path, "relative")
    kinds[str(tmp_path)] = ("ramfs", True)
    with pytest.raises(SpillError, match="/var/tmp is on tmpfs, which keeps") as error:
        config.spill_directory()
    assert "GNNOFFLOAD_SPILL_DIR" in str(error.value)
