"""The graphs of the op tests, and the device that runs the kernels.

The modules and tests named here run twice: on the CPU kernels, and with the CUDA
kernels in their place, lane by lane in tests/cuda_on_cpu.
"""

import sys
from pathlib import Path

import pytest
from graph_cases import GRAPHS

sys.path.append(str(Path(__file__).parents[1] / "cuda_on_cpu"))

ON_BOTH = {
    *("test_spmm_values", "test_spmm_exact", "test_spmm_bound", "test_properties"),
    *("test_spmm_twice_differentiable", "test_sddmm_twice_differentiable"),
}
LONG_THERE = {"test_hub", "test_order"}  # lane by lane; or without a kernel


def pytest_generate_tests(metafunc):
    if ON_BOTH & {metafunc.module.__name__, metafunc.function.__name__}:
        slow = pytest.mark.slow if metafunc.function.__name__ in LONG_THERE else ()
        devices = ["cpu", pytest.param("cuda_on_cpu", marks=slow)]
        metafunc.parametrize("device", devices, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def device(request):
    device = getattr(request, "param", "cpu")
    if device == "cpu":
        yield device
        return
    import cuda_ops

    from gnnoffload import _dispatch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "spmm_op", cuda_ops.spmm)
        patch.setattr(_dispatch, "sddmm_op", cuda_ops.sddmm)
        before = cuda_ops.n_calls
        yield device
        assert cuda_ops.n_calls > before, "no kernel ran on the executor"


@pytest.fixture(params=GRAPHS, ids=lambda name: name.replace(" ", "-"))
def edges_and_size(request):
    return GRAPHS[request.param]
