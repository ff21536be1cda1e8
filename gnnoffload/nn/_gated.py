"""y[i] = root(x_i) + reduce over edges e = (j, i) of sigmoid(gate) * value, where gate
and value are Linears of what the two ends and the edge carry: [x_i, x_j, a_e].

A Linear of a concatenation is a sum: u of x_i and v of x_j are products of N rows, and
the op `gated` adds them edge by edge. The part p of the attributes exists a chunk of
edges at a time, in backward again. Backward is one pass by source: the gradient of v is
made for some rows at a time, goes at once into those of x, of the weight and of the
bias, and never exists whole; the gradient of u is grad_y times what forward summed.
Saved: x, u, v, the derivative of y by u, the attributes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from gnnoffload import gates
from gnnoffload._dispatch import (
    accumulator,
    below_autograd,
    eager_apply,
    is_transformed,
)
from gnnoffload._dispatch_gated import call_gated, gated_vjp, grad_of_u
from gnnoffload.nn._edge_chunks import CHUNK_BYTES, chunks
from gnnoffload.nn._linear import product

GPU_CHUNKS = 64  # of CHUNK_BYTES each make one on a GPU


class Parts(NamedTuple):
    """The parameters, gates before values; None: absent."""

    on_dst: Tensor  # [G, F_dst]: G is C, or 2 C where the value sees x_i
    bias_dst: Tensor | None
    on_src: Tensor  # [2 C, F_src]
    bias_src: Tensor | None
    on_edge: Tensor | None = None  # [2 C, D]
    root: Tensor | None = None  # [C, F_dst]
    bias: Tensor | None = None  # [C]


def gated_sum(graph, x, edge_attr, parts, softplus, reduce):
    """See the module.

    Args
    ----
    graph : Graph of N_src sources, N_dst destinations, E edges
    x : (x_src [N_src, F_src], x_dst [N_dst, F_dst])
    edge_attr : [E, D] in the caller's edge order, or None
    parts : Parts
    softplus : values are its; else as they are
    reduce : "sum" or "mean"

    Returns
    -------
    [N_dst, C]
    """
    x_src, x_dst = x
    how = graph, softplus, reduce
    if edge_attr is not None and edge_attr.shape[0] != graph.num_edges:
        raise ValueError(
            f"edge_attr must have {graph.num_edges} rows, got {edge_attr.shape[0]}"
        )
    if is_transformed():
        return _whole(how, x_dst, x_src, edge_attr, *parts)
    x_src = None if x_src is x_dst else x_src  # one tensor, one gradient
    if torch.is_grad_enabled():
        return _record(how, x_dst, x_src, edge_attr, *parts)
    return _forward(how, False, x_dst, x_src, edge_attr, parts)[0]


def _whole(how, x_dst, x_src, edge_attr, *parts, messages=False):
    """By torch's own Linears, with the attributes' part of all edges at once: for
    torch.compile, and with messages one by one for second derivatives."""
    graph, softplus, reduce = how
    p = Parts(*parts)
    u = linear(x_dst, p.on_dst, p.bias_dst)
    v = linear(x_dst if x_src is None else x_src, p.on_src, p.bias_src)
    edge = None if edge_attr is None else linear(edge_attr, p.on_edge)
    function = gates.by_messages if messages else gates.by_op
    y = function(graph, u, v, edge, softplus, reduce)
    if p.root is not None:
        y = y + linear(x_dst, p.root)
    return y if p.bias is None else y + p.bias


def _forward(how, saves, x_dst, x_src, edge_attr, p):
    """y, and what backward needs besides: u, v and dy_du, empty unless it `saves`"""
    graph, softplus, reduce = how
    with below_autograd():
        u = product(x_dst, p.on_dst, p.bias_dst)
        v = product(x_dst if x_src is None else x_src, p.on_src, p.bias_src)
        scale = gates.scale_of(graph, v.dtype, reduce)
        if edge_attr is None:
            args = graph.args()
            y, dy_du = call_gated(u, v, None, scale, softplus, saves, args)
        else:
            given = graph, u, v, edge_attr, p, scale, softplus, saves
            y, dy_du = _by_chunks(*given)
        if p.root is not None:
            y += product(x_dst, p.root)
        if p.bias is not None:
            y += p.bias
    return y, u, v, dy_du


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, how, x_dst, x_src, edge_attr, *parts):
        ctx.how = how
        saves = any(ctx.needs_input_grad)
        y, *made = _forward(how, saves, x_dst, x_src, edge_attr, Parts(*parts))
        ctx.save_for_backward(x_dst, x_src, edge_attr, *parts, *made)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        *inputs, u, v, dy_du = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            with below_autograd():
                return None, *_backward(ctx.how, inputs, (u, v, dy_du), needs, grad_y)
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        y = _whole(ctx.how, *inputs, messages=True)  # create_graph
        grads = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=True))
        return None, *(next(grads) if need else None for need in needs)


_record = eager_apply(_GatedSum)  # layers fall back under torch.func


def _by_chunks(graph, u, v, edge_attr, p, scale, softplus, saves):
    """(y, dy_du), the attributes projected a chunk of edges at a time."""
    wide = accumulator(v.dtype)
    y = v.new_zeros(graph.num_dst, v.shape[1] // 2)
    dy_du = u.new_zeros(graph.num_dst if saves else 0, u.shape[1], dtype=wide)
    for chunk in chunks(graph, _bytes_per_edge(graph, v, edge_attr)):
        rows = slice(chunk.row_begin, chunk.row_end)
        edge = product(chunk.edges_of(edge_attr), p.on_edge)
        part = None if scale is None else scale[rows]
        y[rows], of_rows = call_gated(
            u[rows], v, edge, part, softplus, saves, chunk.args
        )
        if saves:
            dy_du[rows] = of_rows
    return y, dy_du


class _Sum:
    """A gradient summed over blocks of rows: in float32 for 16-bit types. A weight's is
    kept transposed: a product of 8 columns takes five times as long as one of 8 rows.
    """

    def __init__(self, of, needed):
        self.of, self.total = of, None
        if needed:
            wide = accumulator(of.dtype)
            self.total = torch.zeros(of.shape[::-1], dtype=wide, device=of.device)

    def add_product(self, a, b):
        """a [n, G], b [n, F] for a weight [G, F]"""
        if self.total is None:
            return
        if self.total.dtype is a.dtype:
            self.total.addmm_(b.t(), a)
        else:
            self.total += b.t() @ a

    def add_rows(self, a):
        """a [n, G] for a bias [G]"""
        if self.total is not None:
            self.total += a.sum(0, dtype=self.total.dtype)

    def value(self):
        if self.total is None:
            return None
        total = self.total if self.total.dim() < 2 else self.total.t().contiguous()
        return total.to(self.of.dtype)


def _backward(how, inputs, saved, needs, grad_y):
    """Gradients of x_dst, x_src, edge_attr and the parts; None: not wanted."""
    graph, softplus, reduce = how
    x_dst, x_src, edge_attr, *parts = inputs
    u, v, dy_du = saved
    needs_dst, needs_src, needs_attr, *needs_parts = needs
    p = Parts(*parts)
    sums = Parts(*(_Sum(t, n) for t, n in zip(parts, needs_parts, strict=True)))
    grad_dst = torch.empty_like(x_dst) if needs_dst else None
    grad_y = grad_y.contiguous()

    # what hangs on destinations
    for rows in _blocks(graph.num_dst, _counted(dy_du.shape[1] * u.element_size(), u)):
        grad, x = grad_y[rows], x_dst[rows]
        grad_u = grad_of_u(grad, dy_du[rows])
        sums.on_dst.add_product(grad_u, x)
        sums.bias_dst.add_rows(grad_u)
        sums.root.add_product(grad, x)
        sums.bias.add_rows(grad)
        if needs_dst:
            grad_dst[rows] = product(grad_u, p.on_dst.t())
            if p.root is not None:
                grad_dst[rows] += product(grad, p.root.t())

    # what hangs on sources and edges
    needs_of_src = needs_dst if x_src is None else needs_src
    needs_edge = needs_attr or sums.on_edge.total is not None
    needs_v = needs_of_src or needs_parts[2] or needs_parts[3]
    grad_src = grad_dst
    if x_src is not None:
        grad_src = torch.zeros_like(x_src) if needs_src else None
    x_src = x_dst if x_src is None else x_src
    grad_attr = torch.empty_like(edge_attr) if needs_attr else None
    scale = gates.scale_of(graph, v.dtype, reduce)
    bytes_per_edge = _bytes_per_edge(graph, v, edge_attr)
    cut = chunks(graph.transpose(), bytes_per_edge) if needs_v or needs_edge else ()
    for chunk in cut:
        rows = slice(chunk.row_begin, chunk.row_end)
        attr = edge = None
        if edge_attr is not None:
            attr = chunk.edges_of(edge_attr)
            edge = product(attr, p.on_edge)
        grad_v, grad_edge = gated_vjp(
            grad_y, u, v[rows], edge, scale, softplus, chunk.args, needs_v, needs_edge
        )
        if needs_v:
            sums.on_src.add_product(grad_v, x_src[rows])
            sums.bias_src.add_rows(grad_v)
        sums.on_edge.add_product(grad_edge, attr)
        if needs_of_src:
            grad_src[rows] += product(grad_v, p.on_src.t())
        if needs_attr:
            chunk.put_edges(grad_attr, product(grad_edge, p.on_edge.t()))
    return (
        grad_dst,
        grad_src if needs_src else None,
        grad_attr,
        *(s.value() for s in sums),
    )


def _counted(n_bytes, x):
    """What a chunk is charged for n_bytes: on a GPU less, for chunks that fill it."""
    return max(1, n_bytes // GPU_CHUNKS if x.is_cuda else n_bytes)


def _blocks(n_rows, bytes_per_row):
    step = max(1, CHUNK_BYTES // bytes_per_row)
    return [slice(begin, begin + step) for begin in range(0, n_rows, step)]


def _bytes_per_edge(graph, v, edge_attr):
    """A chunk is bounded by its projected attributes; without, by its rows of v."""
    row_bytes = v.shape[1] * v.element_size()
    if edge_attr is None:
        row_bytes = -(-row_bytes * graph.num_src // max(1, graph.num_edges))
    return _counted(row_bytes, v)
