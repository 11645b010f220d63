"""Light and diffuse reflection."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.ops import cameras


class Light(NamedTuple):
  """A point light with an ambient term; `textureless` whitens the albedo."""
  position: Any     # [..., 3]
  ambient: Any      # [...]
  diffuse: Any      # [...]
  textureless: Any  # [...] 0 or 1


def lambertian(albedo, normals, points, light):
  """Diffuse shading [..., 3] (DreamFusion, section 3.1).

  colour = rho * (l_d * max(0, n . (l - x) / |l - x|) + l_a), with rho = 1
  where the light says textureless.

  Args:
    albedo: [..., 3].
    normals: [..., 3], unit.
    points: [..., 3], where the surface is.
    light: a Light whose fields broadcast against [...].
  """
  toward = cameras.normalize(light.position - points)
  cosine = jnp.maximum(0.0, jnp.sum(normals * toward, axis=-1))
  shade = light.ambient + light.diffuse * cosine
  white = jnp.asarray(light.textureless)[..., None]
  return (albedo * (1 - white) + white) * shade[..., None]


def sample_position(key, camera_position, norm=(0.8, 1.5)):
  """A point light [3] around the camera (DreamFusion, appendix).

  The direction is that of a draw from N(camera position, I), the distance
  from the origin uniform in `norm`.
  """
  key_direction, key_norm = jax.random.split(key)
  direction = camera_position + jax.random.normal(key_direction, (3,))
  return cameras.normalize(direction) * jax.random.uniform(
      key_norm, minval=norm[0], maxval=norm[1])
