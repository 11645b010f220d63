"""Negative prompts of other views: Perp-Neg (Armandpour et al., 2304.04968).

Against objects with several faces, a view between two directions has the
interpolation of their prompts as its own, and both as negative prompts. Of a
negative prediction only the part that is perpendicular to the positive one is
used, since they overlap. Weights are those of threestudio.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.guidance import prompts

# a exp(-b r) + c, by the pair of views.
_SIDE_BACK = (1.0, 0.5, -0.606)
_FRONT_SIDE_BACK = (1.0, 0.5, 0.967)
_FRONT_SIDE = _SIDE_FRONT = (4.0, 0.5, -2.426)


class Negatives(NamedTuple):
  """Negative prompts of B views.

  Attributes:
    texts: two texts with leading axis B.
    weights: [B, 2] of the texts, at most 0.
  """
  texts: Any
  weights: Any


def texts(view_text: Callable[[int], Any], azimuth: jax.Array,
          overhead: jax.Array) -> tuple[Any, Negatives]:
  """(positive text, Negatives) of one view, B = 1.

  Args:
    view_text: index into prompts.VIEWS -> text with leading axis 1.
    azimuth: [] in degrees, 0 in front of the object.
    overhead: [] whether the view is from above; it has no negatives then.
  """
  front, side, back, above = map(view_text, (
      prompts.FRONT, prompts.SIDE, prompts.BACK, prompts.OVERHEAD))
  turn = jnp.abs((azimuth + 180.0) % 360.0 - 180.0) / 90
  frontal = turn < 1
  # Share of the view that comes first, of front and side or of side and back.
  r = jnp.where(frontal, 1 - turn, 2 - turn)
  choose = lambda condition, a, b: jax.tree.map(
      lambda a, b: jnp.where(condition, a, b), a, b)
  mix = lambda a, b: jax.tree.map(
      lambda a, b: (r * a + (1 - r) * b).astype(a.dtype), a, b)
  positive = choose(overhead, above, choose(
      frontal, mix(front, side), mix(side, back)))
  weights = -jnp.where(
      frontal,
      jnp.stack([_decay(r, *_FRONT_SIDE), _decay(1 - r, *_SIDE_FRONT)]),
      jnp.stack([_decay(r, *_SIDE_BACK), _decay(r, *_FRONT_SIDE_BACK)]))
  return positive, Negatives(
      (choose(frontal, front, side), choose(frontal, side, front)),
      jnp.where(overhead, 0.0, weights)[None])


def _decay(r, a, b, c):
  return a * jnp.exp(-b * r) + c


def combine(positive: jax.Array, negatives: Sequence[jax.Array],
            weights: jax.Array) -> jax.Array:
  """The weighted sum [B, ...] of the negatives' perpendicular parts.

  Args:
    positive: [B, ...] prediction less that with the negative prompt.
    negatives: the same of K negative prompts.
    weights: [B, K].
  """
  axes = tuple(range(1, positive.ndim))
  dot = lambda a, b: jnp.sum(a * b, axis=axes, keepdims=True)
  square = jnp.maximum(dot(positive, positive), 1e-6)
  shape = (-1, *(1,) * len(axes))
  return sum((weights[:, k].reshape(shape)
              * (x - dot(x, positive) / square * positive)
              for k, x in enumerate(negatives)), jnp.zeros_like(positive))
