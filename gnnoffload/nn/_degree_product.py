"""PNA's product behind the statistics: a Linear whose weight depends on a row's degree.

    out_i = sum over scalers k, statistics r of  s_k(d_i) (y_ri + c_r(d_i) shift_i) W_kr

d_i is the degree; c_r is 1 for mean, min and max, d for sum, 0 for var and std, and 0
without edges. Rows of one degree share the weight sum_k s_k(d) W_k: one product serves
all scalers. Degrees that few rows have get a product for each scaler.

PNA with three scalers and four statistics at N 40,962, F 64, forward and backward: the
products of each scaler took 145 of 255 ms.
"""

import torch

from gnnoffload._dispatch import accumulator, eager_apply, is_transformed
from gnnoffload.nn._linear import product

SHIFTED = ("mean", "min", "max")
RANGE_ROWS = 2048  # of F = 64: half a MiB, so a range stays in the cache
FEW_ROWS = 256  # a rarer degree has no product of its own
SMALL = 4096  # rows: below, the calls cost more than the products


def degree_product(graph, statistics, shift, scales, weight):
    """See the module.

    Args
    ----
    graph : Graph with N destinations
    statistics : {name: [N, F]}, R of them, of the messages without their shift
    shift : [N, F], what all messages of a destination have in common
    scales : function of degrees [n], in shift's dtype, giving [n, K]
    weight : [K, R, F, F_out]

    Returns
    -------
    [N, F_out]

    Memory: saves statistics, shift and weight. On small graphs, on CUDA, under
    torch.compile, with learned scales and for second derivatives also the shifted
    statistics, [N, R * F], and [N, K * F_out].
    """
    names, tensors = tuple(statistics), (weight, shift, *statistics.values())
    if graph.num_dst < SMALL or not shift.is_cpu or is_transformed():
        return _all_scalers(names, graph.degree, scales, *tensors)
    ranges = _ranges(graph)
    factors = scales(ranges.degree.to(shift.dtype))
    if factors.requires_grad:
        return _all_scalers(names, graph.degree, scales, *tensors)
    return _record((graph, names, scales, factors), *tensors)


def _all_scalers(names, degree, scales, weight, shift, *ys):
    """The definition, with a product for each scaler."""
    degree = degree.to(shift.dtype)
    parts = []
    for name, y in zip(names, ys, strict=True):
        if name in SHIFTED or name == "sum":
            c = degree if name == "sum" else degree.clamp(max=1)
            y = torch.addcmul(y, shift, c.unsqueeze(1))
        parts.append(y)
    by_scaler = torch.cat(parts, dim=1) @ weight.flatten(1, 2)  # [K, N, F_out]
    return torch.einsum("kno,nk->no", by_scaler, scales(degree))


class _Ranges:
    """The rows of a graph by degree, at most RANGE_ROWS together.

    rows : list of [n], the rows of a range; degree : [len(rows)], what they have
    rare : list of [n], the rows of rare degrees
    """

    def __init__(self, degree):
        self.rows, self.rare, found, rare = [], [], [], []
        in_order, order = degree.sort(stable=True)
        degrees, counts = in_order.unique_consecutive(return_counts=True)
        of_degree = order.split(counts.tolist())
        for d, rows in zip(degrees.tolist(), of_degree, strict=True):
            if len(rows) < FEW_ROWS:
                rare.append(rows)
            else:
                parts = rows.split(RANGE_ROWS)
                self.rows += parts
                found += [d] * len(parts)
        self.degree = torch.tensor(found, dtype=torch.int64)
        if rare:
            self.rare = torch.cat(rare).split(RANGE_ROWS)


def _ranges(graph):
    found = graph.cache.get("ranges of a degree")
    if found is None:
        found = graph.cache["ranges of a degree"] = _Ranges(graph.degree)
    return found


class _Range:
    """A range of rows of one degree, with the inputs it needs."""

    def __init__(self, rows, degree, factors, names, weight, shift, ys):
        self.rows, self.factors, self._ys = rows, factors, ys
        self.weight = torch.einsum("k,krfo->rfo", factors, weight)
        few = float(min(degree, 1))
        of = {"sum": float(degree)} | dict.fromkeys(SHIFTED, few)
        self.coefficients = [of.get(name, 0.0) for name in names]
        self._shift = shift.index_select(0, rows)

    def statistic(self, r):
        """[n, F], shifted"""
        y = self._ys[r].index_select(0, self.rows)
        c = self.coefficients[r]
        return y.add_(self._shift, alpha=c) if c else y


def _each_range(how, weight, shift, ys):
    graph, names, _, factors = how
    ranges = _ranges(graph)
    for rows, degree, factor in zip(
        ranges.rows, ranges.degree.tolist(), factors, strict=True
    ):
        yield _Range(rows, degree, factor, names, weight, shift, ys)


class _DegreeProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, how, weight, shift, *ys):
        ctx.how = graph, names, scales, _ = how
        ctx.save_for_backward(weight, shift, *ys)
        out = shift.new_empty(graph.num_dst, weight.shape[3])
        for part in _each_range(how, weight, shift, ys):
            rows = product(part.statistic(0), part.weight[0].t())
            for r in range(1, len(ys)):
                rows += product(part.statistic(r), part.weight[r].t())
            out.index_copy_(0, part.rows, rows)
        for rows in _ranges(graph).rare:
            some = (t.index_select(0, rows) for t in (shift, *ys))
            y = _all_scalers(names, graph.degree[rows], scales, weight, *some)
            out.index_copy_(0, rows, y)
        return out

    @staticmethod
    def backward(ctx, grad):
        needs = ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            return None, *_backward(ctx.how, ctx.saved_tensors, needs, grad)
        graph, names, scales, _ = ctx.how  # create_graph
        inputs = ctx.saved_tensors
        out = _all_scalers(names, graph.degree, scales, *inputs)
        grads = iter(_grads(out, inputs, needs, grad, create_graph=True))
        return None, *(next(grads) if need else None for need in needs)


_record = eager_apply(_DegreeProduct)


def _grads(out, inputs, needs, grad, **options):
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    return torch.autograd.grad(out, wanted, grad, materialize_grads=True, **options)


def _backward(how, inputs, needs, grad):
    graph, names, scales, _ = how
    weight, shift, *ys = inputs
    needs_weight, needs_shift, *needs_ys = needs
    # a sum over all ranges: in float32 for 16-bit types
    wide = accumulator(weight.dtype)
    grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
    of_rows = [
        torch.empty_like(t) if n else None
        for t, n in zip((shift, *ys), needs[1:], strict=True)
    ]
    grad_shift, *grad_ys = of_rows
    for part in _each_range(how, weight, shift, ys):
        g = grad.index_select(0, part.rows)
        if needs_weight:
            products = [part.statistic(r).t() @ g for r in range(len(ys))]
            grad_weight += torch.einsum(
                "k,rfo->krfo", part.factors.to(wide), torch.stack(products).to(wide)
            )
        moved = torch.zeros_like(part._shift) if needs_shift else None
        for r, c in enumerate(part.coefficients):
            if needs_ys[r] or (needs_shift and c):
                grad_y = product(g, part.weight[r])
                if needs_ys[r]:
                    grad_ys[r].index_copy_(0, part.rows, grad_y)
                if needs_shift and c:
                    moved.add_(grad_y, alpha=c)
        if needs_shift:
            grad_shift.index_copy_(0, part.rows, moved)
    for rows in _ranges(graph).rare:
        some = [weight, *(t.index_select(0, rows) for t in (shift, *ys))]
        some = [t.detach().requires_grad_() for t in some]
        with torch.enable_grad():
            out = _all_scalers(names, graph.degree[rows], scales, *some)
        grads = iter(_grads(out, some, needs, grad.index_select(0, rows)))
        if needs_weight:
            grad_weight += next(grads)
        for whole in of_rows:
            if whole is not None:
                whole.index_copy_(0, rows, next(grads))
    if needs_weight:
        grad_weight = grad_weight.to(weight.dtype)
    return grad_weight, *of_rows
