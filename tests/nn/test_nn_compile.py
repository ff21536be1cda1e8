"""torch.compile of models made of our layers: one graph, the eager result."""

import pytest
import torch
from torch.nn import Linear

import gnnoffload.nn as nn
from gnnoffload import Graph

N, F = 6, 5
EDGES = torch.tensor([[0, 1, 2, 3, 4, 2, 2], [1, 2, 3, 4, 5, 2, 1]])


class Two(torch.nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x, graph, *rest):
        return self.second(self.first(x, graph, *rest).relu(), graph, *rest)


MODELS = {
    "gcn": lambda: Two(nn.GCNConv(F, 4), nn.GCNConv(4, 7)),
    "gcn plain": lambda: Two(
        nn.GCNConv(F, 4, add_self_loops=False), nn.GCNConv(4, 7, normalize=False)
    ),
    "sage": lambda: Two(nn.SAGEConv(F, 4), nn.SAGEConv(4, 7, aggr="sum")),
    "gin": lambda: Two(nn.GINConv(Linear(F, 4)), nn.GINConv(Linear(4, 7))),
    "gine": lambda: Two(
        nn.GINEConv(Linear(F, 4), edge_dim=3), nn.GINEConv(Linear(4, 7), edge_dim=3)
    ),
    "graph": lambda: Two(nn.GraphConv(F, 4), nn.GraphConv(4, 7, aggr="mean")),
    "sg tag": lambda: Two(nn.SGConv(F, 4, K=2), nn.TAGConv(4, 7)),
    "cheb": lambda: Two(nn.ChebConv(F, 4, K=3), nn.ChebConv(4, 7, 2, None)),
    "appnp lg": lambda: Two(nn.APPNP(2, 0.1), nn.LGConv()),
    "simple": lambda: Two(
        nn.SimpleConv(combine_root="self_loop"), nn.SimpleConv("mean", "cat")
    ),
    "gat": lambda: Two(nn.GATConv(F, 2, heads=2), nn.GATConv(4, 7, residual=True)),
    "gat edges": lambda: Two(
        nn.GATConv(F, 2, heads=2, edge_dim=3),
        nn.GATv2Conv(4, 7, edge_dim=3, add_self_loops=False),
    ),
    "gatv2 transformer": lambda: Two(
        nn.GATv2Conv(F, 2, heads=2), nn.TransformerConv(4, 7, heads=2, beta=True)
    ),
    "supergat": lambda: Two(
        nn.SuperGATConv(F, 2, heads=2).eval(),
        nn.SuperGATConv(4, 7, attention_type="SD").eval(),
    ),
}
EDGE_FEATURES = ["gine", "gat edges"]
WEIGHTED = ["gcn", "gcn plain", "graph", "sg tag", "cheb", "appnp lg", "simple"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def results(call, model, x, *rest):
    """Output and gradients of one call."""
    leaves = [x, *(t for t in rest if t.is_floating_point())]
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    rest = [t if not t.is_floating_point() else leaves.pop() for t in rest]
    y = call(leaves[0], *rest)
    wanted = [leaves[0], *model.parameters()]
    wanted += [t for t in rest if t.requires_grad]
    return [y, *torch.autograd.grad((y * y).sum(), wanted)]


@pytest.mark.parametrize("form", ["Graph", "edge_index"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_compiles_to_one_graph(name, form, no_fallback):
    model = MODELS[name]()
    graph = Graph(EDGES, (N, N)) if form == "Graph" else EDGES
    x = torch.randn(N, F)
    extra = [torch.randn(EDGES.size(1), 3)] if name in EDGE_FEATURES else []
    check(model, graph, x, extra)


@pytest.mark.parametrize("form", ["Graph", "edge_index"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weighted_model_compiles_to_one_graph(name, form, no_fallback):
    graph = Graph(EDGES, (N, N)) if form == "Graph" else EDGES
    check(MODELS[name](), graph, torch.randn(N, F), [torch.rand(EDGES.size(1))])


def check(model, graph, x, extra):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def run(module):
        return results(lambda x, *rest: module(x, graph, *rest), model, x, *extra)

    for got, expected in zip(run(compiled), run(model), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_fallback_is_noted_while_tracing():
    from gnnoffload import _fallback

    layer = nn.SAGEConv(F, 4, aggr="mul")
    compiled = torch.compile(layer, backend="aot_eager")
    x = torch.randn(N, F)
    torch.testing.assert_close(compiled(x, EDGES), layer(x, EDGES))
    assert _fallback.counts()["SAGEConv"]["fallback"] == {"aggr=mul": 2}


@pytest.mark.parametrize("name", ["gcn", "sage", "graph"])
def test_export_keeps_the_fused_product(name, no_fallback):
    model = MODELS[name]()
    x = torch.randn(N, F)
    program = torch.export.export(model, (x, EDGES))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "gnnoffload.spmm.default" in targets
    torch.testing.assert_close(program.module()(x, EDGES), model(x, EDGES))


def test_onnx_export_falls_back_to_pyg(monkeypatch):
    from gnnoffload import _fallback

    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    model = nn.SAGEConv(F, 4)
    program = torch.export.export(model, (torch.randn(N, F), EDGES))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "gnnoffload.spmm.default" not in targets
    assert "torch.onnx.export" in _fallback.counts()["SAGEConv"]["fallback"]
