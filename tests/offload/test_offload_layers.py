"""Law 4 for every layer of gnnoffload.nn: bit-identical gradients, edges and all."""

import pytest
import torch
from offload_steps import assert_empty, assert_same, gradients, x
from torch import nn

import gnnoffload as go

N, E, C = 60, 400, 16
EDGES = torch.randint(0, N, (2, E), generator=torch.Generator().manual_seed(2))


class Stack(nn.Module):
    """Two layers over one graph, with edge weights or attributes."""

    def __init__(self, make, graph, *edge):
        super().__init__()
        self.layers = nn.ModuleList([make(), make()])
        self.graph, self.edge = graph, edge

    def forward(self, h):
        for layer in self.layers:
            h = layer(h, self.graph, *self.edge).tanh()
        return h


def mlp():
    return nn.Sequential(nn.Linear(C, C), nn.ReLU(), nn.Linear(C, C))


weight = torch.rand(E, generator=torch.Generator().manual_seed(4))
LAYERS = {
    "GCNConv": (lambda: go.nn.GCNConv(C, C), ()),
    "GCNConv weighted": (lambda: go.nn.GCNConv(C, C), (weight,)),
    "SAGEConv": (lambda: go.nn.SAGEConv(C, C), ()),
    "SAGEConv sum": (lambda: go.nn.SAGEConv(C, C, aggr="sum"), ()),
    "GINConv": (lambda: go.nn.GINConv(mlp(), train_eps=True), ()),
    "GINEConv": (lambda: go.nn.GINEConv(mlp()), (x(E, C),)),
    "GraphConv": (lambda: go.nn.GraphConv(C, C), (weight,)),
}


@pytest.mark.law(4)
@pytest.mark.parametrize("form", ["Graph", "edge_index"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, form, move_all):
    pytest.importorskip("torch_geometric")
    make, edge = LAYERS[name]
    graph = go.Graph(EDGES, (N, N)) if form == "Graph" else EDGES
    inputs = [x(N, C, grad=True)]

    def build():
        return Stack(make, graph, *edge)

    plain = gradients(build, inputs, steps=2)
    assert_same(gradients(build, inputs, move_all, steps=2), plain)
    assert move_all.report().bytes_out > 0
    assert_empty(move_all)


@pytest.mark.law(4)
def test_interaction_network(move_all):
    class Mesh(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(go.nn.InteractionNetwork(C) for _ in range(2))

        def forward(self, h, e):
            for block in self.blocks:
                h, e = block(h, EDGES, e)
            return h

    inputs = [x(N, C, grad=True), x(E, C, grad=True)]
    plain = gradients(Mesh, inputs, steps=2)
    assert_same(gradients(Mesh, inputs, move_all, steps=2), plain)
    assert move_all.report().bytes_out > 0
    assert_empty(move_all)
