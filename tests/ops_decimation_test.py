"""Decimation keeps the surface."""

import numpy as np
import pytest
import trimesh

from gen3d.ops import bake, decimation
from gen3d.ops.mesh import Mesh


def ball(scale=1.0):
  shape = trimesh.creation.icosphere(subdivisions=4)
  vertices = np.asarray(shape.vertices) * scale + 3 * scale
  return Mesh(vertices.astype(np.float32), np.asarray(shape.faces, np.int32))


@pytest.mark.parametrize('scale', [1e-3, 1.0, 1e3])
def test_a_closed_surface_stays_closed_and_in_place(scale):
  small = decimation.decimate(ball(scale), 500)
  assert 490 <= len(small.faces) <= 500
  shape = trimesh.Trimesh(small.vertices, small.faces, process=False)
  assert shape.is_watertight
  directions = small.vertices / scale - 3
  radii = np.linalg.norm(directions, axis=-1)
  np.testing.assert_allclose(radii, 1, atol=0.02)
  assert abs(shape.volume / scale ** 3 - 4 / 3 * np.pi) < 0.1
  assert np.mean(np.sum(small.normals * directions, -1) / radii) > 0.99


def test_seams_are_merged_and_small_meshes_keep_their_triangles():
  whole = ball()
  seamed = Mesh(whole.vertices[whole.faces].reshape(-1, 3),
                np.arange(whole.faces.size).reshape(-1, 3))
  same = decimation.decimate(seamed, len(whole.faces))
  assert len(same.faces) == len(whole.faces)
  assert len(same.vertices) == len(whole.vertices)


def test_nearest_color_is_that_of_the_texel_or_vertex():
  shape = ball()
  color = lambda points: (np.asarray(points) - 3) / 2 + 0.5
  points = np.asarray(shape.vertices[:50])
  colored = shape._replace(colors=color(shape.vertices))
  textured = bake.bake(color, shape, 256, depth=0.0)
  for mesh in (colored, textured):
    np.testing.assert_allclose(
        bake.nearest_color(mesh)(points), color(points), atol=0.03)
