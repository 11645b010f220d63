"""Cameras and rays.

Vocabulary. The world has y up; an object's front faces +z and its left
(the viewer's right) is +x, as in glTF. A camera faces its own -z with x to
the right and y up (OpenGL). `c2w` is the 4x4 camera-to-world matrix.
Intrinsics are 3x3 and normalized: image coordinates run from (0, 0) at the
top left corner to (1, 1) at the bottom right one, so that they do not depend
on the resolution. Azimuth and elevation are in degrees: azimuth 0 is the
front, 90 the +x side, 180 the back; elevation 90 is overhead.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Signs of the columns of c2w: OpenCV's cameras have y down and face +z.
OPENCV = np.array([1.0, -1.0, -1.0, 1.0], np.float32)
# Rotates a world with z up: its (x, y, z) is (x, z, -y) in one with y up.
Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


class Camera(NamedTuple):
  """A pinhole camera, or a batch of them."""
  c2w: Any         # [..., 4, 4]
  intrinsics: Any  # [..., 3, 3], normalized


class Rays(NamedTuple):
  """Rays through pixel centers; `radii` is of their cones at distance 1."""
  origins: Any     # [..., 3]
  directions: Any  # [..., 3], unit
  radii: Any       # [..., 1], Mip-NeRF's: a pixel's width * 2 / sqrt(12)


def normalize(x: jax.Array, eps: float = 1e-12) -> jax.Array:
  """Unit vectors [..., 3] of x; zero stays zero, and so does its gradient.

  Args:
    x: [..., 3].
    eps: squared length below which x counts as zero.
  """
  squared = jnp.sum(x * x, axis=-1, keepdims=True)
  safe = jnp.maximum(squared, eps)
  return jnp.where(squared > eps, x / jnp.sqrt(safe), 0.0)


def spherical(azimuth: Any, elevation: Any, distance: jax.Array) -> jax.Array:
  """Position [..., 3] on a sphere of radius `distance` around the origin.

  Angles are in degrees; all arguments are of shape [...].
  """
  azimuth, elevation = jnp.deg2rad(azimuth), jnp.deg2rad(elevation)
  return distance[..., None] * jnp.stack([
      jnp.cos(elevation) * jnp.sin(azimuth),
      jnp.sin(elevation) + jnp.zeros_like(azimuth),
      jnp.cos(elevation) * jnp.cos(azimuth)], axis=-1)


@jax.jit
def angles(position: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Inverse of `spherical`: azimuth in (-180, 180], elevation, distance."""
  x, y, z = position[..., 0], position[..., 1], position[..., 2]
  distance = jnp.linalg.norm(position, axis=-1)
  return (jnp.rad2deg(jnp.arctan2(x, z)),
          jnp.rad2deg(jnp.arcsin(jnp.clip(y / distance, -1, 1))), distance)


def look_at(position: jax.Array, target: jax.Array, up: jax.Array
            ) -> jax.Array:
  """Camera-to-world matrices [..., 4, 4].

  Args:
    position: [..., 3].
    target: [..., 3], which projects to the center of the image.
    up: [..., 3], vertical in the image. Where it is parallel to the viewing
      axis, which leaves the roll undefined, world -z is taken: the limit of a
      camera that moves over the front to the top.
  """
  back = normalize(position - target)
  right = jnp.cross(up, back)
  degenerate = jnp.sum(right * right, -1, keepdims=True) < 1e-10
  right = jnp.where(
      degenerate, jnp.cross(jnp.array([0.0, 0.0, -1.0]), back), right)
  right = normalize(right)
  columns = jnp.stack([right, jnp.cross(back, right), back, position], axis=-1)
  last = jnp.broadcast_to(
      jnp.array([0.0, 0.0, 0.0, 1.0]), (*columns.shape[:-2], 1, 4))
  return jnp.concatenate([columns, last], axis=-2)


def pinhole(focal: Any) -> jax.Array:
  """Normalized intrinsics [..., 3, 3] of square images.

  `focal` [...] is the focal length in image heights.
  """
  focal = jnp.asarray(focal)
  zero, one = jnp.zeros_like(focal), jnp.ones_like(focal)
  half = one / 2
  return jnp.stack([
      jnp.stack([focal, zero, half], -1),
      jnp.stack([zero, focal, half], -1),
      jnp.stack([zero, zero, one], -1)], -2)


@jax.jit  # otherwise each of its operations is compiled by itself
def orbit(azimuth: Any, elevation: Any, distance: Any, focal: Any,
          target: Any = (0.0, 0.0, 0.0)) -> Camera:
  """Cameras on a sphere that face its center; scalars or batches [...].

  Args:
    azimuth, elevation: degrees.
    distance: radius of the sphere.
    focal: in image heights.
    target: center of the sphere, [..., 3].
  """
  azimuth, elevation, distance, focal = jnp.broadcast_arrays(
      *map(jnp.float32, (azimuth, elevation, distance, focal)))
  position = spherical(azimuth, elevation, distance) + jnp.float32(target)
  up = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0]), position.shape)
  target = jnp.broadcast_to(jnp.float32(target), position.shape)
  return Camera(look_at(position, target, up), pinhole(focal))


def rays(camera: Camera, height: int, width: int) -> Rays:
  """Rays [..., H, W, .] through the pixel centers of `camera` [...].

  `height` and `width` are H and W, in pixels.
  """
  y, x = jnp.meshgrid((jnp.arange(height) + 0.5) / height,
                      (jnp.arange(width) + 0.5) / width, indexing='ij')
  every = jax.tree.map(lambda a: a[..., None, None, :, :], camera)
  return rays_through(every, jnp.stack([x, y], axis=-1), height)


def axial_depth(camera: Camera, distance: jax.Array) -> jax.Array:
  """Depth [..., H, W] along the viewing axis of distances along the rays.

  Args:
    camera: Camera [...].
    distance: [..., H, W] from the camera to the points of its pixels.
  """
  directions = rays(camera, *distance.shape[-2:]).directions
  forward = -camera.c2w[..., None, None, :3, 2]
  return distance * jnp.sum(directions * forward, axis=-1)


def nearest_to_origin(origins: jax.Array, directions: jax.Array) -> jax.Array:
  """The point [..., 3] of each line that is nearest to the world's origin.

  It may be behind the camera. `directions` are unit vectors.
  """
  along = jnp.sum(origins * directions, -1, keepdims=True)
  return origins - along * directions


def rays_through(camera: Camera, points: jax.Array, height: int) -> Rays:
  """Rays [..., .] through image coordinates `points` [..., 2].

  Args:
    camera: Camera whose leading axes broadcast against [...].
    points: (x, y), from (0, 0) at the top left to (1, 1).
    height: of the image in pixels, which determines the cones' radii.
  """
  k = camera.intrinsics
  v = (points[..., 1] - k[..., 1, 2]) / k[..., 1, 1]
  u = (points[..., 0] - k[..., 0, 2] - k[..., 0, 1] * v) / k[..., 0, 0]
  local = jnp.stack([u, -v, -jnp.ones_like(u)], axis=-1)
  # Sums of products, not einsum: a TPU would round a matmul to bfloat16.
  directions = jnp.sum(
      camera.c2w[..., :3, :3] * local[..., None, :], axis=-1)
  length = jnp.linalg.norm(directions, axis=-1, keepdims=True)
  origins = jnp.broadcast_to(camera.c2w[..., :3, 3], directions.shape)
  pixel = 1 / (height * k[..., 1, 1])
  radii = jnp.broadcast_to(pixel[..., None] / jnp.sqrt(3.0) / length,
                           (*directions.shape[:-1], 1))
  return Rays(origins, directions / length, radii)


@jax.jit
def to_label(camera: Camera) -> jax.Array:
  """EG3D's labels [..., 25] of Cameras: OpenCV axes, then intrinsics."""
  c2w = jnp.asarray(camera.c2w) * OPENCV
  return jnp.concatenate([
      c2w.reshape(*c2w.shape[:-2], 16),
      jnp.asarray(camera.intrinsics).reshape(*c2w.shape[:-2], 9)], axis=-1)


def from_label(label: jax.Array) -> Camera:
  """Inverse of `to_label`."""
  leading = label.shape[:-1]
  return Camera(label[..., :16].reshape(*leading, 4, 4) * OPENCV,
                label[..., 16:].reshape(*leading, 3, 3))


def project(camera: Camera, points: jax.Array
            ) -> tuple[jax.Array, jax.Array]:
  """Image coordinates [..., N, 2] and depths [..., N] of points [..., N, 3].

  Depth is along the viewing axis, positive in front of the camera.
  """
  offset = points - camera.c2w[..., None, :3, 3]
  local = jnp.sum(camera.c2w[..., None, :3, :3] * offset[..., :, None], -2)
  depth = -local[..., 2]
  u, v = local[..., 0] / depth, -local[..., 1] / depth
  k = camera.intrinsics[..., None, :, :]
  x = k[..., 0, 0] * u + k[..., 0, 1] * v + k[..., 0, 2]
  y = k[..., 1, 1] * v + k[..., 1, 2]
  return jnp.stack([x, y], axis=-1), depth


def clip_positions(camera: Camera, points: jax.Array, near: float,
                   far: float) -> jax.Array:
  """Clip positions [..., N, 4] of points [..., N, 3], as a rasterizer takes.

  OpenGL's: x to the right, y up, z / w from -1 at `near` to 1 at `far`, w the
  depth along the viewing axis.
  """
  offset = points - camera.c2w[..., None, :3, 3]
  local = jnp.sum(camera.c2w[..., None, :3, :3] * offset[..., :, None], -2)
  x, y, depth = local[..., 0], local[..., 1], -local[..., 2]
  k = 2 * camera.intrinsics[..., None, :, :]
  return jnp.stack([
      k[..., 0, 0] * x - k[..., 0, 1] * y + (k[..., 0, 2] - 1) * depth,
      k[..., 1, 1] * y + (1 - k[..., 1, 2]) * depth,
      ((far + near) * depth - 2 * far * near) / (far - near), depth], axis=-1)


def sample(
    key: jax.Array, *, azimuth: tuple = (-180.0, 180.0),
    elevation: tuple = (-10.0, 90.0), distance: tuple = (1.0, 1.5),
    focal: tuple = (0.7, 1.35), jitter_position: float = 0.1,
    jitter_target: float = 0.2, jitter_up: float = 0.02) -> Camera:
  """One camera from DreamFusion's distribution (appendix of 2209.14988).

  Args:
    key: of the random numbers.
    azimuth, elevation: ranges, degrees. Elevation is uniform in angle half of
      the time, else uniform in area on its band.
    distance: range of the distance from the origin.
    focal: range of the focal length, in image heights.
    jitter_position: half-width of a uniform offset of the position.
    jitter_target, jitter_up: standard deviations of the target and the up
      vector (the paper leaves variance or deviation open; public code takes
      deviations).
  """
  # The number of keys is part of the random stream.
  keys = jax.random.split(key, 8)
  uniform = lambda key, lo_hi: jax.random.uniform(
      key, minval=lo_hi[0], maxval=lo_hi[1])
  sines = jnp.sin(jnp.deg2rad(jnp.array(elevation)))
  by_area = jnp.rad2deg(jnp.arcsin(jnp.clip(uniform(keys[0], sines), -1, 1)))
  elevation_angle = jnp.where(jax.random.bernoulli(keys[1]),
                              uniform(keys[2], elevation), by_area)
  position = spherical(uniform(keys[3], azimuth), elevation_angle,
                       uniform(keys[4], distance))
  key_position, key_target, key_up = jax.random.split(keys[5], 3)
  position += jitter_position * jax.random.uniform(
      key_position, (3,), minval=-1.0)
  target = jitter_target * jax.random.normal(key_target, (3,))
  up = jnp.array([0.0, 1.0, 0.0]) + jitter_up * jax.random.normal(key_up, (3,))
  return Camera(look_at(position, target, up), pinhole(uniform(keys[6], focal)))
