"""What a graph's inputs must be, in Python, before any kernel sees them."""

import torch
from torch import Tensor

from gnnoffload.errors import GraphError

INDEX_DTYPES = (torch.int64, torch.int32)
LIMIT = 2**31  # column indices are int32


def check_index_tensor(tensor, name):
    """TypeError unless `tensor` is a dense int64 or int32 tensor with data."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got layout {tensor.layout}")
    if tensor.dtype not in INDEX_DTYPES:
        raise TypeError(f"{name} must be int64 or int32, got {tensor.dtype}")
    if tensor.device.type == "meta":
        raise TypeError(f"{name} must hold data, got a meta tensor")
    if tensor.device.type not in ("cpu", "cuda"):
        raise TypeError(f"{name} must be on the CPU or on CUDA, got {tensor.device}")


def check_edge_index(edge_index, where):
    check_index_tensor(edge_index, f"{where}: edge_index")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise GraphError(
            f"{where}: edge_index must have shape [2, E], got {list(edge_index.shape)}"
        )


def check_index_vector(tensor, name):
    check_index_tensor(tensor, f"Graph.from_csr: {name}")
    if tensor.dim() != 1:
        raise TypeError(
            f"Graph.from_csr: {name} must have 1 dimension, got {tensor.dim()}"
        )


def check_size(size):
    """(n_src, n_dst) as ints."""
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(
            f"size must be (number of sources, number of destinations), got {size!r}"
        )
    for name, n in zip(("sources", "destinations"), size, strict=True):
        if not isinstance(n, (int, torch.SymInt)) or isinstance(n, bool):
            raise TypeError(f"size: the number of {name} must be an int, got {n!r}")
        if n < 0:
            raise ValueError(
                f"size: the number of {name} must not be negative, got {n}"
            )
        if n >= LIMIT:
            raise GraphError(
                f"size: the number of {name} must be below 2^31 = {LIMIT}, got {n}"
            )
    return tuple(size)


def count_nodes(edge_index) -> int:
    """1 + the largest index, 0 without edges."""
    if edge_index.shape[1] == 0:
        return 0
    largest = int(edge_index.max())
    if largest >= LIMIT - 1:
        row, edge = (edge_index == largest).nonzero()[0].tolist()
        raise GraphError(
            f"Graph: edge_index[{row}, {edge}] = {largest} must be below 2^31 - 1 "
            f"= {LIMIT - 1}"
        )
    return max(largest + 1, 0)


def explain_edges(error, source, destination, n_src, n_dst) -> GraphError:
    """`error` of the C check in the caller's words: which entry of edge_index."""
    bad_src = (source < 0) | (source >= n_src)
    bad_dst = (destination < 0) | (destination >= n_dst)
    bad = (bad_src | bad_dst).nonzero()
    if bad.numel() == 0:
        return error
    edge = int(bad[0])
    name, value, n = ("source", int(source[edge]), n_src)
    if not bad_src[edge]:
        name, value, n = ("destination", int(destination[edge]), n_dst)
    one_based = n > 0 and value == n and int(min(source.min(), destination.min())) == 1
    hint = " (are the indices 1-based?)" if one_based else ""
    return GraphError(
        f"Graph: {name} of edge {edge} is {value}, must be in [0, {n}), the number of "
        f"{name}s{hint}"
    )
