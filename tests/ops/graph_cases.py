"""Graphs that every op is tested on, and integer data whose sums are exact."""

import torch

DEGREES = [0, 1, 31, 32, 33, 1023, 1024, 1025, 0, 2]  # around the split of heavy rows


def random_edges(n_src, n_dst, n_edges, seed=0):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, max(n_src, 1), (n_edges,), generator=generator)
    destination = torch.randint(0, max(n_dst, 1), (n_edges,), generator=generator)
    return torch.stack((source, destination))


def edges_of_degrees(degrees, n_src, seed=0):
    destination = torch.repeat_interleave(
        torch.arange(len(degrees)), torch.tensor(degrees)
    )
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, n_src, destination.shape, generator=generator)
    shuffle = torch.randperm(destination.numel(), generator=generator)
    return torch.stack((source, destination))[:, shuffle]


# name: (edge_index, (n_src, n_dst))
GRAPHS = {
    "nothing": (torch.empty(2, 0, dtype=torch.int64), (0, 0)),
    "no edges": (torch.empty(2, 0, dtype=torch.int64), (4, 3)),
    "one self loop": (torch.zeros(2, 1, dtype=torch.int64), (1, 1)),
    "random": (random_edges(50, 50, 300), (50, 50)),
    "int32": (random_edges(50, 50, 300).int(), (50, 50)),
    "bipartite": (random_edges(70, 20, 200), (70, 20)),
    "more edges than pairs": (random_edges(5, 6, 400), (5, 6)),
    "degrees": (edges_of_degrees(DEGREES, 40), (40, len(DEGREES))),
    "sorted": (random_edges(30, 30, 100).sort(dim=1).values, (30, 30)),
    "strided": (random_edges(30, 30, 200)[:, ::2], (30, 30)),
    "transposed": (random_edges(30, 30, 200).t().contiguous().t(), (30, 30)),
}


def integers(*shape, seed=0, low=-4, high=5):
    """Small int64 numbers: every sum of products stays far below 2^24."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(low, high, shape, generator=generator)


def oracle_spmm(edge_index, n_dst, x, weight=None):
    """The product in int64."""
    source, destination = edge_index.long()
    message = x[source] if weight is None else x[source] * weight[:, None]
    return torch.zeros(n_dst, x.shape[1], dtype=torch.int64).index_add(
        0, destination, message
    )
