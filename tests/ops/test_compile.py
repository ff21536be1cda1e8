"""torch.compile(fullgraph=True): a Graph given or closed over, a plain edge_index."""

import pytest
import torch
from graph_cases import GRAPHS, random_edges
from torch import nn

import gnnoffload as go

pytestmark = [
    pytest.mark.law(1),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    """Two weighted sums, a mean, an edge product: each op with its backward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x, graph, weight):
        h = torch.relu(go.spmm(graph, self.first(x), weight))
        score = torch.sigmoid(go.sddmm(graph, h, h))
        return self.last(go.spmm(graph, h, score, "mean"))


def step(model, *args):
    """Output and all parameter gradients."""
    model.zero_grad()
    y = model(*args)
    (y * y).sum().backward()
    return [y.detach()] + [p.grad.clone() for p in model.parameters()]


def check(compiled, eager, *args):
    for got, expected in zip(step(compiled, *args), step(eager, *args), strict=True):
        torch.testing.assert_close(got, expected)


def inputs(name="random"):
    edges, (n_nodes, _) = GRAPHS[name]
    torch.manual_seed(1)
    return edges, torch.randn(n_nodes, 6), torch.rand(edges.shape[1])


def compiled(model, backend="aot_eager", **options):
    return torch.compile(model, backend=backend, fullgraph=True, **options)


@pytest.mark.parametrize("form", ["Graph", "edge_index"])
def test_as_an_argument(form):
    edges, x, weight = inputs()
    eager, fast = Net(), compiled(Net())
    for _ in range(3):  # the first call builds the CSC, the others find it
        check(fast, eager, x, go.Graph(edges) if form == "Graph" else edges, weight)


def test_closed_over():
    edges, x, weight = inputs()
    graph = go.Graph(edges)
    eager = Net()
    fast = compiled(lambda x, weight: eager(x, graph, weight))
    torch.testing.assert_close(fast(x, weight), eager(x, go.Graph(edges), weight))


def test_another_graph_is_not_taken_for_the_first():
    eager, fast = Net(), compiled(Net())
    for seed, (n_nodes, n_edges) in enumerate([(50, 300), (50, 300), (20, 100)]):
        edges = random_edges(n_nodes, n_nodes, n_edges, seed=seed)
        x, weight = torch.randn(n_nodes, 6), torch.rand(n_edges)
        check(fast, eager, x, go.Graph(edges, (n_nodes, n_nodes)), weight)
        check(fast, eager, x, edges, weight)


def test_dynamic_shapes():
    fast = compiled(Net(), dynamic=True)
    for n_nodes, n_edges in ((50, 300), (30, 70), (11, 200)):
        edges = random_edges(n_nodes, n_nodes, n_edges)
        x, weight = torch.randn(n_nodes, 6), torch.rand(n_edges)
        check(fast, Net(), x, edges, weight)


def test_a_compiled_call_changes_no_bit():
    """aot_eager runs the same kernels in the same order."""
    edges, x, weight = inputs()
    graph = go.Graph(edges)
    fast = compiled(lambda x, weight: go.spmm(graph, x, weight, "mean"))
    assert torch.equal(fast(x, weight), go.spmm(graph, x, weight, "mean"))


def test_a_bad_edge_in_a_compiled_call_raises():
    edges, x, weight = inputs()
    edges = edges.clone()
    edges[0, 7] = 50
    fast = compiled(Net())
    with pytest.raises(RuntimeError, match="source of edge 7 must be in \\[0, 50\\)"):
        fast(x, edges, weight)


def test_export():
    edges, x, weight = inputs()
    model = Net()
    program = torch.export.export(model, (x, edges, weight))
    assert torch.equal(program.module()(x, edges, weight), model(x, edges, weight))


@pytest.mark.slow
@pytest.mark.skipif(
    " " in torch.__file__,
    reason="torch's inductor cannot link from a path with a space",
)
@pytest.mark.parametrize("form", ["Graph", "edge_index"])
def test_inductor(form):
    edges, x, weight = inputs()
    fast = compiled(Net(), backend="inductor")
    for _ in range(2):
        check(fast, Net(), x, go.Graph(edges) if form == "Graph" else edges, weight)
