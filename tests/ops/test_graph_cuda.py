"""The graph ops of CUDA tensors, run on CPU tensors: the same arrays, order and
messages as the C core gives, and the parts of heavy rows behind the row pointers."""

import copy
import pickle

import pytest
import torch
from graph_cases import GRAPHS, edges_of_degrees, integers, oracle_spmm

import gnnoffload as go
from gnnoffload import _dispatch, _graph_cuda, graph
from gnnoffload.errors import named

DEGREES = [256, 0, 257, 3, 512, 513, 1024, 1]


def assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype is other.dtype and torch.equal(one, other)


def test_build_and_transpose_as_the_core_does(edges_and_size):
    (source, destination), (n_src, n_dst) = edges_and_size
    args = source, destination, n_src, n_dst
    built = _dispatch.graph_build_op(*args)
    assert_same(_graph_cuda.graph_build(*args), built)
    rowptr, col, eid, _ = built
    for ids in (eid, eid[:0]):
        transposed = _dispatch.graph_transpose_op(rowptr, col, ids, n_src)
        assert_same(_graph_cuda.graph_transpose(rowptr, col, ids, n_src), transposed)
    _graph_cuda.graph_check(rowptr, col.long(), n_dst, n_src)


def test_built_arrays_are_new():
    edges = GRAPHS["sorted"][0].int()
    before = edges.clone()
    _, col, _, is_sorted = _graph_cuda.graph_build(*edges, 30, 30)
    assert is_sorted.item()
    col.zero_()
    assert torch.equal(edges, before)


INDEX = torch.tensor
BAD = [
    ("graph_build", (INDEX([0, -1]), INDEX([0, 1]), 2, 2)),
    ("graph_build", (INDEX([0, 2]), INDEX([0, 1]), 2, 2)),
    ("graph_build", (INDEX([0, 1]), INDEX([-5, 1]), 2, 2)),
    ("graph_build", (INDEX([0, 1]), INDEX([0, 2**40]), 2, 2)),
    ("graph_build", (INDEX([0, 1]), INDEX([0]), 2, 2)),
    ("graph_build", (INDEX([0, 1]), INDEX([0, 1]), 2, 2**31)),
    ("graph_check", (INDEX([0, 1, 2]), INDEX([0, 2]), 2, 2)),
    ("graph_check", (INDEX([0, 1, 2]), INDEX([-1, 0]), 2, 2)),
    ("graph_check", (INDEX([0, 2, 1]), INDEX([0]), 2, 2)),
    ("graph_check", (INDEX([1, 1, 2]), INDEX([0, 1]), 2, 2)),
    ("graph_check", (INDEX([0, 1, 1]), INDEX([0, 1]), 2, 2)),
    ("graph_check", (INDEX([0, 2]), INDEX([0, 1]), 2, 2)),
]


@pytest.mark.parametrize(("name", "args"), BAD)
def test_malformed_input_gets_the_core_s_exception(name, args):
    function = getattr(_graph_cuda, name)
    with pytest.raises(_graph_cuda.Malformed):
        function(*args)
    errors = []
    op = getattr(torch.ops.gnnoffload, name).default
    for call in (op, _graph_cuda._explained(function)):
        with pytest.raises(RuntimeError) as caught:
            call(*args)
        errors.append(named(caught.value))
    assert type(errors[0]) is type(errors[1]) is go.GraphError
    assert str(errors[0]) == str(errors[1])


def test_cuda_tensors_are_served_by_these():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    products = ("spmm", "sddmm", "gine", "gine_jvp", "gine_vjp")
    for op in ("graph_build", "graph_check", "graph_transpose", *products):
        assert has(f"gnnoffload::{op}", "CUDA")


def test_heavy_rows_are_listed_in_order():
    rowptr = torch.tensor([0, *DEGREES]).cumsum(0)
    split = _graph_cuda.split_rows(rowptr)
    n = len(DEGREES) + 1
    assert torch.equal(split[:n], rowptr)
    expected = [
        [row, place]
        for row, degree in enumerate(DEGREES)
        if degree > 256
        for place in range(-(-degree // 256))
    ]
    assert split[n:].view(-1, 2).tolist() == expected
    light = rowptr.clamp(max=256)
    assert _graph_cuda.split_rows(light) is light


@pytest.fixture
def split_everywhere(monkeypatch):
    """Graphs on the CPU carry the parts of heavy rows, as those on CUDA do."""

    def for_kernels(rowptr, n_rows):
        if rowptr.shape[0] == n_rows + 1:
            return _graph_cuda.split_rows(rowptr)
        return rowptr

    monkeypatch.setattr(graph, "_for_kernels", for_kernels)


def test_a_split_graph_is_the_same_graph(split_everywhere):
    n_dst = len(DEGREES)
    edges = edges_of_degrees(DEGREES, 40)
    one = go.Graph(edges, (40, n_dst))
    split = one.args(with_csc=True)
    assert split[0].shape[0] > n_dst + 1
    assert one.rowptr.shape[0] == n_dst + 1
    assert one.degree.tolist() == DEGREES
    assert torch.equal(one.edge_index, edges)
    assert torch.equal(one.transpose().edge_index, edges.flip(0))
    x = integers(40, 5)
    expected = oracle_spmm(edges, n_dst, x).float()
    for same in (
        one,
        one.to("cpu"),
        copy.deepcopy(one),
        pickle.loads(pickle.dumps(one)),
    ):
        assert_same(same.args(with_csc=True)[:6], split[:6])
        assert torch.equal(go.spmm(same, x.float()), expected)
    mean = expected / torch.tensor(DEGREES).clamp(min=1)[:, None]
    assert torch.allclose(go.spmm(one, x.float(), reduce="mean"), mean)


def test_a_split_of_odd_length_is_refused():
    one = go.Graph(GRAPHS["random"][0], (50, 50))
    args = list(one.args())
    args[0] = torch.cat((args[0], args[0][:1]))
    with pytest.raises(RuntimeError, match="rowptr must have 51 entries, got 52"):
        _dispatch.call_spmm(torch.ones(50, 1), None, None, None, tuple(args))
