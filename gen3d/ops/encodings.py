"""Encodings of points and of the Gaussians that stand for pieces of a cone.

Vocabulary. A sample of a field is a `Gaussian` with diagonal covariance; a
point is one whose variance is zero. `edges` [..., N + 1] are distances along
a ray that bound its N intervals. A tri-plane is an array [3, R, R, C]: three
square images of features, whose rows and columns span [-1, 1]; a voxel grid is
an array [R, R, R, C] whose axes are z, y and x.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.choices import check

# (column axis, row axis) of each plane: x = 0, y = 1, z = 2. EG3D's released
# networks were trained with two planes of the same axes (its issue 67).
AXES = {'xy_xz_yz': ((0, 1), (0, 2), (1, 2)),
        'xy_xz_zy': ((0, 1), (0, 2), (2, 1)),
        'eg3d_legacy': ((0, 1), (0, 2), (2, 0))}


class Gaussian(NamedTuple):
  """Samples of space with diagonal covariance."""
  mean: Any      # [..., 3]
  variance: Any  # [..., 3]


def positional(x, degree):
  """sin and cos of 2^l x for l < degree: [..., D] -> [..., 2 D degree]."""
  scaled = _octaves(x, degree, 2.0)
  return jnp.concatenate([jnp.sin(scaled), jnp.cos(scaled)], axis=-1)


def integrated(gaussian, degree):
  """The expected positional encoding of a Gaussian, [..., 6 degree].

  Mip-NeRF (2103.13415), eq. 13-14, axis-aligned: octaves that vary within
  the Gaussian fade out.
  """
  scaled = _octaves(gaussian.mean, degree, 2.0)
  fade = jnp.exp(-0.5 * _octaves(gaussian.variance, degree, 4.0))
  return jnp.concatenate(
      [jnp.sin(scaled) * fade, jnp.cos(scaled) * fade], axis=-1)


def conical_frustums(rays, edges):
  """The Gaussians [..., N, 3] of a cone's pieces (Mip-NeRF, eq. 7-8 and 16).

  Args:
    rays: Rays [..., 3] with unit directions; `radii` is the cone's radius at
      distance 1.
    edges: [..., N + 1], increasing.
  """
  middle = (edges[..., 1:] + edges[..., :-1]) / 2
  half = (edges[..., 1:] - edges[..., :-1]) / 2
  # The form around the middle, which does not cancel when pieces are thin.
  scale = jnp.maximum(3 * middle**2 + half**2, 1e-12)
  along = middle + 2 * middle * half**2 / scale
  variance_along = half**2 / 3 - (4 / 15) * (
      half**4 * (12 * middle**2 - half**2) / scale**2)
  variance_across = rays.radii**2 * (
      middle**2 / 4 + (5 / 12) * half**2 - (4 / 15) * half**4 / scale)
  direction = rays.directions[..., None, :]
  outer = direction**2
  return Gaussian(
      rays.origins[..., None, :] + along[..., None] * direction,
      variance_along[..., None] * outer
      + variance_across[..., None] * (1 - outer))


def midpoints(rays, edges):
  """The same places as points: Gaussians [..., N, 3] of no variance."""
  middle = (edges[..., 1:] + edges[..., :-1]) / 2
  mean = (rays.origins[..., None, :]
          + middle[..., None] * rays.directions[..., None, :])
  return Gaussian(mean, jnp.zeros_like(mean))


def triplanes(planes, points, *, reduce='sum', outside='clamp',
              axes='xy_xz_yz'):
  """Features [..., C] of points, bilinear in three planes.

  Args:
    planes: [3, R, R, C]; a texel's value sits at its centre, as in images.
    points: [..., 3] in [-1, 1].
    reduce: how the planes' features meet: 'sum', 'mean' or 'product'.
    outside: beyond the outermost centres, 'clamp' goes on with their value,
      'zero' fades to zero within one texel.
    axes: which axes a plane's columns and rows are; a key of AXES.

  Raises:
    ValueError: if one of the three choices is not known.
  """
  check('reduce', ('sum', 'mean', 'product'), reduce)
  check('outside', ('clamp', 'zero'), outside)
  check('axes', AXES, axes)
  flat = points.reshape(-1, 3)
  _, height, width, channels = planes.shape
  table = planes.reshape(-1, channels)
  looked_up = []
  for i, (column, row) in enumerate(AXES[axes]):
    rows, weights = _corners(
        width, jnp.stack([flat[:, column], flat[:, row]], axis=-1), outside)
    looked_up.append(([i * height * width + x for x in rows], weights))
  if reduce == 'product':
    features = math.prod(_blend(table, *each) for each in looked_up)
  else:
    # At once, so that there is one gradient of the planes, not twelve.
    rows, weights = (sum(each, []) for each in zip(*looked_up, strict=True))
    features = _blend(table, rows, weights)
  if reduce == 'mean':
    features = features / 3
  return features.reshape(*points.shape[:-1], planes.shape[-1])


def voxels(grid, points, *, outside='clamp'):
  """Features [..., C] of points, trilinear in a grid.

  Args:
    grid: [R, R, R, C], indexed by z, y, x; a voxel's value sits at its
      centre, as in `triplanes`.
    points: [..., 3] in [-1, 1].
    outside: as in `triplanes`.

  Raises:
    ValueError: if `outside` is not known.
  """
  check('outside', ('clamp', 'zero'), outside)
  flat = points.reshape(-1, 3)
  table = grid.reshape(-1, grid.shape[-1])
  features = _blend(table, *_corners(grid.shape[0], flat, outside))
  return features.reshape(*points.shape[:-1], grid.shape[-1])


def contract(gaussian):
  """Gaussians of all space squeezed into the ball of radius 2.

  Mip-NeRF 360 (2111.12077), eq. 10: x stays within the unit ball, else it is
  (2 - 1 / |x|) x / |x|. The variance goes through the linearised map, of
  which the diagonal is kept.
  """
  x = gaussian.mean
  squared = jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1.0)
  norm = jnp.sqrt(squared)
  scale = (2 - 1 / norm) / norm
  # The Jacobian is scale I + slope x x^T: slope is zero within the ball.
  slope = jnp.where(squared > 1, (2 / norm - 2) / squared**1.5, 0.0)
  along = jnp.sum(x**2 * gaussian.variance, axis=-1, keepdims=True)
  variance = (scale**2 * gaussian.variance
              + 2 * scale * slope * x**2 * gaussian.variance
              + slope**2 * x**2 * along)
  return Gaussian(scale * x, variance)


def _corners(resolution, points, outside):
  """Of the 2^D corners around points [N, D]: rows of [R^D, C], weights [N].

  The first coordinate is the one along which neighbours lie side by side.
  """
  place = (points + 1) * (resolution / 2) - 0.5
  if outside == 'clamp':
    place = jnp.clip(place, 0, resolution - 1)
  low = jnp.floor(place)
  fraction = place - low
  low = low.astype(jnp.int32)
  rows, weights = [], []
  for corner in itertools.product((0, 1), repeat=points.shape[-1]):
    weight, row = 1.0, 0
    for axis in reversed(range(points.shape[-1])):
      at, part = low[:, axis] + corner[axis], fraction[:, axis]
      share = part if corner[axis] else 1 - part
      if outside == 'zero':
        share = jnp.where((at >= 0) & (at < resolution), share, 0.0)
      weight = weight * share
      row = row * resolution + jnp.clip(at, 0, resolution - 1)
    rows.append(row)
    weights.append(weight)
  return rows, weights


@jax.custom_vjp
def _blend(table, rows, weights):
  """Features [N, C]: sum over k of weights[k] [N] table[rows[k] [N]].

  Gathers that are summed as they come: stacking the corners, or
  map_coordinates, is several times slower on a CPU, backward above all. The
  gradient adds all of them to one table; left to itself, JAX makes a table
  for each and adds those, which costs their memory.
  """
  return sum(_take(table, row) * weight[:, None]
             for row, weight in zip(rows, weights, strict=True))


def _blend_forward(table, rows, weights):
  return _blend(table, rows, weights), (table, rows, weights)


def _blend_backward(kept, pull):
  table, rows, weights = kept
  gradient = jnp.zeros_like(table)
  for row, weight in zip(rows, weights, strict=True):
    gradient = gradient.at[row].add(
        (pull * weight[:, None]).astype(table.dtype),
        mode='promise_in_bounds')
  return gradient, None, [
      jnp.sum(_take(table, row) * pull, axis=-1).astype(weight.dtype)
      for row, weight in zip(rows, weights, strict=True)]


_blend.defvjp(_blend_forward, _blend_backward)


def _take(table, row):
  return table.at[row].get(mode='promise_in_bounds')


def _octaves(x, degree, base):
  """x times base^l for l < degree: [..., D] -> [..., D degree]."""
  scales = base ** jnp.arange(degree, dtype=jnp.float32)
  return (x[..., None, :] * scales[:, None]).reshape(*x.shape[:-1], -1)
