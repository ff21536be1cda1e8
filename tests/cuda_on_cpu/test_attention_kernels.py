"""attention of csrc/cuda and its two backward passes, lane by lane, against the
formulas of gnn.h in float64 and their gradients by autograd."""

import ctypes
import math
from unittest import mock

import attention_ops
import cuda_ops
import pytest
import torch
from attention_ops import MODES, Attention, AttentionArgs, case, expected, keeps, sums
from cuda_executor import Refused
from cuda_ops import DTYPES, ops_library

import gnnoffload as go

pytestmark = pytest.mark.law(1, 2)

DEGREES = [0, 1, 3, 0, 257, 256, 2, 40, 0]
N_DST, N_SRC = len(DEGREES), 20
LOOSE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.02}
LOOSE[torch.float16] = 0.003


@pytest.fixture
def ops():
    yield ops_library()
    ops_library().reset()


def graph_of(degrees, n_src=N_SRC, seed=0):
    """(edge_index in a random order, the graph as an op takes it)"""
    destination = torch.arange(len(degrees)).repeat_interleave(torch.tensor(degrees))
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, n_src, destination.shape, generator=generator)
    order = torch.randperm(destination.numel(), generator=generator)
    edges = torch.stack((source, destination))[:, order]
    return edges, go.Graph(edges, (n_src, len(degrees))).args(with_csc=True)


EDGES, GRAPH = graph_of(DEGREES)


def in_all_orders(attention, x, grads, graph, library=None, **kwargs):
    """Everything the passes write."""

    def run(library, split):
        return attention.all(library, x, grads, graph, split, **kwargs)

    return attention_ops.in_all_orders(run, library)


def close(got, wanted, dtype, names=None):
    for name in names or got:
        one, other = got[name].double(), wanted[name].view(got[name].shape)
        scale = other.abs().nan_to_num(posinf=0, neginf=0).max().clamp(min=1)
        difference = (one - other).abs() / scale
        same = (one == other) | (difference <= LOOSE[dtype])
        assert same.all(), f"{name}: {difference.nan_to_num(9).max():.2g} off"


def check(kind, edge, dtype, heads, channels, **kwargs):
    at = {name: kwargs.pop(name) for name in ("library", "offset") if name in kwargs}
    attention = Attention(kind, heads, channels, **kwargs)
    x, grads = case(kind, edge, dtype, GRAPH, heads, channels)
    got = in_all_orders(attention, x, grads, GRAPH, **at)
    wanted = expected(attention, x, grads, EDGES, N_DST)
    gradients = {name for name in got if name.startswith("d_")}
    given = {name for name, value in x.items() if value is not None}
    assert gradients == {f"d_{name}" for name in given - {"score_edge"}}
    close(got, wanted, dtype)
    return x, got


# ------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind, edge", MODES)
def test_all_kinds_and_types(kind, edge, dtype):
    check(kind, edge, dtype, 2, 16)


@pytest.mark.parametrize("heads, channels", [(1, 1), (3, 5), (9, 4), (1, 33), (2, 140)])
@pytest.mark.parametrize("kind, edge", MODES)
def test_any_heads_and_channels(kind, edge, heads, channels):
    """Odd channels move one by one; 9 heads of a group of 4 lanes leave a warp; 140
    channels are two slices of a lane's."""
    check(kind, edge, torch.float32, heads, channels)


@pytest.mark.parametrize("dropout", [0.3, 0.75])
@pytest.mark.parametrize("kind, edge", [("gat", "score_edge"), ("dot", "edge_attr")])
def test_dropout_is_that_of_the_cpu(kind, edge, dropout, ops):
    """The mask is gnn_dropout_keeps of (seed, caller's edge, head); five heads, so that
    two counters are asked; what it drops has weight 0 and a gradient still."""
    seed = (1 << 40) + 3
    _, got = check(kind, edge, torch.float32, 5, 4, dropout=dropout, seed=seed)
    mask = keeps(ops, EDGES.shape[1], 5, seed, dropout)
    assert torch.equal(got["alpha"] != 0, mask)
    assert abs(mask.float().mean() + dropout - 1) < 0.05


def test_dropout_of_gatv2():
    for edge in (None, "edge", "edge_attr"):
        check("gatv2", edge, torch.float32, 3, 8, dropout=0.5)


@pytest.mark.parametrize("kind, edge", MODES)
def test_grid_strides(kind, edge):
    """With at most 2 by 1 by 1 blocks each warp walks many items, heads and slices."""
    small = ops_library("-DGNN_MAX_BLOCKS=2", "-DGNN_MAX_SLICES=1")
    check(kind, edge, torch.float32, 9, 8, library=small)
    if edge != "edge_attr":
        check(kind, edge, torch.bfloat16, 2, 300, library=small)


@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("kind, edge", MODES)
def test_pointers_off_by_elements(kind, edge, offset):
    check(kind, edge, torch.float16, 2, 16, offset=offset)


@pytest.mark.parametrize("n_attr", [1, 16])
@pytest.mark.parametrize("kind", ["gatv2", "dot"])
def test_numbers_of_edge_attributes(kind, n_attr):
    attention = Attention(kind, 3, 4)
    x, grads = case(kind, "edge_attr", torch.float32, GRAPH, 3, 4, n_attr)
    got = in_all_orders(attention, x, grads, GRAPH)
    close(got, expected(attention, x, grads, EDGES, N_DST), torch.float32)


def test_more_attributes_than_a_slice_of_channels_holds():
    """40 attributes beside 4 channels: three slices, two of them without channels."""
    attention = Attention("dot", 2, 4)
    x, grads = case("dot", "edge_attr", torch.float32, GRAPH, 2, 4, 40)
    got = in_all_orders(attention, x, grads, GRAPH)
    close(got, expected(attention, x, grads, EDGES, N_DST), torch.float32)


@pytest.mark.parametrize("eid_dtype", [torch.int32, torch.int64])
def test_edge_numbers(eid_dtype):
    rowptr, col, eid, colptr, row, ceid, *sizes = GRAPH
    graph = (rowptr, col, eid.to(eid_dtype), colptr, row, ceid.to(eid_dtype), *sizes)
    attention = Attention("gat", 2, 8, dropout=0.25)
    x, grads = case("gat", "score_edge", torch.float32, graph, 2, 8)
    got = in_all_orders(attention, x, grads, graph)
    close(got, expected(attention, x, grads, EDGES, N_DST), torch.float32)


def test_a_hub_of_65537_edges(ops):
    """257 chunks are joined in order; scores far apart."""
    edges, graph = graph_of([3, 65537, 0, 2])
    attention = Attention("dot", 1, 4, scale=3.0)
    x, grads = case("dot", None, torch.float32, graph, 1, 4)
    whole, cut = (attention.all(ops, x, grads, graph, split) for split in (False, True))
    for name, value in whole.items():
        assert cuda_ops.same_bits(value, cut[name]), name
    close(cut, expected(attention, x, grads, edges, 4), torch.float32)


@pytest.mark.parametrize("kind, edge", MODES)
def test_what_is_not_wanted_is_not_written(kind, edge, ops):
    """Each gradient alone has the bits that it has beside the others."""
    attention = Attention(kind, 2, 8)
    x, grads = case(kind, edge, torch.float32, GRAPH, 2, 8)
    saved = attention.forward(ops, x, GRAPH)
    for run, given in ((attention.dst, saved), (attention.src, None)):
        given = given or attention.dst(ops, x, saved, grads, GRAPH, only=())
        both = run(ops, x, given, grads, GRAPH)
        for name, value in both.items():
            one = run(ops, x, given, grads, GRAPH, only=(name,))
            assert set(one) - {"alpha", "dscore"} <= {name}
            assert cuda_ops.same_bits(one[name], value), name


# --------------------------------------------------------------------- values of scores


def scored(scores, dtype=torch.float32):
    """GAT over one row of these scores: what forward writes. v counts the entries."""
    n = len(scores)
    edges = torch.stack((torch.arange(n), torch.zeros(n, dtype=torch.int64)))
    graph = go.Graph(edges, (n, 1)).args(with_csc=True)
    x, grads = case("gat", None, dtype, graph, 1, 1)
    x["score_src"] = torch.tensor(scores, dtype=sums(dtype)).view(n, 1)
    x["score_dst"].zero_()
    x["v"] = torch.arange(1, n + 1).to(dtype).view(n, 1)
    attention = Attention("gat", 1, 1, slope=1.0)
    got = in_all_orders(attention, x, grads, graph)
    return got["out"].item(), got["lse"].item(), got["alpha"].flatten()


def test_equal_scores_are_a_mean():
    for scale in (0.0, -1e30, 1e30):
        out, lse, alpha = scored([scale] * 300)
        assert out == pytest.approx(150.5, rel=1e-6)
        assert lse == pytest.approx(scale + math.log(300), rel=1e-6)
        assert alpha[0] == pytest.approx(1 / 300 if scale == 0 else 1, rel=1e-5)


def test_scores_below_all_others_have_no_weight():
    infinity = math.inf
    out, lse, alpha = scored([-infinity, 2.0, -infinity] + [-infinity] * 300)
    assert (out, lse) == (2.0, 2.0)
    assert alpha[1] == 1 and alpha.sum() == 1


def test_scores_that_have_no_softmax():
    infinity, nan = math.inf, math.nan
    out, lse, alpha = scored([-infinity] * 3)
    assert math.isnan(out) and lse == -infinity and alpha.isnan().all()
    for place in (0, 299):
        scores = [1.0] * 300
        scores[place] = infinity
        out, lse, alpha = scored(scores)
        assert math.isnan(out) and lse == infinity and alpha[place].isnan()
        scores[place] = nan
        out, lse, alpha = scored(scores)
        assert math.isnan(out) and math.isnan(lse) and alpha.isnan().all()


@pytest.mark.parametrize("kind", ["gatv2", "dot"])
def test_nan_stays_in_its_row_and_head(kind):
    attention = Attention(kind, 2, 4)
    x, grads = case(kind, "edge", torch.float32, GRAPH, 2, 4)
    clean = in_all_orders(attention, x, grads, GRAPH)
    x["edge"][5, 6] = math.nan  # head 1
    row = EDGES[1, 5]
    got = in_all_orders(attention, x, grads, GRAPH)
    bad = torch.zeros(N_DST, 2, dtype=torch.bool)
    bad[row, 1] = True
    assert torch.equal(got["lse"].isnan(), bad)
    assert torch.equal(got["out"].isnan().view(N_DST, 2, 4).any(2), bad)
    same = ~bad[:, :, None].expand(N_DST, 2, 4).reshape(N_DST, 8)
    assert torch.equal(got["out"][same], clean["out"][same])


# ------------------------------------------------------------------------------ nothing


@pytest.mark.parametrize("kind, edge", MODES)
@pytest.mark.parametrize(
    "degrees, n_src", [([], 3), ([0, 0], 3), ([], 0)], ids=["rows", "edges", "nodes"]
)
def test_nothing(degrees, n_src, kind, edge):
    """No rows, no edges, no nodes: gradients of parameters are zero, not unwritten."""
    destination = torch.zeros(0, dtype=torch.int64)
    edges = torch.stack((destination, destination))
    graph = go.Graph(edges, (n_src, len(degrees))).args(with_csc=True)
    attention = Attention(kind, 2, 4)
    x, grads = case(kind, edge, torch.float32, graph, 2, 4)
    got = in_all_orders(attention, x, grads, graph)
    assert (got.pop("lse") == -math.inf).all()
    assert all((value == 0).all() for value in got.values())


def test_no_heads_and_no_channels():
    for heads, channels in ((0, 4), (2, 0)):
        attention = Attention("dot", heads, channels)
        x, grads = case("dot", None, torch.float32, GRAPH, heads, channels)
        got = in_all_orders(attention, x, grads, GRAPH)
        assert got["out"].shape == (N_DST, 0)
    counts = torch.tensor(DEGREES)[:, None].log().float()
    assert torch.allclose(got["lse"], counts.expand(-1, 2))  # every score is 0


# --------------------------------------------------------------------------------- bits


@pytest.mark.parametrize(
    "kind, edge", [("gatv2", None), ("dot", "edge"), ("gat", None)]
)
def test_a_row_has_the_same_bits_among_others(kind, edge, ops):
    """Rows 5 and 7 alone, and in the graph of all."""
    attention = Attention(kind, 2, 8)
    x, _ = case(kind, edge, torch.float32, GRAPH, 2, 8)
    got = attention.forward(ops, x, GRAPH)
    for row in (5, 7):
        own = EDGES[1] == row
        edges = torch.stack((EDGES[0, own], torch.zeros_like(EDGES[0, own])))
        graph = go.Graph(edges, (N_SRC, 1)).args(with_csc=True)
        part = {n: v for n, v in x.items() if v is not None}
        part |= {n: part[n][row : row + 1] for n in ("q", "score_dst") if n in part}
        part |= {n: part[n][own] for n in ("edge",) if n in part}
        alone = attention.forward(ops, x | part, graph)
        for name in ("out", "lse"):
            assert cuda_ops.same_bits(alone[name][0], got[name][row])


# ------------------------------------------------------------------------------ traffic

FEW_EDGES = 300


def counted(ops, kind, edge, dtype, heads, channels, run, names):
    """{name: (sectors read, written)} of one pass, of rows that begin at sectors."""
    width, size = heads * channels, dtype.itemsize
    torch.manual_seed(0)
    # no row is gathered twice: what lanes of two rows might share would count once
    once, other = torch.randperm(FEW_EDGES), torch.randint(0, 40, (FEW_EDGES,))
    edges = torch.stack((other, once) if run == "src" else (once, other))
    graph = go.Graph(edges, (FEW_EDGES, FEW_EDGES)).args(with_csc=True)
    attention = Attention(kind, heads, channels)
    x, grads = case(kind, edge, dtype, graph, heads, channels)
    if run == "forward":
        arguments = (x, graph)
    else:
        saved = attention.forward(ops, x, graph)
        arguments = (x, saved, grads, graph)
    if run == "src":
        between = attention.dst(ops, x, saved, grads, graph)
        arguments = (x, between, grads, graph)
    for padded in (x, grads):
        for name, value in padded.items():
            if name in ("v", "k", "q", "edge", "grad") and value is not None:
                apart = -(-width * size // 32) * 32 // size
                wide = value.new_zeros(value.shape[0], apart)
                wide[:, :width] = value
                padded[name] = wide[:, :width]

    def passed(library, *arguments):
        getattr(attention, run)(library, *arguments)

    try:
        return cuda_ops.traffic(ops, passed, names, *arguments, module=attention_ops)
    finally:
        ops.reset()


ROWS = {  # gathered, and read or written an edge, in rows [H * C]
    ("gat", "score_edge", "forward"): ({"v"}, set()),
    ("gat", "score_edge", "dst"): ({"v"}, set()),
    ("gat", "score_edge", "src"): ({"grad"}, set()),
    ("gatv2", "edge", "forward"): ({"v", "edge"}, set()),
    ("gatv2", "edge", "dst"): ({"v", "edge"}, {"d_edge"}),
    ("gatv2", "edge", "src"): ({"grad", "q", "edge"}, set()),
    ("dot", "edge", "forward"): ({"k", "v", "edge"}, set()),
    ("dot", "edge", "dst"): ({"k", "v", "edge"}, {"d_edge"}),
    ("dot", "edge", "src"): ({"grad", "q"}, set()),
}
SHAPES = [(2, 8), (2, 16), (4, 32), (3, 16), (1, 128), (16, 8)]  # all wide


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind, edge, run", ROWS)
def test_sectors_of_a_gather(ops, kind, edge, run, dtype):
    """Each gathered row costs ceil(bytes / 32) sectors an edge, once for all heads of a
    warp; no pass reads a row twice, and rows are written whole."""
    reads, writes = ROWS[kind, edge, run]
    for heads, channels in SHAPES:
        an_edge = -(-heads * channels * dtype.itemsize // 32)
        moved = counted(ops, kind, edge, dtype, heads, channels, run, reads | writes)
        for name in reads:
            assert moved[name][0] == FEW_EDGES * an_edge, (name, heads, channels)
        for name in writes:
            assert moved[name][1] == FEW_EDGES * an_edge, (name, heads, channels)


def test_attributes_cost_no_rows(ops):
    """Raw attributes: D numbers an edge and head, no matrix of E rows."""
    moved = counted(
        ops, "dot", "edge_attr", torch.float32, 4, 32, "forward", {"v", "k"}
    )
    assert moved == {"v": (FEW_EDGES * 16, 0), "k": (FEW_EDGES * 16, 0)}


# ------------------------------------------------------------------------------ errors


def test_scratch_one_chunk_short_is_reported(ops, monkeypatch):
    attention = Attention("dot", 1, 3)
    x, _ = case("dot", None, torch.float32, GRAPH, 1, 3)
    real = ops.dll.gnn_attention_cuda_scratch
    short = mock.Mock(side_effect=lambda *a: real(*a) - 4)
    monkeypatch.setattr(ops.dll, "gnn_attention_cuda_scratch", short)
    with pytest.raises(Refused, match="0 bytes past the end of scratch"):
        attention.forward(ops, x, GRAPH)


def test_sizes_are_checked_before_a_launch(ops):
    x, _ = case("gatv2", "edge_attr", torch.float32, GRAPH, 1, 4, 17)
    with pytest.raises(Refused, match="at most 16 edge features are projected here"):
        Attention("gatv2", 1, 4).forward(ops, x, GRAPH)
    args = AttentionArgs(kind=2, n_heads=-1)
    with pytest.raises(Refused, match=r"^attention_src_vjp: heads, channels and edge"):
        ops.call("gnn_attention_src_vjp_cuda", ctypes.byref(args), ctypes.c_uint64(0))
    args = AttentionArgs(kind=2, n_heads=1, n_channels=4)
    args.a.n_edges = 2**31
    with pytest.raises(Refused, match="must have its heavy rows split"):
        ops.call("gnn_attention_cuda", ctypes.byref(args), ctypes.c_uint64(0))


def test_layout_of_the_arguments(tmp_path):
    cuda_ops.check_layout({"gnn_attention_args": AttentionArgs}, tmp_path)
