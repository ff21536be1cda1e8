"""Solid-body advection on the sphere: a flow whose true answer is known at all times.

A scalar is carried once around the sphere in twelve days by a rotation about any axis,
so its exact solution is its initial state, rotated. The usual initial state is a cosine
bell of a third of the radius: Williamson, Drake, Hack, Jakob and Swarztrauber, "A
standard test set for numerical approximations to the shallow water equations in
spherical geometry", J. Comput. Phys. 102 (1992), test case 1. Units here: the sphere's
radius is 1, the bell's height is 1, time is in hours.
"""

from dataclasses import dataclass

import numpy as np

from gnnoffload.mesh import Icosphere

PERIOD = 12 * 24.0  # hours of one turn
BELL_RADIUS = 1 / 3
BELL_CENTRE = np.array([0.0, -1.0, 0.0])  # longitude 3 pi / 2 on the equator


@dataclass(frozen=True)
class Flow:
    """A rotation of the sphere about `axis` ([3], a unit vector) in `PERIOD` hours."""

    axis: np.ndarray

    def wind(self, points: np.ndarray) -> np.ndarray:
        """[N, 3] velocity at `points` [N, 3], in radii an hour."""
        return 2 * np.pi / PERIOD * np.cross(self.axis, points)

    def back(self, points: np.ndarray, hours: float) -> np.ndarray:
        """[N, 3] where the air that is now at `points` was `hours` ago (Rodrigues)."""
        angle = -2 * np.pi * hours / PERIOD
        along = points @ self.axis
        return (
            points * np.cos(angle)
            + np.cross(self.axis, points) * np.sin(angle)
            + np.outer(along, self.axis) * (1 - np.cos(angle))
        )


def tilted(alpha: float) -> Flow:
    """Test case 1: the axis is tilted by `alpha` radians from the pole.

    Its wind is u = u0 (cos a cos t + sin a cos l sin t), v = -u0 sin a sin l at
    longitude l and latitude t.
    """
    return Flow(np.array([-np.sin(alpha), 0.0, np.cos(alpha)]))


def bell(
    points: np.ndarray, centre: np.ndarray = BELL_CENTRE, radius: float = BELL_RADIUS
) -> np.ndarray:
    """[N] cosine bell (1 + cos(pi r / R)) / 2 within a great-circle distance R."""
    distance = np.arccos(np.clip(points @ centre, -1, 1))
    return np.where(distance < radius, (1 + np.cos(np.pi * distance / radius)) / 2, 0.0)


def exact(mesh: Icosphere, flow: Flow, hours: float, initial=bell) -> np.ndarray:
    """[N] the exact state after `hours`, at the nodes of `mesh`."""
    return initial(flow.back(mesh.points, hours))


def l2(mesh: Icosphere, field: np.ndarray, truth: np.ndarray) -> float:
    """Normalised error sqrt(I[(h - h_true)^2] / I[h_true^2]), I the area integral."""
    error = mesh.areas @ (field - truth) ** 2
    return float(np.sqrt(error / (mesh.areas @ truth**2)))


class Upwind:
    """First-order upwind in flux form on the mesh's Voronoi cells, the baseline scheme.

    Conservative and monotone, hence diffusive. The flow's stream function is -axis . x,
    so the flux through a cell side is exactly the difference of axis . x at its ends
    (circumcentres), and a constant stays constant to rounding.
    """

    def __init__(self, mesh: Icosphere, flow: Flow, hours: float):
        """One `step` covers `hours`, in as many substeps as stability asks for."""
        faces = mesh.faces[-1]
        potential = 2 * np.pi / PERIOD * mesh.circumcentres @ flow.axis
        here = faces.ravel()
        there = np.roll(faces, -1, axis=1).ravel()
        # A triangle is left of its own sides; each side's other triangle holds it
        # the other way round, so sorting by both keys pairs them up.
        left = np.repeat(potential, 3)
        forward, reverse = np.lexsort((there, here)), np.lexsort((here, there))
        self.here, self.there = here[forward], there[forward]
        flux = left[forward] - left[reverse]  # out of `here` into `there`
        self.outward = np.maximum(flux, 0)
        leaving = np.bincount(self.here, self.outward, mesh.num_nodes)
        self.substeps = max(1, int(np.ceil((leaving / mesh.areas).max() * hours)))
        self.scale = hours / self.substeps / mesh.areas

    def step(self, field: np.ndarray) -> np.ndarray:
        """[N] the state one step after `field` [N]."""
        for _ in range(self.substeps):
            moved = self.outward * field[self.here]
            gain = np.bincount(self.there, moved, len(field))
            loss = np.bincount(self.here, moved, len(field))
            field = field + self.scale * (gain - loss)
        return field
