"""heads_spmm, heads_sddmm and edge_softmax of csrc/cuda, lane by lane.

Products on small integers, so that there is one right value; softmax against torch in
float64.
"""

import ctypes

import cuda_ops
import pytest
import torch
from cuda_executor import Refused
from cuda_ops import DTYPES, in_all_orders, ops_library
from cuda_ops_heads import (
    HeadsArgs,
    SoftmaxArgs,
    accumulator,
    run_sddmm,
    run_softmax,
    run_softmax_vjp,
    run_spmm,
)

import gnnoffload as go

pytestmark = pytest.mark.law(1, 2)

DEGREES = [0, 1, 3, 0, 257, 256, 600, 2, 0]
N_SRC, N_DST = 30, len(DEGREES)
SHAPES = [(1, 1), (1, 8), (3, 5), (4, 8), (8, 4), (2, 33), (40, 1), (1, 0)]  # H, C


@pytest.fixture
def ops():
    yield ops_library()
    ops_library().reset()


def integers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(-3, 4, shape, generator=generator)


def some_graph(degrees=DEGREES):
    """(edge_index in a random order, the graph as an op takes it)"""
    destination = torch.arange(len(degrees)).repeat_interleave(torch.tensor(degrees))
    order = torch.randperm(len(destination), generator=torch.Generator().manual_seed(1))
    source = integers(len(destination), seed=3) % N_SRC
    edges = torch.stack((source, destination))[:, order]
    return edges, go.Graph(edges, (N_SRC, len(degrees))).args()


# ---------------------------------------------------------------------------- products


def spmm_oracle(edges, x, w, scale):
    message = x[edges[0]] * w[:, :, None] * scale
    return torch.zeros(N_DST, *x.shape[1:]).double().index_add(0, edges[1], message)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape, dtype):
    """With edges of the features' dtype and of the accumulator's, as attention's
    backward has them."""
    edges, graph = some_graph()
    x, u = (integers(n, *shape, seed=n).double() for n in (N_SRC, N_DST))
    w = integers(edges.shape[1], shape[0]).double()
    expected = spmm_oracle(edges, x, w, 0.5).to(dtype)
    dots = (u[edges[1]] * x[edges[0]]).sum(2) * 0.5
    for edge_dtype in {dtype, accumulator(dtype)}:
        y = in_all_orders(run_spmm, x.to(dtype), w.to(edge_dtype), 0.5, *graph)
        assert torch.equal(y, expected)
        both = u.to(dtype), x.to(dtype)
        z = in_all_orders(run_sddmm, *both, 0.5, edge_dtype, *graph)
        assert torch.equal(z, dots.to(edge_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_apart_and_pointers_off_by_an_element(dtype):
    edges, graph = some_graph()
    wide = integers(N_SRC, 5, 8).double()
    x = wide[:, :4]  # rows 40 apart
    w, u = integers(edges.shape[1], 4).double(), integers(N_DST, 4, 8).double()
    rows_apart = wide.to(dtype)[:, :4]
    for offset in (0, 1):
        args = (rows_apart, w.to(dtype), 1.0, *graph)
        y = in_all_orders(run_spmm, *args, offset=offset)
        assert torch.equal(y, spmm_oracle(edges, x, w, 1).to(dtype))
        args = (u.to(dtype), rows_apart, 1.0, dtype, *graph)
        z = in_all_orders(run_sddmm, *args, offset=offset)
        assert torch.equal(z, (u[edges[1]] * x[edges[0]]).sum(2).to(dtype))


def test_grid_strides_of_products():
    small = ops_library("-DGNN_MAX_BLOCKS=2", "-DGNN_MAX_SLICES=1")
    edges, graph = some_graph()
    x, u = (integers(n, 7, 20, seed=n).float() for n in (N_SRC, N_DST))
    w = integers(edges.shape[1], 7).float()
    y = in_all_orders(run_spmm, x, w, 1.0, *graph, library=small)
    assert torch.equal(y, spmm_oracle(edges, x.double(), w.double(), 1).float())
    z = in_all_orders(run_sddmm, u, x, 1.0, torch.float32, *graph, library=small)
    assert torch.equal(z, (u[edges[1]] * x[edges[0]]).sum(2))


def test_sectors_of_a_gather_by_heads(ops):
    """Rows of [H, C] cost their sectors and no more, whichever product."""
    n_edges = 300
    edges = torch.stack((torch.randperm(n_edges), torch.randint(0, 40, (n_edges,))))
    graph = go.Graph(edges, (n_edges, 40)).args()
    for heads, channels in ((4, 8), (2, 32), (8, 4), (2, 12)):
        x = torch.ones(n_edges, heads, channels)
        sectors = heads * channels * 4 // 32
        w, u = torch.ones(n_edges, heads), torch.ones(40, heads, channels)
        moved = cuda_ops.traffic(ops, run_spmm, "xy", x, w, 1.0, *graph, split=True)
        assert moved["x"] == (n_edges * sectors, 0)
        assert moved["y"] == (0, 40 * sectors)
        args = (u, x, 1.0, torch.float32, *graph)
        moved = cuda_ops.traffic(ops, run_sddmm, "v", *args, split=True)
        assert moved["v"] == (n_edges * sectors, 0)


# ----------------------------------------------------------------------------- softmax


def softmax_oracle(edges, scores):
    """alpha of each edge, row by row"""
    alpha = torch.zeros_like(scores)
    for row in edges[1].unique():
        of_row = edges[1] == row
        alpha[of_row] = scores[of_row].softmax(0)
    return alpha


ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14}
ROUNDING |= {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_heads", [1, 2, 3, 8, 40])
def test_softmax_and_its_gradient(n_heads, dtype):
    edges, graph = some_graph()
    generator = torch.Generator().manual_seed(5)
    scores, grad = (
        torch.randn(edges.shape[1], n_heads, generator=generator).to(dtype) * scale
        for scale in (20, 1)
    )
    exact = scores.double().requires_grad_()
    alpha64 = softmax_oracle(edges, exact)
    close = {"rtol": 20 * ROUNDING[dtype], "atol": 2.0**-24}
    alpha = in_all_orders(run_softmax, scores, *graph)
    torch.testing.assert_close(alpha.double(), alpha64, **close)
    # the gradient of the alpha that was given
    given = alpha.double()
    n = torch.zeros(N_DST, n_heads).double()
    of_row = n.index_add(0, edges[1], given * grad.double())[edges[1]]
    ds = in_all_orders(run_softmax_vjp, alpha, grad, *graph)
    expected = given * (grad.double() - of_row)
    close["atol"] = ROUNDING[dtype]
    torch.testing.assert_close(ds.double(), expected, **close)
    (ds64,) = torch.autograd.grad(alpha64, exact, grad.double())
    torch.testing.assert_close(ds.double(), ds64, rtol=0, atol=20 * ROUNDING[dtype])


def test_softmax_far_from_zero():
    """Only differences within a row count, however large the scores."""
    edges, graph = some_graph()
    scores = integers(edges.shape[1], 2).float()
    alpha = in_all_orders(run_softmax, scores, *graph)
    for shift in (-(2.0**20), 2.0**20):
        assert torch.equal(in_all_orders(run_softmax, scores + shift, *graph), alpha)


def test_softmax_of_infinities_and_nan():
    """-inf alone: NaN; beside numbers: 0. +inf: NaN, and 0 beside it. NaN: the row."""
    inf, nan = float("inf"), float("nan")
    rows = [[-inf, -inf], [-inf, 0.0], [inf, 1.0], [nan, 1.0], [2.0, 2.0]]
    expected = [[nan, nan], [0.0, 1.0], [nan, 0.0], [nan, nan], [0.5, 0.5]]
    for flip in (False, True):
        flat = torch.tensor(rows).flip(1) if flip else torch.tensor(rows)
        edges = torch.stack(
            (torch.zeros(10).long(), torch.arange(5).repeat_interleave(2))
        )
        graph = go.Graph(edges, (1, 5)).args()
        alpha = in_all_orders(run_softmax, flat.view(10, 1), *graph).view(5, 2)
        wanted = torch.tensor(expected).flip(1) if flip else torch.tensor(expected)
        torch.testing.assert_close(alpha, wanted, rtol=0, atol=0, equal_nan=True)


def test_nan_in_one_chunk_reaches_the_whole_row():
    edges, graph = some_graph()
    scores = torch.zeros(edges.shape[1], 2)
    hub = (edges[1] == 6).nonzero().flatten()
    scores[hub[77], 1] = float("nan")
    alpha = in_all_orders(run_softmax, scores, *graph)
    assert torch.equal(alpha[:, 1].isnan(), edges[1] == 6)
    assert not alpha[:, 0].isnan().any()


def test_grid_strides_of_softmax():
    small = ops_library("-DGNN_MAX_BLOCKS=2", "-DGNN_MAX_SLICES=1")
    edges, graph = some_graph(DEGREES * 4)
    scores = integers(edges.shape[1], 40).double()
    alpha = run_softmax(small, scores, *graph, split=True)
    expected = in_all_orders(run_softmax, scores, *graph)
    assert cuda_ops.same_bits(alpha, expected)
    grad = integers(*scores.shape, seed=9).double()
    ds = run_softmax_vjp(small, alpha, grad, *graph, split=True)
    assert cuda_ops.same_bits(ds, in_all_orders(run_softmax_vjp, alpha, grad, *graph))


# ------------------------------------------------------------------------------ errors


def test_sizes_and_dtypes_are_checked(ops):
    edges, graph = some_graph()
    x, w = torch.zeros(N_SRC, 2, 4), torch.zeros(edges.shape[1], 2)
    with pytest.raises(Refused, match="dtype of the edges must be float32"):
        run_spmm(ops, x, w.bfloat16(), 1.0, *graph, split=True)
    args = HeadsArgs(n_heads=2**30)
    with pytest.raises(Refused, match=r"heads and channels must be in \[0, 2\^30\)"):
        ops.call("gnn_heads_sddmm_cuda", ctypes.byref(args), ctypes.c_uint64(0))
    args = SoftmaxArgs(n_heads=-1)
    with pytest.raises(Refused, match="edge_softmax: number of heads must be"):
        ops.call("gnn_edge_softmax_cuda", ctypes.byref(args), ctypes.c_uint64(0))


def test_layout_of_the_argument_structs(tmp_path):
    fields = {"gnn_heads_args": HeadsArgs, "gnn_edge_softmax_args": SoftmaxArgs}
    cuda_ops.check_layout(fields, tmp_path)
