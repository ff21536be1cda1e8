"""The result depends on the graph alone, not on the number of threads or the run."""

import pytest
import torch
from graph_cases import random_edges

import gnnoffload as go

pytestmark = pytest.mark.law(2)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def everything(graph, x, weight, grad_y):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = go.spmm(graph, x, weight, "mean")
    z = go.sddmm(graph, y, x)
    grads = torch.autograd.grad((y * grad_y).sum() + z.sum(), (x, weight))
    return [y.detach(), z.detach(), *grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(dtype):
    hub = torch.stack((torch.arange(20_000) % 700, torch.full((20_000,), 5)))
    edges = torch.cat((random_edges(700, 700, 30_000), hub, hub.flip(0)), dim=1)
    torch.manual_seed(0)
    x = torch.randn(700, 67).to(dtype)
    weight = torch.randn(edges.shape[1]).to(dtype)
    grad_y = torch.randn(700, 67).to(dtype)
    torch.set_num_threads(1)
    expected = everything(go.Graph(edges, (700, 700)), x, weight, grad_y)
    for count in (1, 2, 3, 4, 8):
        torch.set_num_threads(count)
        graph = go.Graph(edges, (700, 700))
        for _ in range(3):
            for got, one in zip(
                everything(graph, x, weight, grad_y), expected, strict=True
            ):
                assert torch.equal(got, one)


def test_calls_from_several_threads():
    """Kernels release the GIL and share nothing."""
    from concurrent.futures import ThreadPoolExecutor

    graph = go.Graph(random_edges(300, 300, 5000), (300, 300))
    torch.manual_seed(0)
    x, weight, grad_y = torch.randn(300, 9), torch.randn(5000), torch.randn(300, 9)
    expected = everything(graph, x, weight, grad_y)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(everything, graph, x, weight, grad_y) for _ in range(40)]
        for run in runs:
            for got, one in zip(run.result(), expected, strict=True):
                assert torch.equal(got, one)
