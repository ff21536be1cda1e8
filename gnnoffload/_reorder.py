"""Node orders that bring neighbours close in memory, for `Graph(reorder=...)`.

Each gives perm `[N]` int64, new position -> old node:
    degree   most edges first: the hot rows of x share few pages
    rcm      reverse Cuthill-McKee: breadth first, small bandwidth
    morton   bits of the coordinates interleaved
    hilbert  as morton, without its jumps
"""

import numpy as np
import torch

BITS = 63  # of a space-filling curve's key


def node_order(name, rowptr, col, n_nodes, pos=None):
    """perm `[N]` for the square CSR (rowptr, col); `pos` `[N, D]` for the curves."""
    if name in ("morton", "hilbert"):
        if pos is None or pos.dim() != 2 or pos.shape[0] != n_nodes:
            got = None if pos is None else list(pos.shape)
            raise ValueError(f"reorder={name!r} needs pos [{n_nodes}, D], got {got}")
        grid, bits = _grid(pos)
        grid = _hilbert_transpose(grid, bits) if name == "hilbert" else grid
        return torch.argsort(_interleave(grid, bits), stable=True)
    if name not in ("degree", "rcm"):
        raise ValueError(
            f"reorder must be 'degree', 'rcm', 'morton' or 'hilbert', got {name!r}"
        )
    start, neighbour = _symmetric(rowptr, col, n_nodes)
    if name == "degree":
        perm = np.argsort(-np.diff(start), kind="stable")
    else:
        perm = _cuthill_mckee(start, neighbour)[::-1].copy()
    return torch.from_numpy(perm)


# --------------------------------------------------------------------------- by edges


def _symmetric(rowptr, col, n_nodes):
    """Start [N + 1] and neighbours of the undirected graph, without duplicates."""
    row = np.repeat(np.arange(n_nodes), np.diff(rowptr.numpy()))
    col = col.numpy().astype(np.int64)
    key = np.unique(np.concatenate((row * n_nodes + col, col * n_nodes + row)))
    row, col = np.divmod(key, max(n_nodes, 1))
    count = np.bincount(row, minlength=n_nodes)
    return np.concatenate(([0], np.cumsum(count))), col


def _cuthill_mckee(start, neighbour):
    """Breadth first, each node's new neighbours by rising degree (Cuthill & McKee
    1969); a component begins at a node of least degree. A whole level at a time: a new
    node belongs to the first parent that reaches it."""
    degree = np.diff(start)
    seen = degree == 0
    order = [np.flatnonzero(seen)]
    for root in np.argsort(degree, kind="stable"):
        if seen[root]:
            continue
        seen[root] = True
        level = np.array([root])
        while level.size:
            order.append(level)
            reached, parent = _neighbours(start, neighbour, level)
            fresh = ~seen[reached]
            reached, first = np.unique(reached[fresh], return_index=True)
            parent = parent[fresh][first]
            level = reached[np.lexsort((degree[reached], parent))]
            seen[level] = True
    return np.concatenate(order)


def _neighbours(start, neighbour, level):
    """All neighbours of the nodes of a level, and where in it their parent stands."""
    count = start[level + 1] - start[level]
    parent = np.repeat(np.arange(level.size), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return neighbour[start[level][parent] + within], parent


# --------------------------------------------------------------------- by coordinates


def _grid(pos):
    """Coordinates as integers of `bits` bits on one scale for all axes."""
    pos = pos.detach().to(torch.float64)
    bits = BITS // max(pos.shape[1], 1)
    if pos.numel() == 0:
        return pos.to(torch.int64), bits
    if not bool(pos.isfinite().all()):
        raise ValueError("reorder: pos must be finite")
    low = pos.amin(dim=0)
    extent = float((pos - low).max()) or 1.0
    bits = min(bits, 52)  # what a float64 holds exactly
    return ((pos - low) / extent * (2**bits - 1)).to(torch.int64), bits


def _interleave(grid, bits):
    """Key [N]: the bits of all axes, highest first, axis 0 leading."""
    key = torch.zeros_like(grid[:, 0])
    for bit in range(bits - 1, -1, -1):
        for axis in range(grid.shape[1]):
            key = (key << 1) | ((grid[:, axis] >> bit) & 1)
    return key


def _hilbert_transpose(grid, bits):
    """Coordinates to the transposed Hilbert index (Skilling 2004, AxestoTranspose)."""
    x = list(grid.clone().unbind(dim=1))
    n_axes = len(x)
    for bit in range(bits - 1, 0, -1):
        top, low = 1 << bit, (1 << bit) - 1
        for axis in range(n_axes):
            is_set = (x[axis] & top) != 0
            swap = (x[0] ^ x[axis]) & low
            x[0] = torch.where(is_set, x[0] ^ low, x[0] ^ swap)
            if axis > 0:
                x[axis] = torch.where(is_set, x[axis], x[axis] ^ swap)
    for axis in range(1, n_axes):
        x[axis] = x[axis] ^ x[axis - 1]
    flip = torch.zeros_like(x[0])
    for bit in range(bits - 1, 0, -1):
        flip = torch.where((x[-1] & (1 << bit)) != 0, flip ^ ((1 << bit) - 1), flip)
    return torch.stack([axis ^ flip for axis in x], dim=1)
