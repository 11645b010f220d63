"""Ray features of the pixel model's camera conditioning."""

import jax.numpy as jnp
import numpy as np

from gen3d.diffusion import pixel_model
from gen3d.ops import cameras


def test_ray_features_encode_direction_and_nearest_point():
  labels = jnp.stack([
      cameras.to_label(cameras.orbit(40.0, 20.0, 1.6, 1.3, (0.1, 0.0, 0.05))),
      jnp.zeros(25)])
  features = np.asarray(pixel_model.ray_features(labels, 6))
  assert features.shape == (2, 6, 6, 18)
  np.testing.assert_array_equal(features[1], 0)
  camera = cameras.from_label(labels[0])
  rays = cameras.rays(camera, 6, 6)
  for i, j in np.ndindex(6, 6):
    o, d = np.asarray(rays.origins[i, j]), np.asarray(rays.directions[i, j])
    # By trying all points of the ray.
    far = np.linspace(0, 4, 40_001)[:, None]
    points = o + far * d
    nearest = points[np.argmin(np.linalg.norm(points, axis=1))] / 0.6
    ray = features[0, i, j]
    np.testing.assert_allclose(ray[:3], d, atol=1e-5)
    np.testing.assert_allclose(ray[3:6], nearest, atol=5e-4)
    angles = np.pi * np.concatenate([nearest, 2 * nearest])
    np.testing.assert_allclose(ray[6:12], np.sin(angles), atol=3e-3)
    np.testing.assert_allclose(ray[12:], np.cos(angles), atol=3e-3)
