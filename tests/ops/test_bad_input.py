"""Each malformed graph or tensor gets its named exception with argument, position,
value and limit (G rows of the fault matrix), before a kernel sees it."""

import warnings

import pytest
import torch

import gnnoffload as go

pytestmark = pytest.mark.law(10)

with warnings.catch_warnings(action="ignore"):  # torch is to drop them
    QUANTISED = torch.quantize_per_tensor(torch.ones(3, 4), 1.0, 0, torch.qint8)

EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])
X = torch.ones(3, 4)


def test_graph_error_is_a_value_error():
    assert issubclass(go.GraphError, ValueError)


def i64(*values):
    return torch.tensor(values, dtype=torch.int64)


FROM_CSR = [
    # rowptr, col, size, exception, text
    (i64(), i64(), None, go.GraphError, "N \\+ 1 entries, got 0"),  # G1
    (i64(0, 1), i64(0), (1, 2), go.GraphError, "rowptr must have 3"),
    (i64(1, 1), i64(0), None, go.GraphError, "rowptr\\[0\\]"),  # G2
    (i64(0, 2), i64(0), None, go.GraphError, "rowptr\\[1\\].*1.*2"),
    (i64(0, 1), i64(0, 0), None, go.GraphError, "rowptr\\[1\\].*2.*1"),
    (i64(0, 2, 1, 3), i64(0, 0, 0), None, go.GraphError, "rowptr\\[2\\]"),  # G3
    (i64(0, 3, 2), i64(0, 0), None, go.GraphError, "rowptr\\["),
    (i64(0, -1, 2), i64(0, 0), None, go.GraphError, "rowptr\\[1\\].*-1"),
    (i64(0, 1, 2), i64(0, -1), None, go.GraphError, "col\\[1\\].*-1"),  # G4
    (i64(0, 1, 2), i64(0, 2), None, go.GraphError, "col\\[1\\].*2\\).*got 2"),
    (i64(0, 1, 2), i64(-(2**31), 0), None, go.GraphError, "col\\[0\\].*-2147483648"),
    (i64(0, 1, 2), i64(0, 2**63 - 1), None, go.GraphError, "col\\[1\\].*92233720368"),
    (i64(0, 1).float(), i64(0), None, TypeError, "rowptr must be int64 or int32"),  # G9
    (i64(0, 1).bool(), i64(0), None, TypeError, "rowptr must be int64 or int32"),
    (i64(0, 1), i64(0).short(), None, TypeError, "col must be .*int16"),
    (i64(0, 1), i64(0).to(torch.uint64), None, TypeError, "col must be .*uint64"),
    (i64(0, 1), i64(0).to(torch.complex64), None, TypeError, "col must be .*complex"),
    (i64(0, 1), i64(0).int(), None, TypeError, "one dtype, got torch.int64"),  # G10
    (i64(0, 1), i64(0)[None], None, TypeError, "col must have 1 dimension, got 2"),
    ([0, 1], i64(0), None, TypeError, "rowptr must be a tensor, got list"),  # G11
    (i64(0, 1).to("meta"), i64(0), None, TypeError, "meta"),
    (i64(0, 1).to_sparse(), i64(0), None, TypeError, "dense"),
]


@pytest.mark.parametrize("rowptr, col, size, exception, text", FROM_CSR)
def test_from_csr(rowptr, col, size, exception, text):
    with pytest.raises(exception, match=text) as raised:
        go.Graph.from_csr(rowptr, col, size)
    assert raised.type is exception


def test_int32_rowptr_that_wrapped():
    """G5: E >= 2^31 counted in int32 turns negative; the text names int64."""
    rowptr = torch.tensor([0, 2**31 - 1, -(2**31) + 5], dtype=torch.int32)
    with pytest.raises(go.GraphError, match="int64"):
        go.Graph.from_csr(rowptr, torch.zeros(3, dtype=torch.int32))


EDGE_INDEX = [
    # edge_index, size, exception, text
    (EDGES + 1, (3, 3), go.GraphError, "destination of edge 1 is 3.*1-based"),
    (EDGES - 1, None, go.GraphError, "source of edge 0 is -1.*\\[0, "),
    (EDGES, (2, 3), go.GraphError, "source of edge 2 is 2, must be in \\[0, 2\\)"),
    (EDGES, (3, 1), go.GraphError, "destination of edge 0 is 1, must be in \\[0, 1\\)"),
    (i64(0, 2**63 - 1).view(2, 1), None, go.GraphError, "edge_index\\[1, 0\\] = 9223"),
    (i64(-(2**63), 0).view(2, 1), None, go.GraphError, "edge 0 is -9223"),
    (EDGES, (3, 2**31), go.GraphError, "destinations must be below 2\\^31"),
    (EDGES, (3, -1), ValueError, "must not be negative, got -1"),
    (EDGES, 3, ValueError, "number of sources, number of destinations.*got 3"),
    (EDGES, (3, 3, 3), ValueError, "got \\(3, 3, 3\\)"),
    (EDGES, (3, 3.0), TypeError, "must be an int, got 3.0"),
    (EDGES, (None, 3), TypeError, "must be an int, got None"),
    (EDGES.t(), None, go.GraphError, "shape \\[2, E\\], got \\[3, 2\\]"),
    (EDGES[0], None, go.GraphError, "shape \\[2, E\\], got \\[3\\]"),
    (EDGES.float(), None, TypeError, "edge_index must be int64 or int32, got torch.fl"),
    (EDGES.float().requires_grad_(), None, TypeError, "int64 or int32"),  # G14
    (EDGES.bool(), None, TypeError, "torch.bool"),
    (EDGES.tolist(), None, TypeError, "must be a tensor, got list"),
    (EDGES.numpy(), None, TypeError, "must be a tensor, got ndarray"),
    (EDGES.to("meta"), None, TypeError, "meta"),
    (EDGES.to_sparse(), None, TypeError, "dense"),
    (QUANTISED, None, TypeError, "qint8"),
]


@pytest.mark.parametrize("edges, size, exception, text", EDGE_INDEX)
def test_edge_index(edges, size, exception, text):
    with pytest.raises(exception, match=text) as raised:
        go.Graph(edges, size)
    assert raised.type is exception


SPMM = [
    # arguments, exception, text
    (dict(x=X[:2]), ValueError, "x must have 3 rows, one per source, got 2"),  # G12
    (dict(x=torch.ones(4, 4)), ValueError, "x must have 3 rows.*got 4"),
    (dict(x=X[0]), ValueError, "2 dimensions \\[3, F\\], got \\[4\\]"),
    (dict(x=X[None]), ValueError, r"x must have shape \[3, H, C\]"),
    (dict(x=X[None, None]), ValueError, "2 dimensions"),
    (dict(x=X.long()), TypeError, "x must be float32.*got torch.int64"),
    (dict(x=X.to(torch.complex64)), TypeError, "complex64"),
    (dict(x=X.tolist()), TypeError, "x must be a tensor, got list"),
    (dict(x=X.to("meta")), TypeError, "device cpu, got meta"),  # G11
    (dict(x=X.to_sparse()), TypeError, "x must be dense"),
    (dict(x=QUANTISED), TypeError, "qint8"),
    (dict(weight=torch.ones(2)), ValueError, "weight must have shape \\[3\\].*\\[2\\]"),
    (dict(weight=torch.ones(3, 1)), ValueError, "weight must have shape.*\\[3, 1\\]"),
    (dict(weight=torch.ones(3).long()), TypeError, "weight must be float32"),
    (dict(weight=[1.0, 1.0, 1.0]), TypeError, "weight must be a tensor, got list"),
    (dict(weight=torch.ones(3, device="meta")), TypeError, "meta"),
    (dict(reduce="mul"), ValueError, "reduce must be 'sum', .*'min', got 'mul'"),
    (dict(reduce="max", weight=torch.ones(3)), ValueError, "'max' takes no weight"),
    (dict(reduce="min", col_scale=torch.ones(3)), ValueError, "'min' takes no weight"),
    (dict(row_scale=torch.ones(4)), ValueError, "row_scale must have shape \\[3\\]"),
    (dict(col_scale=torch.ones(3).requires_grad_()), ValueError, "is a constant"),
]


@pytest.mark.parametrize("form", ["Graph", "edge_index"])
@pytest.mark.parametrize("arguments, exception, text", SPMM)
def test_spmm(arguments, exception, text, form):
    arguments = dict(x=X) | arguments
    if form == "Graph":
        with pytest.raises(exception, match=text) as raised:
            go.spmm(go.Graph(EDGES), **arguments)
    else:
        with pytest.raises(exception, match=text) as raised:
            go.spmm(EDGES, **arguments, size=(3, 3))
    assert raised.type is exception


SDDMM = [
    (X[:2], X, ValueError, "a must have 3 rows, one per destination, got 2"),
    (X, X[:2], ValueError, "b must have 3 rows, one per source, got 2"),
    (X, X[:, :2], ValueError, "b must have 4 columns as a has, got 2"),
    (X.long(), X, TypeError, "a must be float32"),
    (X, None, TypeError, "b must be a tensor, got NoneType"),
]


@pytest.mark.parametrize("a, b, exception, text", SDDMM)
def test_sddmm(a, b, exception, text):
    with pytest.raises(exception, match=text):
        go.sddmm(go.Graph(EDGES), a, b)


def test_an_output_beyond_int64_is_refused_before_it_is_allocated():
    """G6: 3 rows of 2^61 columns (one element, expanded)."""
    with pytest.raises(go.GraphError, match=r"3 x 2305843009213693952 .*too large"):
        go.spmm(go.Graph(EDGES), torch.ones(3, 1).expand(3, 2**61))


def test_an_output_beyond_memory_is_a_memory_error():
    with pytest.raises(MemoryError, match="spmm: torch could not allocate"):
        go.spmm(go.Graph(EDGES), torch.ones(3, 1).expand(3, 2**50))


def test_graph_and_features_on_different_devices():
    with pytest.raises(TypeError, match="must be on the graph's device meta, got cpu"):
        go.spmm(go.Graph(EDGES).to("meta"), X)
    with pytest.raises(TypeError, match="must be on the graph's device meta, got cpu"):
        go.sddmm(go.Graph(EDGES).to("meta"), X, X)


def test_other_graphs():
    with pytest.raises(TypeError, match="got str"):
        go.spmm("graph", X)
    with pytest.raises(TypeError, match="values"):
        go.spmm(torch.eye(3).to_sparse_csr(), X)
    with pytest.raises(TypeError, match="got list"):
        go.spmm(EDGES.tolist(), X)


def test_valid_though_odd(edges_and_size):
    """G7, G8: nothing at all, no edges, F = 0, duplicates, more edges than pairs."""
    edges, (n_src, n_dst) = edges_and_size
    for n_features in (0, 1):
        x = torch.ones(n_src, n_features, requires_grad=True)
        weight = torch.ones(edges.shape[1], requires_grad=True)
        y = go.spmm(edges, x, weight, "mean", size=(n_src, n_dst))
        assert y.shape == (n_dst, n_features) and y.isfinite().all()
        y.sum().backward()
        assert x.grad.shape == x.shape and weight.grad.shape == weight.shape


def test_raw_ops_refuse_what_python_would_have_refused():
    """An op can be called by anyone: sizes and dtypes are checked in C as well."""
    none = torch.empty(0)
    args = go.Graph(EDGES).args(True)
    spmm, sddmm = torch.ops.gnnoffload.spmm, torch.ops.gnnoffload.sddmm
    bad = [
        (spmm, (X[:2], none, none, none, *args), "x must have 3 rows, got 2"),
        (spmm, (X[0], none, none, none, *args), "x must have 2 dimensions, got 1"),
        (spmm, (X.long(), none, none, none, *args), "x must be floating, got int64"),
        (spmm, (X.bool(), none, none, none, *args), "dtype that is not supported"),
        (spmm, (X, X[0], none, none, *args), "weight must be a vector of length 3"),
        (spmm, (X, none, X[0, :3].double(), none, *args), "row_scale must be float32"),
        (spmm, (X, none, none, none, *args[:6], 5, 3), "rowptr must have 6 entries"),
        (spmm, (X, none, none, none, *args[:6], -1, 3), "rowptr must have 0 entries"),
        (spmm, (X, none, none, none, args[1], *args[1:]), "rowptr must be int64"),
        (sddmm, (X, X.double(), none, none, *args), "b must be float32, got float64"),
        (sddmm, (X, X[:, :2], none, none, *args), "b must have 4 columns"),
    ]
    for op, arguments, text in bad:
        with pytest.raises(RuntimeError, match=text):
            op(*arguments)
