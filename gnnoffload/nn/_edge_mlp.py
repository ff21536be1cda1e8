"""y[i] = reduce over edges e = (j, i) of rest(u_i + v_j + W a_e): messages that start
with a Linear of what the two ends and the edge carry.

A Linear of a concatenation is a sum: of a part per destination, u, one per source, v,
both products of N rows, and one of the edge's attributes. What follows, `rest`, runs
on a range of destinations whose messages stay in the cache, in backward again.
Saved: u, v, the attributes. Nothing of size E x H.
"""

import torch
from torch.nn.functional import pad

from gnnoffload._dispatch import accumulator, eager_apply
from gnnoffload._ranges import DST, SRC, Range, bounds
from gnnoffload.graph import _NO_EID, Graph, _for_kernels
from gnnoffload.messages import gather, segment
from gnnoffload.nn._linear import through
from gnnoffload.ops import spmm

RANGE_BYTES = 1 << 20  # of the widest tensor of a range: a core's second-level cache


def edge_mlp(graph, u, v, rest, reduce, width, edge_attr=None, weight=None):
    """See the module.

    Args
    ----
    graph : Graph of N_src sources, N_dst destinations, E edges
    u, v : [N_dst, G], [N_src, H] of one dtype; G may be less than H: u is added to the
        first columns
    rest : list of modules, applied in turn; each row by itself
    reduce : "sum", "mean", "max" or "min"
    width : of the widest tensor between and behind the modules
    edge_attr, weight : [E, D] in the caller's edge order, [H, D]; or None

    Returns
    -------
    [N_dst, F_out], 0 where no edge arrives
    """
    if torch.compiler.is_compiling() or graph.num_edges == 0:
        return _whole(graph, u, v, edge_attr, weight, rest, reduce)
    parameters = [p for m in rest for p in m.parameters() if p.requires_grad]
    how = (graph, rest, reduce, width)
    return _record(how, u, v, edge_attr, weight, *parameters)


def _whole(graph, u, v, edge_attr, weight, rest, reduce):
    """All edges at once: for torch.compile and second derivatives."""
    z = gather(graph, v, "src")
    z = z + gather(graph, pad(u, (0, v.shape[1] - u.shape[1])), "dst")
    if edge_attr is not None:
        z = z + edge_attr @ weight.t()
    return segment(graph, through(rest, z), reduce)


class _EdgeMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, how, u, v, edge_attr, weight, *parameters):
        ctx.how = graph, rest, reduce, width = how
        ctx.save_for_backward(u, v, edge_attr, weight, *parameters)
        y = None
        for part in parts(graph, width * u.element_size()):
            z = part.sum_of_ends(u, v, edge_attr, weight)
            rows = spmm(part.rows, through(rest, z), reduce=reduce)
            if y is None:
                y = rows.new_zeros(graph.num_dst, rows.shape[1])
            y[part.begin : part.end] = rows
        return y

    @staticmethod
    def backward(ctx, grad_y):
        inputs = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return None, *_backward(ctx.how, inputs, ctx.needs_input_grad[1:], grad_y)
        graph, rest, reduce, _ = ctx.how  # create_graph
        needs = ctx.needs_input_grad[1:]
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        y = _whole(graph, *inputs[:4], rest, reduce)
        found = torch.autograd.grad(
            y, wanted, grad_y, create_graph=True, allow_unused=True
        )
        grads = iter(found)
        return None, *(next(grads) if need else None for need in needs)


_record = eager_apply(_EdgeMlp)


def _backward(how, inputs, needs, grad_y):
    """Gradients of u, v, edge_attr, weight and the parameters; None: not wanted."""
    graph, rest, reduce, width = how
    u, v, edge_attr, weight, *parameters = inputs
    needs_u, needs_v, needs_attr, needs_weight, *_ = needs
    # sums over all ranges: in float32 for 16-bit types
    wide = accumulator(u.dtype)
    grad_u = torch.zeros_like(u) if needs_u else None
    grad_v = torch.zeros_like(v, dtype=wide) if needs_v else None
    grad_attr = torch.empty_like(edge_attr) if needs_attr else None
    grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
    sums = [torch.zeros_like(p, dtype=wide) for p in parameters]
    in_place = any(getattr(m, "inplace", False) for r in rest for m in _modules(r))
    for part in parts(graph, width * u.element_size()):
        z = part.sum_of_ends(u, v, edge_attr, weight).requires_grad_()
        with torch.enable_grad():
            m = through(rest, z.clone() if in_place else z)
            y = spmm(part.rows, m, reduce=reduce)
        grad_z, *grads = torch.autograd.grad(
            y, [z, *parameters], grad_y[part.begin : part.end], allow_unused=True
        )
        for total, grad in zip(sums, grads, strict=True):
            if grad is not None:
                total += grad
        if needs_u:
            part.add_gradient(grad_u, DST, grad_z[:, : u.shape[1]], None)
        if needs_v:
            part.add_gradient(grad_v, SRC, grad_z, part.col)
        if needs_weight:
            grad_weight += (part.attributes(edge_attr).t() @ grad_z).t()
        if needs_attr:
            part.put_attributes(grad_attr, grad_z @ weight)
    if needs_v:
        grad_v = grad_v.to(v.dtype)
    if needs_weight:
        grad_weight = grad_weight.to(weight.dtype)
    sums = [s.to(p.dtype) for s, p in zip(sums, parameters, strict=True)]
    return grad_u, grad_v, grad_attr, grad_weight, *sums


def _modules(module):
    return module.modules() if isinstance(module, torch.nn.Module) else ()


class Part(Range):
    """A range of whole destinations with its edges in the graph's order."""

    def __init__(self, graph, eid, numbers, counted, begin, end, first, last):
        super().__init__(graph, begin, end, first, last)
        n, n_rows = last - first, end - begin
        self.col = graph.col[first:last]
        self._edge = None if eid is None else eid[first:last]  # caller's edges
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

    def sum_of_ends(self, u, v, edge_attr, weight):
        """[n, H]: v of each edge's source, u of its destination, W a of itself."""
        z = v.index_select(0, self.col)
        z[:, : u.shape[1]] += u[self.begin : self.end].index_select(0, self._row)
        if edge_attr is not None:
            z.addmm_(self.attributes(edge_attr), weight.t())
        return z

    def attributes(self, edge_attr):
        """[E, D] -> [n, D]"""
        if self._edge is None:
            return edge_attr[self.edges]
        return edge_attr.index_select(0, self._edge)

    def put_attributes(self, out, values):
        """Writes values [n, D] to their edges in out [E, D]."""
        if self._edge is None:
            out[self.edges] = values
        else:
            out.index_copy_(0, self._edge.long(), values)


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
        found = [Part(in_order, graph.eid, numbers, counted, *cut) for cut in cuts]
        graph.cache[key] = found
    return found
