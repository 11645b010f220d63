"""Rendering of the shapes world: sphere tracing, then light and background.

`trace` gives Views (color, normal, depth and coverage of each pixel), which
`shade_and_composite` lights and puts over a background. Training stores the
former and samples the latter each time that a view is used.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.data.shapes import categories
from gen3d.data.shapes.primitives import color, sdf
from gen3d.ops import cameras, shading

ALBEDO_ONLY, TEXTURELESS = 0.25, 0.1  # fractions of the views (DreamFusion)
AMBIENT = (0.2, 0.6)                  # of lit views; the rest is diffuse


class Views(NamedTuple):
  """Geometry and albedo of images, leading axes [..., H, W].

  Small integers, since training holds tens of thousands of views in memory.
  """
  albedo: Any    # uint8 [..., H, W, 3]
  normals: Any   # int8 [..., H, W, 3], world, times 127
  depth: Any     # float16 [..., H, W], along the ray
  coverage: Any  # uint8 [..., H, W], of the pixel by the object
  camera: Any    # cameras.Camera [...]


def sphere_trace(parts: np.ndarray | jax.Array, rays: cameras.Rays,
                 steps: int = 40, relaxation: float = 0.9
                 ) -> tuple[jax.Array, jax.Array]:
  """Marches rays to the surface by steps of the distance (Hart, 1996).

  Args:
    parts: [P, PART_SIZE].
    rays: cameras.Rays with fields [N, ...].
    steps: how many.
    relaxation: step as a fraction of the distance; below 1, since the distance
      to tapered parts is slightly overestimated.

  Returns:
    (t [N], distance along the ray to the surface, or to the point closest to
    it where the ray misses; coverage [N] in [0, 1] of the pixel by the object,
    from the least distance in pixels).
  """
  near = jnp.linalg.norm(rays.origins, axis=-1) - 2 * categories.RADIUS
  # `radii` is 2 / sqrt(12) of a pixel's width (Mip-NeRF).
  pixel = rays.radii[:, 0] * jnp.sqrt(3.0)

  def march(_, carry):
    t, best, closest = carry
    distance = sdf(parts, rays.origins + t[:, None] * rays.directions)
    gap = distance / (pixel * jnp.maximum(t, 1e-3))
    best = jnp.where(gap < closest, t, best)
    # A negative distance, after a step too far, moves back.
    return (t + relaxation * jnp.clip(distance, -0.05, 0.5), best,
            jnp.minimum(gap, closest))

  start = jnp.maximum(near, 0.01)
  _, best, closest = jax.lax.fori_loop(
      0, steps, march, (start, start, jnp.full_like(near, 1e3)))
  return best, jnp.clip(1 - closest, 0.0, 1.0)


def normals(parts: np.ndarray | jax.Array, points: jax.Array,
            epsilon: float = 2e-3) -> jax.Array:
  """Unit normals [N, 3] by central differences on a tetrahedron.

  Args:
    parts: [P, PART_SIZE].
    points: [N, 3].
    epsilon: step of the differences.
  """
  offsets = jnp.array(shading.TETRAHEDRON)
  slopes = [o * sdf(parts, points + epsilon * o)[:, None] for o in offsets]
  # Four slopes, while the checker allows for the 0 of an empty sum.
  return cameras.normalize(sum(slopes))  # pyrefly: ignore[bad-argument-type]


def trace(parts: np.ndarray | jax.Array, camera: cameras.Camera,
          size: int) -> Views:
  """Renders geometry and albedo of one object from one camera.

  Args:
    parts: [P, PART_SIZE].
    camera: Camera without leading axes.
    size: pixels per side.

  Returns:
    Views [size, size, ...].
  """
  rays = jax.tree.map(lambda x: x.reshape(size * size, -1),
                      cameras.rays(camera, size, size))
  t, coverage = sphere_trace(parts, rays)
  points = rays.origins + t[:, None] * rays.directions
  image = lambda x: x.reshape(size, size, *x.shape[1:])
  byte = lambda x: jnp.round(255 * jnp.clip(x, 0, 1)).astype(jnp.uint8)
  return Views(
      byte(image(color(parts, points))),
      jnp.round(127 * image(normals(parts, points))).astype(jnp.int8),
      image(jnp.minimum(t, 100)).astype(jnp.float16), byte(image(coverage)),
      camera)


def shade_and_composite(view: Views, light: shading.Light,
                        background: Any) -> jax.Array:
  """Lights one view and puts it over a background.

  Args:
    view: Views [H, W, ...].
    light: shading.Light.
    background: [H, W, 3], or a number for gray.

  Returns:
    Image [H, W, 3] in [0, 1].
  """
  height, width = view.coverage.shape
  rays = cameras.rays(view.camera, height, width)
  points = rays.origins + view.depth[..., None] * rays.directions
  shaded = shading.lambertian(
      view.albedo / 255.0, cameras.normalize(view.normals / 127.0), points,
      light)
  coverage = view.coverage[..., None] / 255.0
  return jnp.clip(coverage * shaded + (1 - coverage) * background, 0, 1)


def sample_light(key: jax.Array, camera: cameras.Camera,
                 textureless: jax.Array | float) -> shading.Light:
  """Samples a point light near the camera and ambient light.

  With probability ALBEDO_ONLY there is ambient light only, which shows the
  albedo, except in textureless views.

  Args:
    key: PRNG key.
    camera: Camera without leading axes.
    textureless: float, 1 for a white albedo, 0 for the object's.
  """
  key_position, key_ambient, key_only = jax.random.split(key, 3)
  only = jax.random.bernoulli(key_only, ALBEDO_ONLY) & (textureless < 0.5)
  ambient = jnp.where(only, 1.0, jax.random.uniform(
      key_ambient, minval=AMBIENT[0], maxval=AMBIENT[1]))
  return shading.Light(
      shading.sample_position(key_position, camera.c2w[:3, 3]),
      ambient, 1 - ambient, textureless)


def sample_background(key: jax.Array, size: int) -> jax.Array:
  """Samples a flat color, a gradient or smooth noise: [size, size, 3].

  Colors range from gray to saturated, so that the background is independent
  of the object's color.
  """
  key_colors, key_gray, key_kind, key_angle, key_noise = jax.random.split(
      key, 5)
  colors = jax.random.uniform(key_colors, (2, 3))
  gray = jax.random.uniform(key_gray, (2, 1)) ** 0.5
  colors = gray * colors.mean(-1, keepdims=True) + (1 - gray) * colors
  y, x = jnp.meshgrid(*[jnp.linspace(-1, 1, size)] * 2, indexing='ij')
  angle = 2 * jnp.pi * jax.random.uniform(key_angle)
  gradient = 0.5 + 0.35 * (jnp.cos(angle) * x + jnp.sin(angle) * y)
  noise = jax.image.resize(
      jax.random.uniform(key_noise, (4, 4)), (size, size), 'cubic')
  kind = jax.random.uniform(key_kind)
  mix = jnp.where(kind < 0.5, 0.0, jnp.where(kind < 0.8, gradient, noise))
  mix = jnp.clip(mix, 0, 1)[..., None]
  return mix * colors[1] + (1 - mix) * colors[0]


def sample_image(key: jax.Array, view: Views, textureless: Any,
                 background: Any = None) -> jax.Array:
  """Samples a light, and a background where none is given: [H, W, 3].

  Args:
    key: PRNG key.
    view: Views [H, W, ...].
    textureless: as for `sample_light`.
    background: [H, W, 3], a number for gray, or None. The mean of sampled
      backgrounds is 0.5.
  """
  key_light, key_background = jax.random.split(key)
  light = sample_light(key_light, view.camera, jnp.float32(textureless))
  if background is None:
    background = sample_background(key_background, view.coverage.shape[0])
  return shade_and_composite(view, light, background)
