"""Light, diffuse reflection and normals of a density field."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.ops import cameras, encodings

# Four directions whose outer products sum to a multiple of the identity: the
# smallest stencil that gives a gradient centered on the point.
TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0),
               (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))


class Light(NamedTuple):
  """A point light with an ambient term; `textureless` whitens the albedo.

  `normals` is 1 where the image shows the normals, as colors, in place of
  shaded colors; None where it never does.
  """
  position: Any     # [..., 3]
  ambient: Any      # [...]
  diffuse: Any      # [...]
  textureless: Any  # [...] 0 or 1
  normals: Any = None  # [...] 0 or 1


def lambertian(albedo: jax.Array, normals: jax.Array, points: jax.Array,
               light: Light) -> jax.Array:
  """Diffuse shading [..., 3] (DreamFusion, section 3.1).

  color = rho * (l_d * max(0, n . (l - x) / |l - x|) + l_a), with rho = 1
  where the light is textureless. Normals n as colors are (n + 1) / 2.

  Args:
    albedo: [..., 3].
    normals: [..., 3], unit.
    points: [..., 3], on the surface.
    light: a Light whose fields broadcast against [...].
  """
  toward = cameras.normalize(light.position - points)
  cosine = jnp.maximum(0.0, jnp.sum(normals * toward, axis=-1))
  shade = light.ambient + light.diffuse * cosine
  white = jnp.asarray(light.textureless)[..., None]
  color = (albedo * (1 - white) + white) * shade[..., None]
  if light.normals is None:
    return color
  share = jnp.asarray(light.normals)[..., None]
  return (1 - share) * color + share * 0.5 * (normals + 1)


def sample_position(key: jax.Array, camera_position: jax.Array,
                    distance_range: tuple[float, float] = (0.8, 1.5)
                    ) -> jax.Array:
  """A point light's position [3] around the camera (DreamFusion, appendix).

  Args:
    key: of the random numbers.
    camera_position: [3]; the direction is that of a sample of
      N(camera_position, I).
    distance_range: the distance from the origin is uniform in it.
  """
  key_direction, key_distance = jax.random.split(key)
  direction = camera_position + jax.random.normal(key_direction, (3,))
  return cameras.normalize(direction) * jax.random.uniform(
      key_distance, minval=distance_range[0], maxval=distance_range[1])


def cosine_direction(uniforms: jax.Array, axis: jax.Array) -> jax.Array:
  """A direction [3] around an axis, with density proportional to the cosine.

  Args:
    uniforms: [2] in [0, 1]: the angle around the axis as a fraction of a turn,
      and the squared cosine.
    axis: [3], nonzero.
  """
  axis = cameras.normalize(axis)
  x, y, z = axis
  zero = jnp.zeros_like(x)
  # Of two vectors perpendicular to the axis, the longer one (nvdiffmodeling).
  first, second = jnp.stack([zero, z, -y]), jnp.stack([-z, zero, x])
  right = cameras.normalize(jnp.where(
      jnp.sum(first**2) > jnp.sum(second**2), first, second))
  up = jnp.cross(axis, right)
  angle = 2 * jnp.pi * uniforms[0]
  cosine, sine = jnp.sqrt(uniforms[1]), jnp.sqrt(1 - uniforms[1])
  return (sine * (right * jnp.cos(angle) + up * jnp.sin(angle))
          + cosine * axis)


def camera_light(camera: cameras.Camera, ambient: Any, diffuse: Any,
                 textureless: Any = 0.0) -> Light:
  """A Light for previews: a little above and to the right of one `camera`.

  The other arguments are those of Light.
  """
  eye, right, up = (camera.c2w[:3, i] for i in (3, 0, 1))
  distance = jnp.linalg.norm(eye)
  return Light(eye + distance * (0.3 * right + 0.4 * up), ambient, diffuse,
               textureless)


def tangent_space_normal(texel: jax.Array, normals: jax.Array,
                         tangents: jax.Array) -> jax.Array:
  """Unit normals [..., 3] of a normal map's texels.

  x t - y b + max(z, 0) n with b = t x n: OpenGL's sign of y.

  Args:
    texel: [..., 3] in [-1, 1]; (0, 0, 1) leaves the normal as it is.
    normals: [..., 3], interpolated between vertices.
    tangents: [..., 3], interpolated between vertices.
  """
  normals, tangents = cameras.normalize(normals), cameras.normalize(tangents)
  bitangents = cameras.normalize(jnp.cross(tangents, normals))
  return cameras.normalize(
      tangents * texel[..., :1] - bitangents * texel[..., 1:2]
      + normals * jnp.maximum(texel[..., 2:], 0.0))


def visible_normal(normals: jax.Array, geometric: jax.Array,
                   toward_camera: jax.Array, threshold: float = 0.1
                   ) -> jax.Array:
  """Normals [..., 3] of the visible side, which face the camera.

  Where the face is seen from behind both normals are turned around. Where the
  shading normal is within `threshold` of perpendicular to the view it is bent
  towards the face's normal (nvdiffmodeling, used by CLIP-Mesh); the result is
  not scaled to unit length there.

  Args:
    normals: [..., 3], unit, for shading.
    geometric: [..., 3], unit, of the faces.
    toward_camera: [..., 3], unit.
    threshold: cosine.
  """
  dot = lambda a, b: jnp.sum(a * b, axis=-1, keepdims=True)
  side = jnp.where(dot(geometric, toward_camera) > 0, 1.0, -1.0)
  normals, geometric = side * normals, side * geometric
  share = jnp.clip(dot(toward_camera, normals) / threshold, 0.0, 1.0)
  return geometric + share * (normals - geometric)


def difference_normals(field: Callable, samples: encodings.Gaussian,
                       directions: jax.Array, epsilon: float) -> jax.Array:
  """Unit normals [..., 3] of a field's density, by finite differences.

  Args:
    field: volume.Field.
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
