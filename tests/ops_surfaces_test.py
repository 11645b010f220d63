"""Surfaces: linear maps, subdivision, normals, penalties, the sphere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.choices import UserError
from gen3d.ops import mesh, surfaces

# A fan of five triangles around vertex 0; vertices 1 to 5 are its boundary.
FAN = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5], [0, 5, 1]])
TETRAHEDRON = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])


def _dense(sparse):
  """The matrix [N, M] of a SparseMap."""
  matrix = np.zeros((len(sparse.index), len(sparse.back_index)))
  np.add.at(matrix, (np.arange(len(matrix))[:, None], sparse.index),
            sparse.weights)
  return matrix


def _sphere(subdivisions, noise=0.1):
  """(noisy vertices [V, 3], faces [F, 3]) without seams."""
  sphere = surfaces.icosphere(subdivisions)
  places, index = mesh.weld(sphere.vertices)
  moved = places + noise * np.random.default_rng(0).normal(size=places.shape)
  return moved.astype(np.float32), index[sphere.faces]


def test_a_sparse_map_and_its_gradient_equal_a_matrix():
  rng = np.random.default_rng(1)
  rows, columns = rng.integers(0, 5, 12), rng.integers(0, 7, 12)
  weights, x = rng.normal(size=12), rng.normal(size=(7, 3)).astype(np.float32)
  matrix = np.zeros((5, 7))
  np.add.at(matrix, (rows, columns), weights)
  sparse = surfaces.sparse_map(rows, columns, weights, (5, 7))
  y, pullback = jax.vjp(lambda x: surfaces.apply(sparse, x), x)
  np.testing.assert_allclose(y, matrix @ x, atol=1e-5)
  cotangent = rng.normal(size=(5, 3)).astype(np.float32)
  np.testing.assert_allclose(
      pullback(jnp.asarray(cotangent))[0], matrix.T @ cotangent, atol=1e-5)


def test_adjacent_faces_have_a_common_edge():
  pairs = surfaces.adjacent_faces(FAN)
  assert sorted(map(sorted, pairs.tolist())) == [
      [0, 1], [0, 4], [1, 2], [2, 3], [3, 4]]
  # Three faces at the edge of 0 and 1.
  pairs = surfaces.adjacent_faces(np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]]))
  assert sorted(map(sorted, pairs.tolist())) == [[0, 1], [0, 2]]
  assert len(surfaces.adjacent_faces(FAN[:1])) == 0


def test_laplacian_and_normal_consistency_equal_loops_over_vertices():
  vertices = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32)
  surface = surfaces.topology(FAN, 6)
  total = 0.0
  for i in range(6):
    ends = [face[(list(face).index(i) + 1) % 3] for face in FAN if i in face]
    total += np.sum((vertices[ends].mean(0) - vertices[i]) ** 2)
  np.testing.assert_allclose(
      surfaces.laplacian(surface, vertices), total / 18, rtol=1e-5)
  a, b, c = vertices[FAN.T]
  normals = np.cross(b - a, c - a)
  normals /= np.linalg.norm(normals, axis=1, keepdims=True)
  expected = np.mean([1 - normals[i] @ normals[i - 1] for i in range(5)])
  np.testing.assert_allclose(surfaces.normal_consistency(
      surface, vertices), expected, rtol=1e-5)
  turn = 2 * np.pi * np.arange(5) / 5
  flat = [[0, 0, 0], *((np.cos(t), np.sin(t), 0) for t in turn)]
  np.testing.assert_allclose(surfaces.normal_consistency(
      surface, jnp.float32(flat)), 0, atol=1e-6)


def test_vertex_normals_equal_those_of_the_host():
  vertices, faces = _sphere(1)
  surface = surfaces.topology(faces, len(vertices))
  normals = surfaces.vertex_normals(surface, vertices)
  np.testing.assert_allclose(
      normals, mesh.vertex_normals(vertices, faces), atol=1e-5)
  # A vertex without faces, and one whose faces cancel.
  lonely = surfaces.topology(np.array([[0, 1, 2], [0, 2, 1]]), 4)
  points = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]])
  np.testing.assert_array_equal(
      surfaces.vertex_normals(lonely, points), [[0, 0, 1]] * 4)
  slope = jax.grad(lambda x: jnp.sum(
      surfaces.vertex_normals(lonely, x)))(points)
  assert np.isfinite(slope).all()


def test_tangents_point_along_u():
  # On a plane z = 0 with u along (1, 1, 0), v along (-1, 1, 0).
  points = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
  faces = np.array([[0, 1, 2], [0, 2, 3]])
  uv = (points[:, :2] @ np.array([[1, -1], [1, 1]]) / 4).astype(np.float32)
  surface = surfaces.topology(faces, 4)
  normals = surfaces.vertex_normals(surface, points)
  tangents = surfaces.vertex_tangents(surface, points, normals, uv[faces])
  np.testing.assert_allclose(
      tangents, [[0.5**0.5, 0.5**0.5, 0]] * 4, atol=1e-5)


@pytest.mark.parametrize('weight', [
    surfaces.loop_weight, surfaces.warren_weight])
def test_loop_subdivision_keeps_planes_and_splits_faces(weight):
  vertices = np.random.default_rng(3).normal(size=(6, 3)) * [1, 1, 0]
  sparse, faces = surfaces.loop_step(FAN, 6, weight)
  fine = np.asarray(surfaces.apply(sparse, jnp.float32(vertices)))
  assert faces.shape == (20, 3) and len(fine) == 6 + 10
  np.testing.assert_allclose(_dense(sparse).sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(fine[:, 2], 0, atol=1e-6)
  # Along the boundary a cubic spline: 1, 6, 1 and the middles of edges.
  np.testing.assert_allclose(
      fine[2], (vertices[1] + 6 * vertices[2] + vertices[3]) / 8, atol=1e-5)
  middle = np.linalg.norm(fine - (vertices[1] + vertices[2]) / 2, axis=1)
  assert middle.min() < 1e-5


@pytest.mark.parametrize('subject', ['sphere', 'tetrahedron', 'fan'])
def test_the_loop_limit_is_that_of_many_steps(subject):
  if subject == 'sphere':
    vertices, faces = _sphere(1)
  else:
    faces = TETRAHEDRON if subject == 'tetrahedron' else FAN
    vertices = np.random.default_rng(4).normal(size=(faces.max() + 1, 3))
  limit = surfaces.apply(
      surfaces.loop_limit(faces, len(vertices)), jnp.float32(vertices))
  points, fine = np.asarray(vertices, np.float64), faces
  errors = []
  for _ in range(4):
    sparse, fine = surfaces.loop_step(fine, len(points))
    points = np.einsum('nk,nkc->nc', sparse.weights, points[sparse.index])
    errors.append(np.abs(points[:len(vertices)] - limit).max())
  assert errors[-1] < 0.02 and errors[-1] < 0.45 * errors[-2]


def test_the_refined_limit_is_one_step_of_warren_then_the_limit():
  faces, vertices = FAN, np.random.default_rng(5).normal(size=(6, 3))
  step, fine = surfaces.loop_step(faces, 6, surfaces.warren_weight)
  once = np.asarray(surfaces.apply(step, jnp.float32(vertices)))
  limit = np.asarray(surfaces.apply(
      surfaces.loop_limit(fine, len(once)), jnp.asarray(once)))
  sparse, constant = surfaces.refined_loop_limit(faces, 6)
  moving, still = (np.asarray(surfaces.apply(x, jnp.float32(vertices)))
                   for x in (sparse, constant))
  np.testing.assert_allclose(moving[0], limit[0], atol=1e-5)
  np.testing.assert_array_equal(moving[1:], 0)
  np.testing.assert_allclose(still[1:], once[1:6], atol=1e-5)
  np.testing.assert_array_equal(still[0], 0)


def test_the_refined_limit_equals_the_limit_at_valence_six():
  faces = _sphere(2)[1]
  count = faces.max() + 1
  sparse, constant = surfaces.refined_loop_limit(faces, count)
  difference = np.abs(
      _dense(sparse) - _dense(surfaces.loop_limit(faces, count))).max(1)
  valence = np.bincount(faces.ravel())
  assert difference[valence == 6].max() < 1e-7
  assert difference[valence == 5].min() > 1e-3
  assert not np.any(constant.weights)


def test_an_edge_of_three_faces_has_no_loop_surface():
  faces = np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]])
  with pytest.raises(UserError, match='more than two faces'):
    surfaces.loop_limit(faces, 5)


@pytest.mark.parametrize('subdivisions', [0, 1, 3])
def test_icosphere(subdivisions):
  sphere = surfaces.icosphere(subdivisions)
  places, index = mesh.weld(sphere.vertices)
  faces = index[sphere.faces]
  assert len(faces) == 20 * 4**subdivisions
  assert len(places) == 10 * 4**subdivisions + 2
  np.testing.assert_allclose(np.linalg.norm(places, axis=1), 1, atol=1e-6)
  volume = mesh.volume(places.astype(np.float64), faces)
  assert 2.5 < volume < 4 * np.pi / 3
  # The faces of the net are congruent and none is mirrored.
  a, b, c = sphere.uv[sphere.faces.T]
  area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
  np.testing.assert_allclose(area, area[0], rtol=1e-6)
  assert area[0] > 0 and sphere.uv.min() >= 0 and sphere.uv.max() <= 1
  if subdivisions == 3:
    assert len(sphere.vertices) == 729 and len(places) == 642
