"""Softmax over the edges into each destination, with gradients: with `spmm` and `sddmm`
head by head, attention with scores of one's own."""

import torch
from torch import Tensor

from gnnoffload import _dispatch_heads
from gnnoffload.errors import named
from gnnoffload.graph import Graph, as_graph
from gnnoffload.ops import check_rows

MAX_EDGE_FEATURES = 16  # GNN_MAX_EDGE_FEATURES


def edge_softmax(graph, scores, *, size=None) -> Tensor:
    """The softmax of scores over the edges into each destination.

    alpha[e] = exp(s[e]) / sum over edges e' into the same destination of  exp(s[e'])

    Args:
        graph: a `Graph`, or `[2, E]` edge_index (or another form `as_graph` takes).
        scores: `[E, H]` or `[E]`, in the caller's edge order; float32, float64,
            bfloat16 or float16.
        size: (sources, destinations) of a plain edge_index; None: counted.

    Returns:
        alpha, as scores.

    Raises:
        GraphError, TypeError, ValueError: see `Graph`; scores of the wrong kind, dtype,
            device or shape.

    Numerics: the row's maximum is taken off first, so no finite score overflows; sums
        in float32 (float64 for float64) in the order (source, position), the same bits
        for any number of threads. -inf is a weight of 0; a row with a NaN or +inf, or
        with nothing but -inf, is NaN. Differentiable any number of times.

    Memory: alpha, which backward saves.

    Source: Milakov and Gimelshein 2018, Online normalizer calculation for softmax.

    >>> import torch
    >>> edge_softmax(torch.tensor([[0, 1, 2], [1, 1, 0]]), torch.zeros(3))
    tensor([0.5000, 0.5000, 1.0000])
    """
    if type(graph) is not Graph:
        graph = _plain_graph(graph, size)
    is_vector = isinstance(scores, Tensor) and scores.dim() == 1
    sizes = () if is_vector else ("H",)
    check_rows(
        "edge_softmax", graph, "scores", scores, (graph._n_edges, "edge"), *sizes
    )
    if scores.numel() == 0:
        return scores * 1
    records = torch.is_grad_enabled() and scores.requires_grad
    try:
        alpha = _dispatch_heads.edge_softmax(
            scores[:, None] if is_vector else scores, graph.args(records)
        )
    except RuntimeError as error:
        raise named(error) from None
    return alpha[:, 0] if is_vector else alpha


def _plain_graph(form, size):
    graph, value = as_graph(form, size)
    if value is not None:
        raise TypeError("a sparse matrix with values: pass as_graph(matrix)[0]")
    return graph
