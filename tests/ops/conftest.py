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

from gnnoffload import (
    _C,
    _dispatch,
    _dispatch_attention,
    _dispatch_gated,
    _dispatch_heads,
    _dispatch_reduce,
    _dispatch_softmax_aggregate,
)

sys.path.append(str(Path(__file__).parents[1] / "cuda_on_cpu"))

ON_BOTH = {
    *("test_spmm_values", "test_spmm_exact", "test_spmm_bound", "test_properties"),
    *("test_spmm_twice_differentiable", "test_sddmm_twice_differentiable"),
    *("test_edge_softmax_literal", "test_edge_softmax", "test_products_by_head"),
    *("test_no_head_and_no_channel", "test_odd_scores", "test_edge_softmax_twice"),
    *("test_products_by_head_twice", "test_softmax_thrice"),
    *("test_reductions.test_literal", "test_reductions.test_every_graph"),
    *("test_ties_share_the_gradient_evenly", "test_every_subset"),
    *("test_as_scatter_reduce_but_for_its_phantom_zero",),
    *("test_a_mean_far_from_zero_costs_no_digits",),
    *("test_nan_wins_and_infinity_is_a_number", "test_smallest_argument"),
    *("test_one_of_several_gradients_is_enough",),
    *("test_softmax_aggregate.test_literal", "test_softmax_aggregate.test_every_graph"),
    *("test_large_exponents_and_what_is_not_finite",),
    *("test_gated.test_literal", "test_gated.test_graphs"),
    *("test_what_is_not_finite", "test_inference.test_a_few_statistics"),
}
ATTENTION = {"test_gat_literal", "test_gatv2_literal", "test_dot_literal"}
ATTENTION |= {"test_options", "test_a_bad_score_stays_in_its_row_and_head"}
EXECUTED = ("cuda_ops", "cuda_ops_heads", "cuda_ops_reduce", "cuda_ops_gated")
EXECUTED += ("attention_ops",)
DISPATCHED = {  # module: {its name of an op: the function that stands for it}
    _dispatch: {"spmm_op": "spmm", "sddmm_op": "sddmm"},
    _dispatch_attention: {
        "attention_op": "attention",
        "dst_vjp_op": "attention_dst_vjp",
        "src_vjp_op": "attention_src_vjp",
    },
    _dispatch_gated: {"gated_op": "gated", "gated_vjp_op": "gated_vjp"},
    _dispatch_heads: {
        "edge_softmax_op": "edge_softmax",
        "edge_softmax_vjp_op": "edge_softmax_vjp",
        "heads_spmm_op": "heads_spmm",
        "heads_sddmm_op": "heads_sddmm",
    },
    _dispatch_reduce: {
        "aggregate_op": "aggregate",
        "aggregate_vjp_op": "aggregate_vjp",
    },
    _dispatch_softmax_aggregate: {
        "softmax_op": "softmax_aggregate",
        "softmax_vjp_op": "softmax_aggregate_vjp",
    },
}
LONG_THERE = {"test_graphs", "test_hub", "test_order", "test_smallest_argument"}
# lane by lane; or without a kernel
LONG_THERE |= {"test_products_by_head", "test_products_by_head_twice"}


def pytest_generate_tests(metafunc):
    module, function = metafunc.module.__name__, metafunc.function.__name__
    if module == "test_attention_values" and function in ATTENTION:
        devices = ["cpu", "cuda_on_cpu"]
        metafunc.parametrize("device", devices, indirect=True, scope="module")
    if ON_BOTH & {module, function, f"{module}.{function}"}:
        slow = pytest.mark.slow if function in LONG_THERE else ()
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
    first, *more = (
        importlib.import_module(name)
        for name in {"cuda_on_cpu": EXECUTED, "cuda": ("gpu_ops",)}[device]
    )
    with pytest.MonkeyPatch.context() as patch:
        for ops in (first, *more):
            for module, names in DISPATCHED.items():
                for name, op in names.items():
                    if hasattr(ops, op):
                        patch.setattr(module, name, getattr(ops, op))
        before = first.n_calls
        yield device
        assert first.n_calls > before, f"no kernel ran on {device}"


@pytest.fixture(params=GRAPHS, ids=lambda name: name.replace(" ", "-"))
def edges_and_size(request):
    return GRAPHS[request.param]
