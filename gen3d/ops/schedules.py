"""Values that change during training.

A schedule is a number or ((step, value), ...), joined by straight lines. In a
config its times may be fractions of the training (`in_steps`).
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from gen3d.choices import UserError

Schedule = Any  # a number, or a tuple of pairs (step, value)


def points(value: Schedule) -> tuple[tuple[int, float], ...]:
  """((step, value), ...) of a number or a schedule.

  (number,) is a number: a command-line flag gives that form where the config
  has a schedule.

  Raises:
    UserError: it is neither, or its times fall.
  """
  several = value if isinstance(value, (tuple, list)) else (value,)
  pairs = tuple(tuple(x) if isinstance(x, (tuple, list)) else (0, x)
                for x in several)
  if not pairs or not all(
      len(pair) == 2 and all(map(_is_number, pair))
      for pair in pairs):
    raise UserError(f'{value!r} is no schedule; write a number, or pairs of '
                    "time and value, such as '((0.25, 1.0), (0.5, 6.0))'.")
  _check_order(value, [time for time, _ in pairs])
  return pairs


def _is_number(x):
  return isinstance(x, jax.Array) or (
      isinstance(x, numbers.Real) and math.isfinite(x))


def in_steps(value: Any, steps: int) -> Any:
  """A config's value, if it is a schedule with its times in steps.

  A time that is a float of at most 1 is a fraction of `steps`, of which the
  next smaller step is taken. A step that is not after the one before it is
  moved behind it: two equal fractions are a jump.

  Args:
    value: anything; a schedule is a sequence of several pairs of numbers.
    steps: of the training.

  Raises:
    UserError: its times fall.
  """
  if not is_schedule(value) or not any(
      _is_fraction(time) for time, _ in value):
    return value
  _check_order(value, [step_of(time, steps) for time, _ in value])
  pairs = []
  for time, x in value:
    step = step_of(time, steps)
    pairs.append((max(step, pairs[-1][0] + 1) if pairs else step, x))
  return tuple(pairs)


def _check_order(value, times):
  if times != sorted(times):
    raise UserError(f'The schedule {value!r} has times that fall; write them '
                    'in their order.')


def step_of(time: float, steps: int) -> int:
  """The step of a time: a float of at most 1 is a fraction of `steps`."""
  # Rounding errors of products such as 0.29 * 100 are far below a step.
  return int(time * steps + 1e-6) if _is_fraction(time) else int(time)


def is_schedule(value: Any) -> bool:
  """Whether a config's value is a sequence of several pairs of numbers."""
  several = isinstance(value, (tuple, list)) and len(value) > 1
  return several and all(
      isinstance(pair, (tuple, list)) and len(pair) == 2
      and all(isinstance(x, (int, float)) for x in pair) for pair in value)


def _is_fraction(time):
  return isinstance(time, float) and 0.0 <= time <= 1.0


def piecewise(step: int | jax.Array, value: Schedule) -> jax.Array:
  """The value [] of a schedule at `step`.

  Before the first and after the last pair the value is constant, so that
  ((0, 1e-4), (5000, 1e-2)) increases and then stays.
  """
  steps, values = zip(*points(value), strict=True)
  if len(values) == 1:
    return jnp.float32(values[0])
  return jnp.interp(jnp.asarray(step, jnp.float32),
                    jnp.array(steps, jnp.float32),
                    jnp.array(values, jnp.float32))


def bell(step: int | jax.Array, start: float, end: float,
         rate: float) -> jax.Array:
  """end + (start - end) 10^(-rate step (step + 1) / 2) [].

  CLIP-Mesh's weight of the Laplacian, which at step i is multiplied by
  10^(-rate i) less `end`. With a rate of 0 it is constant.
  """
  step = jnp.asarray(step, jnp.float32)
  return end + (start - end) * 10.0 ** (-0.5 * rate * step * (step + 1))


def exponential(step: int | jax.Array, start: float, end: float,
                steps: int) -> jax.Array:
  """start (end / start)^(step / steps) [], then constant from `steps` on."""
  # A fraction of a few steps may be none.
  done = jnp.clip(jnp.asarray(step, jnp.float32) / max(steps, 1), 0.0, 1.0)
  return start * (end / start) ** done


def affine(value: Schedule, factor: float, offset: float = 0.0) -> Schedule:
  """The number or schedule factor * value + offset."""
  if isinstance(value, (int, float)):
    return factor * value + offset
  return tuple((step, factor * v + offset) for step, v in points(value))
