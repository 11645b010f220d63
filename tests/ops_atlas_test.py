"""ops.atlas: charts of known surfaces, and texels against a loop."""

import numpy as np
import pytest
import scipy.spatial
import trimesh

from gen3d.ops import atlas
from gen3d.ops import mesh as mesh_ops

SIZE = 256


def torus():
  shape = trimesh.creation.torus(0.7, 0.25, 48, 20)
  return mesh_ops.Mesh(np.asarray(shape.vertices, np.float32),
                       np.asarray(shape.faces))


def noise():
  """A closed surface with handles, cavities and sharp folds."""
  density = np.random.default_rng(0).exponential(size=(9, 10, 11))
  vertices, faces = mesh_ops.isosurface(density, 1.2, np.zeros(3), 0.1)
  vertices = mesh_ops.smooth(vertices, faces, 2)
  return mesh_ops.Mesh(vertices.astype(np.float32), faces)


def cube():
  shape = trimesh.creation.box()
  return mesh_ops.Mesh(np.asarray(shape.vertices, np.float32),
                       np.asarray(shape.faces))


@pytest.fixture(scope='module', params=[torus, noise, cube])
def pair(request):
  mesh = request.param()
  return mesh, atlas.unwrap(mesh, SIZE)


def chart_of_each_face(mesh):
  """Labels [F] of the connected components of the split mesh."""
  graph = scipy.sparse.coo_array(
      (np.ones(2 * len(mesh.faces)),
       np.concatenate([mesh.faces[:, :2], mesh.faces[:, 1:]]).T),
      shape=(len(mesh.vertices),) * 2)
  _, label = scipy.sparse.csgraph.connected_components(graph, False)
  return label[mesh.faces[:, 0]]


def test_every_face_is_kept_in_its_order(pair):
  mesh, unwrapped = pair
  np.testing.assert_array_equal(
      unwrapped.vertices[unwrapped.faces], mesh.vertices[mesh.faces])
  assert unwrapped.vertices.dtype == np.float32


def test_charts_cover_all_faces_within_the_unit_square(pair):
  _, unwrapped = pair
  corners = unwrapped.uv[unwrapped.faces].astype(float)
  areas = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / 2
  assert (areas > 0).all() and 0.25 < areas.sum() < 1
  assert unwrapped.uv.min() > 0 and unwrapped.uv.max() < 1


def test_charts_do_not_overlap(pair):
  _, unwrapped = pair
  assert atlas.overlap(unwrapped.uv, unwrapped.faces, 4 * SIZE) < 1e-4


def test_charts_are_a_gutter_apart(pair):
  _, unwrapped = pair
  found = atlas.texels(unwrapped.uv, unwrapped.faces, SIZE)
  label = chart_of_each_face(unwrapped)[found.faces]
  points = np.stack([found.rows, found.columns], -1)
  assert len(set(label)) > 1
  near = scipy.spatial.cKDTree(points).query_pairs(
      atlas.gutter_width(SIZE) - 1e-6, output_type='ndarray')
  a, b = label[near.T]
  np.testing.assert_array_equal(a, b)


def test_a_closed_surface_is_closed_after_merging_split_vertices(pair):
  mesh, unwrapped = pair
  assert len(unwrapped.vertices) > len(mesh.vertices)
  vertices, index = mesh_ops.weld(unwrapped.vertices)
  np.testing.assert_array_equal(vertices[index], unwrapped.vertices)
  assert len(vertices) == len(mesh.vertices)
  edges = np.sort(index[unwrapped.faces][:, [[0, 1], [1, 2], [2, 0]]], -1)
  _, uses = np.unique(edges.reshape(-1, 2), axis=0, return_counts=True)
  assert (uses % 2 == 0).all()


def test_normals_are_those_of_the_unsplit_surface(pair):
  mesh, unwrapped = pair
  smooth = mesh_ops.vertex_normals(mesh.vertices, mesh.faces)
  np.testing.assert_allclose(
      unwrapped.normals[unwrapped.faces], smooth[mesh.faces], atol=1e-6)
  own = np.roll(smooth, 1, axis=0)
  kept = atlas.unwrap(mesh._replace(normals=own, colors=own ** 2), SIZE)
  np.testing.assert_allclose(kept.normals[kept.faces], own[mesh.faces])
  np.testing.assert_allclose(kept.colors[kept.faces], own[mesh.faces] ** 2)


@pytest.mark.parametrize('candidates', [1, 100, 2 ** 22])
def test_texels_are_those_whose_centers_are_inside(monkeypatch, candidates):
  monkeypatch.setattr(atlas, '_CANDIDATES', candidates)
  rng = np.random.default_rng(1)
  uv, size = rng.uniform(size=(12, 2)), 16
  faces = np.concatenate([np.arange(12).reshape(4, 3), [[0, 0, 1]]])
  found = atlas.texels(uv, faces, size)
  expected = []
  for index, face in enumerate(faces[:4]):
    matrix = np.concatenate([uv[face].T, np.ones((1, 3))])
    for row in range(size):
      for column in range(size):
        point = [(column + 0.5) / size, 1 - (row + 0.5) / size, 1]
        weights = np.linalg.solve(matrix, point)
        if weights.min() >= 0:
          expected.append((index, row, column, *weights))
  assert len(expected) > 20
  np.testing.assert_allclose(np.stack([
      found.faces, found.rows, found.columns, *found.weights.T], -1), expected,
                             atol=1e-9)


def test_overlap_counts_texels_of_several_faces_but_not_common_edges():
  # Edges through the centers of texels.
  square = np.array([[1, 1], [7, 1], [7, 7], [1, 7]]) / 8 + 1 / 16
  faces = np.array([[0, 1, 2], [0, 2, 3]])
  assert atlas.overlap(square, faces, 8) == 0
  assert atlas.overlap(square, faces[[0, 1, 1]], 8) == pytest.approx(
      0.5, abs=0.1)
  assert atlas.overlap(square[:0], faces[:0], 8) == 0
