"""Agreement of textures with the true colors of the shapes world."""

import numpy as np
import pytest

from gen3d.choices import UserError
from gen3d.data import synthetic, untextured
from gen3d.evaluation import texture_truth
from gen3d.ops import atlas, bake
from gen3d.ops.mesh import Mesh


@pytest.fixture(scope='module')
def chair():
  """A chair with the true colors as its texture."""
  mesh, = synthetic.surface_from_caption('a red chair with blue legs', 24)
  return mesh, atlas.unwrap(mesh._replace(colors=None), 256)


def _painted(mesh, color):
  return mesh._replace(texture=np.full((4, 4, 3), color, np.uint8))


def test_true_colors_agree_and_others_do_not(chair):
  colored, plain = chair
  unwrapped = atlas.unwrap(colored, 256)
  textured = unwrapped._replace(
      texture=bake.texture_of_colors(unwrapped, 256), colors=None)
  named, everything, error = texture_truth.color_agreement(
      textured, 'a red chair with blue legs')
  assert named > 0.9 and everything > 0.9 and error < 0.1
  red = [round(255 * x) for x in (0.85, 0.10, 0.10)]
  named, _, error = texture_truth.color_agreement(
      _painted(plain, red), 'a red chair with blue legs')
  assert 0.6 < named < 0.95  # all but the legs
  assert texture_truth.color_agreement(
      _painted(plain, red), 'a red chair')[0] == 1.0
  assert texture_truth.color_agreement(
      _painted(plain, [0, 255, 0]), 'a red chair')[:2] == (0.0, 0.0)


def test_a_prompt_without_colors_has_no_named_part(chair):
  named, everything, error = texture_truth.color_agreement(
      _painted(chair[1], 255), 'a chair')
  assert np.isnan(named) and np.isnan(error) and 0 <= everything <= 1


def test_points_are_uniform_in_the_area_and_have_their_uv():
  corners = np.array([[0, 0], [4, 0], [4, 1], [0, 1]], float)
  mesh = Mesh(np.pad(corners, ((0, 0), (0, 1))),
              np.array([[0, 1, 2], [0, 2, 3]]), uv=corners / [4, 1])
  points, uv = texture_truth.sample_surface(mesh, 4000)
  np.testing.assert_allclose(points[:, :2] / [4, 1], uv, atol=1e-9)
  np.testing.assert_allclose(uv.mean(0), 0.5, atol=0.02)
  np.testing.assert_allclose(uv.var(0), 1 / 12, atol=0.01)


def test_table_has_means_without_what_is_unknown():
  rows = [texture_truth.Agreement('a red chair', 0.8, 0.6, 0.1, 1.0),
          texture_truth.Agreement('a duck', *[np.nan] * 3, 0.5)]
  text = texture_truth.table(rows)
  assert '| a duck | - | - | - | 50 % |' in text
  assert '| **mean of 2** | 80 % | 60 % | 0.100 | 75 % |' in text


def test_objects_of_the_shapes_world_by_name():
  mesh, = untextured.read('shapes:mug', 'y', 64, 12)
  assert mesh.colors is None and mesh.texture is None
  assert mesh.uv.min() >= 0 and mesh.uv.max() <= 1
  with pytest.raises(UserError, match="'a toaster'.*chair"):
    untextured.read('shapes:toaster', 'y', 64, 12)
