"""Meshes merged into one atlas: squares, anchors, frames."""

import numpy as np
import pytest

from gen3d.ops import merge
from gen3d.ops.mesh import Mesh


def _square(side, shift=0.0):
  """Two triangles, uv over the whole unit square."""
  corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
  return Mesh(side * corners + shift, np.array([[0, 1, 2], [0, 2, 3]]),
              uv=corners[:, :2])


@pytest.mark.parametrize('sides', [
    [1.0], [1, 1, 1, 1], [3, 1, 1, 2, 0.5], [1e-9, 1.0],
    list(np.random.default_rng(0).random(40))])
def test_squares_are_in_the_unit_square_and_apart(sides):
  corners, packed = merge.pack_squares(sides)
  assert (packed > 0).all() and (corners >= 0).all()
  assert (corners + packed[:, None] <= 1 + 1e-9).all()
  for i in range(len(sides)):
    for j in range(i):
      gap = np.maximum(corners[i] - corners[j] - packed[j],
                       corners[j] - corners[i] - packed[i]).max()
      assert gap > 0
  # Little is wasted where sides are equal.
  if sides == [1, 1, 1, 1]:
    assert packed.min() > 0.49


def test_one_mesh_keeps_its_uv_and_several_share_the_atlas_by_area():
  one = merge.merge([_square(2.0)])
  np.testing.assert_array_equal(one.uv, _square(1.0).uv)
  merged = merge.merge([_square(2.0), _square(1.0, 5.0)])
  np.testing.assert_array_equal(merged.instances, [0, 0, 1, 1])
  np.testing.assert_array_equal(merged.faces[2:], [[4, 5, 6], [4, 6, 7]])
  extents = [np.ptp(merged.uv[4 * i:4 * i + 4], axis=0) for i in (0, 1)]
  np.testing.assert_allclose(extents[0] / extents[1], 2.0, rtol=0.02)
  np.testing.assert_allclose(merged.vertices[4:].min(), 5.0)
  np.testing.assert_allclose(merged.normals, [[0, 0, 1]] * 8)


def test_anchors_are_on_their_instance_in_proportion_to_area():
  large, small = _square(3.0), _square(1.0, 7.0)
  merged = merge.merge([large, small])
  anchors = merge.sample_anchors(merged, 400)
  assert anchors.shape == (2, 400, 2)
  for index in (0, 1):
    own = merged.uv[4 * index:4 * index + 4]
    low, high = own.min(0), own.max(0)
    assert (anchors[index] >= low - 1e-6).all()
    assert (anchors[index] <= high + 1e-6).all()
    place = (anchors[index] - low) / (high - low)
    np.testing.assert_allclose(place.mean(0), 0.5, atol=0.05)
    np.testing.assert_allclose(place.var(0), 1 / 12, atol=0.015)


def test_a_face_of_nine_tenths_of_the_area_has_as_many_anchors():
  mesh = Mesh(np.array([[0, 0, 0], [9, 0, 0], [0, 2, 0], [-1, 0, 0]], float),
              np.array([[0, 1, 2], [0, 2, 3]]),
              uv=np.array([[0.5, 0], [1, 0], [0.5, 1], [0, 0]]))
  anchors = merge.sample_anchors(merge.merge([mesh]), 2000)
  assert abs(np.mean(anchors[0, :, 0] > 0.5) - 0.9) < 0.03


def test_the_frame_of_an_object_has_the_size_of_the_shapes_world():
  for points in ([[0, 0, 0], [4, 1, 1]], [[0, 0, 0], [2, 2, 2]]):
    center, scale = merge.box_frame(np.array(points, float), 0.5)
    moved = (np.array(points) - center) * scale
    np.testing.assert_allclose(moved.sum(0), 0, atol=1e-9)
    assert np.abs(moved).max() <= 0.5 + 1e-9
    assert np.linalg.norm(moved, axis=-1).max() <= 0.625 + 1e-9
