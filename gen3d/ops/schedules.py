"""Values that change while training."""

import jax.numpy as jnp


def points(value):
  """((step, value), ...) of a number or a schedule.

  (number,) is a number: a flag makes it of one where the config has a
  schedule.
  """
  several = value if isinstance(value, (tuple, list)) else (value,)
  return tuple(tuple(x) if isinstance(x, (tuple, list)) else (0, x)
               for x in several)


def piecewise(step, value):
  """`value` at `step`: a number, or ((step, value), ...) joined by lines.

  Before the first and after the last pair the value stays, so that
  ((0, 1e-4), (5000, 1e-2)) anneals in and then holds.
  """
  steps, values = zip(*points(value), strict=True)
  if len(values) == 1:
    return jnp.float32(values[0])
  return jnp.interp(jnp.asarray(step, jnp.float32),
                    jnp.array(steps, jnp.float32),
                    jnp.array(values, jnp.float32))


def affine(value, factor, offset=0.0):
  """The number or schedule factor * value + offset."""
  if isinstance(value, (int, float)):
    return factor * value + offset
  return tuple((step, factor * v + offset) for step, v in points(value))
