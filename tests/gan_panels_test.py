"""gan.panels: depth, normals and shape of generated objects."""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.gan import Generated, panels
from gen3d.ops import cameras

SIDE, RADIUS = 48, 0.5
CENTER = jnp.array([0.1, -0.05, 0.2])


def ball(camera):
  """(Generated of a ball, its unit normals, where they can be measured)."""
  rays = cameras.rays(camera, SIDE, SIDE)
  offset = rays.origins - CENTER
  along = jnp.sum(offset * rays.directions, axis=-1)
  inside = along**2 - jnp.sum(offset**2, axis=-1) + RADIUS**2
  depth = -along - jnp.sqrt(jnp.maximum(inside, 0))
  normals = (offset + depth[..., None] * rays.directions) / RADIUS
  opacity = (inside > 0).astype(jnp.float32)
  image = jnp.zeros((1, SIDE // 2, SIDE // 2, 3))
  return (Generated(image, image, depth, opacity), normals,
          inside > 0.35 * RADIUS**2)


def camera():
  return jax.tree.map(lambda x: x[None], cameras.orbit(30.0, 20.0, 2.5, 1.6))


def test_normals_of_a_ball_point_from_its_center_in_world_axes():
  generated, expected, seen = ball(camera())
  found = panels.normals(generated, camera())
  assert int(seen.sum()) > 300
  np.testing.assert_allclose(found[seen], expected[seen], atol=0.05)


def test_panels_of_the_shape_are_over_white_and_have_a_pixel_for_each_ray():
  generated, expected, seen = ball(camera())
  image = panels.row(generated, ('normal', 'textureless'), camera())
  assert image.shape == (SIDE, 2 * SIDE, 3) and image.dtype == np.uint8
  colors, shape = image[:, :SIDE], image[:, SIDE:]
  empty = np.asarray(generated.opacity[0] == 0)
  assert (colors[empty] == 255).all() and (shape[empty] == 255).all()
  np.testing.assert_allclose(
      colors[seen[0]] / 255, (0.5 + 0.5 * expected[0])[seen[0]], atol=0.03)
  gray = shape[seen[0]]
  assert np.ptp(gray, axis=-1).max() == 0 and np.ptp(gray[:, 0]) > 40


def test_panels_with_an_image_have_its_size():
  generated, _, _ = ball(camera())
  image = panels.row(generated, ('image', 'depth'), camera())
  assert image.shape == (SIDE // 2, SIDE, 3)
  assert (image[:, :SIDE // 2] == 128).all()


def test_depth_panels_are_bright_where_near_and_dark_where_transparent():
  depth = jnp.array([[[1.0, 1.5, 2.0], [2.5, 0.2, 9.0]]])
  opacity = jnp.array([[[1.0, 1.0, 1.0], [1.0, 0.02, 0.1]]])
  generated = Generated(None, None, depth, opacity)
  (near, middle, far), (back, *transparent) = np.asarray(
      panels.depth_to_gray(generated)[0])
  assert near > middle > far > back > 0.15
  np.testing.assert_allclose(near, 1, atol=0.02)
  np.testing.assert_allclose(transparent, [0.02, 0.02], atol=1e-6)
  empty = generated._replace(opacity=0.1 * opacity)
  np.testing.assert_array_equal(panels.depth_to_gray(empty), 0)
