"""The multimesh against closed formulas of the refined icosahedron."""

import doctest
import sys

import numpy as np
import pytest

from gnnoffload.mesh import icosphere as make


@pytest.mark.parametrize("level", range(5))
def test_counts(level):
    mesh = make(level)
    assert mesh.num_nodes == 10 * 4**level + 2
    assert mesh.num_edges == 20 * (4 ** (level + 1) - 1)
    assert [len(f) for f in mesh.faces] == [20 * 4**k for k in range(level + 1)]
    assert np.bincount(mesh.edge_level).tolist() == [
        60 * 4**k for k in range(level + 1)
    ]
    np.testing.assert_allclose(np.linalg.norm(mesh.points, axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("level", range(4))
def test_edges_are_simple_symmetric_and_sorted(level):
    mesh = make(level)
    source, destination = mesh.edge_index.numpy()
    key = destination * mesh.num_nodes + source
    assert (np.diff(key) > 0).all()  # sorted by (destination, source), none twice
    assert (source != destination).all()
    reverse = np.sort(source * mesh.num_nodes + destination)
    np.testing.assert_array_equal(reverse, key)


def test_degrees_of_level_6():
    """Three quarters of the nodes see one level only; the first twelve see all."""
    mesh = make(6)
    degree = np.bincount(mesh.edge_index[1].numpy())
    assert degree.max() == 36
    assert (degree[:12] == 5 * 7).all()
    assert (degree <= 6).mean() == pytest.approx(0.75, abs=1e-3)


def test_coarse_nodes_keep_their_numbers():
    coarse, fine = make(2), make(4)
    np.testing.assert_array_equal(fine.points[: coarse.num_nodes], coarse.points)
    kept = fine.edge_index[:, fine.edge_level <= 2]
    np.testing.assert_array_equal(kept.numpy(), coarse.edge_index.numpy())


@pytest.mark.parametrize("level", range(5))
def test_areas(level):
    mesh = make(level)
    assert (mesh.areas > 0).all()
    assert mesh.areas.sum() == pytest.approx(4 * np.pi, rel=1e-12)
    if level == 0:
        np.testing.assert_allclose(mesh.areas, np.pi / 3, rtol=1e-12)


def test_faces_look_outwards():
    mesh = make(3)
    for faces in mesh.faces:
        a, b, c = mesh.points[faces].transpose(1, 0, 2)
        assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), a) > 0).all()


def test_circumcentres_are_equally_far_from_the_corners():
    mesh = make(3)
    corners = mesh.points[mesh.faces[-1]]
    cosine = np.einsum("fkj,fj->fk", corners, mesh.circumcentres)
    np.testing.assert_allclose(cosine, cosine[:, :1].repeat(3, 1), atol=1e-12)


def test_frames_are_right_handed_and_orthonormal():
    frames = make(3).frames
    eye = np.broadcast_to(np.eye(3), frames.shape)
    np.testing.assert_allclose(frames @ frames.transpose(0, 2, 1), eye, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(frames), 1, atol=1e-12)


def test_edge_features():
    mesh = make(3)
    features = mesh.edge_features().numpy()
    finest = mesh.edge_level == 3
    assert features.shape == (mesh.num_edges, 4)
    assert features[finest, 3].max() == pytest.approx(1, rel=1e-6)
    # The frame is a rotation: the offset keeps its length.
    np.testing.assert_allclose(
        np.linalg.norm(features[:, :3], axis=1), features[:, 3], rtol=1e-5
    )
    # A chord dips below the tangent plane of its destination by half its square.
    longest = mesh.edge_lengths[finest].max()
    np.testing.assert_allclose(
        features[:, 2] * longest, -(mesh.edge_lengths**2) / 2, atol=1e-6
    )


@pytest.mark.parametrize("level", [-1, 13])
def test_bad_level(level):
    with pytest.raises(ValueError, match=f"level must be 0 to 12, got {level}"):
        make(level)


def test_doctest():
    result = doctest.testmod(sys.modules[make.__module__])
    assert result.attempted and not result.failed
