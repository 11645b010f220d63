"""Cameras and rays.

Vocabulary. The world has y up; an object's front looks along +z and its left
(the viewer's right) is +x, as in glTF. A camera looks along its own -z with x
to the right and y up (OpenGL). `c2w` is the 4x4 camera-to-world matrix.
Intrinsics are 3x3 and normalized: image coordinates run from (0, 0) at the
top left corner to (1, 1) at the bottom right one, so they do not depend on
the resolution. Angles are in degrees where a person writes them (azimuth,
elevation, field of view). Azimuth 0 is the front, 90 is the +x side, 180 the
back; elevation 90 is overhead.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Signs of the columns of c2w: OpenCV's cameras have y down and look along +z.
OPENCV = np.array([1.0, -1.0, -1.0, 1.0], np.float32)
# Turns a world with z up: its (x, y, z) is (x, z, -y) in one with y up.
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


def normalize(x, eps=1e-12):
  """Unit vectors [..., 3]; zero stays zero, and so does its gradient."""
  squared = jnp.sum(x * x, axis=-1, keepdims=True)
  safe = jnp.maximum(squared, eps)
  return jnp.where(squared > eps, x / jnp.sqrt(safe), 0.0)


def spherical(azimuth, elevation, distance):
  """Position [..., 3] on a sphere around the origin (angles in degrees)."""
  azimuth, elevation = jnp.deg2rad(azimuth), jnp.deg2rad(elevation)
  return distance[..., None] * jnp.stack([
      jnp.cos(elevation) * jnp.sin(azimuth),
      jnp.sin(elevation) + jnp.zeros_like(azimuth),
      jnp.cos(elevation) * jnp.cos(azimuth)], axis=-1)


def angles(position):
  """Inverse of `spherical`: azimuth in (-180, 180], elevation, distance."""
  x, y, z = position[..., 0], position[..., 1], position[..., 2]
  distance = jnp.linalg.norm(position, axis=-1)
  return (jnp.rad2deg(jnp.arctan2(x, z)),
          jnp.rad2deg(jnp.arcsin(jnp.clip(y / distance, -1, 1))), distance)


def look_at(position, target, up):
  """Camera-to-world [..., 4, 4] at `position`, looking at `target`.

  When `up` is along the line of sight, which leaves the roll open, the
  camera's up falls back to world -z (the way it is reached by climbing over
  the front).
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


def pinhole(focal):
  """Normalized intrinsics [..., 3, 3]; `focal` in image heights, square."""
  focal = jnp.asarray(focal)
  zero, one = jnp.zeros_like(focal), jnp.ones_like(focal)
  half = one / 2
  return jnp.stack([
      jnp.stack([focal, zero, half], -1),
      jnp.stack([zero, focal, half], -1),
      jnp.stack([zero, zero, one], -1)], -2)


def focal_from_fov(degrees):
  """Focal length in image heights of a vertical field of view."""
  return 0.5 / jnp.tan(0.5 * jnp.deg2rad(degrees))


def orbit(azimuth, elevation, distance, focal, target=(0.0, 0.0, 0.0)):
  """A camera on a sphere that looks at its center; scalars or batches."""
  azimuth, elevation, distance, focal = jnp.broadcast_arrays(
      *map(jnp.float32, (azimuth, elevation, distance, focal)))
  position = spherical(azimuth, elevation, distance) + jnp.float32(target)
  up = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0]), position.shape)
  target = jnp.broadcast_to(jnp.float32(target), position.shape)
  return Camera(look_at(position, target, up), pinhole(focal))


def rays(camera, height, width):
  """Rays [..., H, W, .] through the pixel centers of `camera`."""
  y, x = jnp.meshgrid((jnp.arange(height) + 0.5) / height,
                      (jnp.arange(width) + 0.5) / width, indexing='ij')
  every = jax.tree.map(lambda a: a[..., None, None, :, :], camera)
  return rays_through(every, jnp.stack([x, y], axis=-1), height)


def nearest_to_origin(origins, directions):
  """The point [..., 3] of each ray that is nearest to the world's origin.

  `directions` have length one; behind the camera counts, too.
  """
  along = jnp.sum(origins * directions, -1, keepdims=True)
  return origins - along * directions


def rays_through(camera, points, height):
  """Rays [..., .] through image coordinates `points` [..., 2].

  Args:
    camera: Camera whose leading axes broadcast against [...].
    points: (x, y), from (0, 0) at the top left to (1, 1).
    height: of the image in pixels, which makes the cones' radii.
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


def to_label(camera):
  """EG3D's labels [..., 25] of Cameras: OpenCV axes, then intrinsics."""
  c2w = jnp.asarray(camera.c2w) * OPENCV
  return jnp.concatenate([
      c2w.reshape(*c2w.shape[:-2], 16),
      jnp.asarray(camera.intrinsics).reshape(*c2w.shape[:-2], 9)], axis=-1)


def from_label(label):
  """Inverse of `to_label`."""
  leading = label.shape[:-1]
  return Camera(label[..., :16].reshape(*leading, 4, 4) * OPENCV,
                label[..., 16:].reshape(*leading, 3, 3))


def project(camera, points):
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


def sample(key, *, azimuth=(-180.0, 180.0), elevation=(-10.0, 90.0),
           distance=(1.0, 1.5), focal=(0.7, 1.35), jitter_position=0.1,
           jitter_target=0.2, jitter_up=0.02):
  """One camera from DreamFusion's distribution (appendix of 2209.14988).

  Elevation is uniform in angle half of the time, else uniform in area on its
  band. `jitter_position` is the half-width of a uniform offset, the other two
  are standard deviations (the paper leaves variance or deviation open; public
  code takes deviations). `focal` is in image heights.
  """
  keys = jax.random.split(key, 8)
  uniform = lambda key, lo_hi: jax.random.uniform(
      key, minval=lo_hi[0], maxval=lo_hi[1])
  sines = jnp.sin(jnp.deg2rad(jnp.array(elevation)))
  by_area = jnp.rad2deg(jnp.arcsin(jnp.clip(uniform(keys[0], sines), -1, 1)))
  elevation = jnp.where(jax.random.bernoulli(keys[1]),
                        uniform(keys[2], elevation), by_area)
  position = spherical(uniform(keys[3], azimuth), elevation,
                       uniform(keys[4], distance))
  key_position, key_target, key_up = jax.random.split(keys[5], 3)
  position += jitter_position * jax.random.uniform(
      key_position, (3,), minval=-1.0)
  target = jitter_target * jax.random.normal(key_target, (3,))
  up = jnp.array([0.0, 1.0, 0.0]) + jitter_up * jax.random.normal(key_up, (3,))
  return Camera(look_at(position, target, up), pinhole(uniform(keys[6], focal)))
