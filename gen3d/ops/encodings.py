"""Encodings of points and of Gaussians, and features of grids.

Vocabulary. A sample of a field is a `Gaussian` with diagonal covariance; a
point is one whose variance is zero. `edges` [..., N + 1] are distances along
a ray that bound its N intervals. A tri-plane is an array [3, R, R, C]: three
square images of features, whose rows and columns span [-1, 1]; a voxel grid is
an array [R, R, R, C] whose axes are z, y and x.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError, check
from gen3d.ops import cameras

# (column axis, row axis) of each plane: x = 0, y = 1, z = 2. EG3D's released
# networks were trained with two planes of the same axes (its issue 67).
AXES = {'xy_xz_yz': ((0, 1), (0, 2), (1, 2)),
        'xy_xz_zy': ((0, 1), (0, 2), (2, 1)),
        'eg3d_legacy': ((0, 1), (0, 2), (2, 0))}

# Block sizes of the loops on a CPU: points per lookup (see _interpolate) and
# floats per update (see _scatter_add_in_place).
CPU_POINTS = 4096
CPU_FLOATS = 96


class Gaussian(NamedTuple):
  """Samples of space with diagonal covariance."""
  mean: Any      # [..., 3]
  variance: Any  # [..., 3]


class RayGaussian(NamedTuple):
  """Samples whose covariance is symmetric about the direction of a ray."""
  mean: Any    # [..., 3]
  along: Any   # [...], variance in the direction of the ray
  across: Any  # [...], variance in each direction perpendicular to it


class _Query(NamedTuple):
  """Points to be interpolated in grids [G, R, ..., R, H, C].

  The first and the last index of a grid select one of several grids of one
  shape: objects or planes.
  """
  points: Any  # [A, N, D] in [-1, 1]
  first: Any   # [A], the first index of each group of N points
  last: Any    # the index along H, or those of the points, [A, N]
  weight: Any = None  # [A, N], of the points; None for 1


def positional(x: jax.Array, degree: int) -> jax.Array:
  """sin and cos of 2^l x for l < degree: [..., D] -> [..., 2 D degree]."""
  scaled = _octaves(x, degree, 2.0)
  return jnp.concatenate([jnp.sin(scaled), jnp.cos(scaled)], axis=-1)


def integrated(gaussian: Gaussian, degree: int) -> jax.Array:
  """The expected positional encoding of a Gaussian, [..., 6 degree].

  Mip-NeRF (2103.13415), eq. 13-14, axis-aligned: octaves that vary within
  the Gaussian fade out.
  """
  scaled = _octaves(gaussian.mean, degree, 2.0)
  fade = jnp.exp(-0.5 * _octaves(gaussian.variance, degree, 4.0))
  return jnp.concatenate(
      [jnp.sin(scaled) * fade, jnp.cos(scaled) * fade], axis=-1)


def fourier_basis(
    key: jax.Array, count: int = 128, octaves: float = 8.0) -> jax.Array:
  """Dream Fields' frequencies, float32 [3, 3 + count] (2112.01455, 4.1).

  The three axes, then normal directions times 2^(octaves u), u uniform in
  [0, 1), truncated to integers. As in the paper's code one key gives both
  numbers, and the rows of the directions have length one, not the columns: the
  frequencies reach about 2^octaves / 6, and nearly half of them are zero.

  Args:
    key: PRNG key.
    count: of random frequencies.
    octaves: of their range.
  """
  directions = jax.random.normal(key, (3, count))
  directions = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
  length = 2.0 ** (octaves * jax.random.uniform(key, (count,)))
  return jnp.concatenate(
      [jnp.eye(3), jnp.trunc(directions * length)], axis=-1)


def fourier(samples: RayGaussian, directions: jax.Array,
            basis: jax.Array) -> jax.Array:
  """The expected cos, then sin of frequencies: [..., 2 F].

  exp(-f^T Cov f / 2) cos(f . x) and the same of sin: Mip-NeRF's eq. 13-14 for
  any frequencies.

  Args:
    samples: RayGaussian [...].
    directions: [..., 3], unit, of the rays.
    basis: [3, F].
  """
  project = lambda x: jnp.matmul(x, basis, precision='highest')
  phase, along = project(samples.mean), project(directions) ** 2
  across = jnp.maximum(jnp.sum(basis**2, axis=0) - along, 0.0)
  fade = jnp.exp(-0.5 * (samples.along[..., None] * along
                         + samples.across[..., None] * across))
  return jnp.concatenate(
      [fade * jnp.cos(phase), fade * jnp.sin(phase)], axis=-1)


def middle_gaussians(rays: cameras.Rays, edges: jax.Array) -> RayGaussian:
  """RayGaussians [..., N] at the middles of intervals (Dream Fields' code).

  The variance across is (r t)^2 / 12, where r is already the pixel's width
  over sqrt(12), half of the radius in Rays.

  Args:
    rays: Rays [..., 3].
    edges: [..., N + 1], increasing.
  """
  middle = (edges[..., 1:] + edges[..., :-1]) / 2
  half = (edges[..., 1:] - edges[..., :-1]) / 2
  mean = (rays.origins[..., None, :]
          + middle[..., None] * rays.directions[..., None, :])
  return RayGaussian(mean, half**2 / 3, (rays.radii * middle) ** 2 / 48)


def conical_frustums(rays: cameras.Rays, edges: jax.Array) -> Gaussian:
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


def points_at(rays: cameras.Rays, distances: jax.Array) -> Gaussian:
  """Points [..., S, 3], without variance, at distances [..., S] on rays."""
  mean = (rays.origins[..., None, :]
          + distances[..., None] * rays.directions[..., None, :])
  return Gaussian(mean, jnp.zeros_like(mean))


def triplanes(planes: jax.Array, points: jax.Array, *, reduce: str = 'sum',
              outside: str = 'clamp', axes: str = 'xy_xz_yz',
              depth: int = 1) -> jax.Array:
  """Features [..., C] of points, bilinear in three planes (EG3D, section 3).

  With a depth, the planes are grids of a few slices, in which points are
  trilinear (the tri-grids of PanoHead, 2303.13071, section 3.2): features then
  differ along the axis that a plane does not have.

  Args:
    planes: [3, R, R, C], or those of N objects as a generator outputs them,
      [N, R, R, 3 depth, C], the slices of a plane in a row; a texel's value
      sits at its center, as in images.
    points: [..., 3] in [-1, 1]; [N, ..., 3] where there are N objects.
    reduce: how the planes' features are combined: 'sum' or 'mean'.
    outside: beyond the outermost centers, 'clamp' extends their value,
      'zero' fades to zero within one texel.
    axes: which axes a plane's columns and rows are; a key of AXES.
    depth: slices of each plane; only of planes that a generator outputs.

  Raises:
    UserError: one of the three choices is not known, or R is 1.
  """
  check('reduce', ('sum', 'mean'), reduce)
  check('outside', ('clamp', 'zero'), outside)
  check('axes', AXES, axes)
  generated = planes.ndim == 5
  # Planes are the first index of a single tri-plane [3, R, R, 1, C], the last
  # one of those that a generator outputs.
  grids = planes if generated else planes[:, :, :, None]
  count = len(planes) if generated else 1
  flat = points.reshape(count, -1, 3)
  queries = []
  for plane, (column, row) in enumerate(AXES[axes]):
    query = _Query(flat[..., (column, row)],
                   np.arange(count) if generated else [plane],
                   plane if generated else 0)
    if depth == 1:
      queries.append(query)
      continue
    # The two slices around a point, along the axis that is left.
    start, weights = _cells(flat[..., (3 - column - row,)], depth, outside)
    queries += [query._replace(last=plane * depth + start[..., 0] + side,
                               weight=weights[..., side]) for side in (0, 1)]
  features = _interpolate_queries(grids, queries, outside, generated)
  if reduce == 'mean':
    features = features / 3
  return features.reshape(*points.shape[:-1], planes.shape[-1])


def voxels(grid: jax.Array, points: jax.Array) -> jax.Array:
  """Features [..., C] of points, trilinear in a grid.

  Args:
    grid: [R, R, R, C], indexed by z, y, x; a voxel's value sits at its
      center, as in `triplanes`.
    points: [..., 3] in [-1, 1]; beyond the outermost centers their value is
      extended.

  Raises:
    UserError: R is 1.
  """
  query = _Query(points.reshape(1, -1, 3), [0], 0)
  features = _interpolate_queries(grid[None, ..., None, :], [query], 'clamp')
  return features.reshape(*points.shape[:-1], grid.shape[-1])


def bilinear(grid: jax.Array, starts: jax.Array,
             fractions: jax.Array) -> jax.Array:
  """Features [N, C] in cells of a grid [H, W, C].

  Args:
    grid: its points are the corners of the cells.
    starts: int [N, 2], (row, column) of a cell's first corner, which is not on
      the last row or column.
    fractions: [N, 2], the place within the cell, in [0, 1].
  """
  weights = [
      math.prod(fractions[:, axis] if offset else 1 - fractions[:, axis]
                for axis, offset in enumerate(offsets))
      for offsets in _corner_offsets(2)]
  # One grid of one layer: the first and the last index are zero.
  cells = jnp.pad(starts, ((0, 0), (1, 1)))
  return _interpolate(grid[None, :, :, None], cells[:, None],
                      jnp.stack(weights, axis=-1)[:, None])


def contract(gaussian: Gaussian) -> Gaussian:
  """Gaussians of all space contracted into the ball of radius 2.

  Mip-NeRF 360 (2111.12077), eq. 10: x stays within the unit ball, else it is
  (2 - 1 / |x|) x / |x|. The variance goes through the linearized map, of
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


def _interpolate_queries(grids: jax.Array, queries: list[_Query],
                         outside: str, computed: bool = False) -> jax.Array:
  """Features [A N, C] in grids, D-linear, summed over the queries.

  Args:
    grids: [G, R, ..., R, H, C] with D axes R. A point's first coordinate is
      along the last of them.
    queries: each of the same number of points.
    outside: as in `triplanes`.
    computed: whether the grids are computed in the program that interpolates.

  Raises:
    UserError: R is 1.
  """
  resolution = grids.shape[1]
  if resolution < 2:
    raise UserError('A grid of one texel cannot be interpolated; give the '
                    'field a resolution of 2 or more.')
  starts, weights = [], []
  for query in queries:
    start, corner_weights = _cells(query.points, resolution, outside)
    column = (*start.shape[:-1], 1)
    first = np.broadcast_to(np.asarray(query.first)[:, None, None], column)
    last = (query.last[..., None] if np.ndim(query.last)
            else np.full(column, query.last))
    starts.append(jnp.concatenate([first, start, last], axis=-1))
    weights.append(corner_weights if query.weight is None
                   else corner_weights * query.weight[..., None])
  by_point = lambda x: jnp.stack(x, axis=2).reshape(
      -1, len(queries), x[0].shape[-1])
  return _interpolate(grids, by_point(starts), by_point(weights), computed)


def _cells(points, resolution, outside):
  """The first corners [..., D] of points' cells, weights [..., 2^D] of all."""
  position = (points[..., ::-1] + 1) * (resolution / 2) - 0.5
  if outside == 'clamp':
    position = jnp.clip(position, 0, resolution - 1)
  floor = jnp.floor(position)
  # Beyond the outermost centers the outermost cell is used, `beyond` cells
  # away, where one of its corners or both have no weight.
  start = jnp.clip(floor, 0, resolution - 2)
  fraction, beyond = position - floor, floor - start
  zero = 0 * fraction  # NaN where the point is NaN: that must not be hidden.
  low = jnp.where(beyond == 0, 1 - fraction,
                  jnp.where(beyond == -1, fraction, zero))
  high = jnp.where(beyond == 0, fraction,
                   jnp.where(beyond == 1, 1 - fraction, zero))
  weights = [
      math.prod((low, high)[offset][..., axis]
                for axis, offset in enumerate(offsets))
      for offsets in _corner_offsets(points.shape[-1])]
  return start.astype(jnp.int32), jnp.stack(weights, axis=-1)


def _corner_offsets(dimension: int) -> Iterator[tuple[int, ...]]:
  """The corners of a cell: 0 or 1 for each axis."""
  return itertools.product((0, 1), repeat=dimension)


# The interpolation <cotangent, sum of weights * rows of grids> is trilinear in
# the grids, the corners' weights and the cotangent. The three functions below
# are its partial derivatives by the cotangent, the grids and the weights. Each
# one's own VJP is made of the other two, so that gradients of any order work
# without a scatter that XLA would derive. Every point has L cells, [N, L, ...],
# and gets the sum of their features.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _interpolate(grids, starts, weights, computed=False):
  """Features [N, C]: sums over cells and their corners of weights times rows.

  Gathers that are summed one by one: stacking the corners, or
  map_coordinates, is several times slower on a CPU.

  Args:
    grids: [G, R, ..., R, H, C].
    starts: [N, L, 2 + D], the first corner of each cell.
    weights: [N, L, 2^D].
    computed: whether the grids are computed in this program. On a CPU, XLA
      would fuse their last operations into the gather and repeat them for
      each number that is gathered; a loop over blocks of points prevents it.
  """
  def interpolate(starts, weights):
    return functools.reduce(jnp.add, (
        row * weights[:, cell, corner, None]
        for cell, corner, row in _rows(grids, starts)))

  if not computed or jax.default_backend() != 'cpu':
    return interpolate(starts, weights)
  of_point = lambda cells: interpolate(*(x[None] for x in cells))[0]
  return jax.lax.map(of_point, (starts, weights), batch_size=CPU_POINTS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scatter_add(starts, weights, cotangent, shape):
  """Grids to which each corner adds its weight times cotangent [N, C].

  On a CPU cell by cell, in place, for XLA's scatter takes as long for each
  corner as this for a cell; elsewhere a sequential loop would be slow.
  """
  if jax.default_backend() == 'cpu':
    return _scatter_add_in_place(starts, weights, cotangent, shape)
  table = jnp.zeros((math.prod(shape[:-1]), shape[-1]), cotangent.dtype)
  for cell, corner, index in _row_indices(shape, starts):
    table = table.at[index].add(
        cotangent * weights[:, cell, corner, None], mode='promise_in_bounds')
  return table.reshape(shape)


def _scatter_add_in_place(starts, weights, cotangent, shape):
  """_scatter_add as a sequential loop of slices that are updated in place."""
  dimension, channels = len(shape) - 3, shape[-1]
  # One update adds to the corners along the last `whole` axes of a cell. XLA
  # compiles a loop into one function if its body touches less than 1,024
  # bytes, old and new values and intermediate ones; the body of a larger one
  # is interpreted, and an iteration takes two to four times as long.
  whole = dimension
  while whole and 2 ** whole * channels > CPU_FLOATS:
    whole -= 1
  pieces, size = 2 ** (dimension - whole), 2 ** whole
  corners = jnp.asarray([
      (0, *offsets, 0) for offsets in _corner_offsets(dimension)])[::size]
  block = (1,) * (1 + dimension - whole) + (2,) * whole + (1, channels)

  # A vmapped fori_loop would become a scatter again.
  @jax.custom_batching.sequential_vmap
  def scatter_add(starts, weights, cotangent):

    def add(i, grids, start, weights):
      point, piece = i // pieces, i % pieces
      at = (*(start[point] + corners[piece]), 0)
      weight = jax.lax.dynamic_slice(weights, (point, piece * size), (1, size))
      values = jax.lax.dynamic_slice(grids, at, block)
      values += weight.reshape(*block[:-1], 1) * cotangent[point]
      return jax.lax.dynamic_update_slice(grids, values, at)

    grids = jnp.zeros(shape, cotangent.dtype)
    # One loop for each plane: alternating planes miss the cache.
    for cell in range(starts.shape[1]):
      grids = jax.lax.fori_loop(
          0, len(cotangent) * pieces, functools.partial(
              add, start=starts[:, cell], weights=weights[:, cell]), grids)
    return grids

  return scatter_add(starts, weights, cotangent)


@jax.custom_vjp
def _dot_rows(grids, starts, cotangent):
  """For each corner [N, L, 2^D]: its row of the grids times cotangent [N, C].
  """
  products = [jnp.sum(row * cotangent, axis=-1)
              for _, _, row in _rows(grids, starts)]
  return jnp.stack(products, axis=-1).reshape(*starts.shape[:2], -1)


def _rows(grids, starts):
  """Yields (cell, corner, features [N, C]) for each corner of each cell."""
  table = grids.reshape(-1, grids.shape[-1])
  for cell, corner, index in _row_indices(grids.shape, starts):
    yield cell, corner, table.at[index].get(mode='promise_in_bounds')


def _row_indices(shape, starts):
  """Yields (cell, corner, index [N]) of rows of grids reshaped to [rows, C].
  """
  strides = [math.prod(shape[axis + 1:-1]) for axis in range(len(shape) - 1)]
  for cell in range(starts.shape[1]):
    first = sum(starts[:, cell, axis] * stride
                for axis, stride in enumerate(strides))
    for corner, offsets in enumerate(_corner_offsets(len(shape) - 3)):
      yield cell, corner, first + sum(
          offset * stride
          for offset, stride in zip(offsets, strides[1:-1], strict=True))


_interpolate.defvjp(
    lambda grids, starts, weights, computed: (
        _interpolate(grids, starts, weights, computed),
        (grids, starts, weights)),
    lambda computed, saved, cotangent: (
        _scatter_add(*saved[1:], cotangent, saved[0].shape).astype(
            saved[0].dtype), None,
        _dot_rows(*saved[:2], cotangent)))
_scatter_add.defvjp(
    lambda starts, weights, cotangent, shape: (
        _scatter_add(starts, weights, cotangent, shape),
        (starts, weights, cotangent)),
    lambda shape, saved, grids: (
        None, _dot_rows(grids, saved[0], saved[2]),
        _interpolate(grids, *saved[:2])))
_dot_rows.defvjp(
    lambda grids, starts, cotangent: (
        _dot_rows(grids, starts, cotangent), (grids, starts, cotangent)),
    lambda saved, weights: (
        _scatter_add(saved[1], weights, saved[2], saved[0].shape).astype(
            saved[0].dtype), None, _interpolate(saved[0], saved[1], weights)))


def _octaves(x, degree, base):
  """x times base^l for l < degree: [..., D] -> [..., D degree]."""
  scales = base ** jnp.arange(degree, dtype=jnp.float32)
  return (x[..., None, :] * scales[:, None]).reshape(*x.shape[:-1], -1)
