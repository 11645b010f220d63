"""Texture lookup: bilinear, and trilinear in a pyramid of mipmaps.

Vocabulary. A texture is [TH, TW, C] with row 0 at the top; uv is (0, 0) at its
lower left corner and (1, 1) at the upper right one, and a texel's color is at
its center. Level l of a pyramid is the texture halved l times.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def texture(image: jax.Array | list[jax.Array], uv: jax.Array,
            derivatives: jax.Array | None = None, *, wrap: str = 'wrap'
            ) -> jax.Array:
  """Colors [..., C] of a texture at uv, with gradients to all arguments.

  A pyramid is read at the level where a texel is as long as the longer axis of
  the pixel's footprint, linearly between two levels, as in nvdiffrast.

  Args:
    image: [TH, TW, C], or a pyramid from `build_mips`, which needs derivatives.
    uv: [..., 2].
    derivatives: [..., 2, 2] of uv (first axis) per pixel to the right and
      down, from `raster.pixel_derivatives`.
    wrap: outside [0, 1] the texture is repeated ('wrap') or its border
      continued ('clamp').

  Raises:
    ValueError: a pyramid without derivatives, or another `wrap`.
  """
  if wrap not in ('wrap', 'clamp'):
    raise ValueError(f"wrap is 'wrap' or 'clamp', not {wrap!r}.")
  pyramid: list[jax.Array] = (
      list(image) if isinstance(image, list) else [image])
  if len(pyramid) == 1:
    corners = _corners(uv, jnp.zeros(uv.shape[:-1], jnp.int32), pyramid, wrap)
  elif derivatives is None:
    raise ValueError('A pyramid of mipmaps needs the derivatives of uv.')
  else:
    # Otherwise XLA would compute the level again for each of the texels.
    uv, level = jax.lax.optimization_barrier((
        uv, mip_level(derivatives, pyramid[0].shape[:2], len(pyramid))))
    lower = jnp.minimum(jnp.floor(level).astype(jnp.int32), len(pyramid) - 2)
    share = level - lower
    corners = [
        (index, part * weight)
        for part, number in ((1 - share, lower), (share, lower + 1))
        for index, weight in _corners(uv, number, pyramid, wrap)]
  table = jnp.concatenate([
      level.reshape(-1, level.shape[-1]) for level in pyramid])
  return _weighted_sum(table, *map(jnp.stack, zip(*corners)))


@jax.custom_vjp
def _weighted_sum(table, index, weight):
  """Sums [..., C] of rows of a table [N, C] at index [K, ...] times weight."""
  return functools.reduce(jnp.add, (
      row * w[..., None] for row, w in zip(_texels(table, index), weight)))


def _texels(table, index):
  """Rows [..., C] of a table for each of K indices."""
  return [table.at[i].get(mode='promise_in_bounds') for i in index]


def _weighted_sum_backward(saved, cotangent):
  # XLA's own would be a scatter into a table of zeros for each index.
  table, index, weight = saved
  rows = jax.lax.optimization_barrier(weight[..., None] * cotangent)
  return jnp.zeros_like(table).at[index].add(
      rows, mode='promise_in_bounds'), None, jnp.stack([
          jnp.sum(row * cotangent, axis=-1) for row in _texels(table, index)])


_weighted_sum.defvjp(
    lambda *args: (_weighted_sum(*args), args), _weighted_sum_backward)


def _corners(uv, level, pyramid, wrap):
  """The four texels around uv [..., 2] on a level [...] of a pyramid.

  Returns:
    Pairs of an index [...], into the texels of all levels one after the other,
    and a weight [...].
  """
  sides = np.array([image.shape[:2] for image in pyramid])
  starts = np.cumsum(sides.prod(1)) - sides.prod(1)
  height, width, start = (
      jnp.asarray(x)[level] for x in (sides[:, 0], sides[:, 1], starts))
  x, y = uv[..., 0] * width - 0.5, (1 - uv[..., 1]) * height - 0.5
  column, row = jnp.floor(x), jnp.floor(y)
  right, down = x - column, y - row

  def inside(index, side):
    index = index.astype(jnp.int32)
    if wrap == 'wrap':
      return jnp.mod(index, side)
    return jnp.clip(index, 0, side - 1)

  columns = [(inside(column, width), 1 - right),
             (inside(column + 1, width), right)]
  rows = [(inside(row, height), 1 - down), (inside(row + 1, height), down)]
  return [(start + i * width + j, weight_i * weight_j)
          for i, weight_i in rows for j, weight_j in columns]


def mip_level(derivatives: jax.Array, size: tuple[int, ...],
              levels: int) -> jax.Array:
  """The level [...] in [0, levels - 1] of pixels' footprints.

  The logarithm to base 2 of the larger singular value of the derivatives of
  the position in texels.

  Args:
    derivatives: [..., 2, 2], see `texture`.
    size: (TH, TW) of level 0.
    levels: of the pyramid.
  """
  u = derivatives[..., 0, :] * size[1]
  v = derivatives[..., 1, :] * size[0]
  uu, vv, uv = (jnp.sum(p * q, axis=-1) for p, q in ((u, u), (v, v), (u, v)))
  # Half the difference of the squared singular values; its root has no
  # gradient where they are equal.
  squared = ((uu - vv) / 2) ** 2 + uv ** 2
  half = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
  longest = jnp.maximum((uu + vv) / 2 + half, 1.0)
  return jnp.minimum(0.5 * jnp.log2(longest), levels - 1.0)


def build_mips(image: jax.Array, levels: int | None = None
               ) -> list[jax.Array]:
  """The pyramid of a texture: each level the box filter of the one before.

  Sides of any length are halved, rounded down, to 1.

  Args:
    image: [TH, TW, C].
    levels: at most so many, the texture included.
  """
  pyramid = [image]
  while max(pyramid[-1].shape[:2]) > 1 and len(pyramid) != levels:
    pyramid.append(_halved(_halved(pyramid[-1], 0), 1))
  return pyramid


def _halved(image, axis):
  """Means of 2 texels along an axis, or weighted ones of 3 if it is odd."""
  side = image.shape[axis]
  if side == 1:
    return image
  half = side // 2
  image = jnp.moveaxis(image, axis, 0)
  first, second = image[0:2 * half:2], image[1:2 * half:2]
  if side % 2 == 0:
    result = (first + second) / 2
  else:
    # A texel of the result covers side / half texels, a part of the outer two.
    i = jnp.arange(half).reshape(-1, 1, 1)
    result = ((half - i) * first + half * second
              + (i + 1) * image[2::2]) / side
  return jnp.moveaxis(result, 0, axis)
