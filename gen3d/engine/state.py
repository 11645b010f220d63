"""The state of a training, as one pytree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
  """The state of a training after `step` updates.

  The fields are annotated as Any because JAX and Orbax rebuild this tree with
  shardings, shapes or None as leaves.

  Attributes:
    step: int32 [], the number of updates done.
    params: pytree of the trained parameters.
    opt_state: the optimizer's state.
    ema: exponential moving average of params, or None.
    extra: pytree of running values that are saved but not optimized (a mean,
      a probability), or None. `optim.apply_gradients` leaves it to the step.
    frozen: pytree of weights that the step reads and never changes (a
      teacher), or None. Never saved: the task's init rebuilds it.
  """
  step: Any
  params: Any
  opt_state: Any
  ema: Any = None
  extra: Any = None
  frozen: Any = None


def create(
    params: Any, optimizer: optax.GradientTransformation, ema: bool = False,
    frozen: Any = None, extra: Any = None) -> TrainState:
  """Returns the TrainState of step 0.

  Args:
    params: pytree of arrays.
    optimizer: optax.GradientTransformation.
    ema: whether to keep a moving average of params.
    frozen: pytree that the step reads, or None.
    extra: pytree of running values, or None.
  """
  return TrainState(
      step=jnp.zeros([], jnp.int32), params=params,
      opt_state=jax.jit(optimizer.init)(params),
      # A copy: the step donates its state, and a buffer is donated only once.
      ema=copy(params) if ema else None, extra=extra, frozen=frozen)


@jax.jit
def copy(tree: Any) -> Any:
  """Returns the tree with its values in new buffers.

  One program for the whole tree: compiling one for each shape takes tenths of
  a second each on a GPU.
  """
  return jax.tree.map(jnp.copy, tree)


def to_save(state: TrainState) -> dict[str, Any]:
  """Returns the part of a TrainState that a checkpoint holds, as a dict."""
  return {'step': state.step, 'params': state.params,
          'opt_state': state.opt_state, 'ema': state.ema,
          'extra': state.extra}
