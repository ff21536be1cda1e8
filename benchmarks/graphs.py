"""Graphs for the benchmarks: seeded, simple, edges handed over in random order.

Each function returns `edge_index` int64 `[2, E]` (row 0 source, row 1 destination) and
the number of nodes.
"""

import numpy as np
import torch

from gnnoffload.mesh import icosphere


def _shuffled(source, destination, n_nodes, seed):
    """Removes duplicate edges, shuffles the rest."""
    key = np.unique(destination.astype(np.int64) * n_nodes + source)
    np.random.default_rng(seed).shuffle(key)
    edge_index = np.stack([key % n_nodes, key // n_nodes])
    return torch.from_numpy(edge_index), n_nodes


def mesh(level):
    """Icosahedral multimesh: the edges of levels 0..level on the finest nodes."""
    sphere = icosphere(level)
    return _shuffled(*sphere.edge_index.numpy(), sphere.num_nodes, level)


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
