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
import numpy as np

from gen3d.choices import UserError, check

# (column axis, row axis) of each plane: x = 0, y = 1, z = 2. EG3D's released
# networks were trained with two planes of the same axes (its issue 67).
AXES = {'xy_xz_yz': ((0, 1), (0, 2), (1, 2)),
        'xy_xz_zy': ((0, 1), (0, 2), (2, 1)),
        'eg3d_legacy': ((0, 1), (0, 2), (2, 0))}


# On a CPU: numbers of a grid that are changed together (see _spread_in_turn),
# and points that are looked up together.
MOST_AT_ONCE = 96
AT_ONCE = 4096


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
    planes: [3, R, R, C], or those of N objects as a generator paints them,
      [N, R, R, 3, C]; a texel's value sits at its center, as in images.
    points: [..., 3] in [-1, 1]; [N, ..., 3] where there are N objects.
    reduce: how the planes' features meet: 'sum', 'mean' or 'product'.
    outside: beyond the outermost centers, 'clamp' goes on with their value,
      'zero' fades to zero within one texel.
    axes: which axes a plane's columns and rows are; a key of AXES.

  Raises:
    UserError: if one of the three choices is not known, or R is 1.
  """
  check('reduce', ('sum', 'mean', 'product'), reduce)
  check('outside', ('clamp', 'zero'), outside)
  check('axes', AXES, axes)
  painted = planes.ndim == 5
  grids = planes if painted else planes[:, :, :, None]
  count = len(planes) if painted else 1
  flat = points.reshape(count, -1, 3)
  # A grid is told by its number and by the last index before the channels.
  lookings = [
      (flat[..., (column, row)], np.arange(count) if painted else [i],
       i if painted else 0)
      for i, (column, row) in enumerate(AXES[axes])]
  if reduce == 'product':
    features = math.prod(
        _look_up(grids, [one], outside, painted) for one in lookings)
  else:
    features = _look_up(grids, lookings, outside, painted)
  if reduce == 'mean':
    features = features / 3
  return features.reshape(*points.shape[:-1], planes.shape[-1])


def voxels(grid, points, *, outside='clamp'):
  """Features [..., C] of points, trilinear in a grid.

  Args:
    grid: [R, R, R, C], indexed by z, y, x; a voxel's value sits at its
      center, as in `triplanes`.
    points: [..., 3] in [-1, 1].
    outside: as in `triplanes`.

  Raises:
    UserError: if `outside` is not known, or R is 1.
  """
  check('outside', ('clamp', 'zero'), outside)
  features = _look_up(
      grid[None, ..., None, :], [(points.reshape(1, -1, 3), [0], 0)], outside)
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


def _look_up(grids, lookings, outside, computed=False):
  """Features in grids [G, R, ..., R, H, C], D-linear, of all lookings summed.

  Args:
    grids: all of one shape.
    lookings: triples (points [A, N, D], number [A] of the grid, which of H). A
      point's first coordinate is along a grid's last axis before H.
    outside: as in `triplanes`.
    computed: whether the grids are computed where they are looked up.

  Returns:
    [A N, C].

  Raises:
    UserError: if R is 1.
  """
  resolution = grids.shape[1]
  if resolution < 2:
    raise UserError('A grid of one texel has nothing to go between; give it '
                    'a resolution of 2 or more.')
  starts, weights = [], []
  for points, grid, part in lookings:
    start, shares = _cells(points, resolution, outside)
    like = (*start.shape[:-1], 1)
    grid = np.broadcast_to(np.asarray(grid)[:, None, None], like)
    starts.append(jnp.concatenate(
        [grid, start, np.full(like, part)], axis=-1))
    weights.append(shares)
  by_point = lambda x: jnp.stack(x, axis=2).reshape(
      -1, len(lookings), x[0].shape[-1])
  return _blend(grids, by_point(starts), by_point(weights), computed)


def _cells(points, resolution, outside):
  """The first corners [..., D] of points' cells, weights [..., 2^D] of all."""
  place = (points[..., ::-1] + 1) * (resolution / 2) - 0.5
  if outside == 'clamp':
    place = jnp.clip(place, 0, resolution - 1)
  low = jnp.floor(place)
  # Beyond the outermost centers the cell is theirs, and one corner or both
  # have no share in it.
  start = jnp.clip(low, 0, resolution - 2)
  part, beside = place - low, low - start
  none = 0 * part  # But what is not a number stays none.
  shares = (
      jnp.where(beside == 0, 1 - part, jnp.where(beside == -1, part, none)),
      jnp.where(beside == 0, part, jnp.where(beside == 1, 1 - part, none)))
  weights = [
      math.prod(shares[side][..., axis] for axis, side in enumerate(sides))
      for sides in _sides(points.shape[-1])]
  return start.astype(jnp.int32), jnp.stack(weights, axis=-1)


def _sides(dimension):
  """The corners of a cell: 0 or 1 for each axis."""
  return itertools.product((0, 1), repeat=dimension)


# Looking up is linear in each of three: the grids, the weights of the cells'
# corners, and what features are held against. Below are its derivatives in the
# last, first and second, each of which has the other two for its own gradient.
# Every point has L cells, [N, L, ...], and gets the sum of what is found there.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _blend(grids, starts, weights, computed=False):
  """Features [N, C]: sums over cells and their corners of weights times rows.

  Gathers that are summed as they come: stacking the corners, or
  map_coordinates, is several times slower on a CPU.

  Args:
    grids: [G, R, ..., R, H, C].
    starts: [N, L, 2 + D], the first corner of each cell.
    weights: [N, L, 2^D].
    computed: whether the grids are computed in this program. On a CPU, XLA
      would do their last operations once for each number that is gathered,
      but for a loop between: points are taken some at a time.
  """
  def blend(starts, weights):
    return sum(
        row * weights[:, cell, corner, None]
        for cell, corner, row in _rows(grids, starts))

  if not computed or jax.default_backend() != 'cpu':
    return blend(starts, weights)
  one = lambda cells: blend(*(x[None] for x in cells))[0]
  return jax.lax.map(one, (starts, weights), batch_size=AT_ONCE)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _spread(starts, weights, pull, shape):
  """Grids to which each corner of a cell adds its weight times pull [N, C].

  On a CPU cell by cell, in place, for XLA's scatter takes as long for each
  corner as this for a cell; elsewhere one point after another would be slow.
  """
  if jax.default_backend() == 'cpu':
    return _spread_in_turn(starts, weights, pull, shape)
  table = jnp.zeros((math.prod(shape[:-1]), shape[-1]), pull.dtype)
  for cell, corner, number in _numbers(shape, starts):
    table = table.at[number].add(
        pull * weights[:, cell, corner, None], mode='promise_in_bounds')
  return table.reshape(shape)


def _spread_in_turn(starts, weights, pull, shape):
  dimension, channels = len(shape) - 3, shape[-1]
  # A piece of a cell at a time: the corners along the last `whole` axes. XLA
  # makes one function of a loop whose round touches less than 1,024 bytes, old
  # and new values and what is between; one that touches more is interpreted,
  # and a round takes two to four times as long.
  whole = dimension
  while whole and 2 ** whole * channels > MOST_AT_ONCE:
    whole -= 1
  pieces, size = 2 ** (dimension - whole), 2 ** whole
  corners = jnp.asarray([(0, *sides, 0) for sides in _sides(dimension)])[::size]
  block = (1,) * (1 + dimension - whole) + (2,) * whole + (1, channels)

  @jax.custom_batching.sequential_vmap
  def spread(starts, weights, pull):

    def add(i, grids, start, weights):
      point, piece = i // pieces, i % pieces
      at = (*(start[point] + corners[piece]), 0)
      share = jax.lax.dynamic_slice(weights, (point, piece * size), (1, size))
      values = jax.lax.dynamic_slice(grids, at, block)
      values += share.reshape(*block[:-1], 1) * pull[point]
      return jax.lax.dynamic_update_slice(grids, values, at)

    grids = jnp.zeros(shape, pull.dtype)
    # Not in one loop, which would go to and fro between the planes.
    for cell in range(starts.shape[1]):
      grids = jax.lax.fori_loop(
          0, len(pull) * pieces, functools.partial(
              add, start=starts[:, cell], weights=weights[:, cell]), grids)
    return grids

  return spread(starts, weights, pull)


@jax.custom_vjp
def _against(grids, starts, pull):
  """For each corner [N, L, 2^D]: its row of the grids times pull [N, C]."""
  found = [jnp.sum(row * pull, axis=-1) for _, _, row in _rows(grids, starts)]
  return jnp.stack(found, axis=-1).reshape(*starts.shape[:2], -1)


def _rows(grids, starts):
  """Yields (cell, corner, features [N, C]) for each corner of each cell."""
  table = grids.reshape(-1, grids.shape[-1])
  for cell, corner, number in _numbers(grids.shape, starts):
    yield cell, corner, table.at[number].get(mode='promise_in_bounds')


def _numbers(shape, starts):
  """Yields (cell, corner, row [N]) in grids of a shape, seen as a table."""
  strides = [math.prod(shape[axis + 1:-1]) for axis in range(len(shape) - 1)]
  for cell in range(starts.shape[1]):
    first = sum(starts[:, cell, axis] * stride
                for axis, stride in enumerate(strides))
    for corner, sides in enumerate(_sides(len(shape) - 3)):
      yield cell, corner, first + sum(
          side * stride
          for side, stride in zip(sides, strides[1:-1], strict=True))


_blend.defvjp(
    lambda grids, starts, weights, computed: (
        _blend(grids, starts, weights, computed), (grids, starts, weights)),
    lambda computed, kept, pull: (
        _spread(*kept[1:], pull, kept[0].shape).astype(kept[0].dtype), None,
        _against(*kept[:2], pull)))
_spread.defvjp(
    lambda starts, weights, pull, shape: (
        _spread(starts, weights, pull, shape), (starts, weights, pull)),
    lambda shape, kept, grids: (
        None, _against(grids, kept[0], kept[2]), _blend(grids, *kept[:2])))
_against.defvjp(
    lambda grids, starts, pull: (
        _against(grids, starts, pull), (grids, starts, pull)),
    lambda kept, weights: (
        _spread(kept[1], weights, kept[2], kept[0].shape).astype(
            kept[0].dtype), None, _blend(kept[0], kept[1], weights)))


def _octaves(x, degree, base):
  """x times base^l for l < degree: [..., D] -> [..., D degree]."""
  scales = base ** jnp.arange(degree, dtype=jnp.float32)
  return (x[..., None, :] * scales[:, None]).reshape(*x.shape[:-1], -1)
