"""The adversarial training step: StyleGAN2's losses, EG3D's terms and ADA.

A step has up to four phases, each with latents and an optimizer update of its
own, as in the official code: generator, regularization of the generator every
few steps, discriminator, and R1 every few steps. At its end are the probability
of augmentation and the moving average. A program contains one or all of these.

Fakes and reals are dictionaries {name: [N, H, W, 3]}: 'image' and, where there
is neural rendering, 'image_raw', the image before super-resolution.

The random numbers of an example depend on its index in the batch, not on its
device. Two terms mix the examples of a device, as in the official code: the
minibatch standard deviation, and the path length penalty, which takes the
first N / path_shrink of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gen3d.engine.state import TrainState
from gen3d.gan import ada, regularizers
from gen3d.gan.networks import (
    GANNetworks,
    ImageDict,
    Latents,
    Variables,
    keys_of,
)
from gen3d.gan.schedule import Schedule, Static, fade, gamma
from gen3d.ops import images

Metrics = dict[str, Any]
Optimizers = dict[str, optax.GradientTransformation]


class StepContext(NamedTuple):
  """Values shared by the phases of one step.

  Attributes:
    blur_and_augment: (fakes or reals, number) -> the discriminator's input;
      each use within a step has a number of its own, for its random keys.
    latents: one Latents for each phase that generates images.
    gamma: [], weight of the gradient penalty, of which half is applied.
    label: [N, L], of the reals.
  """
  networks: GANNetworks
  optimizers: Optimizers
  schedule: Schedule
  static: Static
  step: Any              # int32 [], number of the step
  images_seen: Any       # [], before this step
  images_per_step: int
  blur_and_augment: Callable[[ImageDict, int], ImageDict]
  latents: tuple[Latents, ...]
  reals: ImageDict
  gamma: Any
  label: Any


def create(
    key: jax.Array, networks: GANNetworks, optimizers: Optimizers
) -> TrainState:
  """The TrainState of step 0.

  `params` holds the variables of 'generator' and 'discriminator', `ema` those
  of the averaged generator. `extra` holds 'pl_mean', the running mean of path
  lengths, and 'ada': the probability 'p' of augmentation and the sum 'signs'
  since p was last changed.
  """
  params = networks.init(key)
  return TrainState(
      step=jnp.zeros([], jnp.int32),
      params=params,
      opt_state={name: optimizer.init(params[name]['params'])
                 for name, optimizer in optimizers.items()},
      # A copy: the step donates its state, and a buffer only once.
      ema=jax.tree.map(jnp.copy, params['generator']),
      extra={'pl_mean': jnp.zeros(()),
             'ada': {'p': jnp.zeros(()), 'signs': jnp.zeros(())}})


def lazy_adam(
    learning_rate: float, interval: int, b2: float = 0.99, eps: float = 1e-8
) -> optax.GradientTransformation:
  """Adam for a network with one additional update every `interval` steps.

  StyleGAN2, appendix B: the rates are lowered so that the updates of all
  phases together change the network as much as without lazy regularization.
  `interval` 0 is for a network without such a phase.
  """
  ratio = interval / (interval + 1) if interval else 1.0
  return optax.adam(learning_rate * ratio, b1=0.0, b2=b2 ** ratio, eps=eps)


def sample_latents(
    key: jax.Array, batch: dict[str, jax.Array], phase: int,
    swap_prob: jax.Array | float, mixing_prob: float, z_dim: int,
    views: int = 1) -> Latents:
  """The Latents of one phase, with random numbers by the examples' indices.

  Args:
    key: of the phase.
    batch: with 'index' [N] and 'sampled_cameras' [N, 3, L].
    phase: number of the phase, which selects one of the sampled cameras.
    swap_prob: probability that the mapping network gets another one of them.
    mixing_prob: probability of style mixing.
    z_dim: Z.
    views: examples of each object, of which this device has all.
  """
  key_latent, key_image = jax.random.split(key)
  # An object has the key of its first example.
  keys = keys_of(key_latent, batch['index'][::views])
  z = jax.vmap(lambda k: jax.random.normal(k, (z_dim,)))(keys)
  # EG3D's generator pose conditioning: the mapping network sometimes gets the
  # camera of another image, so that shapes do not depend on the view.
  uniform = jax.vmap(
      lambda k: jax.random.uniform(jax.random.fold_in(k, 1)))(keys)
  labels = batch['sampled_cameras']
  label = labels[:, phase]
  another = labels[:, (phase + 1) % labels.shape[1]]
  mapping_camera = jnp.where(
      (uniform < swap_prob)[:, None], another[::views], label[::views])
  latents = Latents(key_image, batch['index'], z, mapping_camera, label)
  if not mixing_prob:
    return latents
  z_mix = jax.vmap(lambda k: jax.random.normal(
      jax.random.fold_in(k, 2), (z_dim,)))(keys)
  cutoff, uniform = jax.vmap(lambda k: jax.random.uniform(
      jax.random.fold_in(k, 3), (2,)))(keys).T
  return latents._replace(
      z_mix=z_mix, mix_cutoff=jnp.where(uniform < mixing_prob, cutoff, 1.0))


def step(
    state: TrainState, batch: dict[str, jax.Array], key: jax.Array, *,
    static: Static, networks: GANNetworks, optimizers: Optimizers,
    schedule: Schedule
) -> tuple[TrainState, Metrics]:
  """One step, or the phase of it that `static` names; see tasks.Task.

  Args:
    state: from `create`.
    batch: 'image' uint8 [N, R, R, 3], 'label' [N, L]; 'sampled_cameras'
      [N, 3, L], labels of other examples, one for each phase that generates
      images; 'index' [N].
    key: of the step.
    static: Static.
    networks: GANNetworks.
    optimizers: {'generator', 'discriminator'} of optax transformations.
    schedule: Schedule.
  """
  ctx = _context(state, batch, key, static, networks, optimizers, schedule)
  # The official order. Each phase takes the networks that the one before has
  # updated, so that the discriminator's fakes are of the new generator.
  phases = {'generator': _generator_phase, 'regularize': _regularizer_phase,
            'discriminator': _discriminator_phase, 'r1': _r1_phase,
            'end': _end}
  metrics: Metrics = {}
  for name, phase in phases.items():
    if static.phase in (None, name):
      state, values = phase(state, ctx)
      metrics |= values
  return state, jax.lax.pmean(metrics, 'devices')


def _context(state, batch, key, static, networks, optimizers, schedule):
  """The StepContext of a step; see `step` for the arguments."""
  if networks.at:
    networks = networks.at(state.step)
  images_per_step = len(batch['index']) * jax.lax.axis_size('devices')
  images_seen = state.step * images_per_step
  sigma = schedule.blur_init_sigma * fade(
      images_seen, schedule.blur_fade_images)
  blur = lambda x: images.blur(x, sigma, schedule.blur_init_sigma)
  swap_prob = schedule.pose_swap_prob + (1 - schedule.pose_swap_prob) * fade(
      images_seen, schedule.pose_swap_fade_images)
  # The generator, its regularization and the discriminator each have latents.
  latents = tuple(
      sample_latents(jax.random.fold_in(key, phase), batch, phase, swap_prob,
                     schedule.style_mixing_prob, networks.z_dim,
                     schedule.views_per_latent)
      for phase in range(3))
  # Pixels to [-1, 1].
  reals = networks.prepare_reals(
      batch['image'] / 127.5 - 1.0, static.render_size)
  # As in the official code: the raw image of a fake is not blurred, that of a
  # real is.
  reals = {name: x if name == 'image' else blur(x)
           for name, x in reals.items()}
  p = state.extra['ada']['p']

  def blur_and_augment(x, number):
    x = {**x, 'image': blur(x['image'])}
    if not schedule.ada_target:
      return x
    # Keys 0 to 2 are those of the latents.
    return ada.augment_examples(
        jax.random.fold_in(key, 3 + number), batch['index'], x, p)

  return StepContext(
      networks=networks, optimizers=optimizers, schedule=schedule,
      static=static, step=state.step, images_seen=images_seen,
      images_per_step=images_per_step, blur_and_augment=blur_and_augment,
      latents=latents, reals=reals, gamma=gamma(schedule, images_seen),
      label=batch['label'])


def _generator_phase(state, ctx):
  """Non-saturating loss of the generator."""
  latents, discriminator = ctx.latents[0], state.params['discriminator']

  def loss(variables):
    fakes, _ = ctx.networks.generate(
        variables, latents, ctx.static.render_size)
    logits, extra = _discriminate_fakes(
        ctx, discriminator, ctx.blur_and_augment(fakes, 0), latents)
    if ctx.schedule.relativistic:
      logits -= ctx.networks.discriminate(
          discriminator, ctx.blur_and_augment(ctx.reals, 2), ctx.label)
    value = _mean_of_top(nn.softplus(-logits), logits, ctx)
    return value + extra, value

  state, _, value = _update(state, ctx, 'generator', loss)
  return state, {'loss/generator': value}


def _discriminate_fakes(ctx, variables, fakes, latents):
  """(logits [N], the discriminator's own loss on fakes)."""
  if ctx.networks.discriminate_fakes:
    return ctx.networks.discriminate_fakes(variables, fakes, latents)
  return ctx.networks.discriminate(variables, fakes, latents.label), 0.0


def _mean_of_top(losses, logits, ctx):
  """Mean of the losses [N] of the fakes with the largest logits."""
  interval = ctx.schedule.top_k_interval
  if not interval:
    return jnp.mean(losses)
  fraction = jnp.maximum(
      0.99 ** (ctx.step / interval), ctx.schedule.top_k_floor)
  # Ranked over the whole batch, so that the choice does not depend on how it
  # is divided over the devices.
  everywhere = jax.lax.all_gather(logits, 'devices', tiled=True)
  rank = jnp.sum(everywhere[None, :] > logits[:, None], axis=1)
  count = jnp.ceil(fraction * len(everywhere))
  # The mean over the devices of this is the sum over all kept, by `count`.
  devices = len(everywhere) / len(logits)
  return jnp.sum(jnp.where(rank < count, losses, 0.0)) * devices / count


def _regularizer_phase(state, ctx):
  """Path length penalty (StyleGAN2) or density variation (EG3D), if due."""
  if not ctx.networks.regularize:
    return state, {}
  interval = ctx.schedule.g_reg_interval

  def phase(state):
    def loss(variables):
      value, pl_mean = ctx.networks.regularize(
          variables, ctx.latents[1], state.extra['pl_mean'])
      return value * interval, pl_mean

    state, value, pl_mean = _update(state, ctx, 'generator', loss)
    # Each device has updated it by its own images.
    pl_mean = jax.lax.pmean(pl_mean, 'devices')
    return (state.replace(extra={**state.extra, 'pl_mean': pl_mean}),
            value / interval)

  state, value = _if_due(state, ctx, interval, phase)
  return state, {'loss/regularizer': value}


def _discriminator_phase(state, ctx):
  """Logistic loss of the discriminator; also updates w_avg by its latents."""
  fakes, w = ctx.networks.generate(
      state.params['generator'], ctx.latents[2], ctx.static.render_size)
  # No gradient for the generator, whose w is used for w_avg only.
  fakes = ctx.blur_and_augment(jax.lax.stop_gradient(fakes), 1)
  reals = ctx.blur_and_augment(ctx.reals, 2)

  def loss(variables):
    fake, extra = _discriminate_fakes(ctx, variables, fakes, ctx.latents[2])
    real = ctx.networks.discriminate(variables, reals, ctx.label)
    value = (jnp.mean(nn.softplus(fake - real)) if ctx.schedule.relativistic
             else jnp.mean(nn.softplus(fake)) + jnp.mean(nn.softplus(-real)))
    metrics = {'loss/discriminator': value, 'logits/fake': jnp.mean(fake),
               'logits/real': jnp.mean(real),
               'logits/real_sign': jnp.mean(jnp.sign(real))}
    if ctx.schedule.joint_r1:
      penalty = _gradient_penalty(ctx, variables, lambda x: x, reals, fakes)
      extra += 0.5 * ctx.gamma * penalty
      metrics['loss/r1'] = penalty
    return value + extra, metrics

  state, _, metrics = _update(state, ctx, 'discriminator', loss)
  generator = ctx.networks.update_w_avg(state.params['generator'], w)
  state = state.replace(params={**state.params, 'generator': generator})
  if ctx.schedule.ada_target:
    recorded = ada.record(state.extra['ada'], jax.lax.pmean(
        metrics['logits/real_sign'], 'devices'))
    state = state.replace(extra={**state.extra, 'ada': recorded})
  return state, metrics


def _gradient_penalty(ctx, variables, transform, reals, fakes):
  """R1, and R2 where it is due, through a `transform` of the images."""
  penalty = regularizers.r1_penalty(
      lambda x: ctx.networks.discriminate(variables, transform(x), ctx.label),
      reals)
  if not ctx.schedule.r2:
    return penalty
  return penalty + regularizers.r1_penalty(
      lambda x: ctx.networks.discriminate(
          variables, transform(x), ctx.latents[2].label), fakes)


def _r1_phase(state, ctx):
  """The gradient penalty as an update of its own, if due."""
  if ctx.schedule.joint_r1:
    return state, {}
  interval = ctx.schedule.d_reg_interval

  def phase(state):
    fakes = None
    if ctx.schedule.r2:
      fakes, _ = ctx.networks.generate(
          state.params['generator'], ctx.latents[2], ctx.static.render_size)
      fakes = jax.lax.stop_gradient(fakes)

    def loss(variables):
      # Through the augmentation: the gradient is with respect to the images
      # before it, as in the official code.
      penalty = _gradient_penalty(
          ctx, variables, lambda x: ctx.blur_and_augment(x, 3), ctx.reals,
          fakes)
      return 0.5 * ctx.gamma * interval * penalty, penalty

    state, _, penalty = _update(state, ctx, 'discriminator', loss)
    return state, penalty

  state, value = _if_due(state, ctx, interval, phase)
  return state, {'loss/r1': value}


def _end(state, ctx):
  """Once a step: the probability of augmentation and the moving average."""
  state, metrics = _update_ada(state, ctx)
  state = _update_ema(state, ctx)
  # Where each phase is a program, one that is not due gives no metrics.
  if ctx.static.phase:
    metrics['loss/r1'] = jnp.zeros(())
    if ctx.networks.regularize:
      metrics['loss/regularizer'] = jnp.zeros(())
  return state.replace(step=state.step + 1), metrics


def _update_ada(state, ctx):
  """Adapts the probability of augmentation to the signs of logits on reals."""
  schedule = ctx.schedule
  if not schedule.ada_target:
    return state, {}
  updated = ada.update(
      state.extra['ada'], ctx.step, target=schedule.ada_target,
      interval=schedule.ada_interval,
      change=ctx.images_per_step * schedule.ada_interval / schedule.ada_images)
  return (state.replace(extra={**state.extra, 'ada': updated}),
          {'augment/probability': updated['p']})


def _update_ema(state, ctx):
  """The averaged generator; its buffers are those of the generator."""
  schedule = ctx.schedule
  half_life = (
      jnp.minimum(schedule.ema_images, ctx.images_seen * schedule.ema_ramp)
      if schedule.ema_ramp else schedule.ema_images)
  # A half-life in images: halved after that many, for any size of the batch.
  decay = 0.5 ** (ctx.images_per_step / jnp.maximum(half_life, 1e-8))
  generator = state.params['generator']
  average = jax.tree.map(lambda old, new: new + decay * (old - new),
                         state.ema['params'], generator['params'])
  return state.replace(ema={**generator, 'params': average})


def _update(
    state: TrainState, ctx: StepContext, name: str,
    loss: Callable[[Variables], tuple[jax.Array, Any]]
) -> tuple[TrainState, jax.Array, Any]:
  """One optimizer update of the network `name`.

  Args:
    state: TrainState.
    ctx: StepContext.
    name: 'generator' or 'discriminator'.
    loss: variables of the network -> (loss, auxiliary results).

  Returns:
    (state, loss, auxiliary results), the latter two of this device.
  """
  variables, optimizer = state.params[name], ctx.optimizers[name]

  def of_params(params):
    return loss({**variables, 'params': params})

  (value, aux), grads = jax.value_and_grad(of_params, has_aux=True)(
      variables['params'])
  # Averaged after differentiation, as shard_map expects; see sharding.pmap.
  grads = jax.lax.pmean(grads, 'devices')
  updates, opt_state = optimizer.update(
      grads, state.opt_state[name], variables['params'])
  variables = {**variables,
               'params': optax.apply_updates(variables['params'], updates)}
  state = state.replace(
      params={**state.params, name: variables},
      opt_state={**state.opt_state, name: opt_state})
  return state, value, aux


def _if_due(state, ctx, interval, phase):
  """Runs a phase that not every step has.

  Args:
    state: TrainState.
    ctx: StepContext.
    interval: steps from one such phase to the next; 0: never.
    phase: state -> (state, loss).

  Returns:
    (state, loss times `interval`, or 0 in steps without this phase): the mean
    over many steps is that over the steps with this phase.
  """
  def skip(state):
    return state, jnp.zeros(())

  # A program of one phase is run in the steps that have it only.
  if ctx.static.phase:
    state, value = phase(state)
  # An interval of 0 needs neither program nor condition.
  elif interval:
    state, value = jax.lax.cond(
        ctx.step % interval == 0, phase, skip, state)
  else:
    state, value = skip(state)
  return state, value * interval
