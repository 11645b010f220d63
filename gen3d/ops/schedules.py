"""Values that change while training."""

import jax.numpy as jnp


def piecewise(step, value):
  """`value` at `step`: a number, or ((step, value), ...) joined by lines.

  Before the first and after the last pair the value stays, so that
  ((0, 1e-4), (5000, 1e-2)) anneals in and then holds. (number,) is a number:
  a flag makes it of one where the config has a schedule.
  """
  if not isinstance(value, (int, float)) and len(value) == 1 and isinstance(
      value[0], (int, float)):
    value = value[0]
  if isinstance(value, (int, float)):
    return jnp.float32(value)
  steps, values = zip(*value, strict=True)
  return jnp.interp(jnp.asarray(step, jnp.float32),
                    jnp.array(steps, jnp.float32),
                    jnp.array(values, jnp.float32))


def affine(value, factor, offset=0.0):
  """The number or schedule factor * value + offset."""
  if isinstance(value, (int, float)):
    return factor * value + offset
  return tuple((step, factor * v + offset) for step, v in value)
