"""gine of csrc/cuda and its two derivatives, lane by lane, against torch in float64 (on
small integers: one right value) and against the CPU kernels' bits."""

import ctypes

import cuda_ops
import pytest
import torch
from cuda_ops import DTYPES, ENUM, INT64, POINTER, Call, Csr, in_all_orders, ops_library
from torch import Tensor

import gnnoffload as go
from gnnoffload import _dispatch_gine

DEGREES = [0, 1, 3, 0, 257, 256, 600, 2, 0]
WIDTHS = [1, 7, 32]
ABSENT = torch.empty(0)


class GineArgs(ctypes.Structure):
    _fields_ = (
        ("a", Csr),
        ("dtype", ENUM),
        ("n_features", INT64),
        *[(f"{name}_stride", INT64) for name in ("x", "edge", "dx", "dedge")],
        *[(name, POINTER) for name in ("x", "edge", "dx", "dedge", "scratch", "y")],
    )


class VjpArgs(ctypes.Structure):
    _fields_ = (
        ("a", Csr),
        ("dtype", ENUM),
        ("n_features", INT64),
        *[(f"{name}_stride", INT64) for name in ("x", "edge", "grad")],
        *[(name, POINTER) for name in ("x", "edge", "grad")],
        *[(name, POINTER) for name in ("scratch", "grad_x", "grad_edge")],
    )


def place(call, args, offset=0, **matrices):
    """The matrices in device memory, and the scratch; absent ones stay NULL."""
    for name, matrix in matrices.items():
        if matrix.numel():
            address, stride = call.matrix(name, matrix, offset)
            setattr(args, name, address)
            setattr(args, f"{name}_stride", stride)
    a, dll = ctypes.byref(args.a), call.library.dll
    n_bytes = dll.gnn_spmm_cuda_scratch(a, INT64(args.n_features), args.dtype)
    args.scratch, _ = call.memory.output("scratch", (n_bytes,), torch.uint8)


def run_sum(library, x, edge, dx, dedge, *graph, split, offset=0):
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, graph, split)
        args = GineArgs(a=call.csr, dtype=DTYPES.index(x.dtype), n_features=x.shape[1])
        place(call, args, offset, x=x, edge=edge, dx=dx, dedge=dedge)
        shape, at = (args.a.n_rows, x.shape[1]), offset * x.element_size()
        args.y, y = memory.output("y", shape, x.dtype, at)
        library.call("gnn_gine_cuda", ctypes.byref(args), ctypes.c_uint64(0))
        return y.clone()


def run_vjp(library, grad, x, edge, *graph, split, wants=(True, True)):
    """Both gradients as one vector, so that bits can be compared."""
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, graph, split)
        args = VjpArgs(a=call.csr, dtype=DTYPES.index(x.dtype), n_features=x.shape[1])
        place(call, args, x=x, edge=edge, grad=grad)
        grads = []
        for name, like, want in zip(
            ("grad_x", "grad_edge"), (x, edge), wants, strict=True
        ):
            if want:
                address, out = memory.output(name, tuple(like.shape), x.dtype)
                setattr(args, name, address)
                grads.append(out)
        library.call("gnn_gine_vjp_cuda", ctypes.byref(args), ctypes.c_uint64(0))
        return torch.cat([out.flatten() for out in grads])


def integers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(-4, 5, shape, generator=generator)


def case(dtype, width, n_src=30):
    """graph, x, edge, dx, dedge, grad"""
    destination = torch.arange(len(DEGREES)).repeat_interleave(torch.tensor(DEGREES))
    n_edges = destination.shape[0]
    order = torch.randperm(n_edges, generator=torch.Generator().manual_seed(1))
    source = integers(n_edges, seed=3) % n_src
    edges = torch.stack((source, destination))[:, order]
    graph = go.Graph(edges, (n_src, len(DEGREES)))
    shapes = (n_src, n_edges, n_src, n_edges, len(DEGREES))
    numbers = [integers(n, width, seed=i).to(dtype) for i, n in enumerate(shapes)]
    return edges, graph, *numbers


def oracle(edges, n_dst, x, edge) -> Tensor:
    message = (x[edges[0]] + edge).relu()
    return x.new_zeros(n_dst, x.shape[1]).index_add(0, edges[1], message)


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_sum_and_derivatives(width, dtype):
    edges, graph, x, edge, dx, dedge, grad = case(dtype, width)
    args = graph.args(with_csc=True)
    n_dst = len(DEGREES)
    x64, edge64 = x.double().requires_grad_(), edge.double().requires_grad_()
    y64 = oracle(edges, n_dst, x64, edge64)
    y = in_all_orders(run_sum, x, edge, ABSENT, ABSENT, *args)
    assert torch.equal(y, y64.to(dtype))

    gate = (x64[edges[0]] + edge64 > 0).double()
    along = gate * (dx.double()[edges[0]] + dedge.double())
    expected = along.new_zeros(n_dst, width).index_add(0, edges[1], along)
    tangent = in_all_orders(run_sum, x, edge, dx, dedge, *args)
    assert torch.equal(tangent, expected.to(dtype))

    grads = torch.autograd.grad(y64, (x64, edge64), grad.double())
    back = (*args[3:6], *args[:3], args[7], args[6])
    got = in_all_orders(run_vjp, grad, x, edge, *back)
    both = torch.cat([g.flatten() for g in grads]).to(dtype)
    assert torch.equal(got, both)
    for wants, part in (
        ((True, False), got[: x.numel()]),
        ((False, True), got[x.numel() :]),
    ):
        one = in_all_orders(run_vjp, grad, x, edge, *back, wants=wants)
        assert torch.equal(one, part)


@pytest.mark.parametrize("missing", ["dx", "dedge"])
def test_one_tangent_alone(missing):
    _, graph, x, edge, dx, dedge, _ = case(torch.float32, 12)
    both = {"dx": dx, "dedge": dedge}
    zeros = both | {missing: torch.zeros_like(both[missing])}
    absent = both | {missing: ABSENT}
    args = graph.args()
    got = in_all_orders(run_sum, x, edge, *absent.values(), *args)
    assert torch.equal(got, in_all_orders(run_sum, x, edge, *zeros.values(), *args))
    of_cpu = absent | {missing: None}
    assert torch.equal(
        got, _dispatch_gine.call_gine_jvp(x, edge, *of_cpu.values(), args)
    )


def test_nan_passes_and_stays_in_its_row():
    _, graph, x, edge, *_ = case(torch.float32, 5)
    edge[0, 2] = float("nan")
    expected = go.gine(graph, x, edge)
    assert expected.isnan().sum() == 1
    got = in_all_orders(run_sum, x, edge, ABSENT, ABSENT, *graph.args())
    assert torch.equal(got.nan_to_num(77), expected.nan_to_num(77))


def test_pointers_off_by_an_element():
    edges, graph, x, edge, *_ = case(torch.float32, 8)
    expected = oracle(edges, len(DEGREES), x, edge)
    got = in_all_orders(run_sum, x, edge, ABSENT, ABSENT, *graph.args(), offset=1)
    assert torch.equal(got, expected)


def test_grid_strides():
    small = ops_library("-DGNN_MAX_BLOCKS=2", "-DGNN_MAX_SLICES=1")
    edges, graph, x, edge, *_ = case(torch.float32, 140)
    args = (x, edge, ABSENT, ABSENT, *graph.args())
    got = in_all_orders(run_sum, *args, library=small)
    assert torch.equal(got, oracle(edges, len(DEGREES), x, edge))
