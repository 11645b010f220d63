"""Sets of cameras: parity with SceneTex's, positions and directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.ops import camera_sets, cameras


@pytest.fixture(scope='module')
def reference(reference_data):
  return reference_data('scenetex')


def _to_c2w(rotations, translations):
  """c2w of PyTorch3D's x R + T, whose cameras have x left and face +z."""
  c2w = np.tile(np.eye(4), (len(rotations), 1, 1))
  c2w[:, :3, :3] = rotations * [-1, 1, -1]
  c2w[:, :3, 3] = -np.einsum('ni,nji->nj', translations, rotations)
  return c2w


def test_cameras_around_a_point(reference):
  count = len(reference['cam.dist'])
  for i in range(count):
    fov = float(reference[f'cam{i}.fov'])
    camera = jax.tree.map(lambda x: x[0], camera_sets.sphere(
        *(reference[f'cam.{name}'][i:i + 1] for name in (
            'dist', 'elev', 'azim')), [fov], reference['cam.at'][0]))
    expected = _to_c2w(reference['cam.R'][i:i + 1], reference['cam.T'][i:i + 1])
    np.testing.assert_allclose(camera.c2w, expected[0], atol=1e-5)
    points = reference['cam.points']
    image, depth = cameras.project(camera, jnp.asarray(points))
    np.testing.assert_allclose(
        depth, reference[f'cam{i}.view_xyz'][:, 2], atol=1e-5)
    screen = reference[f'cam{i}.screen_H96'][:, :2]
    np.testing.assert_allclose(96 * image, screen, rtol=1e-4, atol=1e-3)


def test_order_of_the_grid(reference):
  rows = reference['sphere.grid_order_dist_elev_azim_fov']
  distinct = [np.sort(np.unique(column)) for column in rows.T]
  made = camera_sets.sphere(*distinct)
  # -180 and 180 degrees are one direction.
  azimuth, elevation, distance = cameras.angles(made.c2w[:, :3, 3])
  np.testing.assert_allclose(distance, rows[:, 0], rtol=1e-5)
  np.testing.assert_allclose(elevation, rows[:, 1], atol=1e-3)
  turn = (azimuth - rows[:, 2] + 180) % 360 - 180
  np.testing.assert_allclose(turn, 0, atol=1e-3)
  np.testing.assert_allclose(
      made.intrinsics[:, 0, 0], camera_sets.focal_length(rows[:, 3]),
      rtol=1e-5)


@pytest.mark.parametrize('name, axes', [
    ('blender', cameras.Z_UP), ('blenderproc', camera_sets.SWAPPED),
    ('front3d', np.eye(4))])
def test_keyframes_of_three_worlds(reference, name, axes):
  made = camera_sets.keyframes(reference['traj.c2w'][None], 60.0, axes)
  expected = _to_c2w(reference[f'traj.{name}.R'], reference[f'traj.{name}.T'])
  np.testing.assert_allclose(made.c2w, expected, atol=1e-5)
  np.testing.assert_allclose(
      made.intrinsics[0, 0, 0], 0.5 / np.tan(np.pi / 6), rtol=1e-6)


def test_a_room_has_cameras_that_face_all_directions():
  made = camera_sets.room((0, 1, 0), (4, 1, 2), (3, 1, 2), (0.0,),
                          (0.0, 90.0, 180.0, 270.0), (60.0,))
  assert made.c2w.shape == (24, 4, 4)
  eyes = np.unique(np.asarray(made.c2w[:, :3, 3]), axis=0)
  np.testing.assert_allclose(eyes, [
      [x, 1, z] for x in (0, 2, 4) for z in (0, 2)])
  ahead = -np.asarray(made.c2w[:, :3, 2])
  np.testing.assert_allclose(ahead[0], [0, 0, 1], atol=1e-6)
  np.testing.assert_allclose(ahead[6], [1, 0, 0], atol=1e-6)
  np.testing.assert_allclose(ahead.mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(
      np.linalg.det(np.asarray(made.c2w)), 1, rtol=1e-5)
