"""A graph cut into runs of whole rows, for layers whose messages need edge features.

A message of width F for every edge is computed a chunk at a time, small enough for the
cache, and summed into its rows at once; nothing of size E x F exists.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gnnoffload._dispatch import spmm
from gnnoffload.graph import Graph

CHUNK_BYTES = 1 << 20  # of messages: they stay in a core's second-level cache


class Chunk(NamedTuple):
    """Entries of rows [row_begin, row_end), in row order."""

    row_begin: int
    row_end: int
    first: int  # the first of the n entries
    neighbour: Tensor  # [n] the other end of each entry
    edge: (
        Tensor | None
    )  # [n] its position in the caller's order; None: first, first + 1..
    counts: Tensor  # [rows] entries of each row
    segments: Graph  # row r <- the entries of r, to sum an [n, F] block by row

    def sum_rows(self, messages):
        """[n, F] -> [rows, F]"""
        return spmm(messages, None, None, None, self.segments.args())

    def spread_rows(self, x):
        """[N, F] -> [n, F]: the own row of each entry"""
        own = x[self.row_begin : self.row_end]
        return own.repeat_interleave(self.counts, 0, output_size=len(self.neighbour))

    def edges_of(self, edge_attr):
        """[E, D] -> [n, D]"""
        if self.edge is None:
            return edge_attr[self.first : self.first + len(self.neighbour)]
        return edge_attr.index_select(0, self.edge)

    def put_edges(self, out, values):
        """Writes values [n, D] to their edges in out [E, D]."""
        if self.edge is None:
            out[self.first : self.first + len(self.neighbour)] = values
        else:
            out.index_copy_(0, self.edge.long(), values)


def chunks(graph, bytes_per_edge):
    """The chunks of the rows (destinations) of `graph`, cut once and kept on it.

    A chunk has at most CHUNK_BYTES of messages, or one row. Use `graph.transpose()` for
    chunks by source.
    """
    size = max(1, CHUNK_BYTES // max(1, bytes_per_edge))
    size = 1 << (size.bit_length() - 1)  # few distinct cuts for many widths
    size = max(size, 256)
    if graph.num_edges <= size:
        size = graph.num_edges
    key = ("chunks", size)
    if key not in graph.cache:
        graph.cache[key] = list(_cut(graph, size))
    return graph.cache[key]


def _cut(graph, most):
    if graph.num_edges == 0:
        return
    rowptr, col, eid = graph.rowptr, graph.col, graph.eid
    entry = torch.arange(graph.num_edges, dtype=torch.int32)
    begin, n_rows = 0, rowptr.numel() - 1
    while begin < n_rows:
        first = int(rowptr[begin])
        end = int(torch.searchsorted(rowptr, first + most, right=True)) - 1
        end = min(max(end, begin + 1), n_rows)
        last = int(rowptr[end])
        if last > first:
            ptr = rowptr[begin : end + 1] - first
            size = (last - first, end - begin)
            segments = Graph.from_csr(ptr.int(), entry[: last - first], size)
            edge = None if eid is None else eid[first:last]
            yield Chunk(begin, end, first, col[first:last], edge, ptr.diff(), segments)
        begin = end
