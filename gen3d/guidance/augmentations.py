"""Augmentations of renders before an image encoder: render -> images.

A guidance by an image encoder sees several variants of one render, so that an
object cannot satisfy it by a pattern that only one framing shows. An Augment is
(key, render) -> images [N, S, S, 3] in [0, 1]; `render` is a scenes.Render
without leading axis.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gen3d.choices import UserError, pick
from gen3d.ops import backgrounds, images

Augment = Callable[[jax.Array, Any], jax.Array]
# (key, size) -> [size, size, 3]
RandomBackground = Callable[[jax.Array, int], jax.Array]
# (foreground [..., 3], premultiplied by opacity; opacity [..., 1];
#  background [..., 3]) -> [..., 3]
Composite = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def over(foreground: jax.Array, opacity: jax.Array,
         background: jax.Array) -> jax.Array:
  """A premultiplied foreground over a background."""
  return foreground + (1 - opacity) * background


def over_as_released(foreground: jax.Array, opacity: jax.Array,
                     background: jax.Array) -> jax.Array:
  """Dream Fields' code: multiplies the foreground by opacity once more.

  Its test images do not, so that a translucent object is brighter there.
  """
  return opacity * foreground + (1 - opacity) * background


COMPOSITES = {'over': over, 'as_released': over_as_released}


def layers(render: Any) -> jax.Array:
  """Premultiplied color and opacity of a render, [H, W, 4].

  Without the background, where the render has one.
  """
  opacity = render.opacity[..., None]
  color = render.image
  if render.background is not None:
    color = color - (1 - opacity) * render.background
  return jnp.concatenate([color, opacity], axis=-1)


def crops(key: jax.Array, render: Any, *, count: int, crop: int, size: int,
          background: RandomBackground, composite: Composite = over,
          perspective: float = 0.0) -> jax.Array:
  """Random crops over random backgrounds (Dream Fields, section 4.2).

  As in the paper's code, offsets are below side - crop: a crop never touches
  the last row and column.

  Args:
    key: PRNG key.
    render: scenes.Render of a square view.
    count: N.
    crop: pixels per side, of the render.
    size: S.
    background: RandomBackground.
    composite: Composite.
    perspective: see `distort`; 0 for none.

  Raises:
    UserError: the crop is larger than the render.
  """
  pixels = layers(render)
  side = pixels.shape[0]
  if crop > side:
    raise UserError(f'A crop of {crop} pixels is larger than the render of '
                    f'{side}; lower guidance.augment.crop.')

  def variant(key):
    key_offset, key_background, key_perspective = jax.random.split(key, 3)
    offset = jax.random.randint(key_offset, (2,), 0, max(side - crop, 1))
    image = crop_and_resize(pixels, offset, crop, size)
    if perspective:
      image = distort(image, random_corners(key_perspective, perspective))
    return composite(image[..., :3], image[..., 3:],
                     background(key_background, size))

  return jax.vmap(variant)(jax.random.split(key, count))


def crop_and_resize(image: jax.Array, offset: jax.Array, crop: int,
                    size: int) -> jax.Array:
  """The square of [H, W, C] at (row, column) `offset`, as [size, size, C]."""
  part = jax.lax.dynamic_slice(
      image, (*offset, 0), (crop, crop, image.shape[-1]))
  return images.resize(part, size)


def random_corners(key: jax.Array, amount: float) -> jax.Array:
  """Where the corners of an image come from, [4, 2], see `distort`.

  Each one is moved inward or outward along both axes by up to `amount` of
  half the side.
  """
  corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
  return jnp.asarray(corners) + amount * jax.random.uniform(
      key, (4, 2), minval=-1.0)


def distort(image: jax.Array, corners: jax.Array) -> jax.Array:
  """An image seen in perspective, zero beyond its edges.

  Args:
    image: [S, S, C].
    corners: (x, y) [4, 2] of the image that move to the corners of the
      result, from the upper left one clockwise; the image spans [-1, 1].

  Returns:
    [S, S, C].
  """
  side = image.shape[0]
  # Homography from the square to the quadrilateral: 8 linear equations.
  square = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
  rows, values = [], []
  for (x, y), target in zip(square, corners, strict=True):
    for axis in (0, 1):
      own = np.zeros((2, 3), np.float32)
      own[axis] = x, y, 1.0
      rows.append(jnp.concatenate(
          [own.ravel(), -target[axis] * np.array([x, y])]))
      values.append(target[axis])
  solved = jnp.linalg.solve(jnp.stack(rows), jnp.stack(values))
  matrix = jnp.append(solved, 1.0).reshape(3, 3)
  # Centers of the pixels.
  grid = (np.arange(side) + 0.5) * 2 / side - 1
  x, y = np.meshgrid(grid, grid)
  points = jnp.asarray(np.stack([x, y, np.ones_like(x)], -1), jnp.float32)
  mapped = jnp.matmul(points, matrix.T, precision='highest')
  source = (mapped[..., :2] / mapped[..., 2:] + 1) * side / 2 - 0.5
  sample = partial(jax.scipy.ndimage.map_coordinates,
                   coordinates=[source[..., 1], source[..., 0]], order=1)
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def whole(key: jax.Array, render: Any, *, size: int, kernel: str,
          edges: str = 'zero') -> jax.Array:
  """The whole render over its own background, resized (CLIP-Mesh).

  Args:
    key: not used.
    render: scenes.Render.
    size: S.
    kernel, edges: see images.resize_weights.

  Returns:
    [1, S, S, 3].
  """
  del key
  return images.resize_filter(render.image, size, kernel, edges)[None]


def from_config(config: ml_collections.ConfigDict, size: int) -> Augment:
  """The Augment of a config.

  Args:
    config: `name`, one of AUGMENTATIONS, and its settings.
    size: S, of the image encoder.

  Raises:
    UserError: a name is unknown.
  """
  make = pick('augmentation', AUGMENTATIONS, config.name)
  return make(size, **{k: v for k, v in config.items() if k != 'name'})


def _crops(size, *, count, crop, background, composite, perspective):
  return partial(
      crops, count=count, crop=crop, size=size, perspective=perspective,
      background=partial(backgrounds.dream_fields, **background),
      composite=pick('composite', COMPOSITES, composite))


def _whole(size, *, kernel, edges):
  return partial(whole, size=size, kernel=kernel, edges=edges)


# (size, settings) -> Augment, by the name in a config.
AUGMENTATIONS = {'crops': _crops, 'whole': _whole}
