"""Training of a GAN on images: EG3D, with their cameras, and others.

The training step is in gan/step.py; gan/build.py selects the networks.

Where a config has `stages`, a tuple of Stage, the resolution of the images,
the batch and the learning rates depend on the step (pi-GAN's curricula).
Elsewhere `render_size` is the resolution of the neural rendering by the number
of images seen. Times in both that are floats of at most 1 are fractions of the
training (ops/schedules.py).
"""

import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen3d import assets
from gen3d.choices import UserError, pick
from gen3d.data.images import camera_labels, dataset
from gen3d.data.images import open as opening
from gen3d.engine import checkpoints, devices, sharding
from gen3d.engine import state as states
from gen3d.engine.release import save_release
from gen3d.engine.state import TrainState
from gen3d.gan import build as gan_build
from gen3d.gan import cameras, costs, inference, sampling
from gen3d.gan import schedule as gan_schedule
from gen3d.gan import step as gan_step
from gen3d.io import images as image_io
from gen3d.metrics import distribution, features
from gen3d.ops import schedules
from gen3d.render import objects
from gen3d.tasks import Costs, Task, check_least, load_config


class Stage(NamedTuple):
  """One stage of a curriculum.

  Attributes:
    start: number of its first step.
    pixels: a side of the images that are generated and discriminated.
    batch: examples of a step.
    generator_rate, discriminator_rate: learning rates.
  """
  start: int
  pixels: int
  batch: int
  generator_rate: float
  discriminator_rate: float


# (learning rate: number or schedule, steps from one lazy regularization to the
# next) -> optimizer
OPTIMIZERS: dict[str, Callable[
    [Any, int], optax.GradientTransformation]] = {
        'lazy_adam': gan_step.lazy_adam,
        'adam': lambda rate, _: optax.adam(rate, b1=0.0, b2=0.9),
        # PyTorch's RMSprop: the epsilon is outside the root.
        'rmsprop': lambda rate, _: optax.rmsprop(
            rate, decay=0.99, eps=1e-8, eps_in_sqrt=False)}


def make(config: Any) -> Task:
  """The Task of a config of configs/eg3d.py or configs/stylegan2.py.

  Raises:
    UserError: the data or the weights of `start_from` cannot be read, or the
      data do not fit the networks.
  """
  check(config)
  if config.start_from:  # An error before the data are read.
    for file in (config.start_from, discriminator_path(config.start_from)):
      assets.load(file, 'gan')
  source = _open_data(config)
  networks = gan_build.networks(config, source.labels.shape[1])
  schedule = gan_schedule.Schedule(**config.schedule)
  # Lazy regularization lowers Adam's rates for a phase that comes on top; a
  # generator without such a phase must keep them.
  if not networks.regularize:
    schedule = schedule._replace(g_reg_interval=0)
  optimizers = {
      'generator': optimizer(
          config, 'generator_rate', schedule.g_reg_interval),
      'discriminator': optimizer(
          config, 'discriminator_rate', schedule.d_reg_interval)}

  def init(key):
    # As one program: otherwise each of its operations is compiled by itself.
    state = devices.jit_once(functools.partial(
        gan_step.create, networks=networks, optimizers=optimizers))(key)
    if not config.start_from:
      return state
    return start_from(state, config.start_from)

  report = functools.partial(
      evaluate, size_at=functools.partial(render_size_at, config),
      sheet_of=_sample_sheet_fn(config, networks, source),
      measure=_distance_fn(config, networks, source))

  def finish(state, workdir):
    # Named as the assets that ship, for which they are candidates.
    scalars, _ = report(state, None)
    path = assets.FOLDER / f'{config.networks}_{config.name}.safetensors'
    return [
        *save_release(path, config, state, workdir, evaluation=scalars,
                      camera=typical_camera(config, source)),
        *save_release(discriminator_path(path), config, state, workdir,
                      weights=state.params['discriminator'])]

  return Task(
      init=init,
      step=functools.partial(gan_step.step, networks=networks,
                             optimizers=optimizers, schedule=schedule),
      batches=functools.partial(batches, config=config, source=source),
      evaluate=report,
      finish=finish,
      static=lambda step: gan_schedule.static_of(
          step, schedule, render_size_at(config, step)),
      execution=sharding.Execution(
          minimize_memory=True,
          # The minibatch standard deviation is over the images of a device.
          min_per_device=max(
              min(config.model.discriminator.get('mbstd_group', 1),
                  config.batch), schedule.views_per_latent),
          min_per_device_key='model.discriminator.mbstd_group',
          batch_sizes=tuple(stage.batch for stage in _stages(config))),
      costs=functools.partial(_costs, config, networks, schedule),
      scheduled=functools.partial(_scheduled, config, schedule))


def check(config: Any) -> None:
  """Raises UserError where numbers in a config make no training possible."""
  schedule = config.schedule
  check_least(config, {
      'batch': 1, 'data.count': 1, 'schedule.d_reg_interval': 0,
      'schedule.g_reg_interval': 0, 'schedule.ada_interval': 1,
      'render_bucket': 1, 'resolution': 1})
  views = schedule.get('views_per_latent', 1)
  if views != 1 and config.networks != 'eg3d':
    raise UserError(f'--config.schedule.views_per_latent is {views}, but only '
                    'EG3D renders several views of an object in a step.')
  if views < 1 or config.batch % views:
    raise UserError(f'--config.batch is {config.batch}, which must be a '
                    f'multiple of schedule.views_per_latent ({views}).')
  pick('kind of networks', gan_build.NETWORKS, config.networks)
  data = config.data
  # Rendering them takes long.
  if data.path.startswith('shapes:') and data.get(
      'size', config.resolution) != config.resolution:
    raise UserError(
        f'--config.data.size is {data.size} and --config.resolution is '
        f'{config.resolution}; set both to the same number of pixels.')
  if 'stages' in config:
    _check_stages(config)
  if 'render_size' not in config:
    return
  pairs = config.render_size
  if not pairs or not all(
      isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
    raise UserError(
        f'--config.render_size is {pairs}; write pairs of images seen and '
        "rays a side, as '((0, 32),)'.")
  images_seen, sizes = zip(*_render_sizes(config), strict=True)
  rising = list(images_seen) == sorted(set(images_seen))
  if not rising or min(sizes) < config.render_bucket:
    raise UserError(
        f'--config.render_size is {pairs}; images seen must rise, and rays a '
        f'side be at least render_bucket ({config.render_bucket}).')


def _check_stages(config):
  """Raises UserError where a config's `stages` are no curriculum."""
  width = len(Stage._fields)
  given = config.stages if isinstance(config.stages, tuple | list) else ()
  if not given or any(not isinstance(stage, tuple | list)
                      or len(stage) != width for stage in given):
    raise UserError(f'--config.stages is {config.stages}; give tuples of '
                    f'{", ".join(Stage._fields)}.')
  stages = _stages(config)
  starts = [stage.start for stage in stages]
  if starts[0] != 0 or starts != sorted(set(starts)):
    raise UserError(f'--config.stages start at the steps {starts}; the first '
                    'must be 0 and the others must rise.')
  # Its number of updates is not that of the steps, by which rates change.
  if len(stages) > 1 and config.get('optimizer', 'lazy_adam') == 'lazy_adam':
    raise UserError('--config.stages need --config.optimizer=adam or rmsprop, '
                    'with one update in a step.')
  if min(min(stage.pixels, stage.batch) for stage in stages) < 1:
    raise UserError(f'--config.stages is {config.stages}; pixels and batch '
                    'must be at least 1.')


def _stages(config) -> list[Stage]:
  """The curriculum of a config; one stage where it has none."""
  if 'stages' in config:
    return [Stage(schedules.step_of(start, config.steps), *rest)
            for start, *rest in config.stages]
  return [Stage(0, config.resolution, config.batch, config.generator_rate,
                config.discriminator_rate)]


def optimizer(
    config: Any, rate: str, interval: int) -> optax.GradientTransformation:
  """The optimizer of one network.

  Args:
    config: ConfigDict; `optimizer` is a key of OPTIMIZERS, and `clip_norm`
      the largest norm of the gradient, if any.
    rate: field of Stage, the network's learning rate.
    interval: steps from one lazy regularization to the next; 0 for none.

  Raises:
    UserError: there is no such optimizer.
  """
  stages = _stages(config)
  starts = jnp.array([stage.start for stage in stages])
  rates = [getattr(stage, rate) for stage in stages]
  make_optimizer = pick('optimizer', OPTIMIZERS,
                        config.get('optimizer', 'lazy_adam'))
  chosen = make_optimizer(
      rates[0] if len(rates) == 1 else lambda count: jnp.array(rates)[
          jnp.searchsorted(starts, count, side='right') - 1], interval)
  if not config.get('clip_norm'):
    return chosen
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), chosen)


def _open_data(config) -> dataset.Images:
  """The training images, checked against the config."""
  source = opening.open_data(config.data)
  # Each half of the real images needs a covariance, that is two images.
  if config.distance_count and len(source.names) < 4:
    raise UserError(f'{source.where} has {len(source.names)} images, too few '
                    'to measure distances by; set --config.distance_count=0.')
  if source.size != config.resolution:
    raise UserError(
        f'{source.where} has images of {source.size} pixels, but the config '
        f'is for {config.resolution}; resize them, or change '
        '--config.resolution and the super-resolution.')
  # Labels of no columns: networks and batches then have no labels either.
  if not config.get('conditional', True):
    source = source._replace(labels=source.labels[:, :0])
  return source


def start_from(state: TrainState, path: str | os.PathLike) -> TrainState:
  """A new TrainState with the networks of an earlier training.

  The averaged generator of that training becomes generator and average.

  Args:
    state: of step 0.
    path: the generator's .safetensors, as written by `finish`, with the
      discriminator's in the same folder.

  Raises:
    UserError: one of the files is missing, damaged or of other networks.
  """
  params = dict(state.params)
  for name, file in (('generator', path),
                     ('discriminator', discriminator_path(path))):
    params[name], _ = assets.load(file, 'gan')
    assets.check_fits(file, params[name], state.params[name], name)
  # A copy: the step donates its state, and a buffer only once.
  return state.replace(params=params, ema=states.copy(params['generator']))


def discriminator_path(path: str | os.PathLike) -> pathlib.Path:
  """The file of the discriminator that was trained with a generator."""
  path = pathlib.Path(path)
  return path.with_stem(path.stem + inference.DISCRIMINATOR)


def batches(
    seed: int, first_step: int, *, config: Any, source: dataset.Images
) -> Iterator[dict[str, np.ndarray]]:
  """Training batches for gan_step.step; see tasks.Task."""
  stages = _stages(config)
  ends = [stage.start for stage in stages[1:]] + [None]
  for stage, end in zip(stages, ends, strict=True):
    start = max(first_step, stage.start)
    if end is None or start < end:
      yield from itertools.islice(
          _stage_batches(seed, start, stage.batch, config, source),
          None if end is None else end - start)


def _stage_batches(seed, first_step, count, config, source):
  """Batches of `count` examples, from step `first_step` without end."""
  labels = source.labels
  images = dataset.batches(
      source, count, seed, first_step, mirror=config.data.mirror,
      rows=sharding.rows(count))
  for step, batch in enumerate(images, first_step):
    # The last number separates this stream from those of dataset.batches.
    rng = np.random.default_rng((seed, step, 2))
    # Of the whole batch on every process, which decodes only its own images.
    sampled = labels[rng.integers(len(labels), size=(count, 3))]
    # Mirrored as often as the images, so that both have one distribution.
    if config.data.mirror and labels.shape[1]:
      flips = rng.random((count, 3, 1)) < 0.5
      sampled = np.where(flips, camera_labels.mirror_label(sampled), sampled)
    yield {**batch, 'sampled_cameras': sampled}


def render_size_at(config: Any, step: int) -> int:
  """The resolution of neural rendering at a step; 0 where there is none.

  In a curriculum, that of the images.
  """
  if 'stages' in config:
    return [stage for stage in _stages(config)
            if stage.start <= step][-1].pixels
  if 'render_size' not in config:
    return 0
  return render_size(
      step * config.batch, _render_sizes(config), config.render_bucket)


def _render_sizes(config):
  """A config's `render_size` with its times in images."""
  return schedules.in_steps(config.render_size, config.steps * config.batch)


def render_size(
    images_seen: int, schedule: Any, bucket: int
) -> int:
  """The resolution of neural rendering after `images_seen` images.

  Args:
    images_seen: number of images.
    schedule: pairs (images seen, resolution), interpolated linearly.
    bucket: the result is a multiple of it. Each resolution is compiled, so
      that every number in between, as in the official code, would cost much.
  """
  counts, sizes = zip(*schedule, strict=True)
  return int(np.interp(images_seen, counts, sizes) // bucket * bucket)


def evaluate(
    state: TrainState, key: jax.Array | None, *,
    size_at: Callable[[int], int], sheet_of: Callable[..., np.ndarray],
    measure: sampling.Measure
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """Distances of the averaged generator, and a sheet of its samples.

  Args:
    state: TrainState.
    key: not used; every evaluation has the same latents.
    size_at: step -> resolution of the neural rendering.
    sheet_of: (variables, resolution) -> uint8 [H, W, 3].
    measure: (variables, resolution) -> {name: distance}.
  """
  del key
  size = size_at(int(state.step))
  return (measure(state.ema, size),
          {'samples_coarse': sheet_of(state.ema, size)})


def load_generator(
    workdir: str | os.PathLike, step: int | None = None) -> inference.Trained:
  """The generator of a run, at a checkpoint; its data must exist.

  Args:
    workdir: of the run.
    step: of the checkpoint; None for the newest.

  Raises:
    UserError: there is no such run, it is damaged or of another task, or it
      generates images instead of 3-D objects.
    FileNotFoundError: there is no such checkpoint.
  """
  config = load_config(workdir, ['gan'])
  if config.networks not in gan_build.GENERATORS:
    raise UserError(f'The run in {workdir} trains a generator of images, not '
                    'of 3-D objects; its samples are in previews/.')
  camera = typical_camera(config, _open_data(config))
  if camera is None:
    raise UserError(f'The data of the run in {workdir} have no cameras, so '
                    'that there is no view to begin with.')
  step = checkpoints.latest(workdir) if step is None else step
  return inference.from_config(
      config, checkpoints.load_tree(workdir, 'ema', step), camera,
      render_size_at(config, step))


def typical_camera(
    config: Any, source: dataset.Images) -> dict[str, Any] | None:
  """The camera of a generator's pictures: of the data, else of its prior."""
  camera = cameras.median_camera(source.labels)
  if camera is None and config.networks in gan_build.CAMERAS:
    return gan_build.CAMERAS[config.networks](config.model)
  return camera


def _sample_sheet_fn(config, networks, source):
  """(variables, render_size) -> a sheet uint8 [H, W, 3] of samples.

  Objects from several sides in 3-D, one image each in 2-D.
  """
  camera = typical_camera(config, source) if networks.is_3d else None
  if camera is not None:
    return lambda variables, size: objects.sheet(
        inference.from_config(config, variables, camera, size), range(8))
  # One label for all, so that the images differ by their latents only.
  sample = sampling.sampler(networks, 0)
  labels = source.labels[np.zeros(32, int)]
  return lambda variables, size: image_io.tile(
      sample(variables, labels), columns=8)


def _distance_fn(config, networks, source) -> sampling.Measure:
  if not config.distance_count:
    return lambda variables, size: {}
  return sampling.distance_fn(
      networks, source, config.distance_count,
      functools.partial(distribution.distance_to_real, features.shapes_clip))


def _scheduled(config, schedule, step):
  """Task.scheduled: learning rates, weight of R1, resolutions."""
  stage = [stage for stage in _stages(config) if stage.start <= step][-1]
  values = {'learning_rate_generator': stage.generator_rate,
            'learning_rate_discriminator': stage.discriminator_rate,
            'r1_gamma': gan_schedule.gamma(schedule, step * config.batch)}
  size = render_size_at(config, step)
  if size:
    values['render_size'] = size
  return {f'schedule/{name}': float(x) for name, x in values.items()}


def _costs(config, networks, schedule) -> Costs:
  """The Costs of a step at the last resolution of `render_size`."""
  # Most of a training has that resolution.
  last, size = _stages(config)[-1], 0
  if 'stages' in config:
    size = last.pixels
  elif 'render_size' in config:
    size = render_size(0, _render_sizes(config)[-1:], config.render_bucket)
  sizes = {'image': last.pixels, 'batch': last.batch}
  if networks.samples_per_ray:
    sizes |= {'rays a side': size, 'samples a ray': networks.samples_per_ray}
  parts = None
  if networks.parts:
    parts = lambda params, batch, devices: networks.parts(
        params, len(batch['index']), size)
  return Costs(
      sizes=sizes,
      phases=functools.partial(costs.phases, networks=networks,
                               schedule=schedule, render_size=size),
      parts=parts)
