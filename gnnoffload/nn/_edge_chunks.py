"""A graph cut into runs of whole rows, for layers whose messages need edge features.

A message of width F for every edge is computed a chunk at a time, small enough for the
cache, and summed into its rows at once; nothing of size E x F exists.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gnnoffload._dispatch import GraphArgs, call_spmm
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
    whole: bool  # this chunk is the whole graph, every edge and every row
    segments: GraphArgs  # row r <- the entries of r, to sum an [n, F] block by row

    def sum_rows(self, messages):
        """[n, F] -> [rows, F], for callers below autograd"""
        return call_spmm(messages, None, None, None, self.segments)

    def spread_rows(self, x):
        """[N, F] -> [n, F]: the own row of each entry"""
        own = x[self.row_begin : self.row_end]
        return own.repeat_interleave(self.counts, 0, output_size=len(self.neighbour))

    def edges_of(self, edge_attr):
        """[E, D] -> [n, D]"""
        if self.edge is None:
            if self.whole:
                return edge_attr
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
            yield Chunk(
                begin,
                end,
                first,
                col[first:last],
                edge,
                ptr.diff(),
                last - first == graph.num_edges and end - begin == n_rows,
                segments.args(),
            )
        begin = end
