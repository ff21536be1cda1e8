"""What attention must not do: allocate or save E x H x C, depend on threads, leak, take
bad input."""

import sys

import pytest
import torch
from attention_cases import CASES, SIZE, SMALL, call, leaves, operands, step
from test_leaks import resident
from test_memory import Largest

import gnnoffload as go
from gnnoffload import _dispatch_attention, _dispatch_heads

GRAPH = go.Graph(SMALL, SIZE)
RAW = [case for case in CASES if not case.endswith((" edge", "-20"))]


# ------------------------------------------------------------------------------- memory


@pytest.mark.law(3)
@pytest.mark.parametrize("case", [*RAW, "gat edge"])
def test_nothing_of_size_edges_by_features(case):
    n, n_edges, heads, channels = 40, 5000, 2, 32
    graph = go.Graph(torch.randint(n, (2, n_edges)), (n, n))
    tensors = operands(case, (n, n), n_edges, heads, channels, torch.float32)
    grad = torch.randn(n, heads, channels)
    with Largest() as ours:
        step(go, case, graph, tensors, grad, dropout=0.1, seed=1)
        call(go, case, graph, tensors, return_weights=True)
    assert heads * n_edges <= ours.elements <= 6 * n_edges  # d_edge_attr has 6 columns
    with Largest() as theirs:  # the mode would have seen it
        step(go.reference, case, graph, tensors, grad)
    assert theirs.elements >= n_edges * heads * channels


@pytest.mark.law(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_saved(dtype):
    """The operands, log-sum-exp, and out: itself, or in float32 for one of 16 bits."""
    saved = []
    tensors = leaves(operands("gatv2", SIZE, SMALL.shape[1], dtype=dtype))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t) or t, lambda t: t
    ):
        out = call(go, "gatv2", GRAPH, tensors)
    storages = {t.untyped_storage().data_ptr() for t in saved}
    given = [t.untyped_storage().data_ptr() for t in tensors.values()]
    sizes = sorted(t.numel() for t in saved)
    assert storages.issuperset(given) and len(saved) <= 6
    assert sizes == sorted([5 * 10, 4 * 10, 10, 4 * 10, 0, 4 * 2])
    is_saved = out.untyped_storage().data_ptr() in storages
    assert is_saved == (dtype is torch.float32)


# -------------------------------------------------------------------------- determinism


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.law(2)
@pytest.mark.parametrize("case", [c for c in CASES if "attr" not in c])
def test_threads_change_no_bit(case, threads):
    """Without "attr": torch projects those, and its matrix product has other bits for
    other numbers of threads."""
    torch.manual_seed(0)
    n, n_edges = 300, 20_000
    edges = torch.randint(n, (2, n_edges))
    edges[1, :4000] = 3  # a heavy row of forward, and one of backward
    edges[0, 4000:8000] = 5
    tensors = operands(case, (n, n), n_edges, 2, 9, torch.float32)
    grad, results = torch.randn(n, 2, 9), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        graph = go.Graph(edges, (n, n))
        results.append(step(go, case, graph, tensors, grad, dropout=0.2, seed=4))
        _, alpha = call(go, case, graph, tensors, return_weights=True)
        results[-1].append(alpha)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


# -------------------------------------------------------------------------------- leaks


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("case", ["gatv2 attr", "dot_attention attr", "raise"])
def test_flat(case):
    tensors = leaves(
        operands(case if case != "raise" else "gat", SIZE, 7, dtype=torch.float32)
    )
    absent = torch.empty(0)
    calls = 8000

    def run():
        if case == "raise":
            with pytest.raises(RuntimeError):
                _dispatch_heads.edge_softmax_op(absent[None], *GRAPH.args())
            return
        out = call(go, case, GRAPH, tensors, dropout=0.5, seed=1)
        torch.autograd.grad(out.sum(), tensors.values())

    for _ in range(1000):
        run()
    before = resident()
    for _ in range(calls):
        run()
    assert resident() - before < 32 * calls  # one lost handle is more than that


# ----------------------------------------------------------------------------- refusals

X, S, E = torch.ones(5, 2, 3), torch.ones(4, 2), torch.ones(7, 2)
GAT = dict(x=X, score_src=torch.ones(5, 2), score_dst=S)
GATV2 = dict(x_src=X, x_dst=X[:4], att=torch.ones(2, 3))
DOT = dict(query=X[:4], key=X, value=X)
ATTR = dict(edge_attr=torch.ones(7, 4), edge_weight=torch.ones(6, 4))

REFUSED = [
    # op, arguments, changes, exception, text
    (
        "gat",
        GAT,
        dict(x=X[:4]),
        ValueError,
        r"x must have shape \[5, H, C\], one row per "
        r"source, got \[4, 2, 3\]",
    ),
    ("gat", GAT, dict(x=X[:, 0]), ValueError, r"x must have shape \[5, H, C\]"),
    ("gat", GAT, dict(x=X[:, :0]), ValueError, r"x must have a head, got \[5, 0, 3\]"),
    ("gat", GAT, dict(x=X.long()), TypeError, "x must be float32"),
    ("gat", GAT, dict(x=None), TypeError, "x must be a tensor, got NoneType"),
    ("gat", GAT, dict(x=X.to("meta")), TypeError, "graph's device cpu, got meta"),
    (
        "gat",
        GAT,
        dict(score_src=S),
        ValueError,
        r"score_src must have shape \[5, 2\], "
        r"one row per source, got \[4, 2\]",
    ),
    (
        "gat",
        GAT,
        dict(score_dst=S[:, :1]),
        ValueError,
        r"score_dst must have shape "
        r"\[4, 2\], one row per destination, got \[4, 1\]",
    ),
    ("gat", GAT, dict(score_dst=None), TypeError, "score_dst must be a tensor"),
    (
        "gat",
        GAT,
        dict(score_edge=S),
        ValueError,
        r"score_edge must have shape \[7, 2\]",
    ),
    (
        "gat",
        GAT,
        dict(dropout=1.0),
        ValueError,
        r"dropout must be in \[0, 1\), got 1.0",
    ),
    ("gat", GAT, dict(dropout=-0.1), ValueError, r"got -0.1"),
    ("gat", GAT, dict(dropout="a"), TypeError, "dropout must be a number, got str"),
    (
        "gat",
        GAT,
        dict(negative_slope=None),
        TypeError,
        "negative_slope must be a number",
    ),
    ("gat", GAT, dict(dropout=0.5, seed=-1), ValueError, r"seed must be .*, got -1"),
    ("gat", GAT, dict(dropout=0.5, seed=2**63), ValueError, "seed must be an int in"),
    ("gat", GAT, dict(dropout=0.5, seed=0.5), ValueError, "seed must be .*, got 0.5"),
    (
        "gat",
        GAT,
        dict(dropout=0.5, seed=torch.ones(1)),
        TypeError,
        "seed must be an int6",
    ),
    ("gatv2", GATV2, dict(x_dst=X), ValueError, r"x_dst must have shape \[4, 2, 3\]"),
    (
        "gatv2",
        GATV2,
        dict(att=torch.ones(3, 2)),
        ValueError,
        r"att must have shape \[2, "
        r"3\], one row per head, got \[3, 2\]",
    ),
    ("gatv2", GATV2, dict(edge=E), ValueError, r"edge must have shape \[7, 2, 3\]"),
    ("gatv2", GATV2, dict(edge=E, **ATTR), ValueError, "must not both be given"),
    ("gatv2", GATV2, dict(edge_attr=E), ValueError, "must be given together"),
    ("gatv2", GATV2, dict(edge_weight=E), ValueError, "must be given together"),
    (
        "gatv2",
        GATV2,
        ATTR | dict(edge_attr=S),
        ValueError,
        r"edge_attr must have shape "
        r"\[7, D\], one row per edge, got \[4, 2\]",
    ),
    (
        "gatv2",
        GATV2,
        ATTR | dict(edge_weight=S),
        ValueError,
        r"edge_weight must have "
        r"shape \[6, 4\], one row per channel of a head, got \[4, 2\]",
    ),
    (
        "dot_attention",
        DOT,
        dict(query=X),
        ValueError,
        r"query must have shape \[4, H, "
        r"C\], one row per destination, got \[5, 2, 3\]",
    ),
    (
        "dot_attention",
        DOT,
        dict(key=X[:, :1]),
        ValueError,
        r"key must have shape \[5, 2, "
        r"3\]",
    ),
    ("dot_attention", DOT, dict(value=X[..., :1]), ValueError, "value must have shape"),
    ("dot_attention", DOT, dict(scale="1"), TypeError, "scale must be a number"),
]


@pytest.mark.law(10)
@pytest.mark.parametrize("op, arguments, changes, exception, text", REFUSED)
def test_refusals(op, arguments, changes, exception, text):
    with pytest.raises(exception, match=f"^{op}: .*{text}") as raised:
        getattr(go, op)(GRAPH, **(arguments | changes))
    assert raised.type is exception


@pytest.mark.law(10)
def test_bad_graphs():
    with pytest.raises(go.GraphError, match="destination of edge 1"):
        go.gat(torch.tensor([[0, 1], [1, 4]]), **GAT)
    with pytest.raises(TypeError, match="got str"):
        go.edge_softmax("graph", E)
    with pytest.raises(TypeError, match="values"):
        go.edge_softmax(torch.eye(3).to_sparse_csr(), torch.ones(3))


@pytest.mark.law(10)
def test_the_raw_ops_refuse_what_does_not_fit():
    attention, absent = _dispatch_attention.attention_op, torch.empty(0)
    args = GRAPH.args(True)
    x, q = X.flatten(1), X[:4].flatten(1)

    def given(**changes):
        names = (
            *("v", "k", "q", "score_src", "score_dst", "score_edge", "att", "edge"),
            *("edge_attr", "edge_weight", "q_edge", "seed"),
        )
        tensors = dict.fromkeys(names, absent)
        numbers = dict(kind=0, n_heads=2, slope=0.2, scale=1.0, dropout=0.0, acc=False)
        tensors.update(v=x, score_src=torch.ones(5, 2), score_dst=S)
        for name, value in changes.items():
            (numbers if name in numbers else tensors)[name] = value
        return *tensors.values(), *args, *numbers.values()

    attention(*given())
    gatv2 = dict(kind=1, q=q, att=torch.ones(1, 6))
    dot = dict(kind=2, q=q, k=x)
    attr = torch.ones(7, 17)
    bad = [
        (dict(v=x[:4]), "v must have 5 rows, got 4"),
        (dict(v=x.long()), "v must be floating"),
        (dict(n_heads=4), "v must have a multiple of 4 columns, got 6"),
        (dict(n_heads=0), "n_heads must be at least 1"),
        (dict(kind=3), "kind must be 0, 1 or 2, got 3"),
        (dict(score_src=absent), "score_src must be given"),
        (dict(score_dst=S.double()), "score_dst must be float32, got float64"),
        (dict(score_dst=torch.ones(4, 4)[:, :2]), "score_dst must be contiguous"),
        (dict(score_edge=torch.ones(7, 3)), "score_edge must have 2 columns, got 3"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), got 1"),
        (dict(dropout=0.5), r"seed must be an int64 tensor \[1\] on the CPU"),
        (gatv2 | dict(att=absent), "att must be given"),
        (gatv2 | dict(q=absent), "q must be given"),
        (gatv2 | dict(edge_attr=attr), "edge_attr and edge_weight must be given toget"),
        (
            gatv2 | dict(edge_attr=attr, edge_weight=torch.ones(17, 6)),
            "edge_attr must have at most 16 columns, got 17",
        ),
        (dot | dict(k=absent), "k must be given"),
        (dot | dict(edge_attr=attr), "edge_attr and q_edge must be given together"),
        (
            dot | dict(edge_attr=attr, edge=torch.ones(7, 6)),
            "edge and edge_attr must not both be given",
        ),
    ]
    for changes, text in bad:
        with pytest.raises(RuntimeError, match=f"attention: {text}"):
            attention(*given(**changes))
