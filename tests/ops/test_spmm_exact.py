"""The exact-integer rule: with integer data every float sum is exact in any order, so
forward and backward must equal an int64 oracle bit for bit, whatever dtype and layout.

16-bit results are the oracle's, rounded once: sums run in float32.
"""

import pytest
import torch
from graph_cases import GRAPHS, integers, oracle_spmm

import gnnoffload as go

pytestmark = pytest.mark.law(1)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WIDTHS = [1, 2, 3, 4, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 129, 256, 257, 1000]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward(edges_and_size, dtype, weighted):
    edges, (n_src, n_dst) = edges_and_size
    n_features = 17
    x, grad_y = integers(n_src, n_features), integers(n_dst, n_features, seed=1)
    weight = integers(edges.shape[1], seed=2) if weighted else None
    x_float = x.to(dtype).requires_grad_()
    w_float = weight.to(dtype).requires_grad_() if weighted else None

    y = go.spmm(go.Graph(edges, (n_src, n_dst)), x_float, w_float)
    assert y.dtype is dtype
    assert torch.equal(y, oracle_spmm(edges, n_dst, x, weight).float().to(dtype))

    y.backward(grad_y.to(dtype))
    grad_x = oracle_spmm(edges.flip(0), n_src, grad_y, weight)
    assert torch.equal(x_float.grad, grad_x.float().to(dtype))
    if weighted:
        source, destination = edges.long()
        grad_w = (grad_y[destination] * x[source]).sum(dim=1)
        assert torch.equal(w_float.grad, grad_w.float().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sddmm_forward_and_backward(edges_and_size, dtype):
    edges, (n_src, n_dst) = edges_and_size
    a, b = integers(n_dst, 9), integers(n_src, 9, seed=1)
    grad_z = integers(edges.shape[1], seed=2)
    source, destination = edges.long()
    a_float, b_float = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()

    z = go.sddmm(go.Graph(edges, (n_src, n_dst)), a_float, b_float)
    assert torch.equal(z, (a[destination] * b[source]).sum(1).float().to(dtype))

    z.backward(grad_z.to(dtype))
    grad_a = oracle_spmm(edges, n_dst, b, grad_z)
    grad_b = oracle_spmm(edges.flip(0), n_src, a, grad_z)
    assert torch.equal(a_float.grad, grad_a.float().to(dtype))
    assert torch.equal(b_float.grad, grad_b.float().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(width, dtype):
    edges, (n_src, n_dst) = GRAPHS["degrees"]
    x, weight = integers(n_src, width), integers(edges.shape[1])
    y = go.spmm(go.Graph(edges, (n_src, n_dst)), x.to(dtype), weight.to(dtype))
    assert torch.equal(y, oracle_spmm(edges, n_dst, x, weight).float().to(dtype))


def test_hub():
    """A row of 65,537 edges, split between work items, beside light ones."""
    hub = torch.cat((torch.full((65_537,), 3), torch.arange(10)))
    edges = torch.stack((torch.arange(hub.numel()) % 11, hub))
    graph = go.Graph(edges, (11, 10))
    x, weight = integers(11, 33), integers(hub.numel())
    x_float = x.float().requires_grad_()
    w_float = weight.float().requires_grad_()
    y = go.spmm(graph, x_float, w_float)
    assert torch.equal(y, oracle_spmm(edges, 10, x, weight).float())
    grad_y = integers(10, 33, seed=5)
    y.backward(grad_y.float())
    assert torch.equal(
        x_float.grad, oracle_spmm(edges.flip(0), 11, grad_y, weight).float()
    )
    grad_w = (grad_y[edges[1]] * x[edges[0]]).sum(dim=1)
    assert torch.equal(w_float.grad, grad_w.float())


def misaligned(x):
    """x in storage that begins one byte off its element's alignment."""
    buffer = bytearray(1) + bytearray(
        x.contiguous().flatten().view(torch.uint8).numpy()
    )
    return torch.frombuffer(buffer, dtype=x.dtype, offset=1).view(x.shape)


LAYOUTS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "wide rows": lambda x: torch.cat((x, x), dim=1)[:, : x.shape[1]],
    "offset": lambda x: torch.cat((x[:, :3], x), dim=1)[:, 3:],
    "every other column": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "every other row": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "one row expanded": lambda x: x[:1].expand(x.shape[0], -1),
    "one column expanded": lambda x: x[:, :1].expand(-1, x.shape[1]),
    "one byte off": misaligned,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype):
    edges, (n_src, n_dst) = GRAPHS["random"]
    x = LAYOUTS[layout](integers(n_src, 12).to(dtype))
    weight = integers(edges.shape[1]).repeat_interleave(2).to(dtype)[::2]
    y = go.spmm(go.Graph(edges, (n_src, n_dst)), x, weight)
    assert torch.equal(
        y, oracle_spmm(edges, n_dst, x.long(), weight.long()).float().to(dtype)
    )
    z = go.sddmm(go.Graph(edges, (n_src, n_dst)), x, x)
    expected = (x.long()[edges[1]] * x.long()[edges[0]]).sum(dim=1)
    assert torch.equal(z, expected.float().to(dtype))


def test_adjoint():
    """<A x, y> = <x, A^T y>, exactly, with A^T the transposed graph."""
    edges, (n_src, n_dst) = GRAPHS["degrees"]
    graph = go.Graph(edges, (n_src, n_dst))
    x, y = integers(n_src, 8).double(), integers(n_dst, 8, seed=3).double()
    weight = integers(edges.shape[1]).double()
    forward = (go.spmm(graph, x, weight) * y).sum()
    assert forward != 0
    assert forward == (x * go.spmm(graph.transpose(), y, weight)).sum()
