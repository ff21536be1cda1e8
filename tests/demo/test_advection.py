"""The flow, its exact solution and the upwind baseline, against formulas."""

import numpy as np
import pytest

from gnnoffload.demo import advection as adv
from gnnoffload.mesh import icosphere


@pytest.mark.parametrize("alpha", [0.0, 0.05, np.pi / 2])
def test_wind_is_test_case_1(alpha):
    mesh = icosphere(3)
    x, y, z = mesh.points.T
    lon, lat = np.arctan2(y, x), np.arcsin(z)
    u0 = 2 * np.pi / adv.PERIOD
    u = u0 * (np.cos(alpha) * np.cos(lat) + np.sin(alpha) * np.cos(lon) * np.sin(lat))
    v = -u0 * np.sin(alpha) * np.sin(lon)
    wind = adv.tilted(alpha).wind(mesh.points)
    local = np.einsum("nij,nj->ni", mesh.frames, wind)
    inner = np.abs(z) < 1 - 1e-9  # at the poles east is a convention
    np.testing.assert_allclose(local[inner, 0], u[inner], atol=1e-15)
    np.testing.assert_allclose(local[inner, 1], v[inner], atol=1e-15)
    np.testing.assert_allclose(local[:, 2], 0, atol=1e-15)


def test_bell():
    points = np.array([[0.0, -1, 0], [1, 0, 0], [np.sin(1 / 6), -np.cos(1 / 6), 0]])
    np.testing.assert_allclose(adv.bell(points), [1, 0, 0.5], atol=1e-12)


def test_exact_moves_the_bell_along_the_equator():
    """A quarter turn eastward takes longitude 3 pi / 2 to 0."""
    mesh = icosphere(3)
    moved = adv.exact(mesh, adv.tilted(0.0), adv.PERIOD / 4)
    expected = adv.bell(mesh.points, centre=np.array([1.0, 0, 0]))
    np.testing.assert_allclose(moved, expected, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.7, np.pi / 2])
def test_exact_solves_the_equation(alpha):
    """dh/dt + wind . grad h = 0, by differences along the wind and in time."""
    flow, t, d = adv.tilted(alpha), 31.0, 1e-2
    points = icosphere(3).points

    def field(p, t):
        return adv.bell(flow.back(p / np.linalg.norm(p, axis=1, keepdims=True), t))

    time = (field(points, t + d) - field(points, t - d)) / (2 * d)
    step = d * flow.wind(points)
    along = (field(points + step, t) - field(points - step, t)) / (2 * d)
    assert np.abs(time).max() > 0.01
    np.testing.assert_allclose(time + along, 0, atol=1e-6)


def test_a_full_turn_is_the_identity():
    mesh = icosphere(3)
    start, end = (adv.exact(mesh, adv.tilted(0.4), t) for t in (0.0, adv.PERIOD))
    np.testing.assert_allclose(start, end, atol=1e-7)


def test_l2():
    mesh = icosphere(2)
    truth = adv.bell(mesh.points)
    assert adv.l2(mesh, truth, truth) == 0
    assert adv.l2(mesh, 0 * truth, truth) == pytest.approx(1)
    assert adv.l2(mesh, 1.25 * truth, truth) == pytest.approx(0.25)


@pytest.mark.parametrize("alpha", [0.0, 0.9])
def test_upwind_conserves_and_is_monotone(alpha):
    mesh = icosphere(4)
    scheme = adv.Upwind(mesh, adv.tilted(alpha), hours=2.5)
    np.testing.assert_allclose(scheme.step(np.ones(mesh.num_nodes)), 1, atol=1e-12)
    start = field = adv.bell(mesh.points)
    for _ in range(20):
        field = scheme.step(field)
    assert mesh.areas @ field == pytest.approx(mesh.areas @ start, rel=1e-12)
    assert field.min() >= -1e-15 and field.max() <= 1


def test_upwind_converges_and_goes_the_right_way():
    """First order: a mesh twice as fine must help, but less than fourfold."""
    errors = []
    for level in (3, 4, 5):
        mesh, flow = icosphere(level), adv.tilted(0.6)
        scheme, field = adv.Upwind(mesh, flow, hours=2.5), adv.bell(mesh.points)
        for _ in range(8):
            field = scheme.step(field)
        truth = adv.exact(mesh, flow, 20.0)
        errors.append(adv.l2(mesh, field, truth))
        assert errors[-1] < 0.8 * adv.l2(mesh, adv.bell(mesh.points), truth)
    coarse, middle, fine = errors
    assert 4 > coarse / middle > 1.2
    assert 4 > middle / fine > 1.2


def test_upwind_takes_substeps():
    mesh = icosphere(4)
    assert adv.Upwind(mesh, adv.tilted(0.0), hours=2.5).substeps == 1
    assert adv.Upwind(mesh, adv.tilted(0.0), hours=25).substeps > 3
