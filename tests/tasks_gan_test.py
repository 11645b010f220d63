"""The GAN task: data, rendering sizes, phases, reports, costs."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import eg3d as config_file
from configs import stylegan2 as stylegan2_file
from gen3d.data.images import camera_labels
from gen3d.data.images import open as opening
from gen3d.gan import build as gan_build
from gen3d.gan import cameras as gan_cameras
from gen3d.gan import costs, sampling
from gen3d.gan.schedule import in_turn
from gen3d.metrics import distribution, features
from gen3d.ops import cameras
from gen3d.tasks import gan


@pytest.fixture(scope='module')
def config():
  return config_file.get_config('tiny')


@pytest.fixture(scope='module')
def source(config, tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('GEN3D_CACHE', str(tmp_path_factory.mktemp('cache')))
    yield opening.open_data(config.data)


def test_shapes_world_of_one_category_and_its_camera_range(config, source):
  assert all('car' in name for name in source.names)
  azimuth, elevation, distance = cameras.angles(source.labels[:, [3, 7, 11]])
  np.testing.assert_allclose(distance, 1.7, rtol=1e-5)
  assert elevation.min() > 4.9 and elevation.max() < 45.1
  assert azimuth.max() - azimuth.min() > 180
  pixels = np.stack([source.pixels(i) for i in range(len(source.names))])
  assert pixels.shape == (16, 16, 16, 3) and pixels.dtype == np.uint8
  corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]
  assert (corners > 250).mean() > 0.9
  assert (pixels < 200).any((1, 2, 3)).all()


def test_batches_depend_on_the_step_only_and_sample_cameras(config, source):
  first = list(itertools.islice(
      gan.batches(0, 0, config=config, source=source), 3))
  later = next(gan.batches(0, 2, config=config, source=source))
  jax.tree.map(np.testing.assert_array_equal, first[2], later)
  known = {label.tobytes() for label in source.labels}
  for batch in first:
    assert batch['sampled_cameras'].shape == (4, 3, 25)
    sampled = batch['sampled_cameras'].reshape(12, 25)
    assert {x.tobytes() for x in sampled} <= known


def test_sampled_cameras_are_mirrored_as_the_images_are(config, source):
  mirrored = config.copy_and_resolve_references()
  mirrored.data.mirror = True
  mirrored.batch = 16
  batch = next(gan.batches(0, 0, config=mirrored, source=source))
  known = {label.tobytes() for label in source.labels}
  mirrored_labels = {
      camera_labels.mirror_label(label).tobytes() for label in source.labels}
  sampled = [x.tobytes() for x in batch['sampled_cameras'].reshape(-1, 25)]
  frequency = np.mean([x in mirrored_labels for x in sampled])
  assert set(sampled) <= known | mirrored_labels and 0.2 < frequency < 0.8


@pytest.mark.parametrize('images_seen, size', [
    (0, 64), (99, 64), (125_000, 64), (250_000, 80), (999_999, 112),
    (1_000_000, 128), (9_000_000, 128)])
def test_render_size_grows_in_buckets(images_seen, size):
  schedule = ((0, 64), (1_000_000, 128))
  assert gan.render_size(images_seen, schedule, 16) == size


@pytest.mark.parametrize('change, sentence', [
    ({'batch': 0}, r'--config\.batch is 0; it must be at least 1'),
    ({'data.count': 0}, r'data\.count is 0'),
    ({'data.count': 3}, 'has 3 images, too few to measure'),
    ({'schedule.d_reg_interval': -1},
     'd_reg_interval is -1; it must be at least 0'),
    ({'schedule.ada_interval': 0}, 'ada_interval is 0'),
    ({'render_bucket': 0}, 'render_bucket is 0'),
    ({'schedule.views_per_latent': 3}, 'must be a multiple of'),
    ({'schedule.views_per_latent': 2, 'networks': 'stylegan2'},
     'only EG3D renders'),
    ({'render_size': (0, 32)}, 'write pairs'),
    ({'render_size': ((0, 2),)}, r'at least render_bucket \(4\)'),
    ({'render_size': ((9, 8), (0, 8))}, 'images seen must rise')])
def test_refused_numbers(config, change, sentence):
  config = config.copy_and_resolve_references()
  with config.ignore_type():
    config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=sentence):
    gan.make(config)


@pytest.fixture(scope='module')
def staged(config):
  config = config.copy_and_resolve_references()
  config.stages = ((0, 8, 4, 1e-3, 2e-3), (3, 16, 2, 1e-4, 2e-4))
  config.optimizer = 'adam'
  return config


def test_stages_set_resolution_batch_and_learning_rates(staged, source):
  task = gan.make(staged)
  assert [task.static(step).parts[0].render_size for step in (0, 2, 3, 9)] == [
      8, 8, 16, 16]
  assert task.execution.batch_sizes == (4, 2)
  stream = list(itertools.islice(
      gan.batches(0, 0, config=staged, source=source), 5))
  assert [len(batch['index']) for batch in stream] == [4, 4, 4, 2, 2]
  for first in (2, 4):  # Before and after the change.
    resumed = next(gan.batches(0, first, config=staged, source=source))
    jax.tree.map(np.testing.assert_array_equal, resumed, stream[first])


@pytest.mark.parametrize('name, update', [
    # PyTorch's rules for the gradients 3 and -1.
    ('adam', [-1, (.9 * .1 * 9 + .1 * 1) / (1 - .9 ** 2)]),
    ('rmsprop', [-1, .99 * .01 * 9 + .01 * 1])])
def test_optimizers_follow_the_stages(staged, name, update):
  staged = staged.copy_and_resolve_references()
  staged.optimizer, staged.stages = name, (
      (0, 8, 4, 1e-3, 0.0), (1, 8, 4, 1e-1, 0.0))
  optimizer = gan.optimizer(staged, 'generator_rate', 0)
  params = {'x': np.float32(0)}
  state = optimizer.init(params)
  _, state = optimizer.update({'x': np.float32(3)}, state, params)
  second, _ = optimizer.update({'x': np.float32(-1)}, state, params)
  gradient, square = update
  np.testing.assert_allclose(
      second['x'], -.1 * gradient / (np.sqrt(square) + 1e-8), rtol=1e-5)


def test_clip_norm_bounds_the_gradient_of_both_networks(staged):
  staged = staged.copy_and_resolve_references()
  staged.clip_norm, staged.optimizer = 1.0, 'rmsprop'
  staged.stages = ((0, 8, 4, 1.0, 1.0),)
  optimizer = gan.optimizer(staged, 'discriminator_rate', 0)
  params = {'x': np.zeros(2, np.float32)}
  state = optimizer.init(params)
  _, state = optimizer.update(
      {'x': np.array([3, 4], np.float32)}, state, params)
  nu = next(x for x in jax.tree.leaves(state) if np.shape(x) == (2,))
  np.testing.assert_allclose(nu, .01 * np.array([.36, .64]), rtol=1e-5)


@pytest.mark.parametrize('stages, sentence', [
    (((0, 8, 4),), 'give tuples of start, pixels, batch'),
    ((), 'give tuples'),
    (((1, 8, 4, .1, .1),), 'the first must be 0'),
    (((0, 8, 4, .1, .1), (0, 16, 4, .1, .1)), 'others must rise'),
    (((0, 8, 4, .1, .1), (2, 16, 4, .1, .1)), 'optimizer=adam or rmsprop'),
    (((0, 8, 0, .1, .1),), 'must be at least 1')])
def test_refused_stages(config, stages, sentence):
  config = config.copy_and_resolve_references()
  config.stages = stages
  with pytest.raises(ValueError, match=sentence):
    gan.make(config)


def test_each_device_gets_a_group_of_the_minibatch_standard_deviation(config):
  config = config.copy_and_resolve_references()
  assert gan.make(config).execution.min_per_device == 1
  config.model.discriminator.mbstd_group = 4
  assert gan.make(config).execution.min_per_device == 4
  config.batch = 2
  assert gan.make(config).execution.min_per_device == 2


def test_static_is_the_render_size_and_the_phases_that_are_due(config):
  config = config.copy_and_resolve_references()
  config.schedule.update({'d_reg_interval': 4, 'g_reg_interval': 2})
  static = gan.make(config).static
  due = lambda step: [part.phase for part in static(step).parts]
  both = ['generator', 'regularize', 'discriminator', 'r1', 'end']
  assert static(0) == in_turn(both, 4) and static(4) == in_turn(both, 8)
  assert due(1) == due(3) == ['generator', 'discriminator', 'end']
  assert due(2) == ['generator', 'regularize', 'discriminator', 'end']
  config.model.density_weight = 0.0
  static = gan.make(config).static
  assert due(0) == ['generator', 'discriminator', 'r1', 'end']


@pytest.mark.parametrize('path, sentence', [
    ('', 'There are no images: give --config.data.path'),
    ('shapes:care', "Did you mean 'car'"),
    ('/nowhere/at/all.zip', 'neither a folder nor a zip')])
def test_data_that_cannot_be_opened(config, path, sentence):
  data = config.data.copy_and_resolve_references()
  data.path = path
  with pytest.raises(ValueError, match=sentence):
    opening.open_data(data)


def test_images_of_another_size_or_without_cameras(config, tmp_path):
  other = config.copy_and_resolve_references()
  other.data.path = str(tmp_path)
  for i in range(4):
    Image.new('RGB', (8, 8), (i, 0, 0)).save(tmp_path / f'{i}.png')
  with pytest.raises(ValueError, match='has images of 8 pixels, but'):
    gan.make(other)
  for i in range(4):
    Image.new('RGB', (16, 16), (i, 0, 0)).save(tmp_path / f'{i}.png')
  with pytest.raises(ValueError, match='give a dataset.json'):
    gan.make(other)
  label = np.asarray(cameras.to_label(cameras.orbit(0., 0., 1.7, 1.3)))
  (tmp_path / 'dataset.json').write_text(json.dumps(
      {'labels': [[f'{i}.png', label.tolist()] for i in range(4)]}))
  batch = next(gan.make(other).batches(0, 0))
  np.testing.assert_allclose(batch['label'][0], label)


def test_median_camera(source):
  median_camera = gan_cameras.median_camera(source.labels)
  known = cameras.angles(source.labels[:, [3, 7, 11]])[1]
  np.testing.assert_allclose(
      [median_camera[name] for name in ('elevation', 'distance', 'focal')],
      [np.median(known), 1.7, 1.35], rtol=1e-4)
  assert median_camera['yaw_range'] is None
  frontal = np.asarray(cameras.to_label(cameras.orbit(
      np.linspace(-30, 30, 201), 0.0, 1.7, 1.35)))
  np.testing.assert_allclose(
      gan_cameras.median_camera(frontal)['yaw_range'], 28.5, atol=0.3)
  assert gan_cameras.median_camera(frontal[:, :0]) is None


def test_stylegan2_needs_no_cameras(source):
  config = stylegan2_file.get_config('tiny')
  config.distance_count = 0
  task = gan.make(config)
  batch = next(task.batches(0, 0))
  assert batch['label'].shape == (4, 0)
  assert task.static(0).parts[0].render_size == 0
  scalars, images = task.evaluate(task.init(jax.random.key(0)), None)
  assert scalars == {}
  sheet = images['samples_coarse']
  assert sheet.shape == (4 * 10 - 2, 8 * 10 - 2, 3)
  assert not np.array_equal(sheet[:8, :8], sheet[:8, 10:18])


def test_frechet_distance_of_an_untrained_generator(config, source):
  networks = gan_build.networks(config)
  variables = gan_build.new_generator(networks, jax.random.key(0))
  measure = sampling.distance_fn(
      networks, source, config.distance_count,
      functools.partial(distribution.distance_to_real, features.shapes_clip))
  distances = measure(variables, 8)
  assert (distances['frechet_shapes_clip/generated']
          > distances['frechet_shapes_clip/real_halves'] > 0)
  assert measure(variables, 8) == distances
  assert measure(variables, 4) != distances


def test_samples_do_not_depend_on_their_number(config, source):
  networks = gan_build.networks(config)
  variables = gan_build.new_generator(networks, jax.random.key(0))
  sample = sampling.sampler(networks, config.render_size[-1][1], batch=2)
  labels = source.labels[:5]
  five = sample(variables, labels)
  assert five.shape == (5, 16, 16, 3) and five.dtype == np.uint8
  np.testing.assert_array_equal(five[:4], sample(variables, labels[:4]))


def test_costs_at_the_last_render_size():
  three_d = gan.make(config_file.get_config('tiny')).costs()
  assert three_d.sizes == {
      'image': 16, 'batch': 4, 'rays a side': 8, 'samples a ray': (4, 4)}
  two_d = gan.make(stylegan2_file.get_config('tiny')).costs()
  assert two_d.sizes == {'image': 8, 'batch': 4} and two_d.parts is None


def test_costs_of_phases_are_those_of_their_programs(config):
  config = config.copy_and_resolve_references()
  config.schedule.update({'d_reg_interval': 16, 'g_reg_interval': 4})
  seconds = {'generator': 0.4, 'regularize': 0.8, 'discriminator': 0.5,
             'r1': 0.3, 'end': 0.1}

  def seconds_of(static):
    assert static.render_size == 8
    return seconds[static.phase]

  expected = {
      'generator': 0.4, 'regularization, every 4th step': 0.8,
      'discriminator': 0.5, 'R1, every 16th step': 0.3, 'moving average': 0.1,
      'training step on average': 1.0 + 0.8 / 4 + 0.3 / 16}
  phases = dict(gan.make(config).costs().phases(seconds_of))
  assert phases == pytest.approx(expected) and list(phases) == list(expected)
  config.model.density_weight, config.schedule.d_reg_interval = 0.0, 0
  phases = dict(gan.make(config).costs().phases(seconds_of))
  assert phases == pytest.approx({
      'generator': 0.4, 'discriminator': 0.5, 'moving average': 0.1,
      'training step on average': 1.0})


@pytest.mark.parametrize('steps, words', [
    (1, 'step'), (2, '2nd step'), (3, '3rd step'), (4, '4th step'),
    (12, '12th step'), (16, '16th step'), (21, '21st step'),
    (111, '111th step'), (132, '132nd step')])
def test_ordinals(steps, words):
  assert costs.ordinal(steps) == words


def test_parts_of_eg3d_run_on_their_own(config):
  config = config.copy_and_resolve_references()
  config.distance_count = 0
  task = gan.make(config)
  params, batch = task.init(jax.random.key(0)).params, next(task.batches(0, 0))
  parts = task.costs().parts(params, batch, 1)
  assert list(parts) == [
      'generator forward', 'rendering forward',
      'rendering forward and backward', 'discriminator forward']
  assert parts['rendering forward']().shape == (4, 8, 8, 4)
  assert parts['discriminator forward']().shape == (4,)


def test_training_starts_from_weights_of_another(config, source, tmp_path):
  del source  # Its images are in the cache.
  config = config.copy_and_resolve_references()
  config.distance_count = 0
  task = gan.make(config)
  state = task.init(jax.random.key(0))
  config.start_from = str(task.finish(state, str(tmp_path))[0])
  started = gan.make(config).init(jax.random.key(1))
  for ours, theirs in ((started.ema, state.ema), *(
      (started.params[name], state.params[name])
      for name in ('generator', 'discriminator'))):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-3, atol=1e-6), ours, theirs)
  assert started.step == 0
  config.model.discriminator.channel_max = 4
  with pytest.raises(ValueError, match='shapes_discriminator.safetensors is of '
                                       'another discriminator'):
    gan.make(config).init(jax.random.key(1))
