"""Attention's kernels of csrc/cuda, run by the executor on CPU tensors.

A case is a dict of tensors named as in gnn_attention_args; `None` is absent.
`attention`, `attention_dst_vjp` and `attention_src_vjp` have the signatures of the
dispatcher ops, so that a test can put them where those are.
"""

import ctypes
import math

import cuda_ops
import torch
from cuda_ops import DTYPES, ENUM, INT64, POINTER, Call, Csr, Memory, ops_library

KINDS = ["gat", "gatv2", "dot"]  # as gnn_attention_kind
# edge modes of each kind
MODES = [
    *[("gat", edge) for edge in (None, "score_edge")],
    *[("gatv2", edge) for edge in (None, "edge", "edge_attr")],
    *[("dot", edge) for edge in (None, "edge", "edge_attr")],
]
STRIDED = ("v", "k", "q", "edge", "edge_attr", "grad")
OPERANDS = ("v", "k", "q", "score_src", "score_dst", "score_edge", "att", "edge")
OPERANDS += ("edge_attr", "edge_weight", "q_edge")
OUTPUTS = ("out", "out_edge", "out_acc", "lse")
BETWEEN = ("alpha", "dscore")
OF_DST = ("d_q", "d_score_dst", "d_att", "d_edge", "d_edge_attr", "d_edge_weight")
OF_DST += ("d_q_edge",)
OF_SRC = ("d_v", "d_k", "d_score_src")


class AttentionArgs(ctypes.Structure):
    _fields_ = (
        ("a", Csr),
        ("kind", ENUM),
        ("dtype", ENUM),
        *[(name, INT64) for name in ("n_heads", "n_channels", "n_edge_features")],
        *[(name, ctypes.c_double) for name in ("slope", "scale", "dropout")],
        ("seed", ctypes.c_uint64),
        *[(name, POINTER) for name in OPERANDS],
        *[(f"{name}_stride", INT64) for name in STRIDED[:-1]],
        *[(name, POINTER) for name in OUTPUTS],
        *[(name, POINTER) for name in ("grad", "grad_edge")],
        ("grad_stride", INT64),
        *[(name, POINTER) for name in (*BETWEEN, *OF_DST, *OF_SRC, "scratch")],
    )


def sums(dtype):
    return torch.float64 if dtype is torch.float64 else torch.float32


def case(kind, edge, dtype, graph, heads, channels, n_attr=5, seed=0, spread=1.0):
    """(operands, grads) on a graph as an op takes it. Scores a few units apart."""
    generator = torch.Generator().manual_seed(seed)
    n_dst, n_src, n_edges = graph[6], graph[7], graph[1].numel()

    def draw(*shape, dtype=dtype):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (values * spread).to(dtype)

    width, exact = heads * channels, sums(dtype)
    x = dict.fromkeys(OPERANDS)
    x["v"] = draw(n_src, width)
    if kind == "gat":
        x["score_src"] = draw(n_src, heads, dtype=exact)
        x["score_dst"] = draw(n_dst, heads, dtype=exact)
    else:
        x["q"] = draw(n_dst, width)
    if kind == "gatv2":
        x["att"] = draw(1, width) / math.sqrt(channels)
    if kind == "dot":
        x["k"] = draw(n_src, width)
    if edge == "score_edge":
        x["score_edge"] = draw(n_edges, heads, dtype=exact)
    elif edge == "edge":
        x["edge"] = draw(n_edges, width)
    elif edge == "edge_attr":
        x["edge_attr"] = draw(n_edges, n_attr)
        if kind == "gatv2":
            x["edge_weight"] = draw(n_attr, width)
        else:
            x["q_edge"] = draw(n_dst, heads * n_attr)
    grads = {"grad": draw(n_dst, width), "grad_edge": None}
    if kind == "dot" and edge == "edge_attr":
        grads["grad_edge"] = draw(n_dst, heads * n_attr, dtype=exact)
    return x, grads


# ----------------------------------------------------------------------------- oracle


def keeps(library, n_edges, heads, seed, dropout):
    """[E, H] of gnn_dropout_keeps, which the CPU kernels use."""
    function = library.dll.gnn_dropout_keeps
    function.restype = ctypes.c_bool
    seed, dropout = ctypes.c_uint64(seed), ctypes.c_double(dropout)
    return torch.tensor(
        [
            [function(seed, INT64(e), INT64(h), dropout) for h in range(heads)]
            for e in range(n_edges)
        ],
        dtype=torch.bool,
    ).view(n_edges, heads)


def oracle(kind, x, probe, edges, n_dst, heads, mask, slope, scale):
    """out, out_edge, alpha (before dropout), lse of doubles, as gnn.h says it. probe
    [E, H] is added to the scores, inside lrelu for GAT: its gradient is dscore."""
    j, i = edges
    x = {name: None if value is None else value.double() for name, value in x.items()}

    def split(value):
        return value.view(value.shape[0], heads, -1)

    value, attr = split(x["v"])[j], x["edge_attr"]
    lrelu = torch.nn.functional.leaky_relu
    if kind == "gat":
        inside = x["score_src"][j] + x["score_dst"][i] + probe
        if x["score_edge"] is not None:
            inside = inside + x["score_edge"]
        s = lrelu(inside, slope)
    else:
        feature = torch.zeros(())
        if x["edge"] is not None:
            feature = split(x["edge"])
        if x["edge_weight"] is not None:
            feature = split(attr @ x["edge_weight"])
        query = split(x["q"])[i]
        if kind == "gatv2":
            h = lrelu(value + query + feature, slope)
            s = (split(x["att"]) * h).sum(2)
        else:
            s = (query * (split(x["k"])[j] + feature)).sum(2)
            value = value + feature
            if attr is not None:
                s = s + (split(x["q_edge"])[i] * attr[:, None]).sum(2)
            s = s * scale
        s = s + probe
    at = i[:, None].expand(-1, heads)
    highest = torch.full((n_dst, heads), -math.inf, dtype=torch.float64)
    highest = highest.scatter_reduce(0, at, s.detach(), "amax")
    total = torch.zeros_like(highest).index_add(0, i, (s - highest[i]).exp())
    alpha = (s - highest[i]).exp() / total[i]
    weighted = (alpha * mask)[..., None]
    out = torch.zeros(n_dst, *value.shape[1:], dtype=torch.float64)
    out = out.index_add(0, i, weighted * value).flatten(1)
    out_edge = None
    if x["q_edge"] is not None:
        out_edge = torch.zeros(n_dst, heads, attr.shape[1], dtype=torch.float64)
        out_edge = out_edge.index_add(0, i, weighted * attr[:, None]).flatten(1)
    return out, out_edge, alpha, highest + total.log()


# -------------------------------------------------------------------------------- calls


class Attention:
    """One case on the executor: forward, dst pass, src pass."""

    def __init__(self, kind, heads, channels, slope=0.2, scale=None, dropout=0, seed=1):
        self.kind, self.heads, self.channels = kind, heads, channels
        self.slope = slope
        self.scale = 1 / math.sqrt(max(channels, 1)) if scale is None else scale
        self.dropout, self.seed = dropout, seed

    def call(self, library, function, x, graph, split, wanted, offset=0):
        """{name: tensor} of `wanted`, {name: (shape, dtype)}; x: operands by name."""
        with Memory(library) as memory:
            call = Call(library, memory, graph, split)
            args = AttentionArgs(a=call.csr, kind=KINDS.index(self.kind))
            args.dtype = DTYPES.index(x["v"].dtype)
            args.n_heads, args.n_channels = self.heads, self.channels
            args.slope, args.scale = self.slope, self.scale
            args.dropout, args.seed = self.dropout, self.seed
            if x.get("edge_attr") is not None:
                args.n_edge_features = x["edge_attr"].shape[1]
            for name, value in x.items():
                if value is None or value.numel() == 0:
                    continue
                if name in STRIDED:
                    address, stride = call.matrix(name, value, offset)
                    setattr(args, f"{name}_stride", stride)
                else:
                    address = memory.input(name, value.contiguous())
                setattr(args, name, address)
            results = {}
            for name, (shape, dtype) in wanted.items():
                address, results[name] = memory.output(name, shape, dtype)
                setattr(args, name, address)
            size = getattr(library.dll, f"{function}_scratch")
            size.restype = INT64
            n_bytes = size(ctypes.byref(args))
            args.scratch, _ = memory.output("scratch", (n_bytes,), torch.uint8)
            library.call(function, ctypes.byref(args), ctypes.c_uint64(0))
            return {name: result.clone() for name, result in results.items()}

    def forward(self, library, x, graph, split=True, offset=0):
        n_dst, dtype = graph[6], x["v"].dtype
        exact = sums(dtype)
        wanted = {"out": ((n_dst, self.heads * self.channels), dtype)}
        wanted["out_acc"] = (wanted["out"][0], exact)
        wanted["lse"] = ((n_dst, self.heads), exact)
        if x["q_edge"] is not None:
            wanted["out_edge"] = (tuple(x["q_edge"].shape), exact)
        return self.call(library, "gnn_attention_cuda", x, graph, split, wanted, offset)

    def dst(self, library, x, saved, grads, graph, split=True, only=None, offset=0):
        like = {"d_q": "q", "d_score_dst": "score_dst", "d_att": "att"}
        like |= {"d_edge": "edge", "d_edge_attr": "edge_attr"}
        like |= {"d_edge_weight": "edge_weight", "d_q_edge": "q_edge"}
        exact, n_edges = sums(x["v"].dtype), graph[1].numel()
        wanted = {name: ((n_edges, self.heads), exact) for name in BETWEEN}
        for name, operand in like.items():
            if x[operand] is not None and (only is None or name in only):
                wanted[name] = (tuple(x[operand].shape), x[operand].dtype)
        given = {**x, **{n: v for n, v in saved.items() if n != "out"}, **grads}
        return self.call(
            library, "gnn_attention_dst_vjp_cuda", given, graph, split, wanted, offset
        )

    def src(self, library, x, between, grads, graph, split=True, only=None, offset=0):
        """graph: forward's; its transpose is taken here."""
        back = (*graph[3:6], *graph[:3], graph[7], graph[6])
        like = {"d_v": "v", "d_k": "k", "d_score_src": "score_src"}
        wanted = {
            name: (tuple(x[operand].shape), x[operand].dtype)
            for name, operand in like.items()
            if x[operand] is not None and (only is None or name in only)
        }
        given = {
            **x,
            **{name: between[name] for name in BETWEEN},
            "grad": grads["grad"],
        }
        return self.call(
            library, "gnn_attention_src_vjp_cuda", given, back, split, wanted, offset
        )

    def all(self, library, x, grads, graph, split=True, offset=0):
        """Everything the three passes write."""
        saved = self.forward(library, x, graph, split, offset)
        dst = self.dst(library, x, saved, grads, graph, split, offset=offset)
        src = self.src(library, x, dst, grads, graph, split, offset=offset)
        return {**saved, **dst, **src}


# --------------------------------------------------------------------------------- ops

OF_ALL_ROWS = ("d_att", "d_edge_weight")  # sums over items, which a list changes


def in_all_orders(run, library=None):
    """{name: tensor} of run(library, split), of the same bits in each order of the
    lanes, with and without a list of heavy rows (but for gradients of parameters)."""
    cuda_ops.n_calls += 1
    library, results = library or ops_library(), []
    for i, order in enumerate(library.orders):
        library.set_order(order, cuda_ops.n_calls)
        results.append(run(library, i % 2 == 0))
    library.reset()
    for i, result in enumerate(results):
        for name, value in result.items():
            with_list = results[i % 2 if name in OF_ALL_ROWS else 0][name]
            order = library.orders[i]
            assert cuda_ops.same_bits(value, with_list), f"{name} in order {order}"
    return results[0]


N_GRAPH = 8


def parsed(args):
    """operands by name, graph, Attention and the last argument of an op's, from the
    first operand on."""
    given = args[: len(OPERANDS)]
    x = {
        name: None if value.dim() == 1 else value.detach()
        for name, value in zip(OPERANDS, given, strict=True)
    }
    seed, *rest = args[len(OPERANDS) :]
    graph, (kind, heads, slope, scale, dropout, last) = rest[:N_GRAPH], rest[N_GRAPH:]
    number = int(seed) & (2**64 - 1) if seed.numel() else 0
    channels = x["v"].shape[1] // heads if heads else 0
    options = slope, scale, dropout, number
    return x, tuple(graph), Attention(KINDS[kind], heads, channels, *options), last


def absent(x, dtype=None):
    return x.new_empty(0, dtype=dtype or x.dtype)


def attention(*args):
    x, graph, call, wants_acc = parsed(args)
    got = in_all_orders(lambda library, split: call.forward(library, x, graph, split))
    exact = absent(x["v"], sums(x["v"].dtype))
    acc = got["out_acc"] if wants_acc else exact
    return got["out"], got.get("out_edge", exact), got["lse"], acc


def wanted(names, wants):
    return tuple(name for bit, name in enumerate(names) if wants >> bit & 1)


def attention_dst_vjp(grad, grad_edge, out_acc, out_edge, lse, *args):
    x, graph, call, wants = parsed(args)
    saved = {"out_acc": out_acc, "lse": lse, "out_edge": out_edge}
    grads = {"grad": grad.detach(), "grad_edge": grad_edge}
    only = wanted(OF_DST, wants)
    got = in_all_orders(
        lambda library, split: call.dst(library, x, saved, grads, graph, split, only)
    )
    names = (*BETWEEN, *OF_DST)
    return tuple(got.get(name, absent(grad)) for name in names)


def attention_src_vjp(grad, alpha, dscore, *args):
    x, back, call, wants = parsed(args)
    graph = (*back[3:6], *back[:3], back[7], back[6])
    between = {"alpha": alpha, "dscore": dscore}
    grads, only = {"grad": grad.detach()}, wanted(OF_SRC, wants)
    got = in_all_orders(
        lambda library, split: call.src(library, x, between, grads, graph, split, only)
    )
    return tuple(got.get(name, absent(grad)) for name in OF_SRC)


# ------------------------------------------------------------------------ expectations


def expected(attention, x, grads, edges, n_dst, library=None):
    """All that Attention.all returns, from the oracle and autograd, in double."""
    heads, n_edges = attention.heads, edges.shape[1]
    library = library or ops_library()
    mask = keeps(library, n_edges, heads, attention.seed, attention.dropout)
    mask = mask / (1 - attention.dropout)
    leaves = {
        name: None if value is None else value.double().requires_grad_()
        for name, value in x.items()
    }
    probe = torch.zeros(n_edges, heads, dtype=torch.float64, requires_grad=True)
    numbers = heads, mask, attention.slope, attention.scale
    out, out_edge, alpha, lse = oracle(
        attention.kind, leaves, probe, edges, n_dst, *numbers
    )
    objective = (out * grads["grad"].double()).sum()
    found = {"out": out, "out_acc": out, "lse": lse, "alpha": alpha * mask}
    if out_edge is not None:
        found["out_edge"] = out_edge
        objective = objective + (out_edge * grads["grad_edge"].double()).sum()
    given = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    given["score"] = probe
    slopes = torch.autograd.grad(objective, list(given.values()), allow_unused=True)
    for (name, leaf), slope in zip(given.items(), slopes, strict=True):
        found[f"d_{name}"] = torch.zeros_like(leaf) if slope is None else slope
    found["dscore"] = found["d_score"]
    return {name: value.detach() for name, value in found.items()}
