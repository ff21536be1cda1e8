"""Any graph, any width: order and product against their slow definitions."""

import itertools

import pytest
import torch
from graph_cases import integers, oracle_spmm
from hypothesis import given, settings
from hypothesis import strategies as st
from test_graph import arrays, slow_csr

import gnnoffload as go

pytestmark = pytest.mark.law(1, 10)


@st.composite
def graphs(draw):
    """(edge_index, size), biased to few nodes, so to ties, hubs and empty rows."""
    n_src, n_dst = draw(st.integers(0, 8)), draw(st.integers(0, 8))
    n_edges = draw(st.integers(0, 40)) if n_src and n_dst else 0
    ends = [
        draw(
            st.lists(st.integers(0, max(n, 1) - 1), min_size=n_edges, max_size=n_edges)
        )
        for n in (n_src, n_dst)
    ]
    dtype = draw(st.sampled_from([torch.int64, torch.int32]))
    return torch.tensor(ends, dtype=dtype).view(2, n_edges), (n_src, n_dst)


@given(graphs())
def test_order(case):
    edges, size = case
    graph = go.Graph(edges, size)
    assert arrays(graph) == slow_csr(edges, size[1])
    assert arrays(graph.transpose()) == slow_csr(edges.flip(0), size[0])
    assert torch.equal(graph.edge_index, edges.long())
    again = go.Graph.from_csr(graph.rowptr, graph.col.long(), size)
    assert arrays(again)[:2] == arrays(graph)[:2]


@pytest.mark.filterwarnings("ignore:gnnoffload. 20 edge_index")
@settings(max_examples=150, deadline=None)
@given(
    graphs(),
    st.integers(0, 70),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.integers(0, 1000),
)
def test_product(case, width, weighted, dtype, seed):
    edges, (n_src, n_dst) = case
    x, grad_y = integers(n_src, width, seed=seed), integers(n_dst, width, seed=seed + 1)
    weight = integers(edges.shape[1], seed=seed) if weighted else None
    leaf = x.to(dtype).requires_grad_()
    y = go.spmm(
        edges, leaf, None if weight is None else weight.to(dtype), size=(n_src, n_dst)
    )
    assert torch.equal(y, oracle_spmm(edges, n_dst, x, weight).float().to(dtype))
    y.backward(grad_y.to(dtype))
    back = oracle_spmm(edges.flip(0), n_src, grad_y, weight)
    assert torch.equal(leaf.grad, back.float().to(dtype))


@given(
    st.lists(st.integers(-2, 6), min_size=0, max_size=6),
    st.lists(st.integers(-2, 6), min_size=0, max_size=6),
    st.integers(0, 5),
)
def test_from_csr_accepts_exactly_the_valid(rowptr, col, n_src):
    """G19: accepted if and only if the slow validator accepts."""
    valid = (
        len(rowptr) > 0
        and rowptr[0] == 0
        and all(a <= b for a, b in itertools.pairwise(rowptr))
        and rowptr[-1] == len(col)
        and all(0 <= j < n_src for j in col)
    )
    rowptr = torch.tensor(rowptr, dtype=torch.int64)
    size = (n_src, max(rowptr.numel() - 1, 0))
    try:
        go.Graph.from_csr(rowptr, torch.tensor(col, dtype=torch.int64), size)
        accepted = True
    except go.GraphError:
        accepted = False
    assert accepted == valid
