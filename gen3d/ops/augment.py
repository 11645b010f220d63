"""Non-leaking augmentation for discriminators (ADA, 2006.06676, appendix B).

The pipeline 'bgc' of the paper: pixel blits, geometric and color
transformations, each applied to an image with probability p < 1. The
distribution of real images can then be recovered from that of augmented ones,
so that the generator does not learn the augmentation. All of it is
differentiable in the images.

Coordinates are relative to the image, whose side is 1: x to the right, y down,
(0, 0) in its center. `Draws` are the parameters of one image or, with a
leading axis N, of a batch; they apply to images of any size in the same way.
Values of images are in about [-1, 1].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import images

# Strengths of the paper (table 3): the largest integer shift, then standard
# deviations: of log2 scale, log2 stretch, fractional shift; of brightness,
# log2 contrast, log2 saturation. Angles and hues are from the whole circle.
SHIFT, SCALE, STRETCH, OFFSET = 0.125, 0.2, 0.2, 0.125
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0

# The wavelet sym6. It is orthogonal to its own shifts by 2, so that upsampling
# and then downsampling an image changes nothing.
SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057,
    -0.048311742585633, 0.4910559419267466, 0.787641141030194,
    0.3379294217276218, -0.07263752278646252, -0.021060292512300564,
    0.04472490177066578, 0.0017677118642428036, -0.007800708325034148])
# Its center of mass, between two taps: sym6 is only nearly symmetric.
_CENTER = float(np.arange(12) @ SYM6 / SYM6.sum())
_MARGIN = 6  # pixels mirrored around an image before upsampling


class Draws(NamedTuple):
  """Parameters of an augmentation, in the order in which they are applied."""
  flip: Any        # [], 1: left and right are exchanged
  quarters: Any    # [], counterclockwise rotations by 90 degrees
  shift: Any       # [2], by whole pixels, to the right and down
  scale: Any       # [], isotropic factor
  angle: Any       # [], rotation before the stretch, radians counterclockwise
  stretch: Any     # [], factor of the width, and of the height its inverse
  turn: Any        # [], rotation after the stretch
  offset: Any      # [2], translation, to the right and down
  brightness: Any  # [], summand
  contrast: Any    # [], factor
  luma: Any        # [], 1: lightness is negated
  hue: Any         # [], rotation about the gray axis, radians
  saturation: Any  # [], factor


NEUTRAL = Draws(
    0.0, 0.0, np.zeros(2), 1.0, 0.0, 1.0, 0.0, np.zeros(2), 0.0, 1.0, 0.0, 0.0,
    1.0)


def draw(key: jax.Array, p: jax.Array | float, size: int) -> Draws:
  """Random Draws of one image; each transformation has probability p.

  Args:
    key: of the image.
    p: [].
    size: pixels a side of the image in which `shift` is by whole pixels; in
      smaller copies of it, the shift may be by fractions.
  """
  *keys, key = jax.random.split(key, len(Draws._fields) + 1)
  keys = Draws(*keys)
  normal = lambda key, *shape: jax.random.normal(key, shape)
  uniform = lambda key, *shape: jax.random.uniform(key, shape, minval=-1.0)
  drawn = Draws(
      flip=jax.random.randint(keys.flip, (), 0, 2),
      quarters=jax.random.randint(keys.quarters, (), 0, 4),
      shift=jnp.round(SHIFT * size * uniform(keys.shift, 2)) / size,
      scale=2 ** (SCALE * normal(keys.scale)),
      angle=jnp.pi * uniform(keys.angle),
      stretch=2 ** (STRETCH * normal(keys.stretch)),
      turn=jnp.pi * uniform(keys.turn),
      offset=OFFSET * normal(keys.offset, 2),
      brightness=BRIGHTNESS * normal(keys.brightness),
      contrast=2 ** (CONTRAST * normal(keys.contrast)),
      luma=jax.random.randint(keys.luma, (), 0, 2),
      hue=jnp.pi * uniform(keys.hue),
      saturation=2 ** (SATURATION * normal(keys.saturation)))
  # Two rotations, before and after the stretch: at least one of them happens
  # with probability p.
  p_rotation = 1 - jnp.sqrt(jnp.clip(1 - p, 0, 1))
  probabilities = Draws(*[p] * len(drawn))._replace(
      angle=p_rotation, turn=p_rotation)
  uniform = Draws(*jax.random.uniform(key, (len(drawn),)))
  return jax.tree.map(
      lambda u, probability, x, neutral: jnp.where(
          u < probability, x, neutral), uniform, probabilities, drawn, NEUTRAL)


def apply(x: jax.Array, draws: Draws) -> jax.Array:
  """Square images [N, H, H, 3], augmented by Draws [N]."""
  # Accelerators would round coordinates and colors to half precision.
  with jax.default_matmul_precision('highest'):
    x = warp(x, jax.vmap(geometry)(draws))
    matrix = jax.vmap(color)(draws)
    return jnp.einsum('nhwc,ndc->nhwd', x, matrix[..., :3]) + matrix[
        :, None, None, :, 3]


def geometry(draws: Draws) -> jax.Array:
  """Homogeneous matrix [3, 3] from coordinates of the result to the input's.

  The product of the inverse transformations, the first one leftmost.
  """
  quarter = jnp.pi / 2 * draws.quarters
  return (_scaling(1 - 2 * draws.flip, 1.0) @ _rotation(-quarter)
          @ _translation(-draws.shift)
          @ _scaling(1 / draws.scale, 1 / draws.scale)
          @ _rotation(-draws.angle)
          @ _scaling(1 / draws.stretch, draws.stretch)
          @ _rotation(-draws.turn) @ _translation(-draws.offset))


def color(draws: Draws) -> jax.Array:
  """Affine map [3, 4] of colors: a matrix [3, 3] and a summand [3]."""
  gray = jnp.full((3,), 3 ** -0.5)  # direction of the gray axis
  along = jnp.outer(gray, gray)
  cross = jnp.cross(jnp.eye(3), gray)
  eye = jnp.eye(3)
  # Rodrigues' formula: rotation about the gray axis.
  hue = (jnp.cos(draws.hue) * eye + jnp.sin(draws.hue) * cross
         + (1 - jnp.cos(draws.hue)) * along)
  linear = draws.contrast * (
      (along + draws.saturation * (eye - along)) @ hue
      @ (eye - 2 * draws.luma * along))
  # Brightness comes first, so the rest applies to it as well.
  summand = linear @ jnp.full((3,), 1.0) * draws.brightness
  return jnp.concatenate([linear, summand[:, None]], axis=1)


def warp(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """Square images [N, H, H, C], resampled at transformed coordinates.

  As in the paper: upsampled by 2 with SYM6, interpolated bilinearly,
  downsampled with SYM6. The identity returns the image. Beyond the edges, the
  image is mirrored about the centers of its outermost pixels, repeatedly.

  Args:
    x: [N, H, H, C].
    matrix: [N, 3, 3], as from `geometry`.
  """
  size = x.shape[1]
  fine = _upsample(_upsample(x, 1), 2)
  # Centers of the samples of the result, before it is downsampled.
  pixels = (jnp.arange(2 * size + len(SYM6) - 2) - _CENTER) / 2
  coordinate = (pixels + 0.5) / size - 0.5
  coordinates = jnp.stack(
      [*jnp.meshgrid(coordinate, coordinate),
       jnp.ones((len(coordinate),) * 2)], axis=-1)

  def interpolate(fine, matrix):
    # A matrix product, not a sum of products: for the latter, XLA (jaxlib
    # 0.10.2) computes other coordinates for an image and for a smaller copy
    # of it in the same program.
    source = (coordinates @ matrix[:2].T + 0.5) * size - 0.5
    folded = source % (2 * (size - 1))
    folded = jnp.minimum(folded, 2 * (size - 1) - folded)
    # The margin is used where it is large enough, and the mirrored coordinate
    # only beyond: SYM6 is not symmetric, so that an image that is mirrored at
    # its very edge would not be returned by the identity.
    index = _index(source)
    beyond = (index < 1) | (index > fine.shape[0] - 2)
    index = jnp.where(beyond, _index(folded), index)
    first = jnp.floor(index).astype(jnp.int32)
    right, down = jnp.moveaxis(index - first, -1, 0)[..., None]
    column, row = jnp.moveaxis(first, -1, 0)
    above, below = (
        (1 - right) * fine[r, column] + right * fine[r, column + 1]
        for r in (row, row + 1))
    return (1 - down) * above + down * below

  return _downsample(_downsample(jax.vmap(interpolate)(fine, matrix), 1), 2)


def _upsample(x, axis):
  """An axis of H samples to 2H + 14: twice as fine, with a margin; see _index.

  The transpose of `_downsample`, with mirrored pixels beyond the edges.
  """
  pad = [(0, 0)] * x.ndim
  pad[axis] = (_MARGIN, _MARGIN)
  x = jnp.pad(x, pad, 'reflect')
  taps = np.sqrt(2) * SYM6[::-1]
  even, odd = (images.filter_axis(x, t, axis, 0, 0)
               for t in (taps[1::2], taps[::2]))
  shape = list(even.shape)
  shape[axis] *= 2
  return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


def _index(pixel):
  """Index in the upsampled axis of a coordinate in pixels."""
  return 2 * (pixel + _MARGIN) + _CENTER - (len(SYM6) - 2)


def _downsample(x, axis):
  """SYM6, then every second sample: 2H + 10 samples to H."""
  take = lambda start: jax.lax.slice_in_dim(
      x, start, x.shape[axis], stride=2, axis=axis)
  even, odd = (
      images.filter_axis(take(i), SYM6[i::2] / np.sqrt(2), axis, 0, 0)
      for i in (0, 1))
  return even + odd


def _rotation(angle):
  """Counterclockwise in an image, where y is down."""
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return jnp.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def _scaling(x, y):
  return jnp.diag(jnp.array([x, y, 1.0]))


def _translation(by):
  return jnp.array([[1.0, 0, by[0]], [0, 1, by[1]], [0, 0, 1]])
