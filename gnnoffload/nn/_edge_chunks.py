"""A graph cut into runs of whole rows, for layers that project their edge features.

Projected features of width F exist for a chunk of edges at a time, small enough for the
cache, and go into the rows of that chunk at once; nothing of size E x F exists.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gnnoffload._dispatch import GraphArgs
from gnnoffload.graph import _NO_EID, Graph

CHUNK_BYTES = 1 << 20  # of messages: they stay in a core's second-level cache


class Chunk(NamedTuple):
    """The n entries of rows [row_begin, row_end), in row order."""

    row_begin: int
    row_end: int
    first: int  # the first of the entries
    edge: Tensor | None  # [n] their positions in the caller's order; None: the same
    args: GraphArgs  # these rows as a graph of n edges, numbered by entry

    def edges_of(self, edge_attr):
        """[E, D] -> [n, D]"""
        n = self.args[1].shape[0]
        if self.edge is None:
            return edge_attr if n == len(edge_attr) else edge_attr[self._own]
        return edge_attr.index_select(0, self.edge)

    def put_edges(self, out, values):
        """Writes values [n, D] to their edges in out [E, D]."""
        if self.edge is None:
            out[self._own] = values
        else:
            out.index_copy_(0, self.edge.long(), values)

    @property
    def _own(self):
        return slice(self.first, self.first + self.args[1].shape[0])


def chunks(graph, bytes_per_edge):
    """The chunks of the rows (destinations) of `graph`, cut once and kept on it.

    A chunk has at most CHUNK_BYTES of messages, or one row. Use `graph.transpose()` for
    chunks by source.
    """
    if 2 * graph.num_edges * bytes_per_edge <= CHUNK_BYTES:
        size = graph.num_edges
    else:
        size = max(1, CHUNK_BYTES // max(1, bytes_per_edge))
        size = 1 << (size.bit_length() - 1)  # few distinct cuts for many widths
        size = min(max(size, 256), graph.num_edges)
    key = ("chunks", size)
    parts = graph.cache.get(key)
    if parts is None:
        parts = graph.cache[key] = list(_cut(graph, size))
    return parts


def _cut(graph, most):
    if graph.num_edges == 0:
        return
    rowptr, col, eid = graph.rowptr, graph.col, graph.eid
    begin, n_rows = 0, rowptr.numel() - 1
    while begin < n_rows:
        first = int(rowptr[begin])
        end = int(torch.searchsorted(rowptr, first + most, right=True)) - 1
        end = min(max(end, begin + 1), n_rows)
        last = int(rowptr[end])
        if last > first:
            ptr = rowptr[begin : end + 1] - first
            edge = None if eid is None else eid[first:last]
            rows = Graph._from_arrays(
                ptr, col[first:last], _NO_EID, end - begin, graph.num_src
            )
            yield Chunk(begin, end, first, edge, rows.args())
        begin = end
