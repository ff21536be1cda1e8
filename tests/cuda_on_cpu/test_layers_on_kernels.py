"""Layers whose products are the CUDA kernels', lane by lane, against PyG's own."""

import cuda_ops
import cuda_ops_gated
import pytest
import torch
from cuda_ops import in_all_orders
from test_gine_kernels import ABSENT, run_sum, run_vjp

from gnnoffload import _dispatch, _dispatch_gated, _dispatch_gine

pyg = pytest.importorskip("torch_geometric.nn")
ours = pytest.importorskip("gnnoffload.nn")

N, E, F = 40, 600, 12  # node 0 has more edges than a heavy row's chunk


def gine(x, edge, *graph):
    return in_all_orders(run_sum, x, edge, ABSENT, ABSENT, *graph)


def gine_vjp(grad, x, edge, *graph_and_wants):
    *graph, wants_x, wants_edge = graph_and_wants
    wants = wants_x, wants_edge
    both = in_all_orders(run_vjp, grad, x, edge, *graph, wants=wants)
    sizes = [like.numel() * want for like, want in zip((x, edge), wants, strict=True)]
    parts = both.split(sizes)
    return tuple(p.view(-1, x.shape[1]) for p in parts)


@pytest.fixture
def kernels(monkeypatch):
    """The executor's ops where the dispatcher's are."""
    from gnnoffload.nn import _relu_message

    monkeypatch.setattr(_dispatch, "spmm_op", cuda_ops.spmm)
    monkeypatch.setattr(_dispatch, "sddmm_op", cuda_ops.sddmm)
    for module in (_dispatch_gine, _relu_message):
        monkeypatch.setattr(module, "gine_op", gine)
        monkeypatch.setattr(module, "gine_vjp_op", gine_vjp)
    monkeypatch.setattr(_dispatch_gated, "gated_op", cuda_ops_gated.gated)
    monkeypatch.setattr(_dispatch_gated, "gated_vjp_op", cuda_ops_gated.gated_vjp)
    monkeypatch.setenv("GNNOFFLOAD_FALLBACK", "error")
    before = cuda_ops.n_calls
    yield
    assert cuda_ops.n_calls > before + 1, "no kernel ran"


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(F, F), torch.nn.ReLU())


LAYERS = {  # name, arguments, what the edges carry
    "GCNConv": (lambda m: m.GCNConv(F, 5), "weight"),
    "SAGEConv": (lambda m: m.SAGEConv(F, 5), None),
    "GraphConv": (lambda m: m.GraphConv(F, 5), "weight"),
    "GINConv": (lambda m: m.GINConv(mlp(), train_eps=True), None),
    "GINEConv": (lambda m: m.GINEConv(mlp()), F),
    "GINEConv, projected": (lambda m: m.GINEConv(mlp(), edge_dim=3), 3),
    "ResGatedGraphConv": (lambda m: m.ResGatedGraphConv(F, 5), None),
    "ResGatedGraphConv, edges": (lambda m: m.ResGatedGraphConv(F, 5, edge_dim=3), 3),
    "CGConv, edges": (lambda m: m.CGConv(F, dim=3, aggr="mean"), 3),
    "GINEConv, learned eps": (lambda m: m.GINEConv(mlp(), train_eps=True), F),
}


@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_gradients_are_pyg_s(name, kernels):
    make, edges_carry = LAYERS[name]
    generator = torch.Generator().manual_seed(2)
    edge_index = torch.randint(0, N, (2, E), generator=generator)
    edge_index[1, :300] = 0
    x = torch.randn(N, F, dtype=torch.float64, generator=generator)
    edge = None
    if edges_carry == "weight":
        edge = torch.rand(E, dtype=torch.float64, generator=generator)
    elif edges_carry:
        edge = torch.randn(E, edges_carry, dtype=torch.float64, generator=generator)
    layer, stock = make(ours).double(), make(pyg).double()
    layer.load_state_dict(stock.state_dict())
    results = []
    for each in (layer, stock):
        leaves = [t.clone().requires_grad_() for t in (x, edge) if t is not None]
        y = each(leaves[0], edge_index, *leaves[1:])
        leaves += each.parameters()
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
