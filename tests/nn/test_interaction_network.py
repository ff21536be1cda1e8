"""InteractionNetwork against the concatenating form that people write."""

import doctest
import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn

from gnnoffload.graph import Graph
from gnnoffload.mesh import icosphere
from gnnoffload.nn import InteractionNetwork

ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class Concat(nn.Module):
    """Slow and obvious: cat, one MLP, index_add."""

    def __init__(self, block: InteractionNetwork):
        super().__init__()
        self.aggregate = block.aggregate
        edge_in = [block.edge_in, block.source_in, block.destination_in]
        self.edge_mlp = self._mlp(edge_in, block.edge_out, block)
        self.node_mlp = self._mlp([block.node_in, block.sum_in], block.node_out, block)
        self.edge_norm, self.node_norm = block.edge_norm, block.node_norm

    @staticmethod
    def _mlp(parts, tail, block):
        weight = torch.cat([p.weight for p in parts], dim=1).detach()
        first = nn.Linear(weight.size(1), weight.size(0), dtype=weight.dtype)
        first.weight = nn.Parameter(weight)
        first.bias = nn.Parameter(parts[0].bias.detach().clone())
        layers = [first]
        for linear in tail:
            layers += [ACTIVATIONS[block.activation](), linear]
        return nn.Sequential(*layers)

    def forward(self, x, edge_index, e):
        x_src, x_dst = x if isinstance(x, tuple) else (x, x)
        source, destination = edge_index
        message = torch.cat([e, x_src[source], x_dst[destination]], dim=1)
        message = self.edge_norm(self.edge_mlp(message))
        summed = message if self.aggregate == "message" else message + e
        total = torch.zeros_like(x_dst).index_add(0, destination, summed)
        update = self.node_norm(self.node_mlp(torch.cat([x_dst, total], dim=1)))
        return x_dst + update, e + message


def random_graph(nodes_in, nodes_out, edges, seed=0):
    g = torch.Generator().manual_seed(seed)
    source = torch.randint(nodes_in, (edges,), generator=g)
    destination = torch.randint(nodes_out, (edges,), generator=g)
    return torch.stack([source, destination])


def leaf(*shape, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()


def gradients(model, x, edge_index, e):
    """Outputs, then gradients of the states and of the two first Linears."""
    new_x, new_e = model(x, edge_index, e)
    states = [*x, e] if isinstance(x, tuple) else [x, e]
    loss = (new_x * new_x.detach().cos()).sum() + (new_e * new_e.detach().sin()).sum()
    if isinstance(model, Concat):
        weights = [model.edge_mlp[0].weight, model.node_mlp[0].weight]
        out = torch.autograd.grad(loss, states + weights)
    else:
        parts = [model.edge_in, model.source_in, model.destination_in]
        parts += [model.node_in, model.sum_in]
        g = torch.autograd.grad(loss, states + [p.weight for p in parts])
        n = len(states)
        out = [*g[:n], torch.cat(g[n : n + 3], dim=1), torch.cat(g[n + 3 :], dim=1)]
    return [new_x.detach(), new_e.detach(), *out]


@pytest.mark.law(1)
@pytest.mark.parametrize("aggregate", ["message", "state"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "relu", "hidden_layers": 3},
        {"activation": "gelu", "hidden_channels": 5},
        {"activation": "tanh", "norm": False},
    ],
    ids=str,
)
def test_agrees_with_concat(options, aggregate):
    torch.manual_seed(0)
    block = InteractionNetwork(7, aggregate=aggregate, dtype=torch.float64, **options)
    edge_index = random_graph(19, 19, 83)
    x, e = leaf(19, 7), leaf(83, 7, seed=2)
    ours = gradients(block, x, edge_index, e)
    theirs = gradients(Concat(block), x, edge_index, e)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_agrees_on_the_multimesh_in_float32():
    torch.manual_seed(0)
    mesh = icosphere(2)
    block = InteractionNetwork(33)
    x = leaf(mesh.num_nodes, 33, dtype=torch.float32)
    e = leaf(mesh.num_edges, 33, dtype=torch.float32, seed=2)
    ours = gradients(block, x, mesh.edge_index, e)
    theirs = gradients(Concat(block), x, mesh.edge_index, e)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_bipartite():
    torch.manual_seed(0)
    block = InteractionNetwork(6, dtype=torch.float64)
    edge_index = random_graph(5, 11, 40)
    x, e = (leaf(5, 6), leaf(11, 6, seed=3)), leaf(40, 6, seed=2)
    ours = gradients(block, x, edge_index, e)
    theirs = gradients(Concat(block), x, edge_index, e)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_bfloat16_is_as_good_as_concat():
    """Both round; ours may be at most twice as far from float64 as the plain form."""
    torch.manual_seed(0)
    exact = InteractionNetwork(32, dtype=torch.float64)
    edge_index = random_graph(40, 40, 400)
    x, e = leaf(40, 32), leaf(400, 32, seed=2)
    block = InteractionNetwork(32, dtype=torch.bfloat16)
    block.load_state_dict(exact.state_dict())
    exact.load_state_dict(block.state_dict())  # the same, rounded weights
    half = (x.detach().bfloat16(), edge_index, e.detach().bfloat16())
    truth = exact(half[0].double(), edge_index, half[2].double())
    theirs = Concat(block)(*half)
    for ours, other, true in zip(block(*half), theirs, truth, strict=True):
        assert ours.dtype == torch.bfloat16
        error, allowed = (ours - true).norm(), 2 * (other - true).norm()
        assert 0 < error <= allowed


def test_gradcheck():
    torch.manual_seed(0)
    block = InteractionNetwork(3, dtype=torch.float64)
    graph = Graph(random_graph(4, 4, 9), (4, 4))
    inputs = (leaf(4, 3), leaf(9, 3, seed=2))
    run = lambda x, e: block(x, graph, e)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize(("nodes", "edges"), [(3, 0), (1, 1), (0, 0)])
def test_small(nodes, edges):
    block = InteractionNetwork(4)
    x, e = torch.randn(nodes, 4), torch.randn(edges, 4)
    edge_index = torch.zeros(2, edges, dtype=torch.long)
    new_x, new_e = block(x, edge_index, e)
    want_x, want_e = Concat(block)(x, edge_index, e)
    torch.testing.assert_close(new_x, want_x)
    torch.testing.assert_close(new_e, want_e)


@pytest.mark.law(3)
def test_saves_four_edge_tensors():
    """4 E C + 5 N C, as the docstring says; concat keeps more."""
    mesh = icosphere(3)
    n, edges, c = mesh.num_nodes, mesh.num_edges, 16
    block = InteractionNetwork(c)
    graph = Graph(mesh.edge_index, (n, n))
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def saved(model, adjacency):
        sizes.clear()
        x, e = torch.randn(n, c), torch.randn(edges, c)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            keep = model(x.requires_grad_(), adjacency, e.requires_grad_())
        del keep
        return sum(v for v in sizes.values() if v > 4 * c * c)  # not the weights

    small = 8 * (n + edges)  # mean and 1/std of the LayerNorms
    expected = 4 * (4 * edges * c + 5 * n * c)
    assert expected <= saved(block, graph) <= expected + 2 * small
    assert saved(Concat(block), mesh.edge_index) > 1.4 * expected


@pytest.mark.law(2)
def test_does_not_depend_on_threads():
    mesh = icosphere(4)
    block = InteractionNetwork(16)
    x = leaf(mesh.num_nodes, 16, dtype=torch.float32)
    e = leaf(mesh.num_edges, 16, dtype=torch.float32, seed=2)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            new_x, new_e = block(x, mesh.edge_index, e)
            results.append(torch.autograd.grad(new_x.sum() + new_e.sin().sum(), [x, e]))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_layers": 0}, "hidden_layers must be at least 1, got 0"),
        ({"activation": "swish"}, "activation must be one of silu, .*, got 'swish'"),
        ({"aggregate": "max"}, "aggregate must be one of message, state, got 'max'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        InteractionNetwork(4, **options)


def test_bad_edge_rows():
    block = InteractionNetwork(4)
    with pytest.raises(ValueError, match="edge_attr must have 5 rows, got 6"):
        block(torch.zeros(3, 4), random_graph(3, 3, 5), torch.zeros(6, 4))


def test_bad_node_rows():
    block, graph = InteractionNetwork(4), Graph(random_graph(3, 3, 5), (3, 3))
    with pytest.raises(ValueError, match=r"must have \(3, 3\) .* rows, got \(4, 4\)"):
        block(torch.zeros(4, 4), graph, torch.zeros(5, 4))


def test_needs_no_torch_geometric():
    code = (
        "import sys; sys.modules['torch_geometric'] = None\n"
        "from gnnoffload.nn import InteractionNetwork as I; print(I(4))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("InteractionNetwork(")


def test_doctest():
    module = importlib.import_module("gnnoffload.nn.interaction_network")
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
