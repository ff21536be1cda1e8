"""The icosahedral multimesh: one set of nodes, edges of every refinement level.

An icosahedron is refined by cutting each triangle into four and pushing the new
corners onto the unit sphere. The nodes of a level are the first nodes of the next,
so the edges of all levels live on the finest nodes: long edges carry information far
in one message, short ones carry detail (Lam et al., "Learning skillful medium-range
global weather forecasting", Science 382, 2023).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True)
class Icosphere:
    """An icosahedral multimesh of levels 0 to `level` on the unit sphere.

    Args (as fields):
        level: finest level L.
        points: [N, 3] float64, unit vectors; N = 10 * 4^L + 2.
        faces: one [20 * 4^l, 3] int64 array for each level l, counterclockwise seen
            from outside.
        edge_index: [2, E] int64 tensor, sources then destinations, both directions,
            ordered by (destination, source); E = 20 * (4^(L+1) - 1).
        edge_level: [E] int64, the level that each edge comes from.
    """

    level: int
    points: np.ndarray
    faces: tuple[np.ndarray, ...]
    edge_index: torch.Tensor
    edge_level: np.ndarray

    @property
    def num_nodes(self) -> int:
        return len(self.points)

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    @cached_property
    def frames(self) -> np.ndarray:
        """[N, 3, 3] east, north and up at each node (rows are the unit vectors).

        At the poles, where east is undefined, it is the x axis.
        """
        up = self.points
        east = np.cross([0.0, 0.0, 1.0], up)
        length = np.linalg.norm(east, axis=1, keepdims=True)
        polar = length < 1e-9
        east = np.where(polar, [1.0, 0.0, 0.0], east / np.where(polar, 1.0, length))
        return np.stack([east, np.cross(up, east), up], axis=1)

    @cached_property
    def edge_lengths(self) -> np.ndarray:
        """[E] chord lengths on the unit sphere."""
        source, destination = self.edge_index.numpy()
        return np.linalg.norm(self.points[source] - self.points[destination], axis=1)

    @cached_property
    def areas(self) -> np.ndarray:
        """[N] area of the Voronoi cell around each node; they sum to 4 pi.

        Each finest triangle gives every corner the two pieces between its edges'
        midpoints and its circumcentre.
        """
        area = np.zeros(self.num_nodes)
        corners = self.points[self.faces[-1]]  # [faces, 3, 3]
        centre = self.circumcentres
        for k in range(3):
            a, b = corners[:, k], corners[:, (k + 1) % 3]
            middle = _unit(a + b)
            first, second = self.faces[-1][:, k], self.faces[-1][:, (k + 1) % 3]
            np.add.at(area, first, _triangle_area(a, middle, centre))
            np.add.at(area, second, _triangle_area(middle, b, centre))
        return area

    @cached_property
    def circumcentres(self) -> np.ndarray:
        """[20 * 4^L, 3] circumcentres of the finest triangles, on the sphere."""
        a, b, c = np.moveaxis(self.points[self.faces[-1]], 1, 0)
        return _unit(np.cross(b - a, c - a))

    def edge_features(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What an edge knows of its geometry.

        Returns:
            [E, 4]: source minus destination in the destination's frame (east, north,
            up), then the length, all divided by the longest edge of the finest level.
        """
        source, destination = self.edge_index.numpy()
        offset = self.points[source] - self.points[destination]
        local = np.einsum("eij,ej->ei", self.frames[destination], offset)
        longest = self.edge_lengths[self.edge_level == self.level].max()
        features = np.column_stack([local, self.edge_lengths]) / longest
        return torch.as_tensor(features, dtype=dtype)


def icosphere(level: int) -> Icosphere:
    """Builds the icosahedral multimesh of levels 0 to `level`.

    Args:
        level: finest level, 0 (the icosahedron) to 12.

    Returns:
        An `Icosphere` with 10 * 4^level + 2 nodes and 20 * (4^(level+1) - 1) edges.

    Raises:
        ValueError: `level` is negative or above 12.

    Memory: 88 bytes a node and 24 bytes an edge; about twice that while it is built.

    >>> mesh = icosphere(2)
    >>> mesh.num_nodes, mesh.num_edges
    (162, 1260)
    """
    if not 0 <= level <= 12:
        raise ValueError(f"icosphere: level must be 0 to 12, got {level}")
    points, triangles = _icosahedron()
    faces = [triangles]
    for _ in range(level):
        points, triangles = _refine(points, triangles)
        faces.append(triangles)
    edge_index, edge_level = _edges(faces)
    return Icosphere(level, points, tuple(faces), edge_index, edge_level)


def _icosahedron() -> tuple[np.ndarray, np.ndarray]:
    """Two poles and two rings of five, so that no edge of the start crosses a pole."""
    height, radius = 1 / np.sqrt(5.0), 2 / np.sqrt(5.0)
    turn = 2 * np.pi / 5 * np.arange(5)
    upper = np.column_stack([radius * np.cos(turn), radius * np.sin(turn)])
    lower = np.column_stack(
        [radius * np.cos(turn + np.pi / 5), radius * np.sin(turn + np.pi / 5)]
    )
    points = np.vstack(
        [
            [[0.0, 0.0, 1.0]],
            np.column_stack([upper, np.full(5, height)]),
            np.column_stack([lower, np.full(5, -height)]),
            [[0.0, 0.0, -1.0]],
        ]
    )
    faces = []
    for k in range(5):
        after = (k + 1) % 5
        up, up_after, low, low_after = 1 + k, 1 + after, 6 + k, 6 + after
        faces += [
            (0, up, up_after),
            (up, low, up_after),
            (low, low_after, up_after),
            (11, low_after, low),
        ]
    return _unit(points), np.array(faces, dtype=np.int64)


def _refine(points: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cuts each triangle into four; old nodes keep their numbers."""
    sides = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    edges, which = np.unique(sides, axis=0, return_inverse=True)
    middles = _unit(points[edges[:, 0]] + points[edges[:, 1]])
    ab, bc, ca = (len(points) + which.reshape(-1, 3)).T
    a, b, c = faces.T
    quarters = np.stack([[a, ab, ca], [ab, b, bc], [ca, bc, c], [ab, bc, ca]])
    return np.vstack([points, middles]), quarters.transpose(2, 0, 1).reshape(-1, 3)


def _edges(faces: list[np.ndarray]) -> tuple[torch.Tensor, np.ndarray]:
    """All directed edges of all levels by (destination, source).

    No edge comes twice: one of level l has a node of level l + 1 on its middle. Each
    triangle of a closed, consistently oriented surface owns one direction of its sides.
    """
    source = np.concatenate([f.ravel() for f in faces])
    destination = np.concatenate([np.roll(f, -1, axis=1).ravel() for f in faces])
    level = np.repeat(np.arange(len(faces)), [f.size for f in faces])
    order = np.lexsort((source, destination))
    edge_index = torch.from_numpy(np.stack([source[order], destination[order]]))
    return edge_index, level[order]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _triangle_area(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Area of spherical triangles (van Oosterom and Strackee 1983, eq. 8)."""
    volume = np.einsum("ij,ij->i", a, np.cross(b, c))
    dots = (a * b).sum(1) + (b * c).sum(1) + (c * a).sum(1)
    return 2 * np.arctan2(volume, 1 + dots)
