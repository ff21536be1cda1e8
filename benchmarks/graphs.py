"""Graphs for the benchmarks: seeded, simple, edges handed over in random order.

Each function returns `edge_index` int64 `[2, E]` (row 0 source, row 1 destination) and
the number of nodes.
"""

import numpy as np
import torch

PHI = (1 + 5**0.5) / 2


def _shuffled(source, destination, n_nodes, seed):
    """Removes duplicate edges, shuffles the rest."""
    key = np.unique(destination.astype(np.int64) * n_nodes + source)
    np.random.default_rng(seed).shuffle(key)
    edge_index = np.stack([key % n_nodes, key // n_nodes])
    return torch.from_numpy(edge_index), n_nodes


def mesh(level):
    """Icosahedral multimesh: the edges of levels 0..level on the finest nodes."""
    corners = [(0, s, t * PHI) for s in (1, -1) for t in (1, -1)]
    points = [p[k:] + p[:k] for p in corners for k in range(3)]
    points = np.array(points) / np.hypot(1, PHI)
    faces = _icosahedron_faces(points)
    edges = []
    for step in range(level + 1):
        sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        edges.append(np.concatenate([sides, sides[:, ::-1]]))
        if step < level:
            points, faces = _subdivide(points, faces)
    edges = np.concatenate(edges)
    return _shuffled(edges[:, 0], edges[:, 1], len(points), level)


def _icosahedron_faces(points):
    gap = np.linalg.norm(points[:, None] - points[None], axis=-1)
    near = np.isclose(gap, gap[gap > 1e-9].min())
    n = len(points)
    return np.array(
        [
            (i, j, k)
            for i in range(n)
            for j in range(i + 1, n)
            for k in range(j + 1, n)
            if near[i, j] and near[j, k] and near[i, k]
        ]
    )


def _subdivide(points, faces):
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    sides, inverse = np.unique(np.sort(sides, axis=1), axis=0, return_inverse=True)
    middle = points[sides].sum(axis=1)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    ab, bc, ca = (len(points) + inverse).reshape(3, -1)
    a, b, c = faces.T
    quads = [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    faces = np.concatenate([np.stack(q, axis=1) for q in quads])
    return np.concatenate([points, middle]), faces


def power_law(n_nodes, n_edges, seed=0):
    """Both ends drawn with probability ~ rank^-0.6, ranks scattered over the nodes."""
    rng = np.random.default_rng(seed)
    weight = np.cumsum((1 + np.arange(n_nodes)) ** -0.6)
    draws = np.searchsorted(weight, rng.random((2, n_edges)) * weight[-1])
    source, destination = rng.permutation(n_nodes)[draws]
    return _shuffled(source, destination, n_nodes, seed)


def uniform(n_nodes, degree, seed=0):
    """`degree` random sources for every destination."""
    rng = np.random.default_rng(seed)
    destination = np.repeat(np.arange(n_nodes), degree)
    source = rng.integers(0, n_nodes, n_nodes * degree)
    return _shuffled(source, destination, n_nodes, seed)


def kronecker(scale, n_edges, seed=0):
    """R-MAT with a = 0.57, b = c = 0.19 on 2^scale nodes, labels scattered."""
    rng = np.random.default_rng(seed)
    source = np.zeros(n_edges, np.int64)
    destination = np.zeros(n_edges, np.int64)
    for _ in range(scale):
        draw = rng.random(n_edges)
        source = 2 * source + (draw >= 0.76)
        destination = 2 * destination + (
            (draw >= 0.57) & (draw < 0.76) | (draw >= 0.95)
        )
    label = rng.permutation(2**scale)
    return _shuffled(label[source], label[destination], 2**scale, seed)


def hub(n_nodes=70_000, degree=4, n_hub=65_537, seed=0):
    """Node 0 receives `n_hub` edges, every other node `degree`."""
    rng = np.random.default_rng(seed)
    source = rng.integers(1, n_nodes, (n_nodes - 1) * degree)
    destination = np.repeat(np.arange(1, n_nodes), degree)
    into_hub = 1 + rng.permutation(n_nodes - 1)[:n_hub]
    source = np.concatenate([source, into_hub])
    destination = np.concatenate([destination, np.zeros(n_hub, np.int64)])
    return _shuffled(source, destination, n_nodes, seed)


GRAPHS = {
    "mesh6": lambda: mesh(6),
    "mesh5": lambda: mesh(5),
    "arxiv-like": lambda: power_law(169_343, 1_190_000),
    "uniform": lambda: uniform(200_000, 16),
    "kron18": lambda: kronecker(18, 2_900_000),
    "small": lambda: power_law(2_708, 11_200),
    "hub": hub,
}
