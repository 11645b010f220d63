"""Adversarial training: StyleGAN2's objective with EG3D's additions.

Vocabulary. A generator makes an image of a latent z as seen by a camera
(`label`); its mapping network is `told` a camera too, not always that one.
`fakes` and `reals` are what the discriminator sees, {name: [N, H, W, 3]}: an
`image` and, where there is rendering, the image `raw` as rendered. A step has
up to four phases, each with latents and an update of its own, as in the
official code: generator, its regularisation every few steps, discriminator,
R1 every few steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gen3d.engine.state import TrainState
from gen3d.ops import adversarial, images
from gen3d.tasks.adversaries import Latents


class Schedule(NamedTuple):
  """The numbers of the training; images are counted over all chips.

  Attributes:
    r1: weight gamma of the gradient penalty; half of it is applied.
    r1_every, regularize_every: steps between those phases; their losses are
      multiplied by it.
    swap: probability in the end that the mapping network is told another
      image's camera; it comes down from 1 over `swap_images`.
    blur: of all that the discriminator sees, in pixels at the start; it fades
      over `blur_images`.
    ema_images: half-life of the generator's average, at most `ema_ramp` of
      the images seen.
  """
  r1: float
  r1_every: int = 16
  regularize_every: int = 4
  swap: float = 0.5
  swap_images: int = 1_000_000
  blur: float = 10.0
  blur_images: int = 200_000
  ema_images: int = 10_000
  ema_ramp: float = 0.05


def create(key, adversaries, optimizers):
  """The TrainState of step 0; its average is the generator's alone.

  `params` has 'generator' and 'discriminator' (variables) and 'memory'.
  """
  networks = adversaries.init(key)
  return TrainState(
      step=jnp.zeros([], jnp.int32),
      params={**networks, 'memory': jnp.zeros(())},
      opt_state={name: optimizer.init(networks[name]['params'])
                 for name, optimizer in optimizers.items()},
      ema=jax.tree.map(jnp.copy, networks['generator']))


def lazy_adam(learning_rate, every, b2=0.99, eps=1e-8):
  """Adam for a network that has one more update in every `every` steps.

  StyleGAN2, appendix B: rate and decay are lowered so that a step of both
  does what one update would. `every` 0 is for no such phase.
  """
  share = every / (every + 1) if every else 1.0
  return optax.adam(learning_rate * share, b1=0.0, b2=b2 ** share, eps=eps)


class _Round(NamedTuple):
  """What the phases of one step share."""
  adversaries: Any
  optimizers: Any
  schedule: Schedule
  size: int       # of rendering
  blur: Callable
  latents: tuple  # of the phases that generate
  reals: Any
  label: Any      # of the reals


def step(state, batch, key, *, adversaries, optimizers, schedule):
  """One step of all phases that are due; see tasks.Task.

  Args:
    state: from `create`.
    batch: 'image' uint8 [N, R, R, 3], 'label' [N, L]; 'drawn' [N, 3, L],
      labels of other examples, one for each phase that generates; 'index'
      [N]; 'grid' [N, size], whose width says at which resolution to render:
      another one compiles another program.
    key: the step's.
    adversaries: Adversaries.
    optimizers: {'generator', 'discriminator'} of optax transformations.
    schedule: Schedule.
  """
  shown = len(batch['index']) * jax.lax.axis_size('chips')
  seen = state.step * shown
  size = batch['grid'].shape[1]
  sigma = schedule.blur * jnp.maximum(0, 1 - seen / schedule.blur_images)
  blur = lambda x: images.blur(x, (sigma, schedule.blur))
  swap = schedule.swap + (1 - schedule.swap) * jnp.maximum(
      0, 1 - seen / schedule.swap_images)
  latents = tuple(
      _latents(jax.random.fold_in(key, phase), batch, phase, swap,
               adversaries.z_width) for phase in range(3))
  reals = adversaries.prepare(batch['image'] / 127.5 - 1.0, size)
  this = _Round(adversaries, optimizers, schedule, size, blur, latents,
                jax.tree.map(blur, reals), batch['label'])
  metrics = {}
  for phase in (_generator_phase, _regularizer_phase, _discriminator_phase,
                _penalty_phase):
    state, found = phase(state, this)
    metrics |= found
  half_life = jnp.minimum(schedule.ema_images, seen * schedule.ema_ramp)
  decay = 0.5 ** (shown / jnp.maximum(half_life, 1e-8))
  generator = state.params['generator']
  average = jax.tree.map(lambda old, new: new + decay * (old - new),
                         state.ema['params'], generator['params'])
  return (state.replace(step=state.step + 1,
                        ema={**generator, 'params': average}),
          jax.lax.pmean(metrics, 'chips'))


def _generated(this, variables, latents):
  """What the discriminator is shown, and w [N, D]."""
  fakes, w = this.adversaries.generate(variables, latents, this.size)
  # What is rendered is not blurred itself: the real it is held against is.
  return {**fakes, 'image': this.blur(fakes['image'])}, w


def _generator_phase(state, this):
  def loss(variables, params):
    fakes, _ = _generated(this, variables, this.latents[0])
    logits = this.adversaries.judge(
        params['discriminator'], fakes, this.latents[0].label)
    return jnp.mean(nn.softplus(-logits)), {}

  state, found = _update(this.optimizers, 'generator', loss, state)
  return state, {'loss/generator': found['loss']}


def _regularizer_phase(state, this):
  if not this.adversaries.regularize:
    return state, {}
  every = this.schedule.regularize_every

  def loss(variables, params):
    value, memory = this.adversaries.regularize(
        variables, this.latents[1], params['memory'])
    return value * every, {'memory': memory}

  def regularized(state):
    state, found = _update(this.optimizers, 'generator', loss, state)
    memory = jax.lax.pmean(found['memory'], 'chips')
    return (state.replace(params={**state.params, 'memory': memory}),
            found['loss'] / every)

  state, value = _lazily(state, every, regularized)
  return state, {'loss/regularizer': value}


def _discriminator_phase(state, this):
  fakes, w = _generated(this, state.params['generator'], this.latents[2])
  fakes = jax.lax.stop_gradient(fakes)
  judge = this.adversaries.judge

  def loss(variables, params):
    del params
    fake = judge(variables, fakes, this.latents[2].label)
    real = judge(variables, this.reals, this.label)
    value = jnp.mean(nn.softplus(fake)) + jnp.mean(nn.softplus(-real))
    return value, {'fake': jnp.mean(fake), 'real': jnp.mean(real),
                   'sign': jnp.mean(jnp.sign(real))}

  state, found = _update(this.optimizers, 'discriminator', loss, state)
  generator = this.adversaries.average(state.params['generator'], w)
  state = state.replace(params={**state.params, 'generator': generator})
  return state, {'loss/discriminator': found['loss'],
                 'logits/fake': found['fake'], 'logits/real': found['real'],
                 'logits/real_sign': found['sign']}


def _penalty_phase(state, this):
  def loss(variables, params):
    del params
    value = adversarial.r1_penalty(
        lambda x: this.adversaries.judge(variables, x, this.label), this.reals)
    return 0.5 * this.schedule.r1 * this.schedule.r1_every * value, {
        'r1': value}

  def penalized(state):
    state, found = _update(this.optimizers, 'discriminator', loss, state)
    return state, found['r1']

  state, value = _lazily(state, this.schedule.r1_every, penalized)
  return state, {'loss/r1': value}


def _latents(key, batch, phase, swap, z_width):
  """Latents of one phase; an example's own come from its index."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['index'])
  z = jax.vmap(lambda k: jax.random.normal(k, (z_width,)))(keys)
  chance = jax.vmap(
      lambda k: jax.random.uniform(jax.random.fold_in(k, 1)))(keys)
  label = batch['drawn'][:, phase]
  told = jnp.where((chance < swap)[:, None], jnp.roll(label, 1, axis=0), label)
  return Latents(jax.random.fold_in(key, batch['index'][0]), z, told, label)


def _update(optimizers, name, loss, state):
  """One update of the network `name` by a loss of (variables, params)."""
  variables = state.params[name]

  def of_params(params):
    return loss({**variables, 'params': params}, state.params)

  (value, found), grads = jax.value_and_grad(of_params, has_aux=True)(
      variables['params'])
  grads = jax.lax.pmean(grads, 'chips')
  updates, opt_state = optimizers[name].update(
      grads, state.opt_state[name], variables['params'])
  variables = {**variables,
               'params': optax.apply_updates(variables['params'], updates)}
  state = state.replace(
      params={**state.params, name: variables},
      opt_state={**state.opt_state, name: opt_state})
  return state, {'loss': value, **found}


def _lazily(state, every, phase):
  """(state, number) of `phase` in every `every`th step, else nothing and 0.

  The number is multiplied by `every`, so that its mean over many steps is
  that over the steps that have one.
  """
  def due(state):
    state, number = phase(state)
    return state, number * every

  return jax.lax.cond(state.step % every == 0, due,
                      lambda state: (state, jnp.zeros(())), state)
