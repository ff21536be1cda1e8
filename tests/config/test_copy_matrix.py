"""The copy matrix as doctor shows it; its measuring is tested in tests/c."""

import pytest

from gnnoffload import _C, _cuda_lane
from gnnoffload._copy_matrix import best_path, copy_matrix, render, smallest_copy
from gnnoffload._gpu import memory_model

MIB = 1 << 20
GRACE_HOPPER = {
    "sizes": [MIB // 16, MIB, 64 * MIB, 1024 * MIB],
    "pinned": [
        [2e10, 2e10, 3e10],
        [1.6e11, 1.9e11, 3e11],
        [2.9e11, 3.6e11, 4e11],
        [0.0] * 3,
    ],
    "pageable": [[1e9, 1e9, 1e9], [5e9, 5e9, 5e9], [1e10, 1e10, 1e10], [0.0] * 3],
    "managed": "cuda: cudaMallocManaged: cudaErrorNotSupported",
    "system": [[2e10, 2e10, 2e10], [1e11, 1e11, 1e11], [2e11, 3.7e11, 3e11], [0.0] * 3],
}


def test_best_path_by_way():
    assert best_path(GRACE_HOPPER) == {
        "out": "pinned",
        "in": "system",
        "both": "pinned",
    }


def test_smallest_copy_that_is_worth_its_start():
    assert smallest_copy(GRACE_HOPPER) == MIB  # both ways at half of 290 and 360 GB/s
    assert smallest_copy(GRACE_HOPPER, "managed") is None


def test_render_has_every_kind_way_and_size():
    lines = render(GRACE_HOPPER | {"best": {"out": "pinned"}, "smallest_copy": MIB})
    head, *rows, best, smallest = lines.splitlines()
    assert head.split() == ["GB/s", "64.0KiB", "1.0MiB", "64.0MiB", "1.0GiB"]
    assert rows[0].split() == ["pinned", "20.0", "160.0", "290.0", "-", "out"]
    assert rows[6] == "managed: cuda: cudaMallocManaged: cudaErrorNotSupported"
    assert best == "best path out: pinned" and "1.0MiB" in smallest


def test_without_a_device_every_kind_says_why():
    if _cuda_lane.absence() == "":
        pytest.skip("there is a CUDA device")
    found = copy_matrix(sizes=[MIB])
    assert "cuda: " in found["pinned"] and found["best"] == {}
    assert found["pinned"] in render(found) and "best path unknown" in render(found)


def test_mistakes_are_value_errors():
    with pytest.raises(ValueError, match="no kind banana"):
        _C.copy_rates("banana", [MIB])
    with pytest.raises(ValueError, match="1 to 32 sizes"):
        _C.copy_rates("pinned", [])


@pytest.mark.parametrize(
    "integrated, pageable, tables, model",
    [
        (0, 0, 0, "discrete"),
        (0, 1, 0, "software coherent"),
        (0, 1, 1, "hardware coherent"),
        (1, 1, 1, "integrated"),
    ],
)
def test_memory_model_follows_from_attributes(integrated, pageable, tables, model):
    device = {"integrated": integrated, "pageable_memory_access": pageable}
    assert memory_model(device | {"host_page_tables": tables}) == model
