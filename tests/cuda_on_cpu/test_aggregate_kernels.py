"""aggregate of csrc/cuda and its gradients, lane by lane, against torch in float64."""

import ctypes

import cuda_ops
import pytest
import torch
from cuda_executor import Refused
from cuda_ops import DTYPES, accumulator, in_all_orders, ops_library
from cuda_ops_reduce import (
    ARG_DTYPES,
    NAMES,
    AggregateArgs,
    run_aggregate,
    run_aggregate_vjp,
)

import gnnoffload as go

pytestmark = pytest.mark.law(1, 2)

DEGREES = [0, 1, 3, 0, 257, 256, 600, 2, 0]
N_SRC, N_DST = 30, len(DEGREES)


def forward(names, x, edge, arg_dtype, graph, **kwargs):
    """{name: statistic}, with "arg_min", "arg_max", "mean_acc" """
    wants_mean = bool({"var", "std"} & set(names))
    args = (names, x, edge, arg_dtype, wants_mean, *graph)
    packed = in_all_orders(run_aggregate, *args, **kwargs)
    kinds = {name: x.dtype for name in NAMES if name in names}
    kinds |= {f"arg_{name}": arg_dtype for name in ("min", "max") if name in names}
    if {"var", "std"} & set(names):
        kinds["mean_acc"] = accumulator(x.dtype)
    n, found = graph[-2] * x.shape[1], {}
    for name, dtype in kinds.items():
        part, packed = packed[: n * dtype.itemsize], packed[n * dtype.itemsize :]
        found[name] = part.clone().view(dtype).view(graph[-2], -1)
    assert packed.numel() == 0
    return found


def statistics(m, names):
    """{name: [F]} of the messages [n, F] of one row, in plain torch"""
    if not len(m):
        return {name: m.sum(0) for name in names}
    var = m.square().mean(0) - m.mean(0).square()
    root = var.clamp(min=1e-5).sqrt()
    every = {
        "sum": m.sum(0),
        "mean": m.mean(0),
        "min": m.amin(0),
        "max": m.amax(0),
        "var": var,
        "std": root.masked_fill(root <= 1e-5**0.5, 0),
    }
    return {name: every[name] for name in names}


def oracle(names, edges, n_dst, x, edge, dtype):
    """The statistics in float64 of messages that were rounded to dtype."""
    message = x[edges[0]] + (edge if edge.numel() else 0)
    message = message + (message.to(dtype).double() - message).detach()
    rows = [statistics(message[edges[1] == i], names) for i in range(n_dst)]
    return {name: torch.stack([row[name] for row in rows]) for name in names}


def integers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(-4, 5, shape, generator=generator)


def case(width, dtype, with_edge, degrees=DEGREES):
    """edge_index in a random order, graph, x, edge: small integers, so that many tie"""
    destination = torch.arange(len(degrees)).repeat_interleave(torch.tensor(degrees))
    order = torch.randperm(len(destination), generator=torch.Generator().manual_seed(1))
    source = integers(len(destination), seed=3) % N_SRC
    edges = torch.stack((source, destination))[:, order]
    graph = go.Graph(edges, (N_SRC, len(degrees))).args(with_csc=True)
    x = (integers(N_SRC, width) * 3).to(dtype)
    edge = integers(edges.shape[1], width) if with_edge else torch.empty(0)
    return edges, graph, x, edge.to(dtype)


ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13}
ROUNDING |= {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}
SUBSETS = [("max",), ("min",), ("sum", "mean"), ("std",), ("min", "var"), tuple(NAMES)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_edge", [False, True], ids=["x", "x+edge"])
@pytest.mark.parametrize("width", [1, 7, 40])
@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_statistics_and_gradients(names, width, with_edge, dtype):
    edges, graph, x, edge = case(width, dtype, with_edge)
    saved = forward(names, x, edge, torch.int16, graph)
    x64, edge64 = x.double().requires_grad_(), edge.double().requires_grad_()
    expected = oracle(names, edges, N_DST, x64, edge64, dtype)
    close = {"rtol": ROUNDING[dtype], "atol": 20 * ROUNDING[torch.float32]}
    for name in names:
        exact = name in ("sum", "min", "max")
        tolerance = {"rtol": 0, "atol": 0} if exact else close
        torch.testing.assert_close(
            saved[name].double(), expected[name].to(dtype).double(), **tolerance
        )

    grads = {name: integers(N_DST, width, seed=i).to(dtype) for i, name in
             enumerate(names)}  # fmt: skip
    inputs = (x64, edge64) if with_edge else (x64,)
    outputs = [expected[name] for name in names]
    wanted = torch.autograd.grad(
        outputs, inputs, [grads[name].double() for name in names], allow_unused=True
    )
    got = in_all_orders(run_aggregate_vjp, names, x, edge, saved, grads, *graph)
    both = torch.cat([g.flatten() for g in wanted])
    bound = max(1.0, both.abs().max().item()) * ROUNDING[dtype] * 4
    torch.testing.assert_close(got.double(), both, rtol=ROUNDING[dtype], atol=bound)
    n = x.numel()
    parts = [((True, False), got[:n])] + [((False, True), got[n:])] * with_edge
    for wants, part in parts:
        args = (names, x, edge, saved, grads, *graph)
        assert torch.equal(
            run_aggregate_vjp(ops_library(), *args, split=True, wants=wants), part
        )


def test_args_say_where_and_how_often():
    """Numbers within rows, counts of ties below -1, -1 in an empty row."""
    edges = torch.tensor([[0, 1, 2, 3, 4, 1, 1], [0, 0, 0, 2, 2, 2, 3]])
    graph = go.Graph(edges, (5, 4)).args()
    x = torch.tensor([[5.0, 0.0], [7.0, -0.0], [6.0, 0.0], [7.0, -1.0], [9.0, -1.0]])
    found = forward(("min", "max"), x, torch.empty(0), torch.int8, graph)
    assert found["arg_max"].tolist() == [[1, -3], [-1, -1], [2, 0], [0, 0]]
    assert found["arg_min"].tolist() == [[0, -3], [-1, -1], [-2, -2], [0, 0]]
    assert found["max"].tolist() == [[7.0, 0.0], [0.0, 0.0], [9.0, 0.0], [7.0, 0.0]]
    first = found["max"][:, 1].signbit().tolist()
    assert first == [False, False, True, True]  # 0, empty, -0, -0: the first one


@pytest.mark.parametrize("arg_dtype", ARG_DTYPES, ids=str)
@pytest.mark.parametrize("width", [4, 5, 16])
def test_integers_of_args(width, arg_dtype):
    degrees = [0, 5, 100, 3] if arg_dtype is torch.int8 else DEGREES
    _, graph, x, edge = case(width, torch.float32, False, degrees)
    found = forward(("min", "max"), x, edge, arg_dtype, graph)
    alone = [forward((name,), x, edge, arg_dtype, graph) for name in ("min", "max")]
    for one, name in zip(alone, ("min", "max"), strict=True):
        assert torch.equal(one[name], found[name])
        assert torch.equal(one[f"arg_{name}"], found[f"arg_{name}"])
    grads = {name: integers(len(degrees), width).float() for name in ("min", "max")}
    got = in_all_orders(
        run_aggregate_vjp, ("min", "max"), x, edge, found, grads, *graph
    )
    parts = [
        in_all_orders(run_aggregate_vjp, (name,), x, edge, one, grads, *graph)
        for one, name in zip(alone, ("min", "max"), strict=True)
    ]
    torch.testing.assert_close(got, parts[0] + parts[1])


@pytest.mark.parametrize("heavy", [False, True])
def test_nan_wins(heavy):
    """In its row and feature, as minimum and maximum; several share the gradient."""
    degrees = [3, 600 if heavy else 40, 2]
    edges, graph, x, _ = case(5, torch.float32, False, degrees)
    of_row = (edges[1] == 1).nonzero().flatten()
    edge = torch.zeros(edges.shape[1], 5)
    edge[of_row[[3, 30]], 2] = float("nan")
    saved = forward(("min", "max"), x, edge, torch.int16, graph)
    for name in ("min", "max"):
        where = saved[name].isnan()
        assert where.nonzero().tolist() == [[1, 2]]
        assert saved[f"arg_{name}"][1, 2] == -2
    grads = {"max": torch.ones(3, 5)}
    got = run_aggregate_vjp(
        ops_library(), ("min", "max"), x, edge, saved, grads, *graph,
        split=True, wants=(False, True),
    ).view_as(edge)  # fmt: skip
    assert got[of_row[[3, 30]], 2].tolist() == [0.5, 0.5]
    assert got[of_row, 2].sum() == 1


def test_variance_far_from_zero():
    """Around the first message: a mean far from 0 costs no digits."""
    _edges, graph, x, edge = case(8, torch.float32, False)
    shifted = x + 4096
    near = forward(("var", "std"), x, edge, torch.int8, graph)
    far = forward(("var", "std"), shifted, edge, torch.int8, graph)
    for name in ("var", "std"):
        assert torch.equal(near[name], far[name])


def test_rows_apart_and_pointers_off_by_an_element():
    _edges, graph, x, edge = case(8, torch.float32, True)
    apart = torch.zeros(N_SRC, 12)
    apart[:, :8] = x
    expected = forward(tuple(NAMES), x, edge, torch.int16, graph)
    for given, offset in ((apart[:, :8], 0), (x, 1)):
        got = forward(tuple(NAMES), given, edge, torch.int16, graph, offset=offset)
        for name, wanted in expected.items():
            assert torch.equal(got[name], wanted), name


def test_gradients_that_are_absent_or_apart():
    names = ("sum", "max", "std")
    _edges, graph, x, edge = case(8, torch.float32, True)
    saved = forward(names, x, edge, torch.int16, graph)
    grads = {name: integers(N_DST, 8, seed=len(name)).float() for name in names}
    ops = ops_library()
    args = (names, x, edge, saved)
    for name in names:
        zeros = {k: v * (k != name) for k, v in grads.items()}
        absent = {k: v for k, v in grads.items() if k != name}
        one = run_aggregate_vjp(ops, *args, zeros, *graph, split=True)
        assert torch.equal(
            one, run_aggregate_vjp(ops, *args, absent, *graph, split=True)
        )
    expanded = {name: torch.ones(1, 1).expand(N_DST, 8) for name in names}
    plain = {name: torch.ones(N_DST, 8) for name in names}
    one = run_aggregate_vjp(ops, *args, expanded, *graph, split=True)
    assert torch.equal(one, run_aggregate_vjp(ops, *args, plain, *graph, split=True))


def test_grid_strides():
    small = ops_library("-DGNN_MAX_BLOCKS=2", "-DGNN_MAX_SLICES=1")
    names = tuple(NAMES)
    _edges, graph, x, edge = case(140, torch.float32, True)
    saved = forward(names, x, edge, torch.int16, graph)
    args = (names, x, edge, torch.int16, True, *graph)
    assert torch.equal(
        run_aggregate(small, *args, split=True),
        run_aggregate(ops_library(), *args, split=False),
    )
    grads = {name: integers(N_DST, 140, seed=3).float() for name in names}
    args = (names, x, edge, saved, grads, *graph)
    one, other = (
        run_aggregate_vjp(library, *args, split=True)
        for library in (small, ops_library())
    )
    assert cuda_ops.same_bits(one, other)


def test_sectors():
    """Max reads each neighbour's row once; its gradient reads args and gradients, and
    neither x nor edge."""
    ops, n_edges, width = ops_library(), 300, 64
    edges = torch.stack((torch.randperm(n_edges), torch.randperm(n_edges)))
    graph = go.Graph(edges, (n_edges, n_edges)).args(with_csc=True)
    x = torch.randn(n_edges, width)
    none, forward_args = torch.empty(0), (torch.int8, False, *graph)
    for names in (("max",), tuple(NAMES)):
        args = (names, x, none, *forward_args)
        moved = cuda_ops.traffic(ops, run_aggregate, "x", *args, split=True)
        assert moved["x"] == (n_edges * width * 4 // 32, 0)
    saved = forward(("max",), x, none, torch.int8, graph)
    grads = {"max": torch.ones(n_edges, width)}
    args = (("max",), x, none, saved, grads, *graph)
    names = ("x", "g_max", "arg_max")
    moved = cuda_ops.traffic(ops, run_aggregate_vjp, names, *args, split=True)
    assert moved == {
        "x": (0, 0),
        "g_max": (n_edges * width * 4 // 32, 0),
        "arg_max": (n_edges * width // 32, 0),
    }
    ops.reset()


def test_sizes_are_checked():
    args = AggregateArgs(n_features=-1)
    with pytest.raises(Refused, match="aggregate: number of features must be in"):
        ops_library().call("gnn_aggregate_cuda", ctypes.byref(args), 0)
    with pytest.raises(Refused, match="aggregate_vjp: number of features must be in"):
        ops_library().call("gnn_aggregate_vjp_cuda", ctypes.byref(args), 0)


def test_layout_of_aggregate_args(tmp_path):
    cuda_ops.check_layout({"gnn_aggregate_args": AggregateArgs}, tmp_path)
