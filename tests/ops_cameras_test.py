"""Cameras by projecting known points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.ops import cameras


def test_spherical_and_angles_are_inverse():
  position = cameras.spherical(
      jnp.array([0.0, 90.0, 180.0, -30.0]), jnp.array([0.0, 0.0, 0.0, 40.0]),
      jnp.array([2.0, 2.0, 2.0, 3.0]))
  np.testing.assert_allclose(
      position[:3], [[0, 0, 2], [2, 0, 0], [0, 0, -2]], atol=1e-6)
  azimuth, elevation, distance = cameras.angles(position)
  np.testing.assert_allclose(
      np.asarray(azimuth)[[0, 1, 3]], [0, 90, -30], atol=1e-4)
  np.testing.assert_allclose(elevation, [0, 0, 0, 40], atol=1e-4)
  np.testing.assert_allclose(distance, [2, 2, 2, 3], rtol=1e-6)


def test_known_points_from_the_front():
  camera = cameras.orbit(0.0, 0.0, 2.0, 1.0)
  points = jnp.array([[0.0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 1.0]])
  image, depth = cameras.project(camera, points)
  # +x is on the right, +y is up (small y), the focal length is one height.
  np.testing.assert_allclose(
      image, [[0.5, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.5]], atol=1e-6)
  np.testing.assert_allclose(depth, [2, 2, 2, 1], atol=1e-6)


@pytest.mark.parametrize('azimuth, right', [
    (90.0, (0, 0, -1)), (180.0, (-1, 0, 0)), (-90.0, (0, 0, 1))])
def test_axis_on_the_right_of_the_image(azimuth, right):
  camera = cameras.orbit(azimuth, 0.0, 2.0, 1.0)
  np.testing.assert_allclose(camera.c2w[:3, 0], right, atol=1e-6)
  np.testing.assert_allclose(camera.c2w[:3, 1], (0, 1, 0), atol=1e-6)


def test_overhead_is_a_rotation_with_the_front_below():
  camera = cameras.orbit(0.0, 90.0, 2.0, 1.0)
  rotation = np.asarray(camera.c2w[:3, :3])
  np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
  np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
  image, _ = cameras.project(camera, jnp.array([[0.0, 0.0, 0.5]]))
  np.testing.assert_allclose(image[0], [0.5, 0.75], atol=1e-5)


def test_rays_hit_the_pixels_that_their_points_project_to():
  keys = jax.random.split(jax.random.key(0), 5)
  for key in keys:
    camera = cameras.sample(key)
    rays = cameras.rays(camera, 4, 6)
    np.testing.assert_allclose(
        jnp.linalg.norm(rays.directions, axis=-1), 1, atol=1e-6)
    points = (rays.origins + 1.3 * rays.directions).reshape(-1, 3)
    image, depth = cameras.project(camera, points)
    x, y = np.meshgrid((np.arange(6) + 0.5) / 6, (np.arange(4) + 0.5) / 4)
    np.testing.assert_allclose(
        image, np.stack([x.ravel(), y.ravel()], -1), atol=1e-5)
    assert np.all(depth > 0)


def test_radius_at_the_center_is_a_pixels():
  rays = cameras.rays(cameras.orbit(0.0, 0.0, 2.0, 1.0), 65, 65)
  np.testing.assert_allclose(
      rays.radii[32, 32, 0], (1 / 65) * 2 / np.sqrt(12), rtol=1e-5)


def test_sample_is_dreamfusions_distribution():
  camera = jax.vmap(lambda key: cameras.sample(
      key, jitter_position=0.0, jitter_target=0.0, jitter_up=0.0))(
          jax.random.split(jax.random.key(1), 4000))
  azimuth, elevation, distance = cameras.angles(camera.c2w[:, :3, 3])
  focal = camera.intrinsics[:, 1, 1]
  for value, low, high in ((azimuth, -180, 180), (distance, 1.0, 1.5),
                           (focal, 0.7, 1.35)):
    assert np.all((value > low - 1e-2) & (value < high + 1e-2))
    np.testing.assert_allclose(
        value.mean(), (low + high) / 2, atol=0.03 * (high - low))
  assert np.all((elevation > -10.1) & (elevation < 90.1))
  # Half of it uniform in angle, half in area.
  sine = np.sin(np.deg2rad(-10))
  below = 0.5 * 55 / 100 + 0.5 * (np.sin(np.deg2rad(45)) - sine) / (1 - sine)
  np.testing.assert_allclose(np.mean(elevation < 45), below, atol=0.03)


def test_normalize_has_no_nan_at_zero():
  gradient = jax.grad(lambda x: cameras.normalize(x).sum())(jnp.zeros(3))
  np.testing.assert_array_equal(gradient, 0)


def test_labels_are_in_the_opencv_convention():
  camera = cameras.orbit(0., 0., 2., 1.2)
  label = cameras.to_label(camera)
  c2w = label[:16].reshape(4, 4)
  np.testing.assert_allclose(c2w[:3, 2], [0, 0, -1], atol=1e-6)  # looks at -z
  np.testing.assert_allclose(c2w[:3, 1], [0, -1, 0], atol=1e-6)  # y down
  np.testing.assert_allclose(c2w[:3, 3], [0, 0, 2], atol=1e-6)
  np.testing.assert_allclose(
      label[16:].reshape(3, 3), [[1.2, 0, .5], [0, 1.2, .5], [0, 0, 1]])


def test_labels_come_back_as_cameras():
  camera = cameras.orbit(jnp.array([10., 200.]), 30., 2., 1.2)
  back = cameras.from_label(cameras.to_label(camera))
  jax.tree.map(np.testing.assert_array_equal, back, camera)


def test_axial_depth_is_minus_z_in_the_cameras_frame():
  camera = cameras.orbit(jnp.array([10., 200.]), 30., 2., 1.2)
  distance = jax.random.uniform(jax.random.key(0), (2, 4, 6), minval=1.)
  rays = cameras.rays(camera, 4, 6)
  points = rays.origins + distance[..., None] * rays.directions
  world = np.concatenate([points, np.ones((2, 4, 6, 1))], -1)
  local = np.einsum('bij,bhwj->bhwi', np.linalg.inv(camera.c2w), world)
  np.testing.assert_allclose(
      cameras.axial_depth(camera, distance), -local[..., 2], rtol=1e-5)
