"""softmax_aggregate of csrc/cuda and its gradients, lane by lane, against torch in
float64."""

import ctypes

import cuda_ops
import pytest
import torch
from cuda_executor import Refused
from cuda_ops import DTYPES, accumulator, in_all_orders, ops_library
from cuda_ops_reduce import (
    SoftmaxAggregateArgs,
    run_softmax_aggregate,
    run_softmax_aggregate_vjp,
)

import gnnoffload as go

pytestmark = pytest.mark.law(1, 2)

DEGREES = [0, 1, 3, 0, 257, 256, 600, 2, 0]
N_SRC, N_DST = 30, len(DEGREES)
INF = float("inf")


def oracle(edges, n_dst, x, edge, t, relu, semi=False):
    """y and lse in torch's own operators"""
    m = x[edges[0]] + (edge if edge.numel() else 0)
    m = m.relu() + 0.25 if relu else m
    z, rows, lses = m * t, [], []
    for i in range(n_dst):
        of_row = edges[1] == i
        p = z[of_row].softmax(0)
        rows.append(((p.detach() if semi else p) * m[of_row]).sum(0))
        lses.append(z[of_row].logsumexp(0))
    return torch.stack(rows), torch.stack(lses)


def case(width, dtype, with_edge):
    """edge_index in a random order, the graph, x, edge, t, grad"""
    destination = torch.arange(N_DST).repeat_interleave(torch.tensor(DEGREES))
    generator = torch.Generator().manual_seed(width)
    order = torch.randperm(len(destination), generator=generator)
    source = torch.randint(0, N_SRC, destination.shape, generator=generator)
    edges = torch.stack((source, destination))[:, order]
    graph = go.Graph(edges, (N_SRC, N_DST)).args(with_csc=True)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x, grad = normal(N_SRC, width), normal(N_DST, width)
    edge = normal(edges.shape[1], width) if with_edge else torch.empty(0, dtype=dtype)
    t = normal(width).to(accumulator(dtype)) * 2
    return edges, graph, x, edge, t, grad


ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}
ROUNDING |= {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_edge", [False, True], ids=["x", "x+edge"])
@pytest.mark.parametrize("width, relu", [(1, False), (7, True), (40, True), (8, False)])
def test_softmax_aggregate_and_its_gradients(width, relu, with_edge, dtype):
    edges, graph, x, edge, t, grad = case(width, dtype, with_edge)
    y, out, lse = in_all_orders(run_softmax_aggregate, x, edge, t, relu, *graph)
    inputs = [a.double().requires_grad_() for a in (x, edge, t)]
    expected, expected_lse = oracle(edges, N_DST, *inputs, relu)
    exact = ROUNDING[torch.float64 if dtype is torch.float64 else torch.float32]
    for got, wanted in ((out, expected), (lse, expected_lse)):
        torch.testing.assert_close(got, wanted.detach(), rtol=exact, atol=exact)
    assert torch.equal(y, out.to(accumulator(dtype)).to(dtype).double())

    wide = accumulator(dtype)
    args = (x, edge, t, relu, out.to(wide), lse.to(wide), grad)
    if not with_edge:
        inputs.pop(1)
    for semi, wants in ((False, ("d_x", "d_edge", "d_t")), (True, ("d_x", "d_edge"))):
        expected, _ = oracle(
            edges, N_DST, inputs[0], inputs[1] if with_edge else edge, inputs[-1],
            relu, semi,
        )  # fmt: skip
        of = inputs if not semi else inputs[:-1]
        wanted = torch.autograd.grad(expected, of, grad.double())
        got = run_softmax_aggregate_vjp(
            ops_library(), *args, semi, wants, *graph, split=True
        )
        both = torch.cat([g.flatten() for g in wanted])
        bound = max(1.0, both.abs().max().item()) * ROUNDING[dtype]
        torch.testing.assert_close(got, both, rtol=ROUNDING[dtype], atol=bound)
    for wants in (("d_x",), ("d_edge",), ("d_x", "d_edge")):
        if with_edge or wants == ("d_x",):
            in_all_orders(run_softmax_aggregate_vjp, *args, False, wants, *graph)


def test_gradient_of_t_in_all_orders():
    """The same items take part whatever the order of lanes; they are those of the list
    of heavy rows, so that one is kept."""
    _, graph, x, edge, t, grad = case(33, torch.float32, True)
    _, out, lse = run_softmax_aggregate(
        ops_library(), x, edge, t, True, *graph, split=True
    )
    args = (x, edge, t, True, out.float(), lse.float(), grad, False, ("d_t",))

    def with_list(library, *all_args, split):
        return run_softmax_aggregate_vjp(library, *all_args, split=True)

    in_all_orders(with_list, *args, *graph)


def test_many_partials_of_t():
    """More items than partials: a group takes several; and sums of sums."""
    few = ops_library("-DSOFTMAX_PARTIALS=160", only="softmax_aggregate")
    n = 40000
    edges = torch.stack((torch.arange(n) % 11, torch.arange(n) // 4))
    graph = go.Graph(edges, (11, n // 4)).args(with_csc=True)
    x, t = torch.randn(11, 2).double(), torch.ones(2).double()
    none, grad = torch.empty(0).double(), torch.randn(n // 4, 2).double()
    _, out, lse = run_softmax_aggregate(few, x, none, t, False, *graph, split=True)
    args = (x, none, t, False, out, lse, grad, False, ("d_t",), *graph)
    got = run_softmax_aggregate_vjp(few, *args, split=True)
    t64 = t.clone().requires_grad_()
    m = x[edges[0]].view(-1, 4, 2)
    y = ((m * t64).softmax(1) * m).sum(1)
    (wanted,) = torch.autograd.grad(y, t64, grad)
    torch.testing.assert_close(got, wanted)


def test_infinities_and_nan():
    """An infinite t * m makes its row and feature NaN, the others stay."""
    values = [[INF, 1.0], [-INF, 1.0], [float("nan"), 1.0], [1.0, 1.0]]
    x = torch.tensor(values).view(8, 1).repeat(1, 4)
    edges = torch.stack((torch.arange(8), torch.arange(4).repeat_interleave(2)))
    graph = go.Graph(edges, (8, 4)).args()
    none = torch.empty(0)
    y = in_all_orders(run_softmax_aggregate, x, none, torch.ones(4), False, *graph)[0]
    assert y.isnan().all(1).tolist() == [True, True, True, False]
    assert torch.equal(y[3], torch.ones(4).double())


def test_pointers_off_by_an_element_and_rows_apart():
    _, graph, x, edge, t, _ = case(8, torch.float32, True)
    expected = in_all_orders(run_softmax_aggregate, x, edge, t, True, *graph)
    apart = torch.zeros(N_SRC, 12)
    apart[:, :8] = x
    for given, offset in ((x, 1), (apart[:, :8], 0)):
        args = (given, edge, t, True, *graph)
        got = in_all_orders(run_softmax_aggregate, *args, offset=offset)
        assert torch.equal(got, expected)


def test_sizes_and_layout(tmp_path):
    args = SoftmaxAggregateArgs(n_features=2**30)
    for op in ("softmax_aggregate", "softmax_aggregate_vjp"):
        with pytest.raises(Refused, match=f"{op}: number of features must be in"):
            ops_library().call(f"gnn_{op}_cuda", ctypes.byref(args), 0)
    cuda_ops.check_layout(
        {"gnn_softmax_aggregate_args": SoftmaxAggregateArgs}, tmp_path
    )
