"""Optimizers, learning rates and the update of a TrainState."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gen3d.choices import UserError, check, pick
from gen3d.engine.state import TrainState


def apply_gradients(
    state: TrainState, grads: Any, optimizer: optax.GradientTransformation,
    ema_decay: float | None = None) -> TrainState:
  """Returns the state after one update.

  Args:
    state: TrainState; its `extra` stays as it is.
    grads: pytree like state.params, already averaged over the devices.
    optimizer: optax.GradientTransformation.
    ema_decay: decay of state.ema, in [0, 1); None where there is no average.
      It is ramped up, min(decay, (1 + step) / (10 + step)), so that the
      random initialization soon has no weight in the average.
  """
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if ema_decay is not None:
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
    ema = jax.tree.map(
        lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype),
        ema, params)
  return state.replace(
      step=state.step + 1, params=params, opt_state=opt_state, ema=ema)


def learning_rate(
    config: Mapping[str, Any], steps: int = 0) -> optax.Schedule:
  """Returns the schedule, step -> learning rate, of an optimizer's config.

  Args:
    config: mapping with `learning_rate` (the peak), and optionally `schedule`
      ('constant', 'linear', 'cosine', 'exponential' or 'trapezoid'),
      `warmup` (steps of linear rise from zero) and `start` (a rate from which
      it rises in these steps exponentially instead). Linear, cosine and
      trapezoid fall to zero at the end. The trapezoid falls linearly over its
      last `cooldown` steps, so that runs of different lengths begin alike;
      exponential falls to `final` times the peak.
    steps: the last step of the schedule; only a constant one needs none.

  Raises:
    UserError: the schedule is unknown or needs `steps`, or the learning rate
      is negative or not finite.
  """
  peak, warmup = config['learning_rate'], config.get('warmup', 0)
  if not 0 <= peak < math.inf:
    raise UserError(f'The learning_rate of an optimizer is {peak}; give a '
                    'number from 0 on, such as 0.001.')
  name = config.get('schedule', 'constant')
  span = max(steps - warmup, 1)
  cooldown = config.get('cooldown', 0) / span
  final = config.get('final', 0.1)
  # Fraction of the steps after the warmup, in [0, 1] -> fraction of the peak.
  decays = {
      'constant': lambda done: 1.,
      'linear': lambda done: 1. - done,
      'cosine': lambda done: .5 * (1. + jnp.cos(jnp.pi * done)),
      'exponential': lambda done: final ** done,
      'trapezoid': lambda done: jnp.minimum(
          1., (1. - done) / max(cooldown, 1e-8)),
  }
  decay = pick('schedule', decays, name)
  if name != 'constant' and not steps:
    raise UserError(f'A {name} schedule needs the number of `steps`.')

  def schedule(step):
    rise = jnp.minimum(1., (step + 1) / warmup) if warmup else 1.
    if warmup and config.get('start'):
      rise = (config['start'] / peak) ** (1. - jnp.minimum(1., step / warmup))
    done = jnp.clip((step - warmup) / span, 0., 1.)
    return peak * rise * decay(done)

  return schedule


def make_optimizer(
    config: Mapping[str, Any], steps: int = 0) -> optax.GradientTransformation:
  """Returns the optimizer that a config describes.

  Muon steps along the orthogonalized momentum of each kernel, flattened to
  [inputs, outputs] and scaled to AdamW's step (2502.16982), so that AdamW's
  learning rates apply. Parameters that are not kernels have AdamW with
  Nesterov momentum.

  Args:
    config: mapping with `name` ('adam', 'adamw' or 'muon'), the keys of
      `learning_rate`, and optionally `b1`, `b2`, `eps`, `weight_decay` (not
      with adam; not on biases and gains, that is on parameters of fewer than
      two axes), `clip` (largest global norm of the gradient) and
      `lr_multipliers` ({name: factor} on the learning rate of all parameters
      below a name; a factor is a number or a function of the step).
    steps: as in `learning_rate`.

  Raises:
    UserError: the optimizer, its schedule or a key is unknown.
  """
  known = ('name', 'learning_rate', 'schedule', 'warmup', 'start', 'cooldown',
           'final', 'b1', 'b2', 'eps', 'weight_decay', 'clip', 'lr_multipliers')
  for key in config:
    check('optimizer key', known, key)
  moments = {key: config[key] for key in ('b1', 'b2', 'eps') if key in config}
  rate, decay = learning_rate(config, steps), config.get('weight_decay', 0.)
  optimizers = {
      'adam': lambda: optax.adam(rate, **moments),
      'adamw': lambda: optax.adamw(rate, **moments, mask=_matrices,
                                   weight_decay=decay),
      'muon': lambda: _muon(rate, moments, decay),
  }
  optimizer = pick('optimizer', optimizers, config['name'])()
  if config['name'] == 'adam' and decay:
    raise UserError("Weight decay is for 'adamw', not for 'adam'.")
  if config.get('clip'):
    optimizer = optax.chain(optax.clip_by_global_norm(config['clip']),
                            optimizer)
  if config.get('lr_multipliers'):
    # After the optimizer: Adam is invariant to the scale of its gradients.
    optimizer = optax.chain(
        optimizer, _multiply(dict(config['lr_multipliers'])))
  return optimizer


def orthogonalize(matrix: jax.Array, steps: int = 5) -> jax.Array:
  """Returns a matrix [N, M] with its singular values brought near to 1.

  Muon's quintic iteration X <- (a + b A + c A^2) X, A = X X^T. The iteration
  runs on A alone, [min(N, M)]^2, and its polynomial is applied to X at the
  end: two products with the long side instead of 2 `steps`, which takes a
  third of the time of optax.contrib.muon's at 1440 x 160.
  """
  a, b, c = 3.4445, -4.7750, 2.0315
  wide = matrix.shape[0] <= matrix.shape[1]
  x = matrix if wide else matrix.T
  x = x / (jnp.linalg.norm(x) + 1e-8)
  gram, identity = x @ x.T, jnp.eye(len(x), dtype=x.dtype)
  product = identity
  for _ in range(steps):
    factor = a * identity + b * gram + c * gram @ gram
    product = factor @ product
    gram = factor @ gram @ factor
  x = product @ x
  return x if wide else x.T


def _muon(rate, moments, weight_decay):
  """Muon for parameters named 'kernel', AdamW with Nesterov for the rest."""
  def step(kernel):
    matrix = kernel.reshape(-1, kernel.shape[-1])
    # An orthogonal step has RMS 1 / sqrt(larger side); AdamW's is about 0.2.
    scale = 0.2 * max(matrix.shape)**0.5
    return scale * orthogonalize(matrix).reshape(kernel.shape)

  kernels = optax.chain(
      optax.trace(0.95, nesterov=True),
      optax.stateless_with_tree_map(lambda kernel, _: step(kernel)),
      optax.add_decayed_weights(weight_decay),
      optax.scale_by_learning_rate(rate))
  is_kernel = lambda path, _: path[-1].key == 'kernel'
  return optax.partition(
      {True: kernels, False: optax.adam(rate, **moments, nesterov=True)},
      lambda params: jax.tree_util.tree_map_with_path(is_kernel, params))


def _multiply(multipliers):
  """Multiplies the updates of all parameters below each of the names."""
  scheduled = any(map(callable, multipliers.values()))

  def init(params):
    del params
    return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)) if (
        scheduled) else optax.EmptyState()

  def scale(updates, state, params=None):
    del params
    factors = {name: x(state.count) if callable(x) else x
               for name, x in multipliers.items()}
    unused = set(multipliers)

    def scale_leaf(path, x):
      factor = 1.
      for name in (key.key for key in path if hasattr(key, 'key')):
        factor *= factors.get(name, 1.)
        unused.discard(name)
      return x * factor

    updates = jax.tree_util.tree_map_with_path(scale_leaf, updates)
    for name in unused:
      check('group of parameters', list(updates), name)
    return updates, state._replace(count=state.count + 1) if (
        scheduled) else state

  return optax.GradientTransformation(init, scale)


def _matrices(params):
  return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)
