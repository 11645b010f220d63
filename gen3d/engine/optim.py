"""Optimizers, learning rates and the update of a TrainState."""

import jax
import jax.numpy as jnp
import optax

from gen3d.choices import UserError, check, pick


def apply_gradients(state, grads, optimizer, ema_decay=None):
  """Returns the state after one update.

  Args:
    state: TrainState.
    grads: pytree like state.params, already averaged over the chips.
    optimizer: optax.GradientTransformation.
    ema_decay: decay of state.ema, in [0, 1); None where there is no average.
      It is ramped up, min(decay, (1 + step) / (10 + step)), so that the
      average forgets the random start.
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


def learning_rate(config, steps=0):
  """Returns the schedule, step -> learning rate, of an optimizer's config.

  Args:
    config: mapping with `learning_rate` (the peak), and optionally `schedule`
      ('constant', 'linear', 'cosine', 'exponential' or 'trapezoid') and
      `warmup` (steps of linear rise from zero). Linear, cosine and trapezoid
      fall to zero at the end, the last one linearly over its last `cooldown`
      steps, so that a longer run shares its beginning with a shorter one;
      exponential falls to `final` times the peak.
    steps: when it ends; without, the rate must be constant.
  """
  peak, warmup = config['learning_rate'], config.get('warmup', 0)
  name = config.get('schedule', 'constant')
  span = max(steps - warmup, 1)
  cooldown = config.get('cooldown', 0) / span
  final = config.get('final', 0.1)
  falls = {
      'constant': lambda done: 1.,
      'linear': lambda done: 1. - done,
      'cosine': lambda done: .5 * (1. + jnp.cos(jnp.pi * done)),
      'exponential': lambda done: final ** done,
      'trapezoid': lambda done: jnp.minimum(
          1., (1. - done) / max(cooldown, 1e-8)),
  }
  fall = pick('schedule', falls, name)
  if name != 'constant' and not steps:
    raise UserError(f'A {name} schedule needs the number of `steps`.')

  def schedule(step):
    rise = jnp.minimum(1., (step + 1) / warmup) if warmup else 1.
    done = jnp.clip((step - warmup) / span, 0., 1.)
    return peak * rise * fall(done)

  return schedule


def make_optimizer(config, steps=0):
  """Returns the optimizer that a config describes.

  Args:
    config: mapping with `name` ('adam', 'adamw' or 'muon'), the keys of
      `learning_rate`, and optionally `b1`, `b2`, `eps`, `weight_decay` (not
      with adam; not on biases and gains, that is on parameters of fewer than
      two axes), `clip` (largest global norm of the gradient) and `rates`
      (what the learning rate of all parameters below a name is multiplied
      by, where it is not 1). Muon steps along the orthogonalized
      momentum of each kernel, flattened to [inputs, outputs] and scaled to
      AdamW's step (2502.16982), so that AdamW's learning rates serve; what
      is not a kernel has AdamW with Nesterov's momentum.
    steps: as in `learning_rate`.

  Raises:
    UserError: at an unknown name or key.
  """
  known = ('name', 'learning_rate', 'schedule', 'warmup', 'cooldown', 'final',
           'b1', 'b2', 'eps', 'weight_decay', 'clip', 'rates')
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
  if config.get('rates'):
    optimizer = optax.chain(optimizer, _times(dict(config['rates'])))
  return optimizer


def orthogonalize(matrix, steps=5):
  """A matrix [N, M] with its singular values brought near to one.

  Muon's quintic iteration X <- (a + b A + c A^2) X, A = X X^T, on A alone, so
  that the long side is seen twice, not 2 `steps` times: a third of the time
  of optax.contrib.muon's at 1440 x 160.
  """
  a, b, c = 3.4445, -4.7750, 2.0315
  wide = matrix.shape[0] <= matrix.shape[1]
  x = matrix if wide else matrix.T
  x = x / (jnp.linalg.norm(x) + 1e-8)
  gram, one = x @ x.T, jnp.eye(len(x), dtype=x.dtype)
  product = one
  for _ in range(steps):
    factor = a * one + b * gram + c * gram @ gram
    product = factor @ product
    gram = factor @ gram @ factor
  x = product @ x
  return x if wide else x.T


def _muon(rate, moments, weight_decay):
  """Muon for what is called a kernel, AdamW with Nesterov's for the rest."""
  def step(kernel):
    matrix = kernel.reshape(-1, kernel.shape[-1])
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


def _times(rates):
  def scale(updates, params):
    del params
    unused = set(rates)

    def one(path, x):
      factor = 1.
      for name in (key.key for key in path if hasattr(key, 'key')):
        factor *= rates.get(name, 1.)
        unused.discard(name)
      return x * factor

    updates = jax.tree_util.tree_map_with_path(one, updates)
    for name in unused:
      check('group of parameters', list(updates), name)
    return updates

  return optax.stateless(scale)


def _matrices(params):
  return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)
