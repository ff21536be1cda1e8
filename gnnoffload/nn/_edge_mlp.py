"""y[i] = reduce over edges e = (j, i) of rest(u_i + v_j), the message of EdgeConv.

The first Linear of EdgeConv's network sees [x_i, x_j - x_i], so it is a sum of a part
per destination, u, and one per source, v: node-level products. What follows, `rest`,
runs on a range of destinations whose messages stay in the cache, in backward again.
Saved: u and v. Nothing of size E x H.
"""

import torch

from gnnoffload._dispatch import eager_apply
from gnnoffload._ranges import DST, SRC, Range, bounds
from gnnoffload.graph import _NO_EID, Graph, _for_kernels
from gnnoffload.messages import gather, segment
from gnnoffload.ops import spmm

RANGE_BYTES = 1 << 20  # of the widest tensor of a range: a core's second-level cache


def edge_mlp(graph, u, v, rest, reduce, width):
    """See the module.

    Args
    ----
    graph : Graph of N_src sources, N_dst destinations
    u, v : [N_dst, H], [N_src, H] of one dtype
    rest : list of modules, applied in turn; each row by itself
    reduce : "sum", "mean", "max" or "min"
    width : of the widest tensor between and behind the modules

    Returns
    -------
    [N_dst, F_out], 0 where no edge arrives
    """
    if torch.compiler.is_compiling() or graph.num_edges == 0:
        return _whole(graph, u, v, rest, reduce)
    parameters = [p for m in rest for p in m.parameters() if p.requires_grad]
    return _record(graph, u, v, rest, reduce, width, *parameters)


def _whole(graph, u, v, rest, reduce):
    """All edges at once: for torch.compile and second derivatives."""
    return segment(
        graph, _apply(rest, gather(graph, u, "dst") + gather(graph, v, "src")), reduce
    )


def _apply(modules, z):
    for module in modules:
        z = module(z)
    return z


class _EdgeMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graph, u, v, rest, reduce, width, *parameters):
        ctx.graph, ctx.rest, ctx.reduce, ctx.width = graph, rest, reduce, width
        ctx.save_for_backward(u, v, *parameters)
        y = None
        for part in parts(graph, width * u.element_size()):
            z = part.take(v).add_(part.spread(u))
            rows = spmm(part.rows, _apply(rest, z), reduce=reduce)
            if y is None:
                y = rows.new_zeros(graph.num_dst, rows.shape[1])
            y[part.begin : part.end] = rows
        return y

    @staticmethod
    def backward(ctx, grad_y):
        u, v, *parameters = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:3]
        if torch.is_grad_enabled():  # create_graph
            wanted = [t for t, n in zip((u, v), needs, strict=True) if n]
            y = _whole(ctx.graph, u, v, ctx.rest, ctx.reduce)
            wanted += parameters
            found = torch.autograd.grad(
                y, wanted, grad_y, create_graph=True, allow_unused=True
            )
            grads = iter(found)
            pair = [next(grads) if need else None for need in needs]
            return None, *pair, None, None, None, *grads
        grads = _backward(ctx, u, v, parameters, grad_y)
        return None, grads[0], grads[1], None, None, None, *grads[2:]


_record = eager_apply(_EdgeMlp)


def _backward(ctx, u, v, parameters, grad_y):
    """Gradients of u, v and the parameters; None where not wanted."""
    needs_u, needs_v = ctx.needs_input_grad[1:3]
    # sums over all ranges: in float32 for 16-bit types
    wide = torch.float64 if u.dtype is torch.float64 else torch.float32
    grad_u = torch.zeros_like(u) if needs_u else None
    grad_v = torch.zeros_like(v, dtype=wide) if needs_v else None
    sums = [torch.zeros_like(p, dtype=wide) for p in parameters]
    for part in parts(ctx.graph, ctx.width * u.element_size()):
        left = part.take(v).requires_grad_()
        with torch.enable_grad():
            z = left + part.spread(u)  # not the leaf: modules may work in place
            y = spmm(part.rows, _apply(ctx.rest, z), reduce=ctx.reduce)
        grad_z, *grads = torch.autograd.grad(
            y,
            [left, *parameters],
            grad_y[part.begin : part.end],
            allow_unused=True,
        )
        for total, grad in zip(sums, grads, strict=True):
            if grad is not None:
                total += grad
        if needs_u:
            part.add_gradient(grad_u, DST, grad_z, None)
        if needs_v:
            part.add_gradient(grad_v, SRC, grad_z, part.col)
    if needs_v:
        grad_v = grad_v.to(v.dtype)
    sums = [s.to(p.dtype) for s, p in zip(sums, parameters, strict=True)]
    return grad_u, grad_v, *sums


class Part(Range):
    """A range of whole destinations with its edges in the graph's order."""

    def __init__(self, graph, numbers, counted, begin, end, first, last):
        super().__init__(graph, begin, end, first, last)
        n, n_rows = last - first, end - begin
        self.col = graph.col[first:last]
        rowptr = graph.rowptr[begin : end + 1] - first
        self._row = torch.repeat_interleave(
            counted[:n_rows], rowptr.diff(), output_size=n
        )
        self.rows = Graph._from_arrays(rowptr, counted[:n], _NO_EID, n_rows, n)
        one_each = _for_kernels(numbers[: n + 1], n)
        self.rows._args = (
            *self.rows._args[:3],
            one_each,
            self._row,
            _NO_EID,
            n_rows,
            n,
        )
        self.rows._has_csc = True

    def take(self, v):
        """v [N_src, H] -> [n, H], the row of each edge's source."""
        return v.index_select(0, self.col)

    def spread(self, u):
        """u [N_dst, H] -> [n, H], the row of each edge's destination."""
        return u[self.begin : self.end].index_select(0, self._row)


def parts(graph, bytes_per_edge):
    """The parts of `graph` of RANGE_BYTES each, or of one row; cut once and kept."""
    most = max(256, RANGE_BYTES // max(1, bytes_per_edge))
    key = ("edge mlp", most)
    found = graph.cache.get(key)
    if found is None:
        in_order = Graph._from_arrays(
            graph.args()[0], graph.col, _NO_EID, graph.num_dst, graph.num_src
        )
        cuts = list(bounds(in_order, most))
        longest = max(max(c[1] - c[0], c[3] - c[2]) for c in cuts)
        numbers = torch.arange(longest + 1, device=graph.device)
        counted = numbers.int()  # both shared by all parts
        found = [Part(in_order, numbers, counted, *cut) for cut in cuts]
        graph.cache[key] = found
    return found
