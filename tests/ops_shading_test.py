"""Diffuse reflection and random lights."""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import shading


def _light(**changes):
  fields = {'position': jnp.array([0.0, 2.0, 0.0]), 'ambient': 0.1,
            'diffuse': 0.9, 'textureless': 0.0}
  return shading.Light(**{**fields, **changes})


def test_lambertian_against_the_formula():
  albedo = jnp.array([0.2, 0.5, 1.0])
  normal = jnp.array([0.0, 0.6, 0.8])
  point = jnp.zeros(3)
  color = shading.lambertian(albedo, normal, point, _light())
  np.testing.assert_allclose(color, albedo * (0.1 + 0.9 * 0.6), rtol=1e-6)
  away = shading.lambertian(albedo, -normal, point, _light())
  np.testing.assert_allclose(away, 0.1 * albedo, rtol=1e-6)
  white = shading.lambertian(albedo, normal, point, _light(textureless=1.0))
  np.testing.assert_allclose(white, np.full(3, 0.64), rtol=1e-6)
  colored = shading.lambertian(albedo, normal, point, _light(normals=1.0))
  np.testing.assert_allclose(colored, [0.5, 0.8, 0.9], rtol=1e-6)
  np.testing.assert_allclose(shading.lambertian(
      albedo, normal, point, _light(normals=0.0)), color, rtol=1e-6)


def test_lights_are_around_the_camera():
  camera = jnp.array([0.0, 0.0, 3.0])
  position = jax.vmap(lambda key: shading.sample_position(key, camera))(
      jax.random.split(jax.random.key(0), 2000))
  norm = np.linalg.norm(position, axis=-1)
  assert norm.min() > 0.799 and norm.max() < 1.501
  np.testing.assert_allclose(norm.mean(), 1.15, atol=0.02)
  towards = position[:, 2] / norm
  assert towards.mean() > 0.85 and towards.min() < 0.8
