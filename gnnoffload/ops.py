"""The sparse-dense product, the edge-wise inner product, both also head by head, and
GINE's sum, with gradients."""

import torch
from torch import Tensor

from gnnoffload import _dispatch, _dispatch_gine, _dispatch_heads
from gnnoffload.errors import named
from gnnoffload.graph import Graph, as_graph

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def spmm(
    graph, x, weight=None, reduce="sum", *, row_scale=None, col_scale=None, size=None
) -> Tensor:
    """Sum, mean, max or min of the messages that arrive at each destination.

    y[i] = s_i * sum over edges e = (j -> i) of  w_e * t_j * x[j]

    Args:
        graph: a `Graph`, or `[2, E]` edge_index (or another form `as_graph` takes).
        x: `[num_src, F]`, float32, float64, bfloat16 or float16; any strides. Or
            `[num_src, H, C]`: C features for each of H heads.
        weight: `[E]` w in the caller's edge order, or None for ones. With heads
            `[E, H]`, one for each head (and no row_scale, col_scale).
        reduce: "sum", or "mean": divides by the number of edges into i (by 1 where
            there are none, so a mean over nothing is 0); "max" or "min" of x[j] alone,
            without weight and scales, see `aggregate`.
        row_scale: `[num_dst]` s, col_scale: `[num_src]` t; constants without gradient.
        size: (sources, destinations) of a plain edge_index; None: x's rows, both.

    Returns:
        `[num_dst, F]`, or `[num_dst, H, C]`, of
        `torch.promote_types(x.dtype, weight.dtype)`.

    Raises:
        GraphError, TypeError, ValueError: see `Graph`; x, weight or a scale of the
            wrong kind, dtype, device or shape.

    Numerics: sums in float32 (float64 for float64) in the order (source, position);
    the same bits for any number of threads. NaN and inf reach only the rows whose edges
    touch them.

    Memory: y, and what backward needs: x when w has a gradient, w when x has one.
    Nothing of size E x F, forward or backward.

    >>> import torch
    >>> x = torch.tensor([[1.0], [2.0], [4.0]])
    >>> spmm(torch.tensor([[0, 1, 2], [1, 1, 0]]), x)
    tensor([[4.],
            [3.],
            [0.]])
    """
    if type(graph) is not Graph:
        graph = _graph_of(graph, size, x, x)
    if not _is_matrix(x, graph._n_src, graph):
        if isinstance(x, Tensor) and x.dim() == 3:
            return _heads_spmm(graph, x, weight, reduce, row_scale, col_scale)
        raise _matrix_error("spmm", "x", x, graph, graph._n_src, "source")
    if reduce == "max" or reduce == "min":
        from gnnoffload import reductions

        if weight is not None or row_scale is not None or col_scale is not None:
            raise ValueError(
                f"spmm: reduce={reduce!r} takes no weight, row_scale or col_scale"
            )
        return reductions.extreme(graph, x, reduce)
    if weight is not None:
        _check_vector("spmm", "weight", weight, graph._n_edges, "edge", graph)
        x, weight = in_one_dtype(x, weight)
    if row_scale is not None or col_scale is not None or reduce != "sum":
        row_scale, col_scale = _scales(
            "spmm", graph, x.dtype, reduce, row_scale, col_scale
        )
    records = torch.is_grad_enabled() and (
        x.requires_grad or (weight is not None and weight.requires_grad)
    )
    try:
        return _dispatch.spmm(x, weight, row_scale, col_scale, graph.args(records))
    except RuntimeError as error:
        raise named(error) from None


def sddmm(graph, a, b, *, row_scale=None, col_scale=None, size=None) -> Tensor:
    """The inner product of each edge's two ends.

    z[e] = s_i * t_j * <a[i], b[j]>   for every edge e = (j -> i)

    Args:
        graph: as in `spmm`; `size` defaults to (rows of b, rows of a).
        a: `[num_dst, F]`, b: `[num_src, F]`; promoted to one dtype; any strides. Or
            `[num_dst, H, C]` and `[num_src, H, C]`: C features for each of H heads.
        row_scale: `[num_dst]` s, col_scale: `[num_src]` t; constants without gradient;
            not with heads.

    Returns:
        `[E]`, or `[E, H]`, in the caller's edge order.

    Numerics and Memory: as `spmm`; backward saves a and b.

    >>> import torch
    >>> x = torch.tensor([[1.0], [2.0], [4.0]])
    >>> sddmm(torch.tensor([[0, 1, 2], [1, 1, 0]]), x, x)
    tensor([2., 4., 4.])
    """
    if type(graph) is not Graph:
        graph = _graph_of(graph, size, b, a)
    if not _is_matrix(a, graph._n_dst, graph):
        if isinstance(a, Tensor) and a.dim() == 3:
            return _heads_sddmm(graph, a, b, row_scale, col_scale)
        raise _matrix_error("sddmm", "a", a, graph, graph._n_dst, "destination")
    if not _is_matrix(b, graph._n_src, graph):
        raise _matrix_error("sddmm", "b", b, graph, graph._n_src, "source")
    _require_same_columns("sddmm", "a", a, "b", b)
    a, b = in_one_dtype(a, b)
    if row_scale is not None or col_scale is not None:
        row_scale, col_scale = _scales(
            "sddmm", graph, a.dtype, "sum", row_scale, col_scale
        )
    records = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    try:
        return _dispatch.sddmm(a, b, row_scale, col_scale, graph.args(records))
    except RuntimeError as error:
        raise named(error) from None


def gine(graph, x, edge, *, size=None) -> Tensor:
    """The sum of rectified messages with edge features, as in GINE.

    y[i] = sum over edges e = (j -> i) of  relu(x[j] + edge[e])

    Args:
        graph: as in `spmm`.
        x: `[num_src, F]`, edge: `[E, F]` in the caller's edge order; promoted to one
            dtype; any strides.

    Returns:
        `[num_dst, F]`

    Numerics: x[j] + edge[e] and the sum in float32 (float64 for float64), in the order
    (source, position), for any number of threads. NaN passes the relu, as in torch. At
    a message of exactly 0 the gradient is 0.

    Memory: y. Backward saves x and edge and writes their gradients, one pass over the
    edges by source; nothing else of size E x F, second derivatives included (they write
    a gradient of `edge` where there is one).

    Source: Hu et al. 2020, Strategies for Pre-training Graph Neural Networks, eq. A.1.

    >>> import torch
    >>> x = torch.tensor([[1.0], [2.0], [4.0]])
    >>> edge = torch.tensor([[1.0], [-3.0], [0.0]])
    >>> gine(torch.tensor([[0, 1, 2], [1, 1, 0]]), x, edge)
    tensor([[4.],
            [2.],
            [0.]])
    """
    if type(graph) is not Graph:
        graph = _graph_of(graph, size, x, x)
    if not _is_matrix(x, graph._n_src, graph):
        raise _matrix_error("gine", "x", x, graph, graph._n_src, "source")
    if not _is_matrix(edge, graph._n_edges, graph):
        raise _matrix_error("gine", "edge", edge, graph, graph._n_edges, "edge")
    _require_same_columns("gine", "x", x, "edge", edge)
    x, edge = in_one_dtype(x, edge)
    records = torch.is_grad_enabled() and (x.requires_grad or edge.requires_grad)
    try:
        return _dispatch_gine.gine(x, edge, graph.args(records))
    except RuntimeError as error:
        raise named(error) from None


# ------------------------------------------------------------------ products by head


def _heads_spmm(graph, x, weight, reduce, row_scale, col_scale):
    """spmm of x [M, H, C] and weight [E, H] or None."""
    check_rows("spmm", graph, "x", x, (graph._n_src, "source"), "H", "C")
    _no_scales("spmm", row_scale, col_scale)
    if reduce not in ("sum", "mean"):
        raise ValueError(f"spmm: reduce must be 'sum' or 'mean', got {reduce!r}")
    heads = x.shape[1]
    if weight is None:
        y = spmm(graph, x.flatten(1), reduce=reduce)
        return y.view(graph._n_dst, *x.shape[1:])
    check_rows("spmm", graph, "weight", weight, (graph._n_edges, "edge"), heads)
    x, weight = in_one_dtype(x, weight)
    if heads == 0:
        return x.new_zeros(graph._n_dst, *x.shape[1:])
    records = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    try:
        y = _dispatch_heads.heads_spmm(x.flatten(1), weight, graph.args(records))
    except RuntimeError as error:
        raise named(error) from None
    y = y.view(graph._n_dst, *x.shape[1:])
    if reduce == "mean":
        y = y * graph.inverse_degree(y.dtype)[:, None, None]
    return y


def _heads_sddmm(graph, a, b, row_scale, col_scale):
    """sddmm of a [N, H, C] and b [M, H, C]."""
    check_rows("sddmm", graph, "a", a, (graph._n_dst, "destination"), "H", "C")
    check_rows("sddmm", graph, "b", b, (graph._n_src, "source"), *a.shape[1:])
    _no_scales("sddmm", row_scale, col_scale)
    a, b = in_one_dtype(a, b)
    heads = a.shape[1]
    if heads == 0:
        return a.new_zeros(graph._n_edges, 0)
    records = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    try:
        return _dispatch_heads.heads_sddmm(
            a.flatten(1),
            b.flatten(1),
            graph.args(records),
            heads,
            False,
        )
    except RuntimeError as error:
        raise named(error) from None


def _no_scales(op, row_scale, col_scale):
    if row_scale is not None or col_scale is not None:
        raise ValueError(
            f"{op}: row_scale and col_scale are for matrices: multiply them into what "
            "has heads"
        )


# ---------------------------------------------------------------------- validation


def _graph_of(form, size, src, dst):
    """The Graph of a plain form; src and dst [*, F] tell its size."""
    if size is None and isinstance(src, Tensor) and isinstance(dst, Tensor):
        if src.dim() > 0 and dst.dim() > 0:
            size = (src.shape[0], dst.shape[0])
    graph, value = as_graph(form, size)
    if value is not None:
        raise TypeError(
            "a sparse matrix with values: pass as_graph(matrix)[0] and the values as "
            "weight"
        )
    return graph


def _is_beside(tensor, graph):
    """Whether they are on one device; the CPU's answer is the quicker one."""
    return tensor.is_cpu if graph._is_cpu else tensor.device == graph._device


def _is_matrix(x, n_rows, graph):
    return (
        isinstance(x, Tensor)
        and x.dtype in FLOATS
        and x.dim() == 2
        and x.shape[0] == n_rows
        and _is_beside(x, graph)
        and x.layout is torch.strided
    )


def _matrix_error(op, name, x, graph, n_rows, what):
    """The exception for an x that fails `_is_matrix`."""
    error = _tensor_error(op, name, x, graph)
    if error is not None:
        return error
    if x.dim() != 2:
        return ValueError(
            f"{op}: {name} must have 2 dimensions [{n_rows}, F], got {list(x.shape)}"
        )
    return ValueError(
        f"{op}: {name} must have {n_rows} rows, one per {what}, got {x.shape[0]}"
    )


def _tensor_error(op, name, x, graph):
    if not isinstance(x, Tensor):
        return TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        return TypeError(
            f"{op}: {name} must be float32, float64, bfloat16 or float16, got {x.dtype}"
        )
    if x.layout is not torch.strided:
        return TypeError(f"{op}: {name} must be dense, got layout {x.layout}")
    if not _is_beside(x, graph):
        return TypeError(
            f"{op}: {name} must be on the graph's device {graph.device}, got {x.device}"
        )
    return None


def _require_same_columns(op, name_a, a, name_b, b):
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{op}: {name_b} must have {a.shape[1]} columns as {name_a} has, got "
            f"{b.shape[1]}"
        )


def in_one_dtype(a, b):
    """Both in the dtype to which torch promotes them."""
    if a.dtype is b.dtype:
        return a, b
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def check_rows(op, graph, name, x, rows, *sizes):
    """x must be a tensor of `rows` = (number, what one is for) and then `sizes`, of
    which a letter stands for any number."""
    error = _tensor_error(op, name, x, graph)
    if error is not None:
        raise error
    n_rows, what = rows
    wanted = n_rows, *sizes
    if x.dim() != len(wanted) or any(
        isinstance(size, int) and size != n
        for size, n in zip(wanted, x.shape, strict=True)
    ):
        shape = ", ".join(map(str, wanted))
        raise ValueError(
            f"{op}: {name} must have shape [{shape}], one row per {what}, got "
            f"{list(x.shape)}"
        )


def _check_vector(op, name, vector, length, what, graph):
    if (
        not isinstance(vector, Tensor)
        or vector.dtype not in FLOATS
        or not _is_beside(vector, graph)
        or vector.layout is not torch.strided
    ):
        raise _tensor_error(op, name, vector, graph)
    if vector.dim() != 1 or vector.shape[0] != length:
        raise ValueError(
            f"{op}: {name} must have shape [{length}], one per {what}, got "
            f"{list(vector.shape)}"
        )


def _scales(op, graph, dtype, reduce, row_scale, col_scale):
    """(row_scale, col_scale) in the accumulator's dtype, with the mean's 1 / degree."""
    accumulator = torch.float64 if dtype is torch.float64 else torch.float32
    if row_scale is not None:
        row_scale = _scale(op, "row_scale", row_scale, graph, accumulator)
    if col_scale is not None:
        col_scale = _scale(op, "col_scale", col_scale, graph, accumulator)
    if reduce == "mean":
        mean = graph.inverse_degree(accumulator)
        row_scale = mean if row_scale is None else mean * row_scale
    elif reduce != "sum":
        raise ValueError(
            f"{op}: reduce must be 'sum', 'mean', 'max' or 'min', got {reduce!r}"
        )
    return row_scale, col_scale


def _scale(op, name, scale, graph, dtype):
    if name == "row_scale":
        _check_vector(op, name, scale, graph._n_dst, "destination", graph)
    else:
        _check_vector(op, name, scale, graph._n_src, "source", graph)
    if scale.requires_grad:
        raise ValueError(
            f"{op}: {name} is a constant: multiply it into x or y for a gradient"
        )
    return scale.to(dtype)
