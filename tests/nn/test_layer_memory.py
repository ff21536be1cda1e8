"""Law 3 for the layers: no op of forward or backward returns a tensor of E x F."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gnnoffload.nn as nn
from gnnoffload import Graph

pytestmark = pytest.mark.law(3)
N, E, F = 300, 20_000, 32


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an op returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def identity():
    return torch.nn.Identity()


LAYERS = {
    "gcn": lambda: nn.GCNConv(F, F),
    "gcn weighted": lambda: nn.GCNConv(F, F),
    "gcn wide to narrow": lambda: nn.GCNConv(F, 4),
    "sage": lambda: nn.SAGEConv(F, F),
    "gin": lambda: nn.GINConv(identity(), train_eps=True),
    "graph weighted": lambda: nn.GraphConv(F, F),
    "sg": lambda: nn.SGConv(F, F, K=2),
    "tag weighted": lambda: nn.TAGConv(F, F),
    "cheb": lambda: nn.ChebConv(F, F, K=3),
    "cheb weighted": lambda: nn.ChebConv(F, F, K=3),
    "appnp": lambda: nn.APPNP(2, 0.1, dropout=0.5),
    "lg": lambda: nn.LGConv(),
    "simple weighted": lambda: nn.SimpleConv("mean", combine_root="self_loop"),
    "gat": lambda: nn.GATConv(F, F // 2, heads=2),
    "gat edges": lambda: nn.GATConv(F, F // 2, heads=2, edge_dim=3),
    "gatv2": lambda: nn.GATv2Conv(F, F // 2, heads=2, dropout=0.5),
    "gatv2 edges": lambda: nn.GATv2Conv(F, F // 2, heads=2, edge_dim=3),
    "transformer": lambda: nn.TransformerConv(F, F // 2, heads=2, dropout=0.5),
    "transformer edges": lambda: nn.TransformerConv(F, F // 2, heads=2, edge_dim=3),
    "res gated": lambda: nn.ResGatedGraphConv(F, F),
    "cg": lambda: nn.CGConv(F),
    "supergat": lambda: nn.SuperGATConv(F, F // 2, heads=2).eval(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_of_size_edges_by_features(name, no_fallback):
    layer = LAYERS[name]()
    edge_index = torch.randint(N, (2, E))
    x = torch.randn(N, F, requires_grad=True)
    rest = (torch.rand(E, requires_grad=True),) if "weighted" in name else ()
    if "edges" in name:
        rest = (torch.rand(E, 3, requires_grad=True),)
    for graph in (edge_index, Graph(edge_index, (N, N))):
        with LargestTensor() as largest:
            layer(x, graph, *rest).sum().backward()
        # two rows of indices or two heads with self-loops, here 1/16 of E x F; with
        # edge features those, of all edges and loops
        assert largest.elements <= (3 if "edges" in name else 2) * (E + N)
    stock = type(layer).__bases__[0]
    with LargestTensor() as largest:
        stock.forward(layer, x, edge_index, *rest).sum().backward()
    if name != "gcn wide to narrow":
        assert largest.elements >= E * F  # PyG's, so the mode sees such tensors


@pytest.mark.parametrize(
    ("layer", "first"),
    [(nn.SAGEConv(F, F), "lin_l"), (nn.GraphConv(F, F), "lin_rel")],
    ids=["sage", "graph"],
)
def test_the_root_term_is_added_in_place_unless_somebody_holds_the_sum(layer, first):
    edge_index, x = torch.randint(N, (2, E)), torch.randn(N, F)
    with AddmmNames() as alone:
        expected = layer(x, edge_index)
    held = []
    lin = getattr(layer, first)
    handle = lin.register_forward_hook(lambda m, i, out: held.append(out))
    with AddmmNames() as watched:
        result = layer(x, edge_index)
    handle.remove()
    assert alone.names[-1] == "addmm_"
    assert watched.names[-1] == "addmm"
    assert torch.equal(result, expected)
    assert not torch.equal(held[0], result)


class AddmmNames(TorchDispatchMode):
    """Names of the addmm calls."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "addmm" in function.__name__:
            self.names.append(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))
