"""Finite differences, torch's op checks, torch.compile, and where derivatives end."""

import weakref

import pytest
import torch
from attention_cases import CASES, SIZE, SMALL, call, leaves, operands, step
from graph_cases import GRAPHS
from torch.autograd import forward_ad, gradcheck
from torch.library import opcheck

import gnnoffload as go
from gnnoffload import _dispatch, _dispatch_attention

pytestmark = pytest.mark.law(1)


# ------------------------------------------------------------------- finite differences


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case, dropout):
    graph = go.Graph(SMALL, SIZE)
    tensors = leaves(operands(case, SIZE, SMALL.shape[1], channels=3))
    options = {"dropout": dropout, "seed": 2} if dropout else {}

    def function(*values):
        given = dict(zip(tensors, values, strict=True))
        return call(go, case, graph, given, **options)

    assert gradcheck(function, tuple(tensors.values()))


# ------------------------------------------------------------------------- their limits


@pytest.mark.parametrize("case", ["gat", "gatv2 attr", "dot_attention attr"])
def test_no_second_derivative(case):
    """create_graph=True works; going on from it raises by name."""
    op = case.split()[0]
    tensors = leaves(operands(case, SIZE, SMALL.shape[1]))
    out = call(go, case, go.Graph(SMALL, SIZE), tensors)
    grads = torch.autograd.grad(out.square().sum(), tensors.values(), create_graph=True)
    plain = torch.autograd.grad(
        call(go, case, go.Graph(SMALL, SIZE), tensors).square().sum(), tensors.values()
    )
    for one, two in zip(grads, plain, strict=True):
        assert torch.equal(one, two)
    with pytest.raises(NotImplementedError, match=f"^{op}: .*not differentiable.*spmm"):
        grads[0].sum().backward()


@pytest.mark.parametrize("case", ["gat", "gatv2", "dot_attention"])
def test_no_transforms(case):
    op = case.split()[0]
    graph = go.Graph(SMALL, SIZE)
    tensors = operands(case, SIZE, SMALL.shape[1])
    name, value = next(iter(tensors.items()))

    def function(value):
        return call(go, case, graph, tensors | {name: value}).sum()

    with pytest.raises(NotImplementedError, match=f"^{op}: torch.func and forward"):
        torch.func.grad(function)(value)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(value, value)
        with pytest.raises(NotImplementedError, match=f"^{op}: torch.func and forward"):
            function(dual)


@pytest.mark.parametrize("case", ["gat", "gatv2", "dot_attention"])
def test_the_weights_have_no_gradient_and_say_so(case):
    op = case.split()[0]
    tensors = leaves(operands(case, SIZE, SMALL.shape[1]))
    graph = go.Graph(SMALL, SIZE)
    out, alpha = call(go, case, graph, tensors, return_weights=True)
    with pytest.raises(NotImplementedError, match=f"^{op}: the returned attention"):
        (out.sum() + alpha.sum()).backward()
    out, alpha = call(go, case, graph, tensors, return_weights=True)
    out.sum().backward()  # they are no burden to the rest
    with torch.no_grad():
        _, alpha = call(go, case, graph, tensors, return_weights=True)
    assert not alpha.requires_grad


@pytest.mark.law(7)
@pytest.mark.parametrize("case", ["gat", "gatv2", "dot_attention"])
def test_in_place_change_of_a_saved_tensor_raises(case):
    tensors = leaves(operands(case, SIZE, SMALL.shape[1]))
    for name in tensors:
        inner = {key: tensor * 1 for key, tensor in tensors.items()}
        out = call(go, case, go.Graph(SMALL, SIZE), inner)
        with torch.no_grad():
            inner[name].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
    inner = {key: tensor * 1 for key, tensor in tensors.items()}
    out = call(go, case, go.Graph(SMALL, SIZE), inner)
    out.mul_(2)  # the output is saved as well
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# ----------------------------------------------------------------------- the two routes


def raw_operands(case, size, n_edges, dtype=torch.float32):
    """The twelve tensors and five numbers of the op, as `attention` passes them on."""
    seen = []

    def look(operands, seed, graph, options):
        seen.append((_dispatch_attention.present((*operands, seed)), options))
        raise StopIteration

    tensors = operands(case, size, n_edges, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(_dispatch_attention, "attention", look)
        graph = go.Graph(torch.zeros(2, n_edges, dtype=torch.int64), size)
        call(go, case, graph, tensors, dropout=0.2, seed=1)
    return seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gat edge", "gatv2 attr", "dot_attention attr"])
def test_opcheck(case):
    edges, size = GRAPHS["bipartite"]
    args = go.Graph(edges, size).args(with_csc=True)
    for dtype in (torch.float32, torch.bfloat16):
        tensors, options = raw_operands(case, size, edges.shape[1], dtype)
        wants_acc = dtype is torch.bfloat16
        for needs in (False, True):
            given = [t.detach().requires_grad_(needs and t.dim() == 2) for t in tensors]
            opcheck(
                _dispatch_attention.attention_op,
                (*given, *args, *options, wants_acc),
                atol=1e-2 if wants_acc else None,
                rtol=1e-2 if wants_acc else None,
            )
        given = [t.detach() for t in tensors]
        out, out_edge, lse, out_acc = _dispatch_attention.attention_op(
            *given, *args, *options, wants_acc
        )
        grad, grad_edge = torch.randn_like(out), torch.randn_like(out_edge)
        leads = grad, grad_edge, out_acc if wants_acc else out, out_edge, lse
        for wants in (0, 127):
            back = *leads, *given, *args, *options, wants
            alpha, dscore, *_ = _dispatch_attention.dst_vjp_op(*back)
            opcheck(_dispatch_attention.dst_vjp_op, back)
            by_source = _dispatch.transposed(args)
            back = grad, alpha, dscore, *given, *by_source, *options, wants & 7
            opcheck(_dispatch_attention.src_vjp_op, back)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "case, form", [*((case, "Graph") for case in CASES), ("gat edge", "edge_index")]
)
def test_compiled(case, form):
    """One graph, the same bits as eager."""
    torch._dynamo.reset()
    edges, size = GRAPHS["random"]
    graph = go.Graph(edges, size) if form == "Graph" else edges
    dtypes = [torch.float32] + [torch.bfloat16] * (case == "dot_attention attr")
    for dtype in dtypes:
        tensors = operands(case, size, edges.shape[1], dtype=dtype)
        grad = torch.randn(size[1], 2, 5).to(dtype)

        def function(tensors):
            return call(go, case, graph, tensors, dropout=0.25, seed=5, size=size)

        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        results = []
        for run in (compiled, function):
            given = leaves(tensors)
            out = run(given)
            results.append([out, *torch.autograd.grad(out, given.values(), grad)])
        for got, expected in zip(*results, strict=True):
            assert torch.equal(got, expected)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_softmax_weights_and_drawn_seeds():
    torch._dynamo.reset()
    edges, size = GRAPHS["random"]
    graph = go.Graph(edges, size)
    tensors = leaves(operands("gat edge", size, edges.shape[1]))

    def function(tensors):
        alpha = go.edge_softmax(graph, tensors["score_edge"])
        y = go.spmm(graph, tensors["x"], alpha) + go.gat(graph, **tensors, dropout=0.5)
        z = go.sddmm(graph, y, tensors["x"])
        _, weights = go.gat(graph, **tensors, return_weights=True)
        return y.square().sum() + (z * weights.detach()).sum()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    results = []
    for run in (compiled, function):
        torch.manual_seed(3)
        loss = run(tensors)
        results.append([loss, *torch.autograd.grad(loss, tensors.values())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("case", CASES)
def test_autocast(case):
    """A layer's products come in 16 bits, its other tensors in 32: promoted."""
    edges, size = GRAPHS["bipartite"]
    tensors = operands(case, size, edges.shape[1], dtype=torch.float32)
    mixed = {
        name: tensor.bfloat16() if i % 2 else tensor
        for i, (name, tensor) in enumerate(tensors.items())
    }
    graph, grad = go.Graph(edges, size), torch.randn(size[1], 2, 5)
    out, *grads = step(go, case, graph, mixed, grad)
    assert out.dtype is torch.float32
    for gradient, tensor in zip(grads, mixed.values(), strict=True):
        assert gradient.dtype is tensor.dtype and gradient.isfinite().all()


@pytest.mark.parametrize("retain", [False, True])
def test_the_src_pass_finds_values_and_out_given_up(retain, monkeypatch):
    """Saved rows that only the dst pass reads go before d_k and d_v come, unless the
    graph is retained; a second backward then does the same or raises as ever."""
    edges = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
    leaf = torch.randn(3, 2, 4, requires_grad=True)
    value, key = leaf * 2, leaf * 3
    alive = [weakref.ref(value), weakref.ref(key)]
    y = go.dot_attention(edges, leaf, key, value).sum()
    del value, key
    assert all(ref() is not None for ref in alive)
    src_vjp, seen = _dispatch_attention.src_vjp_op, []

    def watched(*args):
        seen.append([ref() is not None for ref in alive])
        return src_vjp(*args)

    monkeypatch.setattr(_dispatch_attention, "src_vjp_op", watched)
    (first,) = torch.autograd.grad(y, leaf, retain_graph=retain)
    assert seen == [[retain] * 2]
    if retain:
        assert torch.equal(first, torch.autograd.grad(y, leaf)[0])
    else:
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(y, leaf)
