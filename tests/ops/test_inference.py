"""Without a gradient to record the values are those with one, heavy rows included: the
kernels that save nothing for backward are others."""

import itertools

import pytest
import torch
from graph_cases import GRAPHS

import gnnoffload as go
from gnnoffload._dispatch_reduce import REDUCE

pytestmark = pytest.mark.law(1)
F, H = 6, 2


def hub(n_hub=9000, n=300):
    """A row that is split in several chunks, short rows beside it."""
    generator = torch.Generator().manual_seed(4)
    source = torch.randint(n, (n_hub + 3 * n,), generator=generator)
    rest = torch.randint(1, n, (3 * n,), generator=generator)
    return torch.stack([source, torch.cat([torch.zeros(n_hub).long(), rest])]), (n, n)


CASES = {"hub": hub(), "degrees": GRAPHS["degrees"], "random": GRAPHS["random"]}
SUBSETS = [
    names
    for k in range(1, len(REDUCE) + 1)
    for names in itertools.combinations(REDUCE, k)
]


def heads(x):
    return x.view(x.shape[0], H, F // H)


OPS = {
    "spmm": lambda g, x, y, e: go.spmm(g, x),
    "spmm mean": lambda g, x, y, e: go.spmm(g, x, reduce="mean"),
    "spmm max": lambda g, x, y, e: go.spmm(g, x, reduce="max"),
    "spmm min": lambda g, x, y, e: go.spmm(g, x, reduce="min"),
    "softmax": lambda g, x, y, e: go.softmax_aggregate(g, x, 0.7, e),
    "gine": lambda g, x, y, e: go.gine(g, x, e),
    "gated": lambda g, x, y, e: go.gated(g, y, x, e),
    "gat": lambda g, x, y, e: go.gat(g, heads(x), x[:, :H], y[:, :H], e[:, :H]),
    "gatv2": lambda g, x, y, e: go.gatv2(g, heads(x), heads(y), heads(x[:1])[0]),
    "dot": lambda g, x, y, e: go.dot_attention(g, heads(y), heads(x), heads(x)),
    "edge_softmax": lambda g, x, y, e: go.edge_softmax(g, e[:, :H]),
}


def inputs(case, dtype):
    edges, (n_src, n_dst) = CASES[case]
    generator = torch.Generator().manual_seed(5)
    shapes = (n_src, F), (n_dst, F), (edges.shape[1], F)
    rows = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return go.Graph(edges, (n_src, n_dst)), rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("op", OPS)
def test_values_without_a_gradient(op, case, dtype):
    graph, rows = inputs(case, dtype)
    quiet = OPS[op](graph, *rows)
    recorded = OPS[op](graph, *(r.requires_grad_() for r in rows))
    assert recorded.requires_grad and not quiet.requires_grad
    assert torch.equal(quiet, recorded)


def check_statistics(graph, x, edge, subsets):
    for names in subsets:
        quiet = go.aggregate(graph, x.detach(), names, edge)
        recorded = go.aggregate(graph, x.detach().requires_grad_(), names, edge)
        for name, a, b in zip(names, quiet, recorded, strict=True):
            assert torch.equal(a, b), (names, name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_edge", [False, True], ids=["x", "x and edge"])
def test_statistics_without_a_gradient(case, with_edge):
    graph, (x, _, edge) = inputs(case, torch.float32)
    check_statistics(graph, x, edge if with_edge else None, SUBSETS)


def test_a_few_statistics():
    """On CUDA's kernels as well."""
    graph, (x, _, _) = inputs("degrees", torch.float32)
    check_statistics(graph, x, None, [("max",)])
