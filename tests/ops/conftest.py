"""The graphs of the op tests, and the device that runs the kernels.

The modules and tests named here run twice: on the CPU kernels, and with the CUDA
kernels in their place, lane by lane in tests/cuda_on_cpu; where there is a GPU, a third
time on it.
"""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from graph_cases import GRAPHS

from gnnoffload import _C, _dispatch, _dispatch_attention

sys.path.append(str(Path(__file__).parents[1] / "cuda_on_cpu"))

ON_BOTH = {
    *("test_spmm_values", "test_spmm_exact", "test_spmm_bound", "test_properties"),
    *("test_spmm_twice_differentiable", "test_sddmm_twice_differentiable"),
}
ATTENTION = {"test_gat_literal", "test_gatv2_literal", "test_dot_literal"}
ATTENTION |= {"test_options", "test_a_bad_score_stays_in_its_row_and_head"}
LONG_THERE = {"test_hub", "test_order"}  # lane by lane; or without a kernel


def pytest_generate_tests(metafunc):
    attends = metafunc.module.__name__ == "test_attention_values"
    if attends and metafunc.function.__name__ in ATTENTION:
        devices = ["cpu", "cuda_on_cpu"]
        metafunc.parametrize("device", devices, indirect=True, scope="module")
    if ON_BOTH & {metafunc.module.__name__, metafunc.function.__name__}:
        slow = pytest.mark.slow if metafunc.function.__name__ in LONG_THERE else ()
        devices = ["cpu", pytest.param("cuda_on_cpu", marks=slow)]
        if torch.cuda.is_available() and _C.build_facts()["cuda"]:
            devices.append("cuda")
        metafunc.parametrize("device", devices, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def device(request):
    device = getattr(request, "param", "cpu")
    if device == "cpu":
        yield device
        return
    ops = importlib.import_module(
        {"cuda_on_cpu": "cuda_ops", "cuda": "gpu_ops"}[device]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "spmm_op", ops.spmm)
        patch.setattr(_dispatch, "sddmm_op", ops.sddmm)
        if device == "cuda_on_cpu":
            attention = importlib.import_module("attention_ops")
            patch.setattr(_dispatch_attention, "attention_op", attention.attention)
            for name in ("dst_vjp", "src_vjp"):
                kernel = getattr(attention, f"attention_{name}")
                patch.setattr(_dispatch_attention, f"{name}_op", kernel)
        before = ops.n_calls
        yield device
        assert ops.n_calls > before, f"no kernel ran on {device}"


@pytest.fixture(params=GRAPHS, ids=lambda name: name.replace(" ", "-"))
def edges_and_size(request):
    return GRAPHS[request.param]
