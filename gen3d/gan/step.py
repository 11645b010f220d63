"""Adversarial training: StyleGAN2's objective with EG3D's additions, and ADA.

Vocabulary. A generator makes an image of a latent z as seen by a camera
(`label`); its mapping network is `told` a camera too, not always that one.
`fakes` and `reals` are what the discriminator sees, {name: [N, H, W, 3]}: an
`image` and, where there is rendering, the image `raw` as rendered. A step has
up to four phases, each with latents and an update of its own, as in the
official code: generator, its regularization every few steps, discriminator,
R1 every few steps.

What is drawn for an example comes from its number, on whichever chip it is.
Two things look at the images of one chip together, as the official code does:
the minibatch deviation, and the path length, which is of the first few.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen3d.engine.state import TrainState
from gen3d.gan import regularizers
from gen3d.gan.networks import Latents, keys_of
from gen3d.ops import augment, images


class Schedule(NamedTuple):
  """The numbers of the training; images are counted over all chips.

  Attributes:
    r1_gamma: weight gamma of the gradient penalty; half of it is applied.
    d_reg_interval, g_reg_interval: steps between those phases; their losses are
      multiplied by it. 0 is for none.
    pose_swap_prob: probability in the end that the mapping network is told another
      image's camera; it comes down from 1 over `pose_swap_fade_images`.
    blur_init_sigma: of all that the discriminator sees, in pixels at the start; it fades
      over `blur_fade_images`.
    ema_images: half-life of the generator's average, at most `ema_ramp` of
      the images seen; 0 is no such limit.
    style_mixing_prob: probability that the later layers get another latent.
    ada_target: what the mean sign of the discriminator's outputs on reals
      is brought to by augmenting all that it sees (2006.06676); 0: never.
    ada_interval, ada_images: steps between adjustments of the
      augmentation's probability, and images that it needs to go from 0 to 1.
  """
  r1_gamma: float
  d_reg_interval: int = 16
  g_reg_interval: int = 4
  pose_swap_prob: float = 0.5
  pose_swap_fade_images: int = 1_000_000
  blur_init_sigma: float = 10.0
  blur_fade_images: int = 200_000
  ema_images: int = 10_000
  ema_ramp: float = 0.05
  style_mixing_prob: float = 0.0
  ada_target: float = 0.0
  ada_interval: int = 4
  ada_images: int = 500_000


def create(key, networks, optimizers):
  """The TrainState of step 0; its average is the generator's alone.

  `params` has 'generator' and 'discriminator' (variables), 'memory', and
  'augment': its probability and the sum of signs since it was last adjusted.
  """
  networks = networks.init(key)
  return TrainState(
      step=jnp.zeros([], jnp.int32),
      params={**networks, 'pl_mean': jnp.zeros(()),
              'augment': {'p': jnp.zeros(()), 'signs': jnp.zeros(())}},
      opt_state={name: optimizer.init(networks[name]['params'])
                 for name, optimizer in optimizers.items()},
      ema=jax.tree.map(jnp.copy, networks['generator']))


def due(step, count, schedule, apart=True):
  """What a batch says of the phases that not every step has.

  Args:
    step: number of the step.
    count: of images in the batch.
    schedule: Schedule.
    apart: whether each combination of phases is a program of its own: arrays
      have one column where a phase is due and none where it is not. Else they
      have two of ones or zeros, and one program, the only one to compile,
      chooses by them; but within a lax.cond XLA's convolutions on the CPU are
      thirty times slower.
  """
  every = {'regularize': schedule.g_reg_interval, 'r1': schedule.d_reg_interval}
  now = {name: int(steps > 0 and step % steps == 0)
         for name, steps in every.items()}
  return {name: np.full((count, is_due if apart else 2), is_due, np.uint8)
          for name, is_due in now.items()}


def lazy_adam(learning_rate, every, b2=0.99, eps=1e-8):
  """Adam for a network that has one more update in every `every` steps.

  StyleGAN2, appendix B: rate and decay are lowered so that a step of both
  does what one update would. `every` 0 is for no such phase.
  """
  share = every / (every + 1) if every else 1.0
  return optax.adam(learning_rate * share, b1=0.0, b2=b2 ** share, eps=eps)


def augmented(key, index, x, p):
  """Fakes or reals, each image changed as its raw one; ops/augment.py."""
  keys = keys_of(key, index)
  size = x['image'].shape[1]
  draws = jax.vmap(lambda key: augment.draw(key, p, size))(keys)
  return {name: augment.apply(images, draws) for name, images in x.items()}


def adjusted(memory, sign, step, *, target, every, change):
  """The augmentation's memory after a step (ADA, 2006.06676, section 3.2).

  Where the discriminator is surer of reals than wanted, over the last `every`
  steps, it overfits: they are changed more often.

  Args:
    memory: {'p': probability, 'signs': sum of signs since the last change}.
    sign: mean sign of the discriminator's outputs on reals in this step.
    step: number of the step, from 0.
    target: mean sign that is wanted.
    every: steps.
    change: of p, which stays within [0, 1].
  """
  signs = memory['signs'] + sign
  moved = jnp.clip(
      memory['p'] + change * jnp.sign(signs / every - target), 0, 1)
  due = (step + 1) % every == 0
  return {'p': jnp.where(due, moved, memory['p']),
          'signs': jnp.where(due, 0.0, signs)}


class _Round(NamedTuple):
  """What the phases of one step share."""
  networks: Any
  optimizers: Any
  schedule: Schedule
  size: int          # of rendering
  present: Callable  # (fakes or reals, number) -> as they are to be judged
  latents: tuple     # of the phases that generate
  reals: Any
  label: Any         # of the reals
  due: dict          # see `due`


def step(state, batch, key, *, networks, optimizers, schedule):
  """One step of all phases that are due; see tasks.Task.

  Args:
    state: from `create`.
    batch: 'image' uint8 [N, R, R, 3], 'label' [N, L]; 'sampled_cameras' [N, 3, L],
      labels of other examples, one for each phase that generates; 'index'
      [N]; 'grid' [N, size], whose width says at which resolution to render:
      another one compiles another program; and 'due', see `due`.
    key: the step's.
    networks: GANNetworks.
    optimizers: {'generator', 'discriminator'} of optax transformations.
    schedule: Schedule.
  """
  shown = len(batch['index']) * jax.lax.axis_size('devices')
  seen = state.step * shown
  size = batch['grid'].shape[1]
  sigma = schedule.blur_init_sigma * _left(seen, schedule.blur_fade_images)
  blur = lambda x: images.blur(x, (sigma, schedule.blur_init_sigma))
  swap = schedule.pose_swap_prob + (1 - schedule.pose_swap_prob) * _left(
      seen, schedule.pose_swap_fade_images)
  latents = tuple(
      _latents(jax.random.fold_in(key, phase), batch, phase, swap,
               schedule.style_mixing_prob, networks.z_dim) for phase in range(3))
  reals = networks.prepare_reals(batch['image'] / 127.5 - 1.0, size)
  # What is rendered is not blurred itself: the real it is held against is.
  reals = {name: x if name == 'image' else blur(x)
           for name, x in reals.items()}
  p = state.params['augment']['p']

  def present(x, number):
    x = {**x, 'image': blur(x['image'])}
    if not schedule.ada_target:
      return x
    return augmented(
        jax.random.fold_in(key, 3 + number), batch['index'], x, p)

  this = _Round(networks, optimizers, schedule, size, present, latents,
                reals, batch['label'], batch['due'])
  metrics = {}
  for phase in (_generator_phase, _regularizer_phase, _discriminator_phase,
                _penalty_phase):
    state, found = phase(state, this)
    metrics |= found
  state, found = _control_phase(state, this, metrics['logits/real_sign'])
  metrics |= found
  half_life = (jnp.minimum(schedule.ema_images, seen * schedule.ema_ramp)
               if schedule.ema_ramp else schedule.ema_images)
  decay = 0.5 ** (shown / jnp.maximum(half_life, 1e-8))
  generator = state.params['generator']
  average = jax.tree.map(lambda old, new: new + decay * (old - new),
                         state.ema['params'], generator['params'])
  return (state.replace(step=state.step + 1,
                        ema={**generator, 'params': average}),
          jax.lax.pmean(metrics, 'devices'))


def _generator_phase(state, this):
  def loss(variables, params):
    fakes, _ = this.networks.generate(
        variables, this.latents[0], this.size)
    logits = this.networks.discriminate(
        params['discriminator'], this.present(fakes, 0), this.latents[0].label)
    return jnp.mean(nn.softplus(-logits)), {}

  state, found = _update(this.optimizers, 'generator', loss, state)
  return state, {'loss/generator': found['loss']}


def _regularizer_phase(state, this):
  if not this.networks.regularize:
    return state, {}
  every = this.schedule.g_reg_interval

  def loss(variables, params):
    value, memory = this.networks.regularize(
        variables, this.latents[1], params['pl_mean'])
    return value * every, {'pl_mean': memory}

  def regularized(state):
    state, found = _update(this.optimizers, 'generator', loss, state)
    memory = jax.lax.pmean(found['pl_mean'], 'devices')
    return (state.replace(params={**state.params, 'pl_mean': memory}),
            found['loss'] / every)

  state, value = _lazily(
      state, this.due['regularize'], every, regularized)
  return state, {'loss/regularizer': value}


def _discriminator_phase(state, this):
  fakes, w = this.networks.generate(
      state.params['generator'], this.latents[2], this.size)
  fakes = this.present(jax.lax.stop_gradient(fakes), 1)
  reals = this.present(this.reals, 2)
  discriminate = this.networks.discriminate

  def loss(variables, params):
    del params
    fake = discriminate(variables, fakes, this.latents[2].label)
    real = discriminate(variables, reals, this.label)
    value = jnp.mean(nn.softplus(fake)) + jnp.mean(nn.softplus(-real))
    return value, {'fake': jnp.mean(fake), 'real': jnp.mean(real),
                   'sign': jnp.mean(jnp.sign(real))}

  state, found = _update(this.optimizers, 'discriminator', loss, state)
  generator = this.networks.update_w_avg(state.params['generator'], w)
  state = state.replace(params={**state.params, 'generator': generator})
  return state, {'loss/discriminator': found['loss'],
                 'logits/fake': found['fake'], 'logits/real': found['real'],
                 'logits/real_sign': found['sign']}


def _control_phase(state, this, sign):
  """The augmentation's probability follows the signs of the reals."""
  schedule = this.schedule
  if not schedule.ada_target:
    return state, {}
  shown = len(this.label) * jax.lax.axis_size('devices')
  memory = adjusted(
      state.params['augment'], jax.lax.pmean(sign, 'devices'), state.step,
      target=schedule.ada_target, every=schedule.ada_interval,
      change=shown * schedule.ada_interval / schedule.ada_images)
  return (state.replace(params={**state.params, 'augment': memory}),
          {'augment/probability': memory['p']})


def _penalty_phase(state, this):
  def loss(variables, params):
    del params
    value = regularizers.r1_penalty(
        lambda x: this.networks.discriminate(
            variables, this.present(x, 3), this.label), this.reals)
    return 0.5 * this.schedule.r1_gamma * this.schedule.d_reg_interval * value, {
        'r1': value}

  def penalized(state):
    state, found = _update(this.optimizers, 'discriminator', loss, state)
    return state, found['r1']

  state, value = _lazily(
      state, this.due['r1'], this.schedule.d_reg_interval, penalized)
  return state, {'loss/r1': value}


def _left(seen, images):
  """Falls from 1 to 0 while `images` are seen; 0 where that is none."""
  return jnp.maximum(0, 1 - seen / images) if images else 0.0


def _latents(key, batch, phase, swap, mix, z_dim):
  """Latents of one phase; an example's own come from its index."""
  key_latent, key_image = jax.random.split(key)
  keys = keys_of(key_latent, batch['index'])
  z = jax.vmap(lambda k: jax.random.normal(k, (z_dim,)))(keys)
  chance = jax.vmap(
      lambda k: jax.random.uniform(jax.random.fold_in(k, 1)))(keys)
  drawn = batch['sampled_cameras']
  label, another = drawn[:, phase], drawn[:, (phase + 1) % drawn.shape[1]]
  told = jnp.where((chance < swap)[:, None], another, label)
  latents = Latents(key_image, batch['index'], z, told, label)
  if not mix:
    return latents
  other = jax.vmap(lambda k: jax.random.normal(
      jax.random.fold_in(k, 2), (z_dim,)))(keys)
  crossing, lot = jax.vmap(lambda k: jax.random.uniform(
      jax.random.fold_in(k, 3), (2,)))(keys).T
  return latents._replace(
      z_mix=other, mix_cutoff=jnp.where(lot < mix, crossing, 1.0))


def _update(optimizers, name, loss, state):
  """One update of the network `name` by a loss of (variables, params)."""
  variables = state.params[name]

  def of_params(params):
    return loss({**variables, 'params': params}, state.params)

  (value, found), grads = jax.value_and_grad(of_params, has_aux=True)(
      variables['params'])
  grads = jax.lax.pmean(grads, 'devices')
  updates, opt_state = optimizers[name].update(
      grads, state.opt_state[name], variables['params'])
  variables = {**variables,
               'params': optax.apply_updates(variables['params'], updates)}
  state = state.replace(
      params={**state.params, name: variables},
      opt_state={**state.opt_state, name: opt_state})
  return state, {'loss': value, **found}


def _lazily(state, due, every, phase):
  """(state, number) of `phase` where it is due (see `due`), else 0.

  The number is multiplied by `every`, so that its mean over many steps is
  that over the steps that have one.
  """
  def nothing(state):
    return state, jnp.zeros(())

  columns = due.shape[1]
  state, number = (
      jax.lax.cond(due[0, 0] > 0, phase, nothing, state) if columns == 2
      else phase(state) if columns else nothing(state))
  return state, number * every
