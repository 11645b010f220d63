"""Augmentation that a discriminator cannot leak (ADA, 2006.06676, appendix B).

The pipeline 'bgc' of the paper: pixel blits, geometry and color, each applied
to an image with probability p, so that a discriminator that sees nothing else
still tells whether the images themselves are real. All of it is differentiable
in the images.

Vocabulary. Places are relative to the image, whose side is 1: x to the right,
y down, (0, 0) in its middle. `Draws` say what happens to one image, or, with a
leading axis N, to a batch; the same Draws do the same to an image of another
size. An image's values are in about [-1, 1].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import images

# Strengths of the paper (table 3): largest shift, deviations of log2 of the
# scales and of the shift by fractions, and of brightness, log2 contrast and
# log2 saturation. Angles and hues are drawn from the whole circle.
SHIFT, SCALE, STRETCH, OFFSET = 0.125, 0.2, 0.2, 0.125
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0

# The wavelet sym6: orthogonal to its own shifts by 2, so that doubling and
# then halving an image changes nothing.
SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057,
    -0.048311742585633, 0.4910559419267466, 0.787641141030194,
    0.3379294217276218, -0.07263752278646252, -0.021060292512300564,
    0.04472490177066578, 0.0017677118642428036, -0.007800708325034148])
# Its center of mass: between the taps, for it is not quite symmetric.
_CENTER = float(np.arange(12) @ SYM6 / SYM6.sum())
_MARGIN = 6  # pixels mirrored around an image before it is doubled


class Draws(NamedTuple):
  """What happens to an image, in this order."""
  flip: Any        # [], 1: left and right are exchanged
  quarters: Any    # [], quarter turns counterclockwise
  shift: Any       # [2], by whole pixels, to the right and down
  scale: Any       # [], how much larger
  angle: Any       # [], radians counterclockwise
  stretch: Any     # [], how much wider, and as much less high
  turn: Any        # [], radians once more: the stretch may be in any direction
  offset: Any      # [2], to the right and down
  brightness: Any  # [], added
  contrast: Any    # [], a factor
  luma: Any        # [], 1: lightness is negated
  hue: Any         # [], radians
  saturation: Any  # [], a factor


NEUTRAL = Draws(
    0.0, 0.0, np.zeros(2), 1.0, 0.0, 1.0, 0.0, np.zeros(2), 0.0, 1.0, 0.0, 0.0,
    1.0)


def draw(key, p, size):
  """Draws of one image, each kind of change made with probability p.

  Args:
    key: of the image.
    p: [].
    size: pixels a side of the images whose shifts are whole; in smaller
      copies they need not be.
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
  # Turned before or after the stretch: with probability p at all.
  once = 1 - jnp.sqrt(jnp.clip(1 - p, 0, 1))
  chances = Draws(*[p] * len(drawn))._replace(angle=once, turn=once)
  lots = Draws(*jax.random.uniform(key, (len(drawn),)))
  return jax.tree.map(
      lambda lot, chance, changed, kept: jnp.where(lot < chance, changed, kept),
      lots, chances, drawn, NEUTRAL)


def apply(x, draws):
  """Square images [N, H, H, 3] changed as Draws [N] say."""
  # Accelerators would round places and colors to half precision.
  with jax.default_matmul_precision('highest'):
    x = warp(x, jax.vmap(geometry)(draws))
    matrix = jax.vmap(color)(draws)
    return jnp.einsum('nhwc,ndc->nhwd', x, matrix[..., :3]) + matrix[
        :, None, None, :, 3]


def geometry(draws):
  """[3, 3], homogeneous: where in the image a place of the result comes from.

  The inverses of the changes, the first one leftmost.
  """
  quarter = jnp.pi / 2 * draws.quarters
  return (_scaling(1 - 2 * draws.flip, 1.0) @ _rotation(-quarter)
          @ _translation(-draws.shift)
          @ _scaling(1 / draws.scale, 1 / draws.scale)
          @ _rotation(-draws.angle)
          @ _scaling(1 / draws.stretch, draws.stretch)
          @ _rotation(-draws.turn) @ _translation(-draws.offset))


def color(draws):
  """[3, 4]: what colors are multiplied by, and what is added to that."""
  # Greys lie along this axis.
  axis = jnp.full((3,), 3 ** -0.5)
  along = jnp.outer(axis, axis)
  cross = jnp.cross(jnp.eye(3), axis)
  eye = jnp.eye(3)
  hue = (jnp.cos(draws.hue) * eye + jnp.sin(draws.hue) * cross
         + (1 - jnp.cos(draws.hue)) * along)
  linear = draws.contrast * (
      (along + draws.saturation * (eye - along)) @ hue
      @ (eye - 2 * draws.luma * along))
  added = linear @ jnp.full((3,), 1.0) * draws.brightness
  return jnp.concatenate([linear, added[:, None]], axis=1)


def warp(x, matrix):
  """Square images [N, H, H, C] whose places come from where `matrix` says.

  Through images of twice the size, as the paper: doubled by SYM6, looked up
  linearly, halved by SYM6. The identity gives the image back. Beyond its
  edges an image is mirrored, about the centers of its outermost pixels, as
  often as need be.

  Args:
    x: [N, H, H, C].
    matrix: [N, 3, 3], as `geometry`.
  """
  size = x.shape[1]
  fine = _double(_double(x, 1), 2)
  pixels = (jnp.arange(2 * size + len(SYM6) - 2) - _CENTER) / 2
  place = (pixels + 0.5) / size - 0.5
  places = jnp.stack([*jnp.meshgrid(place, place),
                      jnp.ones((len(place),) * 2)], axis=-1)

  def one(fine, matrix):
    # Not as a sum of products: of those, for one image alone and another of
    # another size in the same program, XLA (jaxlib 0.10.2) makes other places.
    source = (places @ matrix[:2].T + 0.5) * size - 0.5
    folded = source % (2 * (size - 1))
    folded = jnp.minimum(folded, 2 * (size - 1) - folded)
    # The margin is looked at before folding: SYM6, not being symmetric, would
    # not give an image back that is folded at its very edge.
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

  return _halve(_halve(jax.vmap(one)(fine, matrix), 1), 2)


def _double(x, axis):
  """The axis, of length H, twice as fine and 7 pixels longer: see _index."""
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
  """Where in the doubled axis a pixel is."""
  return 2 * (pixel + _MARGIN) + _CENTER - (len(SYM6) - 2)


def _halve(x, axis):
  """The adjoint of zeros between pixels and SYM6: 2H + 10 samples to H."""
  take = lambda start: jax.lax.slice_in_dim(
      x, start, x.shape[axis], stride=2, axis=axis)
  return sum(images.filter_axis(take(i), SYM6[i::2] / np.sqrt(2), axis, 0, 0)
             for i in (0, 1))


def _rotation(angle):
  """Counterclockwise as seen, with y down."""
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return jnp.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def _scaling(x, y):
  return jnp.diag(jnp.array([x, y, 1.0]))


def _translation(by):
  return jnp.array([[1.0, 0, by[0]], [0, 1, by[1]], [0, 0, 1]])
