"""Encodings of points and of the Gaussians that stand for pieces of a cone.

Vocabulary. A sample of a field is a `Gaussian` with diagonal covariance; a
point is one whose variance is zero. `edges` [..., N + 1] are distances along
a ray that bound its N intervals. A tri-plane is an array [3, R, R, C]: three
square images of features, whose rows and columns span [-1, 1]; a voxel grid is
an array [R, R, R, C] whose axes are z, y and x.
"""

import functools
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
  looked_up = [
      _look_up(plane, flat[:, (column, row)], outside)
      for plane, (column, row) in zip(
          jnp.unstack(planes), AXES[axes], strict=True)]
  features = (math.prod if reduce == 'product' else sum)(looked_up)
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
  features = _look_up(grid, points.reshape(-1, 3), outside)
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


def _look_up(grid, points, outside):
  """Features [N, C] of points [N, D] in a grid [R, ..., R, C], D-linear.

  A point's first coordinate is along the grid's last axis before C.
  """
  resolution, dimension = grid.shape[0], points.shape[-1]
  place = (points[:, ::-1] + 1) * (resolution / 2) - 0.5
  if outside == 'clamp':
    place = jnp.clip(place, 0, resolution - 1)
  low = jnp.floor(place)
  # Beyond the outermost centres the cell is theirs, and one corner or both
  # have no share in it.
  start = jnp.clip(low, 0, resolution - 2)
  part, beside = place - low, low - start
  shares = (
      jnp.where(beside == 0, 1 - part, jnp.where(beside == -1, part, 0.0)),
      jnp.where(beside == 0, part, jnp.where(beside == 1, 1 - part, 0.0)))
  weights = [math.prod(shares[side][:, axis] for axis, side in enumerate(sides))
             for sides in _sides(dimension)]
  return _blend(grid, start.astype(jnp.int32), weights)


def _sides(dimension):
  """The corners of a cell: 0 or 1 for each axis."""
  return itertools.product((0, 1), repeat=dimension)


# Looking up is linear in each of three: the grid, the weights of a cell's
# corners, and what features are held against. Below are its derivatives in the
# last, first and second, each of which has the other two for its own gradient.


@jax.custom_vjp
def _blend(grid, start, weights):
  """Features [N, C]: sums over corners k of weights[k] [N] times a grid's row.

  Gathers that are summed as they come: stacking the corners, or
  map_coordinates, is several times slower on a CPU.

  Args:
    grid: [R, ..., R, C].
    start: [N, D] the first corner of each point's cell.
    weights: [N] for each corner.
  """
  return sum(row * weight[:, None] for row, weight in zip(
      _rows(grid, start), weights, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _spread(start, weights, pull, resolution):
  """The grid [R, ..., R, C] to which each corner adds weights[k] pull [N, C].

  On a CPU cell by cell, in place, for XLA's scatter takes as long for each
  corner as this for a cell; elsewhere one point after another would be slow.
  """
  dimension, channels = start.shape[-1], pull.shape[-1]
  shape = (resolution,) * dimension + (channels,)
  if jax.default_backend() == 'cpu':
    return _spread_in_turn(start, jnp.stack(weights, axis=-1), pull, shape)
  table = jnp.zeros((resolution ** dimension, channels), pull.dtype)
  for row, weight in zip(_numbers(start, resolution), weights, strict=True):
    table = table.at[row].add(pull * weight[:, None], mode='promise_in_bounds')
  return table.reshape(shape)


def _spread_in_turn(start, weights, pull, shape):

  @jax.custom_batching.sequential_vmap
  def spread(start, weights, pull):
    dimension = start.shape[-1]
    size = (2,) * dimension

    def add(i, grid):
      at = (*start[i], 0)
      cell = jax.lax.dynamic_slice(grid, at, (*size, shape[-1]))
      cell += weights[i].reshape(*size, 1) * pull[i]
      return jax.lax.dynamic_update_slice(grid, cell, at)

    return jax.lax.fori_loop(0, len(pull), add, jnp.zeros(shape, pull.dtype))

  return spread(start, weights, pull)


@jax.custom_vjp
def _against(grid, start, pull):
  """For each corner [N]: its row of the grid times pull [N, C]."""
  return [jnp.sum(row * pull, axis=-1) for row in _rows(grid, start)]


def _rows(grid, start):
  """Yields the features [N, C] of each corner."""
  table = grid.reshape(-1, grid.shape[-1])
  for row in _numbers(start, grid.shape[0]):
    yield table.at[row].get(mode='promise_in_bounds')


def _numbers(start, resolution):
  """Yields the row [N] of each corner in a grid seen as a table."""
  dimension = start.shape[-1]
  strides = [resolution ** (dimension - 1 - axis) for axis in range(dimension)]
  first = sum(start[:, axis] * stride for axis, stride in enumerate(strides))
  for sides in _sides(dimension):
    yield first + sum(
        side * stride for side, stride in zip(sides, strides, strict=True))


_blend.defvjp(
    lambda grid, start, weights: (
        _blend(grid, start, weights), (grid, start, weights)),
    lambda kept, pull: (
        _spread(kept[1], kept[2], pull, kept[0].shape[0]).astype(
            kept[0].dtype), None, _against(kept[0], kept[1], pull)))
_spread.defvjp(
    lambda start, weights, pull, resolution: (
        _spread(start, weights, pull, resolution), (start, weights, pull)),
    lambda resolution, kept, grid: (
        None, _against(grid, kept[0], kept[2]),
        _blend(grid, kept[0], kept[1])))
_against.defvjp(
    lambda grid, start, pull: (
        _against(grid, start, pull), (grid, start, pull)),
    lambda kept, weights: (
        _spread(kept[1], weights, kept[2], kept[0].shape[0]), None,
        _blend(kept[0], kept[1], weights)))


def _octaves(x, degree, base):
  """x times base^l for l < degree: [..., D] -> [..., D degree]."""
  scales = base ** jnp.arange(degree, dtype=jnp.float32)
  return (x[..., None, :] * scales[:, None]).reshape(*x.shape[:-1], -1)
