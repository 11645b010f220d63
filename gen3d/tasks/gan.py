"""Adversarial training on images: EG3D with their cameras, or StyleGAN2.

What a step does is in gan/step.py, the networks in gan/networks.py;
here are the data, the reports and what is left in the end.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import assets
from gen3d.choices import UserError, pick
from gen3d.data.images import camera_labels, dataset
from gen3d.data.shapes import captions
from gen3d.data.shapes import world as shapes_world
from gen3d.engine import sharding
from gen3d.engine import state as states
from gen3d.engine.release import save_release
from gen3d.gan import inference
from gen3d.gan import networks as gan_networks
from gen3d.gan import step as gan_step
from gen3d.io import images as image_io
from gen3d.metrics import distribution
from gen3d.models import clip_pair
from gen3d.ops import cameras
from gen3d.tasks import Task

WORLD = 'shapes:'  # before the categories, in place of a file


def make(config):
  """The Task of the get_config of configs/eg3d.py or configs/stylegan2.py.

  Raises:
    UserError: the data cannot be read or do not fit the networks.
  """
  check(config)
  source = open_data(config.data)
  if config.distance_count and len(source.names) < 4:
    raise UserError(f'{source.where} has {len(source.names)} images, too few '
                    'to measure distances by; set --config.distance_count=0.')
  if source.size != config.resolution:
    raise UserError(
        f'{source.where} has images of {source.size} pixels, but the config '
        f'is for {config.resolution}; resize them, or change '
        '--config.resolution and the super-resolution.')
  if not config.get('conditional', True):
    source = source._replace(labels=source.labels[:, :0])
  networks = build(config, source.labels.shape[1])
  schedule = gan_step.Schedule(**config.schedule)
  regularized = schedule.g_reg_interval if networks.regularize else 0
  optimizers = {
      'generator': gan_step.lazy_adam(config.generator_rate, regularized),
      'discriminator': gan_step.lazy_adam(
          config.discriminator_rate, schedule.d_reg_interval)}

  def init(key):
    state = jax.jit(functools.partial(
        gan_step.create, networks=networks, optimizers=optimizers))(key)
    return begin_with(state, config.start_from) if config.start_from else state

  report = functools.partial(
      evaluate, size_at=functools.partial(size_at, config),
      show=sample_sheet_fn(config, networks, source),
      measure=frechet_distance_fn(config, networks, source) if config.distance_count
      else lambda variables, size: {})

  def finish(state, workdir):
    scalars, _ = report(state, None)
    path = assets.FOLDER / f'{config.networks}_{config.name}.safetensors'
    opponent = state.replace(ema=state.params['discriminator'])
    return [
        *save_release(path, config, state, workdir, evaluation=scalars,
              camera=median_camera(source.labels)),
        *save_release(discriminator_path(path), config, opponent, workdir)]

  return Task(
      init=init,
      step=functools.partial(gan_step.step, networks=networks,
                             optimizers=optimizers, schedule=schedule),
      batches=functools.partial(batches, config=config, source=source),
      evaluate=report,
      finish=finish,
      execution=sharding.Execution(
          minimize_memory=True,
          # The minibatch standard deviation is over the images of a device.
          min_per_device=min(config.model.discriminator.mbstd_group,
                             config.batch),
          min_per_device_key='model.discriminator.mbstd_group'))


def check(config):
  """Raises UserError at numbers that no training can be made of."""
  schedule = config.schedule
  for name, value, least in (
      ('batch', config.batch, 1),
      ('data.count', config.data.get('count', 1), 1),
      ('schedule.d_reg_interval', schedule.d_reg_interval, 0),
      ('schedule.g_reg_interval', schedule.g_reg_interval, 0),
      ('schedule.ada_interval', schedule.ada_interval, 1),
      ('render_bucket', config.get('render_bucket', 1), 1)):
    if value < least:
      raise UserError(f'--config.{name} is {value}; it must be at least '
                      f'{least}.')
  if 'render_size' not in config:
    return
  pairs = config.render_size
  if not pairs or not all(
      isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
    raise UserError(
        f'--config.render_size is {pairs}; write pairs of images seen and '
        "rays a side, as '((0, 32),)'.")
  seen, sizes = zip(*pairs, strict=True)
  if list(seen) != sorted(set(seen)) or min(sizes) < config.render_bucket:
    raise UserError(
        f'--config.render_size is {pairs}; images seen must rise, and rays a '
        f'side be at least render_bucket ({config.render_bucket}).')


def begin_with(state, path):
  """A new TrainState with the networks of an earlier training.

  Its generator's average becomes generator and average.

  Args:
    state: of step 0.
    path: the generator's .safetensors, as `finish` leaves it, with its
      discriminator's beside it.

  Raises:
    UserError: one of the files is missing, damaged or of other networks.
  """
  found, shapes_of = {}, functools.partial(jax.tree.map, np.shape)
  for name, file in (('generator', path), ('discriminator', discriminator_path(path))):
    found[name], _ = assets.load(file)
    if shapes_of(found[name]) != shapes_of(state.params[name]):
      raise UserError(f'{file} is of another {name} than the config '
                      'describes; start from one with the same `model`.')
  # A copy: the step donates its state, and one buffer goes once.
  return state.replace(params={**state.params, **found},
                       ema=states.copy(found['generator']))


def discriminator_path(path):
  """Where the discriminator is that trained with a generator."""
  path = pathlib.Path(path)
  return path.with_stem(path.stem + inference.OPPONENT)


def build(config, label_width=25):
  """The GANNetworks of a config."""
  return pick('kind of networks', gan_networks.BUILDERS, config.networks)(
      config.model, config.resolution, label_width)


def open_data(data):
  """The images.Images of a config's `data`, checked.

  `path` is a folder, a zip or 'tfds:NAME' in EG3D's format, or 'shapes:' and
  categories of the shapes world with commas between, of which `count`
  pictures of `size` pixels are taken from cameras as `camera` says.

  Raises:
    UserError: what the sentence says.
  """
  if not data.path:
    raise UserError('There are no images: give --config.data.path, a zip or '
                    'folder in EG3D\'s format.')
  if is_world(data):
    return shapes_world.posed_images(world_of(data), data.count, data.size)
  source = dataset.open_images(data.path)
  dataset.check(source)
  return source


def is_world(data):
  """Whether `data` are of the shapes world, of which the truth is known."""
  return data.path.startswith(WORLD)


def world_of(data):
  """The shapes.World of `data` that are of it.

  Raises:
    UserError: it has no such category.
  """
  chosen = tuple(data.path.removeprefix(WORLD).split(','))
  for category in chosen:
    pick('category', dict.fromkeys(captions.CATEGORIES), category)
  return shapes_world.World(chosen, dict(data.camera))


def batches(seed, first_step, *, config, source):
  """Training batches as gan_step.step takes them; see tasks.Task."""
  labels, count = source.labels, config.batch
  schedule = gan_step.Schedule(**config.schedule)
  feed = dataset.batches(
      source, count, seed, first_step, mirror=config.data.mirror,
      rows=sharding.rows(count))
  for step, batch in enumerate(feed, first_step):
    rng = np.random.default_rng((seed, step, 2))
    drawn = labels[rng.integers(len(labels), size=(count, 3))]
    if config.data.mirror and labels.shape[1]:
      flips = rng.random((count, 3, 1)) < 0.5
      drawn = np.where(flips, camera_labels.mirror_label(drawn), drawn)
    size = size_at(config, step)
    yield {**batch, 'sampled_cameras': drawn, 'grid': np.zeros((count, size), np.uint8),
           'due': gan_step.due(step, count, schedule,
                               apart=jax.default_backend() == 'cpu')}


def size_at(config, step):
  """At which resolution a config renders at a step; 0 where nothing is."""
  if 'render_size' not in config:
    return 0
  return render_size(
      step * config.batch, config.render_size, config.render_bucket)


def render_size(seen, schedule, bucket):
  """At which resolution to render when `seen` images have been shown.

  Args:
    seen: images.
    schedule: pairs (images, resolution), joined by lines.
    bucket: what the result is a multiple of: every resolution is compiled
      for itself, where the official code takes each number on the way.
  """
  counts, sizes = zip(*schedule, strict=True)
  return int(np.interp(seen, counts, sizes) // bucket * bucket)


def evaluate(state, key, *, size_at, show, measure):
  """Sheets of what is made, and how far it is from real.

  Args:
    state: TrainState.
    key: not looked at: the same is shown every time.
    size_at: step -> at which resolution is rendered then.
    show: a `sample_sheet_fn`.
    measure: a `frechet_distance_fn`, or says nothing. The Frechet distance is on the
      features of the shipped CLIP pair, which knows the shapes world: not the
      literature's FID, and not to be compared with it. That of two halves of
      the real images is the floor.
  """
  del key
  size = size_at(int(state.step))
  return measure(state.ema, size), {'samples_coarse': show(state.ema, size)}


def sample_sheet_fn(config, networks, source):
  """(variables, size) -> a sheet uint8 [H, W, 3] of what a generator makes.

  Objects from several sides, or images where there is nothing to go around.
  """
  if config.networks == 'eg3d':
    camera = median_camera(source.labels)
    return lambda variables, size: inference.sheet(
        inference.trained(config, variables, camera, size), range(8))
  draw, labels = sampler(networks, 0), source.labels[np.zeros(32, int)]
  return lambda variables, size: image_io.tile(
      draw(variables, labels), columns=8)


def to_unit(image):
  """Images in about [-1, 1] to [0, 1]."""
  return np.clip(np.asarray(image) / 2 + 0.5, 0, 1)


def median_camera(labels):
  """What cameras [N, 25] are like: see objects.Network.camera.

  Medians, and how far they `yaw_range` from the front, if not all around.
  """
  if not labels.shape[1]:
    return None
  azimuth, elevation, distance = cameras.angles(
      jnp.asarray(labels[:, [3, 7, 11]]))
  yaw_range = float(jnp.percentile(jnp.abs(azimuth), 95))
  return {'elevation': float(jnp.median(elevation)),
          'distance': float(jnp.median(distance)),
          'focal': float(np.median(labels[:, 20])),
          'yaw_range': yaw_range if yaw_range < 120 else None}


def frechet_distance_fn(config, networks, source):
  """(variables, size) -> {'frechet_clip/...': number}: made and real halves.

  Both against real images, which are looked at once, when the frechet_distance_fn is first
  read. `size` is at which the generator renders.
  """
  count = config.distance_count
  rows = np.random.default_rng(0).permutation(len(source.names))[:2 * count]
  draw = functools.cache(functools.partial(sampler, networks))
  judge = functools.cache(clip_pair.load)

  @functools.cache
  def real():
    features = judge().image_features(
        np.stack([source.pixels(int(i)) for i in rows]) / 255.0)
    half = len(features) // 2
    moments = distribution.moments
    return moments(features[:half]), moments(features[half:])

  def measure(variables, size):
    here, there = real()
    made = distribution.moments(judge().image_features(
        draw(size)(variables, source.labels[rows[:count]])))
    return {'frechet_clip/generated': distribution.frechet(made, here),
            'frechet_clip/real_halves': distribution.frechet(there, here)}

  return measure


def sampler(networks, size, batch=16, seed=0):
  """(variables, labels [N, L]) -> images [N, R, R, 3] in [0, 1], one for each.

  Args:
    networks: GANNetworks.
    size: at which the neural rendering is done.
    batch: images at once, on each device.
    seed: of the latents; they are the same for every call.
  """
  def make(variables, rows):
    index, label = rows
    key = jax.random.fold_in(jax.random.key(seed), index[0])
    z = jax.random.normal(key, (len(label), networks.z_dim))
    fakes, _ = networks.generate(
        variables, gan_networks.Latents(
            key, jnp.arange(len(label)), z, label, label), size)
    return fakes['image']

  over_devices = sharding.map_over_devices(make, batch, 'generating')
  return lambda variables, labels: to_unit(
      over_devices(variables, (np.arange(len(labels)), labels)))
