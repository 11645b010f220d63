"""What changes during a training, as one pytree."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class TrainState:
  """The state of a training after `step` updates.

  JAX and Orbax rebuild this tree with shardings, shapes or None as leaves, so
  that the fields claim no type.

  Attributes:
    step: int32 [], the number of updates done.
    params: pytree of what is trained.
    opt_state: the optimizer's state.
    ema: exponential moving average of params, or None.
    extra: pytree of running values that are saved but not optimized (a mean,
      a probability), or None.
    frozen: pytree of weights that the step reads and never changes (a
      teacher), or None. Never saved: the task's init rebuilds it.
  """
  step: Any
  params: Any
  opt_state: Any
  ema: Any = None
  extra: Any = None
  frozen: Any = None


def create(params, optimizer, ema=False, frozen=None):
  """Returns the TrainState of step 0.

  Args:
    params: pytree of arrays.
    optimizer: optax.GradientTransformation.
    ema: whether to keep a moving average of params.
    frozen: pytree that the step reads, or None.
  """
  return TrainState(
      step=jnp.zeros([], jnp.int32), params=params,
      opt_state=jax.jit(optimizer.init)(params),
      # A copy: the step donates its state, and one buffer goes once.
      ema=copy(params) if ema else None, frozen=frozen)


@jax.jit
def copy(tree):
  """The same numbers in buffers of their own.

  One program for all: that of a single shape takes a GPU tenths of a second
  to compile.
  """
  return jax.tree.map(jnp.copy, tree)


def to_save(state):
  """Returns the part of a TrainState that a checkpoint holds, as a dict."""
  return {'step': state.step, 'params': state.params,
          'opt_state': state.opt_state, 'ema': state.ema,
          'extra': state.extra}
