"""GINEConv's chunks: the same result for any cut, derivatives, and no E x F tensor."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gnnoffload import Graph, reference
from gnnoffload.nn import _edge_chunks
from gnnoffload.nn._relu_message import relu_message_sum


def graph_of(n_edges, n_src=40, n_dst=30, hub=0):
    """Random edges, of which `hub` go into destination 3; destination 29 has none."""
    source = torch.randint(n_src, (n_edges,))
    destination = torch.randint(n_dst - 1, (n_edges,))
    destination[:hub] = 3
    return Graph(torch.stack([source, destination]), (n_src, n_dst))


def leaves(graph, width=8, dim=3, dtype=torch.float64):
    shapes = [(graph.num_src, width), (graph.num_edges, dim), (width, dim), (width,)]
    return [torch.randn(*s, dtype=dtype, requires_grad=True) for s in shapes]


def plain(graph, x, edge_attr, weight, bias):
    return reference.gine(graph, x, torch.nn.functional.linear(edge_attr, weight, bias))


@pytest.mark.law(1)
@pytest.mark.parametrize("hub", [0, 1500])
def test_many_chunks_give_what_one_formula_gives(hub, monkeypatch):
    monkeypatch.setattr(_edge_chunks, "CHUNK_BYTES", 1 << 14)
    graph = graph_of(3000, hub=hub)
    assert len(_edge_chunks.chunks(graph, 64)) > 5
    inputs = leaves(graph)
    results = []
    for function in (relu_message_sum, plain):
        y = function(graph, *inputs)
        results.append([y, *torch.autograd.grad((y * y).sum(), inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-10)


@pytest.mark.law(2)
def test_the_cut_does_not_change_a_bit(monkeypatch):
    graph = graph_of(3000)
    x, *_ = leaves(graph, dtype=torch.float32)
    identity = torch.eye(8, requires_grad=True)  # a projection that changes no bit
    attr = torch.randn(3000, 8, requires_grad=True)
    results = []
    for size in (1 << 12, 1 << 20, None):  # the last: one op, no chunks
        monkeypatch.setattr(_edge_chunks, "CHUNK_BYTES", size)
        projection = () if size is None else (identity,)
        y = relu_message_sum(graph, x, attr, *projection)
        results.append([y, *torch.autograd.grad((y * y).sum(), [x, attr])])
    for cut in results[1:]:
        for a, b in zip(results[0], cut, strict=True):
            assert torch.equal(a, b)


@pytest.mark.law(1)
def test_first_and_second_derivatives():
    graph = graph_of(9, 5, 4)
    inputs = leaves(graph, 4, 3)
    assert torch.autograd.gradcheck(
        lambda *args: relu_message_sum(graph, *args), inputs
    )
    assert torch.autograd.gradgradcheck(
        lambda *args: relu_message_sum(graph, *args), inputs
    )


@pytest.mark.law(1)
@pytest.mark.parametrize(
    "x_dtype, edge_dtype", [("float32", "float64"), ("float64", "float32")]
)
def test_mixed_dtypes(x_dtype, edge_dtype):
    graph = graph_of(200)
    x, attr = torch.randn(40, 8), torch.randn(200, 8)
    x = x.to(getattr(torch, x_dtype)).requires_grad_()
    attr = attr.to(getattr(torch, edge_dtype)).requires_grad_()
    y = relu_message_sum(graph, x, attr)
    expected = reference.gine(graph, x, attr)
    assert y.dtype is expected.dtype
    torch.testing.assert_close(y, expected)
    for a, b in zip(
        torch.autograd.grad(y.sum(), [x, attr]),
        torch.autograd.grad(expected.sum(), [x, attr]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.law(1)
def test_the_root_term_and_its_derivatives():
    graph = graph_of(9, 5, 4)
    inputs = leaves(graph, 4, 3)
    root = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)

    def function(root, *args):
        return relu_message_sum(graph, *args, root, 1.5)

    expected = plain(graph, *inputs) + 1.5 * root
    torch.testing.assert_close(function(root, *inputs), expected)
    for args in ((root, *inputs), (root, *[t.detach() for t in inputs])):
        assert torch.autograd.gradcheck(function, args)
        assert torch.autograd.gradgradcheck(function, args)


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an op returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.law(3)
def test_nothing_of_size_edges_by_features(monkeypatch):
    monkeypatch.setattr(_edge_chunks, "CHUNK_BYTES", 1 << 14)
    graph = graph_of(20_000, 200, 100)
    x, attr, weight, bias = leaves(graph, 32, 2, torch.float32)
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = relu_message_sum(graph, x, attr, weight, bias)
        y.sum().backward()
    bound = 3 * graph.num_edges  # indices and attributes: E x 2; messages: E x 32
    assert largest.elements <= bound
    assert max(saved) <= bound
    with LargestTensor() as largest:
        plain(graph, x, attr, weight, bias)
    assert largest.elements == 32 * graph.num_edges  # what the bound rules out
