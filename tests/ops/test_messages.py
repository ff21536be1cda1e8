"""gather and segment: each other's gradient, exact on integers, any edge order."""

import pytest
import torch
from graph_cases import GRAPHS, integers, random_edges
from test_memory import Largest
from test_spmm_exact import DTYPES
from torch.autograd import gradcheck, gradgradcheck

import gnnoffload as go

SMALL = torch.tensor([[0, 2, 2, 1, 0, 4], [1, 1, 0, 1, 1, 3]])
SIZE = (5, 4)
ENDS = ("src", "dst")


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# ------------------------------------------------------------------------------- values


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("end", ENDS)
def test_gather_and_its_gradient_are_exact(edges_and_size, end, dtype):
    edges, size = edges_and_size
    index = edges[ENDS.index(end)].long()
    n_rows = size[ENDS.index(end)]
    x, grad = integers(n_rows, 17), integers(edges.shape[1], 17, seed=1)
    x_float = x.to(dtype).requires_grad_()
    z = go.gather(go.Graph(edges, size), x_float, end)
    z.backward(grad.to(dtype))
    assert z.dtype is dtype and torch.equal(z, x[index].to(dtype))
    exact = torch.zeros_like(x).index_add(0, index, grad)
    assert torch.equal(x_float.grad, exact.float().to(dtype))


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_segment_and_its_gradient_are_exact(edges_and_size, dtype):
    edges, size = edges_and_size
    messages, grad = integers(edges.shape[1], 17), integers(size[1], 17, seed=1)
    messages_float = messages.to(dtype).requires_grad_()
    y = go.segment(go.Graph(edges, size), messages_float)
    y.backward(grad.to(dtype))
    exact = torch.zeros(size[1], 17, dtype=torch.int64)
    exact = exact.index_add(0, edges[1].long(), messages)
    assert torch.equal(y, exact.float().to(dtype))
    assert torch.equal(messages_float.grad, grad[edges[1].long()].to(dtype))


@pytest.mark.law(1)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5), (2, 0, 3)])
def test_any_number_of_features(shape):
    edges, size = GRAPHS["bipartite"]
    x, messages = torch.randn(size[0], *shape), torch.randn(edges.shape[1], *shape)
    assert torch.equal(go.gather(edges, x, "src", size=size), x[edges[0]])
    got = go.segment(edges, messages, "mean", size=size)
    torch.testing.assert_close(
        got, go.reference.segment(edges, messages, "mean", size=size)
    )


@pytest.mark.law(1)
def test_strided_messages_and_a_graph_in_order():
    edges, size = GRAPHS["random"]
    order = (edges[1] * 50 + edges[0]).argsort(stable=True)
    messages = torch.randn(6, edges.shape[1]).t()
    given = go.segment(go.Graph(edges, size), messages)
    in_order = go.Graph(edges[:, order], size)
    assert in_order.eid is None
    assert torch.equal(go.segment(in_order, messages[order]), given)


# -------------------------------------------------------------------------- derivatives


@pytest.mark.law(1)
@pytest.mark.parametrize("end", ENDS)
def test_gather_is_differentiable_twice(end):
    graph, x = go.Graph(SMALL, SIZE), leaf(SIZE[ENDS.index(end)], 2)

    def function(x):
        return go.gather(graph, x, end)

    assert gradcheck(function, x, check_forward_ad=True)
    assert gradgradcheck(lambda x: function(x).square(), x)


@pytest.mark.law(1)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_segment_is_differentiable_twice(reduce):
    graph, messages = go.Graph(SMALL, SIZE), leaf(6, 2)

    def function(messages):
        return go.segment(graph, messages, reduce)

    assert gradcheck(function, messages, check_forward_ad=True)
    assert gradgradcheck(lambda m: function(m).square(), messages)


@pytest.mark.law(1)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("form", ["Graph", "edge_index"])
def test_compiled(form):
    edges, size = GRAPHS["random"]
    graph = go.Graph(edges, size) if form == "Graph" else edges

    def function(x):
        z = go.gather(graph, x, "src", size=size) * go.gather(
            graph, x, "dst", size=size
        )
        return go.segment(graph, z.sigmoid(), "mean", size=size)

    torch._dynamo.reset()
    x = torch.randn(50, 3, requires_grad=True)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    results = []
    for call in (function, compiled):
        y = call(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    torch._dynamo.reset()
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)


@pytest.mark.law(2)
def test_threads_change_no_bit():
    edges = random_edges(300, 300, 40_000)
    edges[0, :5000] = 3
    graph, x = go.Graph(edges, (300, 300)), torch.randn(300, 33, requires_grad=True)
    results, threads = [], torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        y = go.segment(graph, go.gather(graph, x, "src").sin())
        results.append([y, *torch.autograd.grad(y.square().sum(), x)])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.law(3)
def test_nothing_is_saved_and_the_matrices_are_kept():
    graph, saved = go.Graph(SMALL, SIZE), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t) or t, lambda t: t
    ):
        go.segment(graph, go.gather(graph, leaf(5, 3), "src"))
    assert not saved
    with Largest() as largest:  # what is made again: z and y, nothing of the graph's
        go.segment(graph, go.gather(graph, torch.randn(5, 1), "src"))
    assert largest.elements == 6
    assert "incidence of" not in str(graph.to("cpu").__getstate__()["cache"])


# ------------------------------------------------------------------------------- errors


@pytest.mark.law(10)
def test_bad_input_is_named():
    graph, x = go.Graph(SMALL, SIZE), torch.randn(5, 3)
    for call, error, text in (
        (lambda: go.gather(graph, x, "source"), ValueError, "end must be 'src' or"),
        (lambda: go.gather(graph, x, "dst"), ValueError, "4 rows, one per destination"),
        (lambda: go.gather(graph, x[:4], "src"), ValueError, "5 rows, one per source"),
        (lambda: go.gather(graph, x.long(), "src"), TypeError, "must be float32"),
        (lambda: go.gather(graph, [1.0], "src"), TypeError, "must be a tensor"),
        (lambda: go.segment(graph, x), ValueError, "6 rows, one per edge, got 5"),
        (lambda: go.segment(SMALL, x), ValueError, "needs size"),
        (lambda: go.segment(graph, torch.randn(6), "median"), ValueError, "reduce"),
    ):
        with pytest.raises(error, match=text):
            call()
