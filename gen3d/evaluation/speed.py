"""What to time of a config and how, for gen3d.benchmark."""

import copy
import functools
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import pick
from gen3d.engine import sharding
from gen3d.gan import networks as gan_networks
from gen3d.models import eg3d
from gen3d.ops import cameras
from gen3d.scenes import View, radiance
from gen3d.tasks import gan

_LAZY = {'regularize': 'regularization', 'r1': 'R1'}  # As batches name them.


def _gan_sizes(config):
  sizes = {'image': config.resolution, 'batch': config.batch}
  if 'render_size' in config:
    rendering = gan_networks.eg3d_generator(config.model).rendering
    sizes |= {'rays a side': gan.size_at(config, 0),
              'samples a ray': (rendering.samples_coarse, rendering.samples_fine)}
  return sizes


_SIZES = {
    'gan': _gan_sizes,
    'reconstruction': lambda config: {
        'rays a step': config.batch,
        'samples a ray': (config.scene.coarse.samples,
                          config.scene.fine.samples)},
    'text_to_3d': lambda config: {
        'views a step': config.views, 'rays a side': config.scene.size,
        'samples a ray': (config.scene.samples,
                          config.scene.importance.samples)},
    'text_to_image': lambda config: {
        'image': config.model.size, 'batch': config.batch},
    'clip': lambda config: {
        'image': config.image.resolution, 'batch': config.batch}}


def sizes(config):
  """{what: number, or those of a first and second pass} that cost depends on.

  Args:
    config: of any task; a GAN's `settled`.
  """
  return pick('task', _SIZES, config.task)(config)


def settled(config):
  """A GAN's config that renders at the last size of its schedule throughout.

  Most of a training is at that size, and one size is what numbers of the
  whole and of its parts can be compared at.

  Raises:
    UserError: at numbers that no training can be made of.
  """
  gan.check(config)
  config = copy.deepcopy(config)
  if 'render_size' in config:
    config.render_size = ((0, config.render_size[-1][1]),)
  return config


def lazy_phases(config):
  """{phase, as batches name it: steps from one to the next} of a GAN.

  Without those that it does not have.
  """
  schedule = config.schedule
  every = {'r1': schedule.d_reg_interval}
  if gan.build(config).regularize:
    every = {'regularize': schedule.g_reg_interval, **every}
  return {phase: steps for phase, steps in every.items() if steps}


def phases(config, seconds_with):
  """Yields (what, seconds) of a GAN's phases, by differences, and of a step.

  Args:
    config: of a GAN.
    seconds_with: names of lazy phases -> seconds of a step that has these.
  """
  due, last = [], seconds_with([])
  average = last
  yield 'generator and discriminator phase', last
  for phase, every in lazy_phases(config).items():
    due.append(phase)
    seconds = seconds_with(due)
    yield f'{_LAZY[phase]}, every {ordinal(every)}', seconds - last
    average += (seconds - last) / every
    last = seconds
  yield 'training step on average', average


def with_phases(batch, phases):
  """A GAN's batch of step 0, at which all are due, with `phases` alone."""
  absent = lambda x: x[:, :0] if x.shape[1] < 2 else np.zeros_like(x)
  return {**batch, 'due': {
      phase: x if phase in phases else absent(x)
      for phase, x in batch['due'].items()}}


class Step:
  """A training step that can be repeated, though it gives its state away."""

  def __init__(self, task, state, mesh):
    self._step = sharding.pmap(task.step, mesh, task.execution)
    self._state, self._mesh = state, mesh
    self._key = sharding.replicate(jax.random.key(1), mesh)

  def params(self):
    """What has been trained, on one device; gone with the next step."""
    return sharding.unreplicate(self._state.params)

  def planned_gigabytes(self, batch):
    """What the compiler plans for a step on one chip, arguments included."""
    batch = sharding.to_devices(batch, self._mesh)
    plan = self._step.lower(
        self._state, batch, self._key).compile().memory_analysis()
    return (plan.temp_size_in_bytes + plan.argument_size_in_bytes) / 1e9

  def seconds(self, batch, repeats):
    """Median seconds of a step on a batch."""
    batch = sharding.to_devices(batch, self._mesh)
    return median(lambda: self._once(batch), repeats)

  def once(self, batch):
    """Does one step on a batch."""
    self._once(sharding.to_devices(batch, self._mesh))

  def _once(self, batch):
    self._state, metrics = self._step(self._state, batch, self._key)
    jax.block_until_ready((self._state, metrics))


def median(function, repeats):
  """Median seconds of a call, a first one left aside."""
  times = []
  for _ in range(repeats + 1):
    begin = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - begin)
  return float(np.median(times[1:]))


def peak_gigabytes():
  """Of the device where it tells, else of the process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    return stats['peak_bytes_in_use'] / 1e9
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def rated(seconds):
  """Seconds and their rate in words; a difference may be lost in the noise."""
  said = f'{1 / seconds:.2f} /s' if seconds > 0 else 'within the noise'
  return f'{seconds:.3g} s ({said})'


def ordinal(steps):
  """Which steps, after 'every': 'step', '2nd step', '16th step'."""
  if steps == 1:
    return 'step'
  ends = {1: 'st', 2: 'nd', 3: 'rd'} if steps // 10 % 10 != 1 else {}
  return f'{steps}{ends.get(steps % 10, "th")} step'


def joined(number):
  """A number, or those of two passes, in words."""
  return ' + '.join(map(str, number)) if isinstance(number, tuple) else number


def parts(config, variables):
  """{name: function of nothing} for the parts of EG3D's networks.

  Args:
    config: `settled`.
    variables: a training's `params`, on one device.
  """
  networks = gan.build(config)
  generator = gan_networks.eg3d_generator(config.model)
  rendering, size = generator.rendering, gan.size_at(config, 0)
  made, judged = variables['generator'], variables['discriminator']
  count = config.batch
  distance = (1.5 * rendering.box_warp if rendering.ray_start == 'auto'
              else (rendering.ray_start + rendering.ray_end) / 2)
  label = jnp.tile(cameras.to_label(
      cameras.orbit(20.0, 10.0, distance, 1.35)), (count, 1))
  latents = gan_networks.Latents(
      jax.random.key(1), jnp.arange(count),
      jnp.ones((count, networks.z_dim)), label, label)
  draws = eg3d.draw(jax.random.key(2), count, size, rendering)
  planes = jnp.zeros((count, *2 * (config.model.synthesis.resolution,), 3,
                      generator.features))

  def generated(made, latents):
    return networks.generate(made, latents, size)[0]

  def rendered(made, planes, draws):
    return generator.apply(
        made, planes, label, size, draws, method='features_at')[0]

  def pulled(made, planes, draws):
    return jax.grad(lambda planes: jnp.sum(
        rendered(made, planes, draws) ** 2))(planes)

  fakes = jax.tree.map(lambda x: jnp.zeros(x.shape),
                       jax.eval_shape(generated, made, latents))
  parts = {
      'generator forward': (generated, made, latents),
      'rendering forward': (rendered, made, planes, draws),
      'rendering forward and backward': (pulled, made, planes, draws),
      'discriminator forward': (networks.discriminate, judged, fakes, label)}
  # Arguments: what is closed over, the compiler works out itself if it can.
  return {name: functools.partial(jax.jit(part), *arguments)
          for name, (part, *arguments) in parts.items()}


def rendering(config, params, batch, chips):
  """A function of nothing that renders a chip's share of a batch of rays."""
  scene = radiance.make(config.scene, params['frame'])
  count = config.batch // chips
  camera, pixel = jax.tree.map(
      lambda x: jnp.asarray(x[:count]), (batch['camera'], batch['pixel']))
  rays = cameras.rays_through(camera, pixel, config.data.size)
  view = View(None, rays, None, jnp.ones(3), jnp.float32(1.0))
  render = jax.jit(lambda params: scene.render(params, None, view).image)
  return lambda: render(params)
