"""Sums of gated messages of csrc/cuda and their gradients, lane by lane, against the
reference in float64."""

import ctypes

import cuda_ops
import pytest
import torch
from cuda_executor import Refused
from cuda_ops import DTYPES, accumulator, in_all_orders, ops_library
from cuda_ops_gated import GatedArgs, run_gated, run_gated_vjp

import gnnoffload as go
from gnnoffload import _dispatch, reference

pytestmark = pytest.mark.law(1, 2)

DEGREES = [0, 1, 3, 0, 257, 256, 600, 2, 0]
N_SRC, N_DST = 3, len(DEGREES)  # sources are heavy rows of the transpose
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}
ROUNDING |= {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}
ABSENT = torch.empty(0)


def case(width, dtype, *, wide=True, with_edge=True, with_scale=True):
    """the graph, (u, v, edge, scale), grad"""
    destination = torch.arange(N_DST).repeat_interleave(torch.tensor(DEGREES))
    generator = torch.Generator().manual_seed(width)
    order = torch.randperm(len(destination), generator=generator)
    source = torch.randint(0, N_SRC, destination.shape, generator=generator)
    graph = go.Graph(torch.stack((source, destination))[:, order], (N_SRC, N_DST))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    u, v = normal(N_DST, 2 * width if wide else width), normal(N_SRC, 2 * width)
    edge = normal(graph.num_edges, 2 * width) if with_edge else ABSENT.to(dtype)
    scale = torch.rand(N_DST, generator=generator).to(accumulator(dtype))
    return graph, (u, v, edge, scale if with_scale else ABSENT), normal(N_DST, width)


def exact(graph, inputs, grad, softplus):
    """(y, dy_du), (d_v, d_edge) by the reference"""
    u, v, edge, scale = (t.double().requires_grad_() for t in inputs)
    times = scale[:, None] if scale.numel() else 1
    value = "softplus" if softplus else "identity"
    given = edge if edge.numel() else None
    y = times * reference.gated(graph, u, v, given, value=value)
    (dy_du,) = torch.autograd.grad(y.sum(), u, retain_graph=True)
    wanted = [v, edge] if edge.numel() else [v]
    return (y, dy_du), torch.autograd.grad(y, wanted, grad.double())


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def close(got, expected, dtype):
    bound = max(1.0, expected.abs().max().item()) * ROUNDING[dtype]
    torch.testing.assert_close(got, expected, rtol=ROUNDING[dtype], atol=bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softplus", [False, True], ids=["plain", "softplus"])
@pytest.mark.parametrize(
    "width, wide, with_edge", [(1, True, False), (7, False, True), (40, True, True)]
)
def test_sums_and_gradients(width, wide, with_edge, softplus, dtype):
    graph, inputs, grad = case(
        width, dtype, wide=wide, with_edge=with_edge, with_scale=softplus
    )
    args = graph.args(with_csc=True)
    sums, grads = exact(graph, inputs, grad, softplus)
    got = in_all_orders(run_gated, *inputs, softplus, True, *args)
    close(got, flat(sums), dtype)
    alone = in_all_orders(run_gated, *inputs, softplus, False, *args)
    assert torch.equal(alone, got[: len(alone)])

    back = _dispatch.transposed(args)
    given = (grad, *inputs, softplus)
    if not with_edge:
        got = in_all_orders(run_gated_vjp, *given, (True, False), *back)
        close(got, flat(grads), dtype)
        return
    got = in_all_orders(run_gated_vjp, *given, (True, True), *back)
    close(got, flat(grads), dtype)
    n = inputs[1].numel()
    for wants, part in (((True, False), got[:n]), ((False, True), got[n:])):
        one = in_all_orders(run_gated_vjp, *given, wants, *back)
        assert torch.equal(one, part)


def test_infinities_and_nan():
    """As the CPU's, which are torch's."""
    inf, nan = float("inf"), float("nan")
    v = torch.tensor(
        [[inf, 1.0], [-inf, 1.0], [0.0, inf], [0.0, -inf], [nan, 1.0], [0.0, nan]]
    ).repeat_interleave(4, 1)
    u = torch.zeros(6, 8)
    edges = torch.arange(6).repeat(2, 1)
    graph = go.Graph(edges, (6, 6))
    for softplus in (False, True):
        value = "softplus" if softplus else "identity"
        expected = go.gated(graph, u, v, value=value)
        given = (u, v, ABSENT, ABSENT, softplus, False, *graph.args())
        got = in_all_orders(run_gated, *given).view(6, 4).float()
        torch.testing.assert_close(got, expected, equal_nan=True)


def test_far_from_zero():
    """Values whose exponentials overflow, or are small: their digits stay."""
    values = torch.linspace(-80, 80, 41)
    v = torch.stack((torch.zeros(41), values), dim=1)
    graph = go.Graph(torch.arange(41).repeat(2, 1), (41, 41))
    given = (torch.full((41, 1), 100.0), v, ABSENT, ABSENT, True, False, *graph.args())
    got = in_all_orders(run_gated, *given)
    expected = torch.nn.functional.softplus(values.double())
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_pointers_off_by_an_element_and_rows_apart():
    graph, inputs, grad = case(8, torch.float32)
    args = graph.args(with_csc=True)
    back = _dispatch.transposed(args)
    expected = in_all_orders(run_gated, *inputs, True, True, *args)
    grads = in_all_orders(run_gated_vjp, grad, *inputs, True, (True, True), *back)
    u, v, edge, scale = inputs
    apart = torch.zeros(N_SRC, 20)
    apart[:, :16] = v
    for given, offset in ((v, 1), (apart[:, :16], 0)):
        some = (u, given, edge, scale, True)
        got = in_all_orders(run_gated, *some, True, *args, offset=offset)
        assert torch.equal(got, expected)
        got = in_all_orders(
            run_gated_vjp, grad, *some, (True, True), *back, offset=offset
        )
        assert torch.equal(got, grads)


def test_grid_strides():
    small = ops_library("-DGNN_MAX_BLOCKS=2", "-DGNN_MAX_SLICES=1", only="gated")
    graph, inputs, grad = case(140, torch.float32)
    args = graph.args(with_csc=True)
    got = in_all_orders(run_gated, *inputs, True, True, *args, library=small)
    assert torch.equal(got, in_all_orders(run_gated, *inputs, True, True, *args))
    given = (grad, *inputs, True, (True, True), *_dispatch.transposed(args))
    got = in_all_orders(run_gated_vjp, *given, library=small)
    assert torch.equal(got, in_all_orders(run_gated_vjp, *given))


def test_sizes_and_layout(tmp_path):
    args = GatedArgs(n_features=2**30)
    for op in ("gated", "gated_vjp"):
        with pytest.raises(Refused, match=f"{op}: number of features must be in"):
            ops_library().call(f"gnn_{op}_cuda", ctypes.byref(args), 0)
    cuda_ops.check_layout({"gnn_gated_args": GatedArgs}, tmp_path)
