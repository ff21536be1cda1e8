"""Graph construction on CUDA tensors, with torch's own ops: what csrc/core does on the
CPU, in the same order and with the same messages.

The functions run on tensors of any device, which is how they are tested without a GPU.
Each asks the device one question, in one reduction over the edges. When the answer is
"malformed" the CPU op is called on copies, so that it finds and words the problem.
"""

import torch
from torch import Tensor

CHUNK = 256  # GNN_CUDA_CHUNK of csrc/gnn.h: entries of a heavy row that one group sums
LIMIT = 2**31


def graph_build(source, destination, n_src, n_dst):
    """rowptr `[n_dst + 1]`, col `[E]`, eid `[E]`, sorted `[1]` of an edge list: rows
    ordered by (destination, source), ties by position. The op graph_build."""
    _require(source.shape == destination.shape and n_src < LIMIT and n_dst < LIMIT)
    n_edges = source.shape[0]
    key = destination.long() * n_src + source.long()
    outside = (
        ((source < 0) | (source >= n_src))
        | ((destination < 0) | (destination >= n_dst))
    ).any()
    unsorted = (key[1:] < key[:-1]).any()
    malformed, unsorted = torch.stack((outside, unsorted)).tolist()
    _require(not malformed)
    eid_dtype = torch.int32 if n_edges < LIMIT else torch.int64
    if unsorted:
        eid = torch.sort(key, stable=True).indices
        col, row = source[eid], destination[eid]
    else:
        eid = torch.arange(n_edges, device=source.device)
        col, row = source, destination
    return (
        _starts(row, n_dst),
        col.to(torch.int32, copy=True),
        eid.to(eid_dtype),
        torch.full((1,), not unsorted, device=source.device),
    )


def graph_check(rowptr, col, n_dst, n_src):
    """Nothing, or an exception for a malformed CSR. The op graph_check."""
    _require(
        rowptr.shape[0] == n_dst + 1
        and n_src < LIMIT
        and (rowptr.dtype is torch.int64 or col.shape[0] < LIMIT)
    )
    malformed = (
        ((col < 0) | (col >= n_src)).any()
        | (rowptr[1:] < rowptr[:-1]).any()
        | (rowptr[0] != 0)
        | (rowptr[-1] != col.shape[0])
    )
    _require(not malformed.item())


def graph_transpose(rowptr, col, eid, n_cols):
    """colptr `[n_cols + 1]`, row `[E]`, ceid `[E]`: the rows of the transposed graph,
    ordered by (row, position). The op graph_transpose."""
    n_rows, n_edges = rowptr.shape[0] - 1, col.shape[0]
    row = torch.repeat_interleave(
        torch.arange(n_rows, dtype=torch.int32, device=col.device),
        rowptr[1:] - rowptr[:-1],
        output_size=n_edges,
    )
    by_col, order = torch.sort(col, stable=True)
    eid_dtype = torch.int32 if n_edges < LIMIT else torch.int64
    ceid = (order if eid.shape[0] == 0 else eid[order]).to(eid_dtype)
    return _starts(by_col, n_cols), row[order], ceid


def split_rows(rowptr) -> Tensor:
    """rowptr `[N + 1]` with the parts of its heavy rows behind it.

    A row of more than CHUNK entries is split into chunks of CHUNK; each adds two
    numbers, its row and its place in the row. In this form rowptr goes to the CUDA
    kernels, which give each chunk to another group of lanes; the length alone tells how
    many there are.
    """
    degree = rowptr[1:] - rowptr[:-1]
    heavy = (degree > CHUNK).nonzero()[:, 0]
    if heavy.shape[0] == 0:
        return rowptr
    n_chunks = (degree[heavy] + CHUNK - 1) // CHUNK
    ends = n_chunks.cumsum(0)
    row = torch.repeat_interleave(heavy, n_chunks)
    place = torch.arange(row.shape[0], device=row.device)
    place -= torch.repeat_interleave(ends - n_chunks, n_chunks)
    return torch.cat((rowptr, torch.stack((row, place), 1).view(-1)))


class Malformed(Exception):
    """The CPU op has the words for it."""


def _require(condition):
    if not condition:
        raise Malformed


def _starts(sorted_rows, n_rows):
    """`[n_rows + 1]` int64: where each row starts, and the end."""
    rows = torch.arange(n_rows + 1, dtype=sorted_rows.dtype, device=sorted_rows.device)
    return torch.searchsorted(sorted_rows.contiguous(), rows)


def register():
    """Makes these the CUDA kernels of the ops."""
    for function in (graph_build, graph_check, graph_transpose):
        name = f"gnnoffload::{function.__name__}"
        torch.library.impl(name, "CUDA")(_explained(function))


def _explained(function):
    """`function` with the CPU op's exception for malformed input."""

    def on_device(*args):
        try:
            return function(*args)
        except Malformed:
            op = getattr(torch.ops.gnnoffload, function.__name__).default
            op(*(arg.cpu() if isinstance(arg, Tensor) else arg for arg in args))
            raise RuntimeError(
                f"{function.__name__}: the CPU finds nothing wrong with this graph"
            ) from None

    return on_device
