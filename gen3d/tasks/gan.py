"""Adversarial training: StyleGAN2's objective with EG3D's additions.

Vocabulary. A generator makes an image of a latent z as seen by a camera
(`label`); its mapping network is `told` a camera too, not always that one.
`fakes` and `reals` are what the discriminator sees, {name: [N, H, W, 3]}: an
`image` and, where there is rendering, the image `raw` as rendered. A step has
up to four phases, each with latents and an update of its own, as in the
official code: generator, its regularisation every few steps, discriminator,
R1 every few steps.
"""

from typing import NamedTuple

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
  latents = [_latents(jax.random.fold_in(key, phase), batch, phase, swap,
                      adversaries.z_width) for phase in range(3)]
  reals = adversaries.prepare(batch['image'] / 127.5 - 1.0, size)
  reals = jax.tree.map(blur, reals)
  update = lambda *args: _update(optimizers, *args)

  def generated(variables, latents):
    fakes, w = adversaries.generate(variables, latents, size)
    # What is rendered is not blurred itself: the real it is held against is.
    return {**fakes, 'image': blur(fakes['image'])}, w

  def generator_loss(variables, params):
    fakes, _ = generated(variables, latents[0])
    logits = adversaries.judge(
        params['discriminator'], fakes, latents[0].label)
    return jnp.mean(nn.softplus(-logits)), {}

  state, metrics = update('generator', generator_loss, state)
  metrics = {'loss/generator': metrics['loss']}

  if adversaries.regularize:
    def regularizer(variables, params):
      loss, memory = adversaries.regularize(
          variables, latents[1], params['memory'])
      return loss * schedule.regularize_every, {'memory': memory}

    def regularized(state):
      state, found = update('generator', regularizer, state)
      memory = jax.lax.pmean(found['memory'], 'chips')
      return (state.replace(params={**state.params, 'memory': memory}),
              found['loss'] / schedule.regularize_every)

    state, loss = _lazily(state, schedule.regularize_every, regularized)
    metrics['loss/regularizer'] = loss

  fakes, w = generated(state.params['generator'], latents[2])
  fakes = jax.lax.stop_gradient(fakes)

  def discriminator_loss(variables, params):
    del params
    fake = adversaries.judge(variables, fakes, latents[2].label)
    real = adversaries.judge(variables, reals, batch['label'])
    loss = jnp.mean(nn.softplus(fake)) + jnp.mean(nn.softplus(-real))
    return loss, {'fake': jnp.mean(fake), 'real': jnp.mean(real),
                  'sign': jnp.mean(jnp.sign(real))}

  state, found = update('discriminator', discriminator_loss, state)
  generator = adversaries.average(state.params['generator'], w)
  state = state.replace(params={**state.params, 'generator': generator})
  metrics |= {'loss/discriminator': found['loss'],
              'logits/fake': found['fake'], 'logits/real': found['real'],
              'logits/real_sign': found['sign']}

  def penalty(variables, params):
    del params
    loss = adversarial.r1_penalty(lambda x: adversaries.judge(
        variables, x, batch['label']), reals)
    return 0.5 * schedule.r1 * schedule.r1_every * loss, {'r1': loss}

  def penalized(state):
    state, found = update('discriminator', penalty, state)
    return state, found['r1']

  state, metrics['loss/r1'] = _lazily(state, schedule.r1_every, penalized)
  half_life = jnp.minimum(schedule.ema_images, seen * schedule.ema_ramp)
  decay = 0.5 ** (shown / jnp.maximum(half_life, 1e-8))
  average = jax.tree.map(lambda old, new: new + decay * (old - new),
                         state.ema['params'], generator['params'])
  ema = {**generator, 'params': average}
  return (state.replace(step=state.step + 1, ema=ema),
          jax.lax.pmean(metrics, 'chips'))


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
