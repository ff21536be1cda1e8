"""Attention by hand, against the reference in float64, and where its values are odd."""

import math

import pytest
import torch
from attention_cases import (
    CASES,
    ROUNDING,
    SIZE,
    SMALL,
    assert_near,
    call,
    operands,
    step,
)
from graph_cases import GRAPHS

import gnnoffload as go
from gnnoffload.reference_attention import kept

pytestmark = pytest.mark.law(1)

SHAPES = [
    (9, 3),
    (1, 1),
    (1, 7),
    (2, 5),
    (3, 16),
    (8, 8),
    (1, 32),
    (4, 33),
    (2, 128),
    (1, 257),
]


def compare(case, graph, tensors, grad, roundings=1, **options):
    """One step against the reference's in float64, on the same numbers."""
    dtype = grad.dtype
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    ours = step(go, case, graph, tensors, grad, **options)
    exact = step(go.reference, case, graph, wide, grad.double(), **options)
    # raw attributes of 16 bits pass through two small products outside of the op, and a
    # projected tensor [E, H * C] is rounded before it makes a score
    if dtype.itemsize == 2:
        roundings = 64 if "attr-20" in case else 8 if "attr" in case else 1
    for got, expected in zip(ours, exact, strict=True):
        assert_near(got, expected, dtype, roundings)


# ------------------------------------------------------------------------------ by hand


def test_gat_literal():
    """Two edges into node 1 with weights 1/4 and 3/4, one into 0, none into 2."""
    edges = torch.tensor([[0, 2, 1], [1, 1, 0]])
    x = torch.tensor([[[4.0, 8.0]], [[1.0, 2.0]], [[8.0, 0.0]]])
    score_src = torch.tensor([[0.0], [5.0], [math.log(3)]])
    out, alpha = go.gat(edges, x, score_src, torch.zeros(3, 1), return_weights=True)
    expected = torch.tensor([[[1.0, 2.0]], [[7.0, 2.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(alpha, torch.tensor([[0.25], [0.75], [1.0]]))


def test_gat_slope_by_hand():
    """A score of -ln 16 counts as -ln 16 / 4 = -ln 2 under a slope of 1/4."""
    edges = torch.tensor([[0, 1], [0, 0]])
    score = torch.tensor([[0.0], [-math.log(16)]])
    out = go.gat(
        edges, torch.tensor([[[3.0]], [[9.0]]]), score, score[:1], negative_slope=0.25
    )
    torch.testing.assert_close(out, torch.tensor([[[5.0]]]))


def test_gatv2_literal():
    """h = (0, 4) has the score 1 * 0 + 1 * 4, h = (-8, 0) has -8 * 1/2; 8 apart."""
    edges = torch.tensor([[0, 1], [0, 0]])
    x_src = torch.tensor([[[0.0, 4.0]], [[-8.0, 0.0]]])
    out = go.gatv2(
        edges, x_src, torch.zeros(1, 1, 2), torch.ones(1, 2), negative_slope=0.5
    )
    weight = 1 / (1 + math.exp(-8))
    expected = [[[-8 * (1 - weight), 4 * weight]]]
    torch.testing.assert_close(out, torch.tensor(expected))


def test_dot_literal():
    """Scores 2 ln 3 / 2 and 0: weights 3/4 and 1/4; the edge enters key and value."""
    edges = torch.tensor([[0, 1], [0, 0]])
    query, key = torch.tensor([[[1.0]]]), torch.tensor([[[math.log(3)]], [[2.0]]])
    value, edge = (
        torch.tensor([[[4.0]], [[6.0]]]),
        torch.tensor([[[math.log(3)]], [[-2]]]),
    )
    out = go.dot_attention(edges, query, key, value, edge, scale=0.5)
    expected = 0.75 * (4 + math.log(3)) + 0.25 * 4
    torch.testing.assert_close(out, torch.tensor([[[expected]]]))


# ---------------------------------------------------------------- against the reference


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_graphs(case, dtype):
    for name in ("nothing", "no edges", "one self loop", "bipartite", "degrees"):
        edges, size = GRAPHS[name]
        tensors = operands(case, size, edges.shape[1], dtype=dtype)
        grad = torch.randn(size[1], 2, 5, dtype=torch.float64).to(dtype)
        compare(case, go.Graph(edges, size), tensors, grad)


@pytest.mark.parametrize("case", CASES)
def test_widths(case):
    edges, size = GRAPHS["bipartite"]
    graph = go.Graph(edges, size)
    for heads, channels in SHAPES:
        for dtype in (torch.float32, torch.bfloat16)[: 1 if "20" in case else 2]:
            shape = heads, channels
            tensors = operands(case, size, graph.num_edges, *shape, dtype=dtype)
            compare(case, graph, tensors, torch.randn(size[1], *shape).to(dtype))


@pytest.mark.parametrize("case", CASES)
def test_options(case):
    edges, size = GRAPHS["random"]
    tensors = operands(case, size, edges.shape[1], dtype=torch.float32)
    grad = torch.randn(size[1], 2, 5)
    slope = {} if case.startswith("dot") else {"negative_slope": 0.05}
    scale = {"scale": 0.3} if case.startswith("dot") else {}
    for options in (slope | scale, {"dropout": 0.4, "seed": 7}):
        compare(case, go.Graph(edges, size), tensors, grad, **options)


@pytest.mark.parametrize("case", CASES)
def test_each_gradient_alone(case):
    """The same bits as all of them together: nothing leans on what is not asked for."""
    edges, size = GRAPHS["random"]
    graph = go.Graph(edges, size)
    tensors = operands(case, size, graph.num_edges, dtype=torch.float32)
    grad = torch.randn(size[1], 2, 5)
    _, *together = step(go, case, graph, tensors, grad)
    for name, expected in zip(tensors, together, strict=True):
        leaf = tensors[name].clone().requires_grad_()
        out = call(go, case, graph, tensors | {name: leaf})
        assert torch.equal(torch.autograd.grad(out, leaf, grad)[0], expected), name


@pytest.mark.parametrize("case", ["gat edge", "gatv2 attr", "dot_attention edge"])
def test_layouts(case):
    """Rows apart, heads exchanged, every other row: the bits of contiguous ones."""
    edges, size = GRAPHS["random"]
    graph = go.Graph(edges, size)
    tensors = operands(case, size, graph.num_edges, dtype=torch.float32)
    expected = call(go, case, graph, tensors)
    for layout in (
        lambda t: torch.cat((t, t), -1)[..., : t.shape[-1]],
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: t.repeat_interleave(2, 0)[::2],
    ):
        odd = {name: layout(tensor) for name, tensor in tensors.items()}
        assert torch.equal(call(go, case, graph, odd), expected)
        grad = layout(torch.randn(size[1], 2, 5))
        ours = step(go, case, graph, odd, grad)
        theirs = step(go, case, graph, tensors, grad.contiguous())
        for one, two in zip(ours, theirs, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("gat", marks=pytest.mark.slow),
        "gatv2 attr",
        pytest.param("dot_attention attr", marks=pytest.mark.slow),
    ],
)
def test_hub(case):
    """A node with 65,537 edges in, and one with as many out, beside light ones."""
    n = 65_537
    ends = torch.arange(n) % 11
    edges = torch.cat(
        (torch.stack((ends, ends * 0)), torch.stack((ends * 0, ends))), dim=1
    )
    graph = go.Graph(edges, (11, 11))
    options = {"dropout": 0.1, "seed": 1}
    tensors = operands(case, (11, 11), 2 * n)
    grad = torch.randn(11, 2, 5, dtype=torch.float64)
    compare(case, graph, tensors, grad, roundings=2**24, **options)  # terms cancel
    exact = call(go, case, graph, tensors, **options)
    single = {name: tensor.float() for name, tensor in tensors.items()}
    out = call(go, case, graph, single, **options)
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_weights(case):
    edges, size = GRAPHS["random"]
    graph = go.Graph(edges, size)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = operands(case, size, graph.num_edges, dtype=dtype)
        wide = {name: tensor.double() for name, tensor in tensors.items()}
        for options in ({}, {"dropout": 0.4, "seed": 3}):
            options["return_weights"] = True
            out, alpha = call(go, case, graph, tensors, **options)
            _, exact = call(go.reference, case, graph, wide, **options)
            assert alpha.shape == (graph.num_edges, 2)
            assert_near(alpha, exact, dtype, 8 if "attr" in case else 1)
            options["return_weights"] = False
            assert torch.equal(call(go, case, graph, tensors, **options), out)


# ------------------------------------------------------------------------------ dropout


def test_dropout_is_a_function_of_seed_and_edge():
    """The same choice whichever way the edges are ordered in the graph, another one for
    another seed, head and edge; a fraction p is left out."""
    n, p = 5000, 0.3
    edges = torch.randint(50, (2, n))
    tensors = operands("gat", (50, 50), n, heads=4, dtype=torch.float32)
    options = {"dropout": p, "return_weights": True}
    _, alpha = call(go, "gat", edges, tensors, seed=11, **options)
    _, plain = call(go, "gat", edges, tensors, return_weights=True)
    is_kept = alpha != 0
    assert torch.equal(is_kept, kept(11, n, 4, p))
    torch.testing.assert_close(alpha[is_kept], plain[is_kept] / (1 - p))
    assert abs(is_kept.double().mean() - (1 - p)) < 4 * (p * (1 - p) / (4 * n)) ** 0.5
    _, other = call(go, "gat", edges, tensors, seed=12, **options)
    assert not torch.equal(other != 0, is_kept)
    _, turned = call(
        go, "gat", go.Graph(edges.flip(0), (50, 50)), tensors, seed=11, **options
    )
    assert torch.equal(turned != 0, is_kept)
    high = call(go, "gat", edges, tensors, seed=2**63 - 1, **options)[1] != 0
    assert torch.equal(high, kept(2**63 - 1, n, 4, p))


@pytest.mark.parametrize("case", ["gat", "gatv2", "dot_attention"])
def test_the_seed_comes_from_torch(case):
    tensors = operands(case, SIZE, SMALL.shape[1])
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results += [call(go, case, SMALL, tensors, dropout=0.5) for _ in range(4)]
    assert torch.equal(torch.stack(results[:4]), torch.stack(results[4:8]))
    assert not torch.equal(torch.stack(results[:4]), torch.stack(results[8:]))
    assert not torch.equal(results[0], results[1])
    given = call(go, case, SMALL, tensors, dropout=0.5, seed=torch.tensor([9]))
    assert torch.equal(given, call(go, case, SMALL, tensors, dropout=0.5, seed=9))


# --------------------------------------------------------------------------- odd values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_scores_give_the_mean(dtype):
    edges, size = GRAPHS["degrees"]
    x = torch.randn(size[0], 2, 5, dtype=dtype)
    ones, graph = torch.full((max(size), 2), 3e4, dtype=dtype), go.Graph(edges, size)
    out = go.gat(graph, x, ones[: size[0]], ones[: size[1]])
    torch.testing.assert_close(out, go.spmm(graph, x, reduce="mean"))
    assert (out[graph.degree == 0] == 0).all()


def test_shifted_scores_change_little():
    """Scores far beyond exp's range, in both directions."""
    edges, size = GRAPHS["random"]
    tensors = operands("gat", size, edges.shape[1])
    expected = call(go, "gat", edges, tensors, negative_slope=1.0)
    for shift in (1e4, -1e4):
        moved = tensors | {"score_dst": tensors["score_dst"] + shift}
        got = call(go, "gat", edges, moved, negative_slope=1.0)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_score_stays_in_its_row_and_head(value):
    tensors = operands("gat edge", SIZE, SMALL.shape[1])
    expected = step(go, "gat edge", SMALL, tensors, torch.ones(4, 2, 5))
    tensors["score_edge"][2, 1] = value  # the edge 2 -> 0
    out, *grads = step(go, "gat edge", SMALL, tensors, torch.ones(4, 2, 5))
    touched = torch.zeros(4, 2, dtype=torch.bool)
    touched[0, 1] = True
    assert out[touched].isnan().all()
    assert torch.equal(out[~touched], expected[0][~touched])
    touched_by_source = torch.zeros(5, 2, dtype=torch.bool)
    touched_by_source[2, 1] = True
    assert grads[0][touched_by_source].isnan().all()
    assert torch.equal(grads[0][~touched_by_source], expected[1][~touched_by_source])
    alpha = go.edge_softmax(SMALL, tensors["score_edge"])
    assert alpha[2, 1].isnan() and alpha.isnan().sum() == 1


def test_minus_infinity_is_a_weight_of_zero():
    """The edge counts for nothing, unless all edges of the row are like it."""
    edges = torch.tensor([[0, 1, 2, 0], [0, 0, 0, 1]])
    tensors = operands("gat edge", (3, 2), 4)
    tensors["score_edge"][1] = -math.inf
    without = {name: tensor.clone() for name, tensor in tensors.items()}
    without["score_edge"] = tensors["score_edge"][[0, 2, 3]]
    grad = torch.ones(2, 2, 5)
    out, *grads = step(go, "gat edge", edges, tensors, grad)
    expected, *others = step(go, "gat edge", edges[:, [0, 2, 3]], without, grad)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grads[0], others[0])
    assert (go.edge_softmax(edges, tensors["score_edge"])[1] == 0).all()
    tensors["score_edge"][3] = -math.inf
    assert call(go, "gat edge", edges, tensors)[1].isnan().all()


def test_bad_features_reach_only_the_rows_that_touch_them():
    x = torch.ones(5, 1, 3)
    x[4] = math.nan
    out = go.gatv2(SMALL, x, torch.zeros(4, 1, 3), torch.ones(1, 3), size=SIZE)
    assert out[3].isnan().all() and out[:3].isfinite().all()
    out = go.dot_attention(SMALL, torch.ones(4, 1, 3), x, x, size=SIZE)
    assert out[3].isnan().all() and out[:3].isfinite().all()


def test_no_channels():
    tensors = operands("dot_attention", SIZE, SMALL.shape[1], channels=0)
    assert call(go, "dot_attention", SMALL, tensors, size=SIZE).shape == (4, 2, 0)
