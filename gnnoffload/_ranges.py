"""A graph cut into ranges of whole destinations; the way of rows into a range, and of
their gradients out of it.

A range's edges stand in the caller's order, so that what adds up a destination's
messages in that order gives the bits it gives without ranges. Gradients of the parts of
a tensor are added into one buffer: autograd alone would make a tensor of the whole size
for each range.
"""

import torch
from torch.autograd import Function

from gnnoffload._dispatch import below_autograd, call_spmm
from gnnoffload.graph import _NO_EID
from gnnoffload.ops import FLOATS

SRC, DST, EDGE = "src", "dst", "edge"  # what the rows of a tensor stand for


class Range:
    """The n edges into the destinations [begin, end)."""

    def __init__(self, graph, begin, end, first, last):
        self.begin, self.end, self.n_edges = begin, end, last - first
        self._rowptr = graph.rowptr[begin : end + 1] - first
        self._order = None  # [n] of the range's rows -> its edges; None: the same
        if graph.eid is None:
            self.edges = slice(first, last)
        else:
            edges, order = graph.eid[first:last].sort()
            if not torch.equal(order, torch.arange(self.n_edges, device=order.device)):
                self._order = torch.empty_like(order, dtype=torch.int32)
                numbers = torch.arange(
                    self.n_edges, dtype=torch.int32, device=order.device
                )
                self._order[order] = numbers
            start = int(edges[0]) if self.n_edges else 0
            whole = self.n_edges == 0 or int(edges[-1]) - start + 1 == self.n_edges
            self.edges = slice(start, start + self.n_edges) if whole else edges
        self._sources = None

    def rows_of(self, x):
        """x [E, ...] -> [n, ...]"""
        if isinstance(self.edges, slice):
            return x[self.edges]
        return x.index_select(0, self.edges)

    def ends(self, source, destination):
        """([n] sources, [n] destinations counted from `begin`)"""
        return self.rows_of(source), self.rows_of(destination) - self.begin

    def add_gradient(self, total, what, grad, index):
        """total [rows, ...] += the sum of grad [n, ...] over the edges of each row."""
        if what == EDGE:
            if isinstance(self.edges, slice):
                total[self.edges] = grad
            else:
                total.index_copy_(0, self.edges.long(), grad.to(total.dtype))
        elif what == DST:
            order = self._order
            if order is None:
                order = torch.arange(
                    self.n_edges, dtype=torch.int32, device=grad.device
                )
            total[self.begin : self.end] += _sum_rows(self._rowptr, order, grad)
        else:
            if self._sources is None:
                self._sources = _group(index)
            nodes, rowptr, order = self._sources
            rows = _sum_rows(rowptr, order, grad)
            total.index_copy_(0, nodes, total.index_select(0, nodes).add_(rows))


def _group(index):
    """(nodes, rowptr, order): the distinct entries of index [n], where they stand."""
    nodes, order = index.sort(stable=True)
    nodes, counts = torch.unique_consecutive(nodes, return_counts=True)
    rowptr = counts.new_zeros(nodes.shape[0] + 1)
    torch.cumsum(counts, 0, out=rowptr[1:])
    return nodes.long(), rowptr, order.int()


def _sum_rows(rowptr, order, grad):
    """[rows, ...]: the sums of grad [n, ...] over the entries of each row."""
    n_rows, n = rowptr.shape[0] - 1, grad.shape[0]
    if grad.dtype not in FLOATS:
        row = torch.repeat_interleave(
            torch.arange(n_rows, device=grad.device), rowptr.diff(), output_size=n
        )
        zeros = grad.new_zeros(n_rows, *grad.shape[1:])
        return zeros.index_add_(0, row, grad.index_select(0, order))
    flat = grad.reshape(n, grad[:1].numel()) if n else grad.reshape(0, 0)
    if flat.shape[1] == 0:
        return grad.new_zeros(n_rows, *grad.shape[1:])
    none = _NO_EID
    args = (rowptr, order, none, _NO_ROWPTR, none, none, n_rows, n)
    with below_autograd():
        return call_spmm(flat, None, None, None, args).view(n_rows, *grad.shape[1:])


_NO_ROWPTR = torch.empty(0, dtype=torch.int64, device="cpu")


def bounds(graph, most):
    """(begin, end, first, last) of consecutive ranges that cover all destinations, each
    of at most `most` edges or of one row."""
    rowptr, n_rows, begin = graph.rowptr, graph.num_dst, 0
    while begin < n_rows:
        first = int(rowptr[begin])
        end = int(torch.searchsorted(rowptr, first + most, right=True)) - 1
        end = min(max(end, begin + 1), n_rows)
        yield begin, end, first, int(rowptr[end])
        begin = end


def ranges(graph, most):
    """The ranges of `graph`, cut once and kept on it."""
    key = ("ranges", most)
    found = graph.cache.get(key)
    if found is None:
        found = graph.cache[key] = [Range(graph, *b) for b in bounds(graph, most)]
    return found


# ------------------------------------------------------------------ rows and gradients


class Parts:
    """One tensor whose rows the ranges take."""

    def __init__(self, tensor, what):
        self.what, self._sum = what, _Sum(what, tensor)
        held = tensor.requires_grad and torch.is_grad_enabled()
        self._tensor = _Hold.apply(tensor, self._sum) if held else tensor

    def take(self, part, index, edge_ends):
        """The rows for `part`: [n, ...]; index [n] of its edges, for nodes."""
        return _Take.apply(self._tensor, self._sum, part, index, edge_ends)


class _Sum:
    """The gradient of one tensor, added up over its parts in one backward pass. Knows
    no tensor of the graph: it hangs on the graph's nodes."""

    def __init__(self, what, tensor):
        self.what, self.shape, self._total, self._pass = what, tensor.shape, None, None

    def add(self, part, grad, index):
        now = torch._C._current_graph_task_id()
        if self._total is None or self._pass != now:  # else of a pass that failed
            is_half = grad.dtype in (torch.bfloat16, torch.float16)
            dtype = torch.float32 if is_half and self.what != EDGE else grad.dtype
            self._total = torch.zeros(self.shape, dtype=dtype, device=grad.device)
            self._pass = now
        part.add_gradient(self._total, self.what, grad, index)

    def collect(self, grad):
        """What this pass has added, plus grad (None: nothing)."""
        total, self._total = self._total, None
        if total is None or self._pass != torch._C._current_graph_task_id():
            return grad
        return total if grad is None else grad + total


class _Hold(Function):
    """The same tensor; its gradient is what `_Take` has left in `total`."""

    @staticmethod
    def forward(ctx, x, total):
        ctx.set_materialize_grads(False)
        ctx.total, ctx.dtype = total, x.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            return grad, None
        grad = ctx.total.collect(grad)
        return None if grad is None else grad.to(ctx.dtype), None


class _Take(Function):
    @staticmethod
    def forward(ctx, x, total, part, index, edge_ends):
        ctx.total, ctx.part, ctx.edge_ends = total, part, edge_ends
        if total.what == EDGE:
            return part.rows_of(x).view(part.n_edges, *x.shape[1:])
        if total.what == DST:
            x = x[part.begin : part.end]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        part, total = ctx.part, ctx.total
        if torch.is_grad_enabled():  # create_graph
            rows = _rows_of_all(part, total.what, ctx.edge_ends, grad.device)
            grad = grad.new_zeros(total.shape).index_add(0, rows, grad)
            return grad, None, None, None, None
        index = None
        if total.what == SRC and part._sources is None:
            index = part.rows_of(ctx.edge_ends[0])
        total.add(part, grad, index)
        return None, None, None, None, None


def _rows_of_all(part, what, edge_ends, device):
    """[n] int64: the row of the whole tensor that each edge of the part took."""
    if what != EDGE:
        return part.rows_of(edge_ends[what == DST]).long()
    return part.rows_of(torch.arange(edge_ends[0].shape[0], device=device))


class _Reorder(Function):
    """x[order], whose gradient is a gather too."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(order, inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, grad):
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(grad, inverse, order), None, None


def in_callers_order(pieces, parts):
    """[E, ...] from the [n, ...] that each range made of its edges."""
    whole = torch.cat(pieces)
    if all(isinstance(part.edges, slice) for part in parts):
        starts = [part.edges.start for part in parts if part.n_edges]
        if starts == sorted(starts):
            return whole
    device = whole.device
    numbers = torch.arange(whole.shape[0], device=device)
    edges = torch.cat([part.rows_of(numbers) for part in parts])
    position = torch.empty_like(edges)
    position[edges] = numbers
    return _Reorder.apply(whole, position, edges)
