"""Messages one by one, for layers that no op of ours knows: rows gathered to edges, and
edges summed into rows.

Both are sparse products between nodes and edges, with one entry an edge, so either is
the other's gradient and both are deterministic. The graph keeps the two matrices.
"""

import math

import torch
from torch import Tensor

from gnnoffload.errors import GraphError
from gnnoffload.graph import _NO_EID, Graph, _for_kernels
from gnnoffload.ops import _graph_of, _is_matrix, _matrix_error, spmm

_MOST_EDGES = 2**31 - 1  # edges are the columns of a matrix: int32


def gather(graph, x, end, *, size=None) -> Tensor:
    """The row of x at one end of each edge.

    z[e] = x[j] ("src") or x[i] ("dst")   for every edge e = (j -> i)

    Args:
        graph: a `Graph`, or `[2, E]` edge_index (or another form `as_graph` takes).
        x: `[num_src, ...]` or `[num_dst, ...]`; float32, float64, bfloat16 or float16.
        end: "src" or "dst".
        size: (sources, destinations) of a plain edge_index; None: x's rows, both.

    Returns:
        `[E, ...]` in the caller's edge order.

    Raises:
        GraphError, TypeError, ValueError: as `spmm`; an end that is neither.

    Numerics: the same numbers (a zero loses its sign). Backward is `segment`: it adds
    up each node's edges in the order of the graph, without atomics. Differentiable any
    number of times.

    Memory: z; backward saves nothing. The graph keeps 12 bytes an edge for either end.

    >>> import torch
    >>> x = torch.tensor([[1.0], [2.0], [4.0]])
    >>> gather(torch.tensor([[0, 2, 2], [1, 1, 0]]), x, "src").squeeze(1)
    tensor([1., 4., 4.])
    """
    if end not in ("src", "dst"):
        raise ValueError(f"gather: end must be 'src' or 'dst', got {end!r}")
    if type(graph) is not Graph:
        graph = _graph_of(graph, size, x, x)
    what = "source" if end == "src" else "destination"
    n_rows = graph.num_src if end == "src" else graph.num_dst
    rows = _rows("gather", "x", x, graph, n_rows, what)
    z = spmm(incidence(graph, end).transpose(), rows)
    return z.view(graph.num_edges, *x.shape[1:])


def segment(graph, messages, reduce="sum", *, size=None) -> Tensor:
    """The messages of each destination, reduced.

    y[i] = reduce over edges e = (j -> i) of messages[e]

    Args:
        graph: as in `gather`; a plain edge_index needs `size`, as messages do not tell
            how many nodes there are.
        messages: `[E, ...]` in the caller's edge order; any strides.
        reduce: what `spmm` takes: "sum", "mean" (0 where there are no edges), ...

    Returns:
        `[num_dst, ...]`

    Numerics: as `spmm`, in the order of the graph: the same bits for any number of
    threads. Backward of a sum is `gather`.

    Memory: y; backward of a sum saves nothing. Messages are read once, one after the
    other where the edges came ordered by (destination, source): that is the fast case,
    in any other order each message is a random read.

    >>> import torch
    >>> messages = torch.tensor([[1.0], [2.0], [4.0]])
    >>> segment(torch.tensor([[0, 1, 2], [1, 1, 0]]), messages, size=(3, 3)).squeeze(1)
    tensor([4., 3., 0.])
    """
    if type(graph) is not Graph:
        if size is None:
            raise ValueError("segment: a plain edge_index needs size=(sources, rows)")
        graph = _graph_of(graph, size, None, None)
    rows = _rows("segment", "messages", messages, graph, graph.num_edges, "edge")
    y = spmm(incidence(graph, "dst"), rows, reduce=reduce)
    return y.view(graph.num_dst, *messages.shape[1:])


def incidence(graph, end) -> Graph:
    """The graph whose sources are the edges of `graph`, in the caller's order, and
    whose destinations are the nodes at their "src" or "dst" end. Cached; it shares what
    it can with `graph`, and transposes for nothing."""
    key = ("incidence of", end)
    found = graph.cache.get(key)
    if found is None:
        found = _incidence(graph, end)
        if not torch.compiler.is_compiling():
            graph.cache[key] = found
    return found


def _incidence(graph, end):
    n_edges = graph.num_edges
    if n_edges > _MOST_EDGES:
        raise GraphError(
            f"gather and segment take at most 2^31 - 1 edges, got {n_edges}"
        )
    n_nodes = graph.num_src if end == "src" else graph.num_dst
    args = graph.args(with_csc=end == "src")
    ptr, edge = (args[3], args[5]) if end == "src" else (args[0], args[2])
    numbers = torch.arange(n_edges + 1, device=graph.device)
    if edge.numel() == 0:  # the graph's order is the caller's
        edge = numbers[:-1].int()
    node = graph.edge_index[0 if end == "src" else 1].int()
    found = Graph._from_arrays(ptr, edge, _NO_EID, n_nodes, n_edges)
    one_each = _for_kernels(numbers, n_edges)
    found._args = (*found._args[:3], one_each, node, _NO_EID, n_nodes, n_edges)
    found._has_csc = True
    return found


def _rows(op, name, x, graph, n_rows, what):
    """x [n_rows, ...] as a matrix, checked."""
    rows = x
    if isinstance(x, Tensor) and x.dim() > 0 and x.layout is torch.strided:
        rows = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    if not _is_matrix(rows, n_rows, graph):
        raise _matrix_error(op, name, rows, graph, n_rows, what)
    return rows
