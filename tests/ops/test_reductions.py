"""Statistics of messages: values, gradients and their sharing among ties, NaN, every
width and dtype, against the slow form of gnnoffload.reference in float64."""

import itertools

import pytest
import torch
from graph_cases import GRAPHS, integers, random_edges
from test_memory import Largest
from test_spmm_exact import DTYPES, LAYOUTS
from torch.autograd import gradcheck
from torch.library import opcheck

import gnnoffload as go
from gnnoffload import _dispatch_reduce
from gnnoffload.reductions import REDUCE, arg_bits

EDGES = torch.tensor([[0, 1, 2, 3, 1], [0, 0, 0, 2, 2]])  # into 0: 0 1 2; into 2: 3 1
NAN, INF = float("nan"), float("inf")


def graph_of(name):
    edges, size = GRAPHS[name]
    return go.Graph(edges, size)


def gradients(ops, graph, x, names, edge=None, seed=0):
    """[y.., dx, dedge] for gradients of y that depend on seed alone."""
    inputs = [t.detach().clone().requires_grad_() for t in (x, edge) if t is not None]
    y = ops.aggregate(graph, inputs[0], names, *inputs[1:])
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randint(-3, 4, t.shape, generator=generator).to(t.dtype) for t in y]
    return [*y, *torch.autograd.grad(y, inputs, grads)]


def assert_alike(ours, exact, dtype):
    """Within a few roundings of the largest number; sums are in float at least."""
    eps = torch.finfo(dtype).eps
    few = 8 if dtype.itemsize == 2 else 64
    for got, want in zip(ours, exact, strict=True):
        assert got.dtype is dtype and got.shape == want.shape
        scale = max(1.0, float(want.detach().abs().max())) if want.numel() else 1.0
        torch.testing.assert_close(
            got.double(), want, rtol=4 * eps, atol=few * eps * scale
        )


# ------------------------------------------------------------------------------- values


@pytest.mark.law(1)
def test_literal():
    x = torch.tensor([[1.0, -1.0], [4.0, -1.0], [4.0, 2.0], [-8.0, 0.0]])
    names = ("max", "min", "sum", "mean", "var", "std")
    largest, least, total, mean, var, std = go.aggregate(EDGES, x, names)
    assert largest.tolist() == [[4.0, 2.0], [0.0, 0.0], [4.0, 0.0], [0.0, 0.0]]
    assert least.tolist() == [[1.0, -1.0], [0.0, 0.0], [-8.0, -1.0], [0.0, 0.0]]
    assert total.tolist() == [[9.0, 0.0], [0.0, 0.0], [-4.0, -1.0], [0.0, 0.0]]
    assert mean.tolist() == [[3.0, 0.0], [0.0, 0.0], [-2.0, -0.5], [0.0, 0.0]]
    assert var.tolist() == [[2.0, 2.0], [0.0, 0.0], [36.0, 0.25], [0.0, 0.0]]
    torch.testing.assert_close(std, var.sqrt())
    assert torch.equal(go.spmm(EDGES, x, reduce="max"), largest)
    assert torch.equal(go.spmm(EDGES, x, reduce="min"), least)


@pytest.mark.law(1)
def test_ties_share_the_gradient_evenly():
    x = torch.tensor([[1.0], [4.0], [4.0], [4.0]], requires_grad=True)
    y = go.spmm(EDGES, x, reduce="max")
    y.backward(torch.tensor([[12.0], [5.0], [10.0], [7.0]]))
    assert x.grad.flatten().tolist() == [0.0, 6.0 + 5.0, 6.0, 5.0]


@pytest.mark.law(1)
def test_as_scatter_reduce_but_for_its_phantom_zero():
    """torch's own rule, except that it counts the zeros it starts from: with
    include_self=False a maximum of exactly 0 has one attaining message too many."""
    x = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [2.0, -3.0]], requires_grad=True)
    index = torch.tensor([[0], [0], [1]]).expand(3, 2)
    start = torch.zeros(2, 2)
    theirs = start.scatter_reduce(0, index, x, "amax", include_self=False)
    ours = go.spmm(torch.tensor([[0, 1, 2], [0, 0, 1]]), x, reduce="max", size=(3, 2))
    assert torch.equal(ours, theirs)
    (of_ours,) = torch.autograd.grad(ours.sum(), x)
    (of_theirs,) = torch.autograd.grad(theirs.sum(), x)
    assert of_ours.tolist() == [[0.0, 0.5], [1.0, 0.5], [1.0, 1.0]]
    assert of_theirs[1, 0] == 0.5 and of_theirs[0, 1] == of_theirs[1, 1] == 1 / 3
    assert of_theirs[2].tolist() == [1.0, 1.0]


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_graph(edges_and_size, dtype):
    edges, size = edges_and_size
    graph = go.Graph(edges, size)
    x = integers(size[0], 17)
    for names in (("max",), REDUCE):
        ours = gradients(go, graph, x.to(dtype), names)
        assert_alike(ours, gradients(go.reference, graph, x.double(), names), dtype)


@pytest.mark.law(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("turn, width", [*enumerate([1, 3, 7, 16, 33, 65, 257])])
def test_widths(turn, width, dtype):
    """Rows around the split of heavy rows, both ways, with an edge and without."""
    edges, (n_left, n_right) = GRAPHS["degrees"]
    turn += DTYPES.index(dtype)
    names = (("min", "max", "std"), ("max",), ("mean", "min", "var"))[turn % 3]
    if turn % 2:
        edges, n_left, n_right = edges.flip(0), n_right, n_left
    graph = go.Graph(edges, (n_left, n_right))
    x = integers(n_left, width)
    edge = integers(edges.shape[1], width, seed=3) if turn % 4 < 2 else None
    exact = [t if t is None else t.double() for t in (x, edge)]
    given = [t if t is None else t.to(dtype) for t in (x, edge)]
    ours = gradients(go, graph, given[0], names, given[1])
    exact = gradients(go.reference, graph, exact[0], names, exact[1])
    assert_alike(ours, exact, dtype)


@pytest.mark.law(1)
def test_every_subset():
    graph = graph_of("random")
    x = integers(graph.num_src, 5).double()
    edge = integers(graph.num_edges, 5, seed=1).double()
    for n in range(1, len(REDUCE) + 1):
        for names in itertools.combinations(reversed(REDUCE), n):
            for given in (None, edge):
                ours = gradients(go, graph, x, names, given)
                exact = gradients(go.reference, graph, x, names, given)
                torch.testing.assert_close(ours, exact)


@pytest.mark.law(1)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    graph = graph_of("bipartite")
    x = LAYOUTS[layout](integers(graph.num_src, 12).double()).detach().requires_grad_()
    edge = LAYOUTS[layout](integers(graph.num_edges, 12, seed=1).double())
    y = go.aggregate(graph, x, REDUCE, edge)
    grads = [LAYOUTS[layout](integers(*y[0].shape, seed=2).double()) for _ in y]
    exact = go.reference.aggregate(graph, x, REDUCE, edge)
    torch.testing.assert_close(y, exact)
    torch.testing.assert_close(
        torch.autograd.grad(y, x, grads), torch.autograd.grad(exact, x, grads)
    )


@pytest.mark.law(1)
def test_a_mean_far_from_zero_costs_no_digits():
    """E[x^2] - E[x]^2 of numbers near 1000 loses six of float32's seven digits."""
    graph = go.Graph(random_edges(500, 100, 5000), (500, 100))
    torch.manual_seed(0)
    x = 1000 + 0.1 * torch.randn(500, 8)
    var, std = go.aggregate(graph, x, ("var", "std"))
    exact = go.reference.aggregate(graph, x.double(), ("var", "std"))
    torch.testing.assert_close(var.double(), exact[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(std.double(), exact[1], rtol=1e-4, atol=1e-7)
    mean, squares = (
        go.aggregate(graph, x, ("mean",)),
        go.aggregate(graph, x * x, ("mean",)),
    )
    naive = squares[0] - mean[0] ** 2
    assert (
        naive.double() - exact[0]
    ).abs().max() > 1e-3  # the digits there are to lose


@pytest.mark.law(1)
def test_nan_wins_and_infinity_is_a_number():
    x = torch.tensor(
        [[1.0, NAN, INF], [2.0, 1.0, 1.0], [NAN, NAN, -INF], [3.0, 5.0, 5.0]]
    )
    x.requires_grad_()
    edges = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
    least, largest, total = go.aggregate(edges, x, ("min", "max", "sum"), size=(4, 2))
    same = torch.testing.assert_close
    same(largest, torch.tensor([[NAN, NAN, INF], [3.0, 5.0, 5.0]]), equal_nan=True)
    same(least, torch.tensor([[NAN, NAN, -INF], [3.0, 5.0, 5.0]]), equal_nan=True)
    same(total, torch.tensor([[NAN, NAN, NAN], [3.0, 5.0, 5.0]]), equal_nan=True)
    (grad,) = torch.autograd.grad(largest, x, torch.full_like(largest, 6.0))
    assert grad.tolist() == [[0, 3.0, 6.0], [0, 0, 0], [6.0, 3.0, 0], [6.0] * 3]
    y = go.spmm(edges, torch.full((4, 3), -INF), reduce="max", size=(4, 3))
    assert y.tolist() == [[-INF] * 3, [-INF] * 3, [0.0] * 3]
    total = go.aggregate(edges, x.new_tensor([[INF], [1], [2], [3]]), ("sum", "var"))
    assert total[0][0] == INF and total[1][0].isnan()


@pytest.mark.law(1)
@pytest.mark.parametrize(
    "degree, bits",
    [(128, 8), (129, 16), (32_768, 16), pytest.param(32_769, 32), (65_537, 32)],
)
def test_smallest_argument(degree, bits):
    """The last edge wins one feature, every edge ties in another."""
    edges = torch.stack((torch.arange(degree), torch.full((degree,), 1)))
    graph = go.Graph(edges[:, torch.randperm(degree)], (degree, 3))
    x = torch.zeros(degree, 3)
    x[-1, 0] = x[0, 2] = 1
    x.requires_grad_()
    y = go.spmm(graph, x, reduce="max")
    assert arg_bits(graph) == bits
    assert y[1].tolist() == [1.0, 0.0, 1.0]
    (y * degree).sum().backward()
    expected = torch.zeros(degree, 3)
    expected[-1, 0] = expected[0, 2] = degree
    expected[:, 1] = 1
    assert torch.equal(x.grad, expected)
    args, absent = graph.args(), torch.empty(0)
    op = _dispatch_reduce.aggregate_op
    arg = op(x.detach(), absent, *args, 8, bits, False)[7]
    assert arg.dtype is {8: torch.int8, 16: torch.int16, 32: torch.int32}[bits]
    assert arg[1].tolist() == [degree - 1, -degree, 0]
    assert (arg[0] == -1).all()


def test_an_argument_too_small_for_a_row_is_refused():
    """By the CPU's op; a device does not read the degrees, Python picks the size."""
    graph = go.Graph(torch.stack((torch.arange(129), torch.zeros(129).long())))
    absent, op = torch.empty(0), _dispatch_reduce.aggregate_op
    with pytest.raises(RuntimeError, match="int8 arguments need rows of at most 128"):
        op(torch.zeros(129, 3), absent, *graph.args(), 8, 8, False)


@pytest.mark.law(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_change_no_bit(dtype):
    torch.manual_seed(0)
    edges = random_edges(300, 300, 40_000)
    edges[1, :5000] = 3
    edges[0, 5000:9000] = 7
    graph = go.Graph(edges, (300, 300))
    x = torch.randn(300, 33).to(dtype)
    results, threads = [], torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(gradients(go, graph, x, REDUCE))
    torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


# -------------------------------------------------------------------------- derivatives


@pytest.mark.law(1)
@pytest.mark.parametrize("names", [("max",), ("min", "var"), REDUCE], ids=str)
def test_gradcheck(names):
    graph = graph_of("bipartite")
    torch.manual_seed(0)
    x = torch.randn(graph.num_src, 3, dtype=torch.float64, requires_grad=True)
    edge = torch.randn(graph.num_edges, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: go.aggregate(graph, x, names), (x,))
    assert gradcheck(lambda x, e: go.aggregate(graph, x, names, e), (x, edge))


@pytest.mark.law(1)
def test_one_of_several_gradients_is_enough():
    """Statistics without a gradient, and inputs that want none."""
    graph = graph_of("random")
    x = integers(graph.num_src, 5).double().requires_grad_()
    edge = integers(graph.num_edges, 5, seed=1).double().requires_grad_()
    for r, name in enumerate(REDUCE):
        for wanted in ((x,), (edge,), (x, edge)):
            ours = go.aggregate(graph, x, REDUCE, edge)[r].square().sum()
            exact = go.reference.aggregate(graph, x, (name,), edge)[0].square().sum()
            torch.testing.assert_close(
                torch.autograd.grad(ours, wanted), torch.autograd.grad(exact, wanted)
            )


@pytest.mark.law(10)
def test_not_twice_and_not_transformed():
    graph = graph_of("random")
    x = torch.randn(graph.num_src, 3, requires_grad=True)
    y = go.spmm(graph, x, reduce="max")
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"^aggregate: differentiable once"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match=r"^aggregate: torch\.func"):
        torch.func.grad(lambda x: go.spmm(graph, x, reduce="max").sum())(x.detach())
    total, mean = go.aggregate(graph, x, ("sum", "mean"))  # these are, being products
    (grad,) = torch.autograd.grad((total * mean).sum(), x, create_graph=True)
    grad.square().sum().backward()


@pytest.mark.law(1)
def test_opcheck():
    graph, absent = graph_of("bipartite"), torch.empty(0)
    args = graph.args(with_csc=True)
    for needs in (False, True):
        x = torch.randn(graph.num_src, 3, requires_grad=needs)
        edge = torch.randn(graph.num_edges, 3, requires_grad=needs)
        for given, which in ((absent, 8), (edge, 63), (edge, 48)):
            opcheck(
                _dispatch_reduce.aggregate_op,
                (x, given, *args, which, 8, which == 48),
                test_utils=(
                    "test_schema",
                    "test_faketensor",
                    "test_autograd_registration",
                ),
            )


# ------------------------------------------------------------------------------- memory


@pytest.mark.law(3)
def test_nothing_of_size_edges_by_features():
    torch.manual_seed(0)
    graph = go.Graph(random_edges(40, 40, 5000), (40, 40))
    x = torch.randn(40, 32, requires_grad=True)

    def step(ops):
        sum(y.square().sum() for y in ops.aggregate(graph, x, REDUCE)).backward()

    with Largest() as ours:
        step(go)
    assert ours.elements <= 2 * 40 * 32 * 4 + 2 * 5000  # coefficients, edge numbers
    with Largest() as theirs:  # the mode would have seen it
        step(go.reference)
    assert theirs.elements >= 5000 * 32


@pytest.mark.law(3)
def test_what_max_saves():
    """x, the maximum, and a byte for each of its numbers."""
    graph, saved = graph_of("random"), []
    x = torch.randn(graph.num_src, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t) or t, lambda t: t
    ):
        y = go.spmm(graph, x, reduce="max")
    kept = {(t.data_ptr(), t.dtype) for t in saved if t.numel()}
    assert len(kept) == 3 and (x.data_ptr(), x.dtype) in kept
    assert (y.data_ptr(), y.dtype) in kept
    assert torch.int8 in {dtype for _, dtype in kept}


# ------------------------------------------------------------------------ torch.compile


@pytest.mark.law(1)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("form", ["Graph", "edge_index"])
def test_compiled(form):
    torch._dynamo.reset()
    edges, size = GRAPHS["random"]
    graph = go.Graph(edges, size) if form == "Graph" else edges
    x = torch.randn(size[0], 16, requires_grad=True)

    def function(x):
        given = None if form == "Graph" else size
        largest = go.spmm(graph, x, reduce="max", size=given)
        return largest, *go.aggregate(graph, x, ("min", "std", "mean"), size=given)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    got, expected = compiled(x), function(x)
    grads = [torch.randn_like(y) for y in got]
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    ours, theirs = (torch.autograd.grad(y, x, grads)[0] for y in (got, expected))
    torch.testing.assert_close(ours, theirs)  # the sum of two ops' gradients
    torch._dynamo.reset()


# ------------------------------------------------------------------------------- errors


@pytest.mark.law(10)
@pytest.mark.parametrize(
    "arguments, error, text",
    [
        (dict(reduce="max"), TypeError, r"reduce must be a tuple of names, got 'max'"),
        (dict(reduce=()), ValueError, "got none"),
        (dict(reduce=("max", "mul")), ValueError, "reduce must name .*got 'mul'"),
        (dict(x=torch.ones(3, 2)), ValueError, "x must have 50 rows, one per source"),
        (dict(x=torch.ones(50)), ValueError, "x must have 2 dimensions"),
        (dict(x=None), TypeError, "x must be a tensor, got NoneType"),
        (dict(edge=torch.ones(3, 4)), ValueError, "edge must have 300 rows"),
        (dict(edge=torch.ones(300, 3)), ValueError, "edge must have 4 columns"),
        (dict(edge=torch.ones(300, 4).long()), TypeError, "edge must be float32"),
    ],
)
def test_refusals(arguments, error, text):
    arguments = dict(x=torch.ones(50, 4), reduce=("max",)) | arguments
    with pytest.raises(error, match=f"^aggregate: .*{text}|^aggregate: {text}"):
        go.aggregate(graph_of("random"), **arguments)


@pytest.mark.law(10)
def test_the_raw_ops_refuse_what_does_not_fit():
    graph = graph_of("random")
    args, absent = graph.args(with_csc=True), torch.empty(0)
    x, arg = torch.randn(50, 3), torch.zeros(50, 3, dtype=torch.int8)
    op, vjp = _dispatch_reduce.aggregate_op, _dispatch_reduce.aggregate_vjp_op
    with pytest.raises(RuntimeError, match="which must name some of 6"):
        op(x, absent, *args, 64, 0, False)
    with pytest.raises(RuntimeError, match="arg_bits must be 0, 8, 16 or 32, got 7"):
        op(x, absent, *args, 8, 7, False)
    grads, tail = [absent] * 6, (8, True, False)
    grads[3] = x
    for kept, text in (
        ([absent] * 6, "what forward saved of 8 is absent"),
        ([absent, x[:, :2], absent, absent, arg, absent], "must be as forward made it"),
        ([absent, x.double(), absent, absent, arg, absent], "must be float32"),
        ([absent, x, absent, arg.short(), arg, absent], "as forward made them"),
    ):
        with pytest.raises(RuntimeError, match=text):
            vjp(x, absent, *grads, *kept, *args, *tail)
    good = [absent, x, absent, absent, arg, absent]
    assert vjp(x, absent, *grads, *good, *args, *tail)[0].shape == x.shape
