"""viewer.screen: cameras of the browser, tiles, sizes."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.ops import cameras
from gen3d.viewer import screen

IDENTITY = (1.0, 0.0, 0.0, 0.0)
FOV = math.radians(60)


def place_of(camera, point):
  """Image coordinates (x, y) of a point, by gen3d's own projection."""
  places, depths = cameras.project(
      cameras.Camera(*map(jnp.asarray, camera)), jnp.float32([point]))
  assert depths[0] > 0
  return np.asarray(places[0])


def test_camera_of_the_browser_is_opencv_with_a_vertical_field_of_view():
  camera = screen.from_browser(IDENTITY, (0, 0, -5), FOV, aspect=2.0)
  top = 5 * math.tan(FOV / 2)
  for point, expected in (
      ((0, 0, 0), (0.5, 0.5)), ((0, -top, 0), (0.5, 0.0)),
      ((0, top, 0), (0.5, 1.0)), ((2 * top, 0, 0), (1.0, 0.5))):
    np.testing.assert_allclose(place_of(camera, point), expected, atol=1e-6)


def test_poses_are_inverted():
  c2w = cameras.orbit(70.0, 25.0, 2.0, 1.3, (0.1, 0.2, 0.3)).c2w
  wxyz, position = screen.to_browser(c2w)
  camera = screen.from_browser(wxyz, position, FOV, 1.0)
  np.testing.assert_allclose(camera.c2w, c2w, atol=1e-6)


def test_field_of_view_of_a_focal_length():
  focal = 1.35
  camera = screen.from_browser(
      IDENTITY, (0, 0, 0), screen.field_of_view(focal), 1.0)
  np.testing.assert_allclose(
      camera.intrinsics, cameras.pinhole(focal), rtol=1e-6)


@pytest.mark.parametrize('target, distance', [
    ((0.0, 0.0, 0.0), 2.0), ((0.5, 0.2, 0.1), None)])
def test_orbit_center_is_on_the_axis_nearest_to_the_origin(target, distance):
  c2w = np.asarray(cameras.orbit(30.0, 10.0, 2.0, 1.3, target).c2w)
  center = screen.orbit_center(c2w)
  from_camera = center - c2w[:3, 3]
  length = np.linalg.norm(from_camera)
  np.testing.assert_allclose(from_camera / length, -c2w[:3, 2], atol=1e-5)
  assert abs(center @ c2w[:3, 2]) < 1e-5
  if distance:
    np.testing.assert_allclose(length, distance, rtol=1e-5)


def test_orbit_center_is_before_a_camera_that_faces_away():
  c2w = np.array(cameras.orbit(0.0, 0.0, 2.0, 1.3).c2w)
  c2w[:3, [0, 2]] *= -1
  np.testing.assert_allclose(screen.orbit_center(c2w), [0, 0, 3], atol=1e-6)


@pytest.mark.parametrize('count', [1, 2, 3])
def test_tiles_are_the_parts_of_the_image(count):
  camera = screen.from_browser(
      screen.to_browser(cameras.orbit(20.0, 5.0, 2.0, 1.3).c2w)[0],
      (0.1, 0.2, 3.0), FOV, 1.6)
  side = 6 // count
  directions = lambda camera, side: np.asarray(
      cameras.rays(camera, side, side).directions)
  whole = directions(camera, 6)
  parts = directions(screen.tiles(camera, count), side)
  np.testing.assert_allclose(screen.join(parts), whole, atol=1e-6)


def test_tiles_have_the_cones_of_the_whole_image():
  camera = screen.from_browser(IDENTITY, (0, 0, 0), FOV, 1.0)
  whole = cameras.rays(camera, 8, 8).radii
  parts = cameras.rays(screen.tiles(camera, 2), 4, 4).radii
  np.testing.assert_allclose(parts[3], whole[4:, 4:], rtol=1e-5)


@pytest.mark.parametrize('aspect', [0.5, 1.0, 1.75])
def test_square_in_the_window_shows_points_at_their_place(aspect):
  window = screen.from_browser(IDENTITY, (0, 0, -5), FOV, aspect)
  point = (0.4, -0.7, 0.3)
  x, y = place_of(screen.in_square(window, aspect), point)
  square = np.zeros((64, 64, 3), np.uint8)
  row, column = int(64 * y), int(64 * x)
  square[row, column] = 255
  padded = screen.pad_square(square, aspect, 7)
  height, width = padded.shape[:2]
  assert abs(width / height - aspect) < 0.02 and min(height, width) == 64
  (row, column), = np.argwhere(padded[..., 0] == 255)
  np.testing.assert_allclose(
      [(column + 0.5) / width, (row + 0.5) / height],
      place_of(window, point), atol=0.02)
  assert aspect == 1.0 or padded[0, 0, 0] == 7


@pytest.mark.parametrize('seconds, size', [
    ({}, 32),                      # nothing is known
    ({32: 0.01}, 128),             # 0.04 and 0.16 by the number of pixels
    ({32: 0.3}, 32),               # none is fast enough
    ({32: 0.01, 64: 0.19}, 64),    # measured beats expected
    ({256: 0.15}, 256)])
def test_size_is_the_largest_one_within_the_time(seconds, size):
  assert screen.choose_size((32, 64, 128, 256), seconds, limit=0.2) == size


def test_high_window_has_the_field_of_view_across():
  assert screen.fitting(0.8, 1.5) == pytest.approx(0.8)
  fov = screen.fitting(0.8, 0.5)
  wxyz, position = screen.to_browser(np.eye(4))
  camera = screen.from_browser(wxyz, position, fov, 0.5)
  assert 2 * math.atan(0.5 / camera.intrinsics[0, 0]) == pytest.approx(0.8)
