"""Light and diffuse reflection."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.ops import cameras, encodings

# Four directions whose outer products sum to a multiple of the identity: the
# smallest stencil that gives a gradient centered on the point.
TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0),
               (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))


class Light(NamedTuple):
  """A point light with an ambient term; `textureless` whitens the albedo."""
  position: Any     # [..., 3]
  ambient: Any      # [...]
  diffuse: Any      # [...]
  textureless: Any  # [...] 0 or 1


def lambertian(albedo, normals, points, light):
  """Diffuse shading [..., 3] (DreamFusion, section 3.1).

  color = rho * (l_d * max(0, n . (l - x) / |l - x|) + l_a), with rho = 1
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


def camera_light(camera, ambient, diffuse, textureless=0.0):
  """A Light to show things by: a little above and to the right of `camera`."""
  eye, right, up = (camera.c2w[:3, i] for i in (3, 0, 1))
  distance = jnp.linalg.norm(eye)
  return Light(eye + distance * (0.3 * right + 0.4 * up), ambient, diffuse,
               textureless)


def difference_normals(field, samples, directions, epsilon):
  """Unit normals [..., 3] of a field's density, by finite differences.

  Args:
    field: (Gaussian samples, directions) -> (density, values).
    samples: Gaussian [..., 3].
    directions: [..., 3].
    epsilon: half the width of the stencil, in the samples' unit.
  """
  stencil = jnp.array(TETRAHEDRON) / jnp.sqrt(3.0)
  corners = lambda x: jnp.broadcast_to(
      x[..., None, :], (*x.shape[:-1], *stencil.shape))
  around = encodings.Gaussian(corners(samples.mean) + epsilon * stencil,
                              corners(samples.variance))
  density, _ = field(around, corners(directions))
  gradient = jnp.sum(density[..., None] * stencil, axis=-2)
  return cameras.normalize(-gradient / epsilon)
