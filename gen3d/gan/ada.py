"""Adaptive discriminator augmentation (ADA, 2006.06676)."""

from typing import Any

import jax
import jax.numpy as jnp

from gen3d.gan.networks import ImageDict, keys_of
from gen3d.ops import augment


def augment_examples(
    key: jax.Array, index: jax.Array, x: ImageDict, p: jax.Array | float
) -> ImageDict:
  """Fakes or reals, augmented; 'image' and 'image_raw' in the same way.

  Args:
    key: of the whole batch.
    index: [N], of the examples.
    x: fakes or reals.
    p: probability of each kind of augmentation.
  """
  size = x['image'].shape[1]
  draws = jax.vmap(lambda key: augment.draw(key, p, size))(keys_of(key, index))
  return {name: augment.apply(batch, draws) for name, batch in x.items()}


def record(state: dict[str, Any], sign: jax.Array) -> dict[str, jax.Array]:
  """Adds the mean sign of a step's logits on reals to the state; see `update`.
  """
  return {**state, 'signs': state['signs'] + sign}


def update(
    state: dict[str, Any], step: jax.Array, *, target: float, interval: int,
    change: float) -> dict[str, jax.Array]:
  """The state of adaptive augmentation after a step (2006.06676, section 3.2).

  A mean sign above the target, over the last `interval` steps, is a sign of
  overfitting; the discriminator's inputs are then augmented more often.

  Args:
    state: {'p': probability, 'signs': sum of signs since p was last changed},
      with the sign of this step.
    step: number of the step, from 0.
    target: of the mean sign.
    interval: steps between two changes.
    change: of p, which stays in [0, 1].
  """
  changed = jnp.clip(state['p'] + change * jnp.sign(
      state['signs'] / interval - target), 0, 1)
  due = (step + 1) % interval == 0
  return {'p': jnp.where(due, changed, state['p']),
          'signs': jnp.where(due, 0.0, state['signs'])}
