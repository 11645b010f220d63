"""Multi-resolution grids of features over the unit square (2201.05989).

Vocabulary. A level has `scale` + 1 grid points along a side, which need not be
a whole number; (u, v) lies at u scale + 1/2, v scale + 1/2 among the points of
`side`^2 cells, as in tiny-cuda-nn. The table of a dense level is an array
[side + 1, side + 1, F], rows along v, in which every point has features of its
own; that of a hashed level is an array [entries, F], in which the points share
rows by a spatial hash.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen3d.ops import encodings

_PRIME = 2654435761  # of the spatial hash (2201.05989, eq. 4)


class Level(NamedTuple):
  """One grid.

  Attributes:
    scale: grid cells along the unit square.
    side: points along a side.
    entries: rows of a hashed level's table; 0 where the level is dense.
  """
  scale: float
  side: int
  entries: int

  def shape(self, features: int) -> tuple[int, ...]:
    """Shape of the level's table with `features` a point."""
    return (self.entries, features) if self.entries else (
        self.side + 1, self.side + 1, features)


def make_levels(count: int, base: int, growth: float,
                log2_entries: int = 24) -> tuple[Level, ...]:
  """Levels of geometrically increasing resolution.

  Args:
    count: number of levels.
    base: points along a side of the coarsest.
    growth: ratio of consecutive resolutions.
    log2_entries: a level of more than 2^log2_entries points is hashed into a
      table of that many.
  """
  levels = []
  for index in range(count):
    scale = base * growth ** index - 1
    # A whole number may come out a little larger by rounding.
    side = math.ceil(scale - 1e-6 * base) + 1
    hashed = side ** 2 > 2 ** log2_entries
    levels.append(Level(scale, side, 2 ** log2_entries if hashed else 0))
  return tuple(levels)


def growth_to(base: int, finest: int, count: int) -> float:
  """Ratio of consecutive resolutions of `count` levels from base to finest."""
  return (finest / base) ** (1 / max(count - 1, 1))


def lookup(tables: Sequence[jax.Array], levels: Sequence[Level],
           uv: jax.Array) -> jax.Array:
  """Features [N, L F] at points uv [N, 2], bilinear in each of L levels.

  Args:
    tables: L arrays of the shapes Level.shape(F).
    levels: L levels.
    uv: in [0, 1]; points beyond get the features of the border.
  """
  return jnp.concatenate([
      _lookup(table, level, uv)
      for table, level in zip(tables, levels, strict=True)], axis=-1)


def from_flat(table: jax.Array, level: Level) -> jax.Array:
  """The table of a level from tiny-cuda-nn's flat one [entries, F].

  There a dense level has side^2 rows, rounded up; beyond the last point of a
  line the first of the next one follows, so that the border shares features
  with the opposite one.
  """
  if level.entries:
    return table
  points = jnp.arange(level.side + 1)
  return table[(points + level.side * points[:, None]) % len(table)]


def _lookup(table, level, uv):
  """`lookup` in one level."""
  # (row, column) of a point is (v, u).
  position = jnp.clip(uv[:, ::-1], 0, 1) * level.scale + 0.5
  start = jnp.clip(jnp.floor(position), 0, level.side - 1)
  fraction = position - start
  start = start.astype(jnp.int32)
  if not level.entries:
    return encodings.bilinear(table, start, fraction)
  features = 0.0
  for row in (0, 1):
    for column in (0, 1):
      weight = jnp.prod(jnp.where(
          jnp.array([row, column]) == 1, fraction, 1 - fraction), axis=-1)
      y, x = (start + jnp.array([row, column])).astype(jnp.uint32).T
      index = (x ^ (y * jnp.uint32(_PRIME))) % jnp.uint32(level.entries)
      features += weight[:, None] * table[index]
  return features
