"""A depth map as a triangle mesh: points, normals, faces, rendering.

Vocabulary. A depth map [..., H, W] holds depths along the axis of a camera at
the origin that faces +z, with x to the right and y down (OpenCV). The mesh has
one vertex for each pixel and two triangles between any four. The vertices at
the borders are on the edges of the image, as in LiftedGAN (2011.13126), so
that pixel i of W, whose center is at (i + 1/2) / W, shows the place (i + 1/2)
(W - 1) / W in the grid of vertices. `focal` is in image heights.

Normals point away from the camera, and so do the directions of its lights: a
light (0, 0, 1) shines from the camera.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import raster

_EPSILON = 1e-7  # of the official code; a tenth of a normal's length at 256


class View(NamedTuple):
  """What is seen at each pixel; C channels."""
  image: Any  # [..., S, S, C], 0 where empty
  depth: Any  # [..., S, S], along the axis; 0 where empty
  hit: Any    # [..., S, S] bool


def focal_of(fov: float) -> float:
  """The focal length of a field of view in degrees."""
  return float(0.5 / np.tan(np.deg2rad(fov) / 2))


def points(depth: jax.Array, focal: float) -> jax.Array:
  """Points [..., H, W, 3] of a depth map [..., H, W]."""
  height, width = depth.shape[-2:]
  y, x = np.meshgrid(np.linspace(-0.5, 0.5, height) / focal,
                     np.linspace(-0.5, 0.5, width) / focal, indexing='ij')
  rays = np.stack([x, y, np.ones_like(x)], axis=-1).astype(np.float32)
  return depth[..., None] * rays


def normals(points: jax.Array) -> jax.Array:
  """Normals [..., H, W, 3] of a grid of points, of unit length.

  The sum of the cross products of neighbors around a point, which is that of
  the differences across it; at the borders those of the nearest inner point.
  """
  across = points[..., 1:-1, 2:, :] - points[..., 1:-1, :-2, :]
  down = points[..., 2:, 1:-1, :] - points[..., :-2, 1:-1, :]
  normal = jnp.cross(across, down)
  pad = [(0, 0)] * (normal.ndim - 3) + [(1, 1), (1, 1), (0, 0)]
  normal = jnp.pad(normal, pad, 'edge')
  squared = jnp.sum(normal * normal, axis=-1, keepdims=True)
  return normal / (jnp.sqrt(jnp.maximum(squared, 1e-30)) + _EPSILON)


def faces(height: int, width: int) -> np.ndarray:
  """Faces int32 [2 (H - 1) (W - 1), 3], divided along the anti-diagonals.

  First all upper left triangles, then all lower right ones.
  """
  i = np.arange(height * width, dtype=np.int32).reshape(height, width)
  upper = np.stack([i[:-1, :-1], i[1:, :-1], i[:-1, 1:]], axis=-1)
  lower = np.stack([i[:-1, 1:], i[1:, :-1], i[1:, 1:]], axis=-1)
  return np.concatenate([upper.reshape(-1, 3), lower.reshape(-1, 3)])


def rotation(angles: jax.Array) -> jax.Array:
  """Rotations Rz Ry Rx [..., 3, 3] by angles [..., 3] in radians."""
  (a, b, c), (x, y, z) = (
      jnp.moveaxis(f(angles), -1, 0) for f in (jnp.cos, jnp.sin))
  rows = [
      [c * b, c * y * x - z * a, c * y * a + z * x],
      [z * b, z * y * x + c * a, z * y * a - c * x],
      [-y, b * x, b * a]]
  return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def transform(points: jax.Array, rotation: jax.Array, translation: jax.Array,
              center: float) -> jax.Array:
  """Grids [N, H, W, 3], rotated about (0, 0, center), then translated.

  Args:
    points: [N, H, W, 3].
    rotation: [N, 3, 3].
    translation: [N, 3].
    center: depth of the center.
  """
  pivot = jnp.array([0.0, 0.0, center])
  # Sums of products, not a matmul, which a TPU would round to bfloat16.
  turned = jnp.sum(rotation[:, None, None]
                   * (points - pivot)[..., None, :], axis=-1)
  return turned + pivot + translation[:, None, None]


def render(vertices: jax.Array, attributes: jax.Array, intrinsics: jax.Array,
           size: int, far: float, perspective: bool = False) -> View:
  """Renders grids of vertices, with gradients to vertices and attributes.

  Args:
    vertices: [N, H, W, 3] in the camera's frame.
    attributes: [N, H, W, C] of the vertices.
    intrinsics: [3, 3] or [N, 3, 3], normalized (see ops/cameras.py).
    size: S, pixels a side.
    far: depth beyond which nothing is visible; nothing is from 0 to there in
      front of anything nearer.
    perspective: whether attributes and depth are linear on the triangles;
      otherwise they are linear in the image, as in the PyTorch3D that
      LiftedGAN uses.

  Returns:
    View with leading axis N.
  """
  count, height, width = vertices.shape[:3]
  corner = faces(height, width)
  z = vertices[..., 2]
  x, y = vertices[..., 0] / z, vertices[..., 1] / z
  k = intrinsics[..., None, None, :, :]
  clip = jnp.stack([
      2 * (k[..., 0, 0] * x + k[..., 0, 1] * y + k[..., 0, 2]) - 1,
      1 - 2 * (k[..., 1, 1] * y + k[..., 1, 2]),
      2 * z / far - 1, jnp.ones_like(z)], axis=-1)
  if perspective:
    clip = clip * z[..., None]
  fragments = raster.rasterize(
      clip.reshape(count, height * width, 4), corner, size,
      perspective=perspective)
  # Which depth is seen gives no gradient: only the image is compared.
  values = jnp.concatenate(
      [attributes, jax.lax.stop_gradient(z)[..., None]], axis=-1)
  seen = raster.interpolate(
      values.reshape(count, height * width, -1), fragments, corner)
  return View(seen[..., :-1], jax.lax.stop_gradient(seen[..., -1]),
              fragments.faces >= 0)


def laplacian(x: jax.Array) -> jax.Array:
  """x minus the mean of its four neighbors, [..., H, W]; edges mirrored."""
  pad = [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)]
  y = jnp.pad(x, pad, 'reflect')
  neighbors = (y[..., :-2, 1:-1] + y[..., 2:, 1:-1]
               + y[..., 1:-1, :-2] + y[..., 1:-1, 2:])
  return x - neighbors / 4


@jax.custom_vjp
def clip_contours(depth: jax.Array) -> jax.Array:
  """The same depth [..., H, W], without gradients along contours.

  A rendered pixel at a silhouette has no gradient that would move the
  silhouette, only a misleading one to the vertices beside it. A vertex keeps
  its gradient only if its four neighbors are all visible, as it is, or none
  is (official code of 2011.13126).
  """
  return depth


def _clip_contours_backward(_, gradient):
  visible = (jnp.abs(gradient) > 0).astype(gradient.dtype)
  return (jnp.where(jnp.abs(laplacian(visible)) < 1e-5, gradient, 0.0),)


clip_contours.defvjp(lambda depth: (depth, None), _clip_contours_backward)
