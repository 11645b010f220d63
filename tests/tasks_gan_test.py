"""The GAN task around its step: data, rendering sizes, reports."""

import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import eg3d as config_file
from configs import stylegan2 as plain_file
from gen3d.data.images import camera_labels, dataset
from gen3d.gan import networks as gan_networks
from gen3d.ops import cameras
from gen3d.tasks import gan


@pytest.fixture(scope='module')
def config():
  return config_file.get_config('tiny')


@pytest.fixture(scope='module')
def source(config, tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('GEN3D_CACHE', str(tmp_path_factory.mktemp('cache')))
    yield gan.open_data(config.data)


def test_a_world_of_one_category_seen_from_chosen_cameras(config, source):
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


def test_batches_begin_anywhere_and_draw_other_examples(config, source):
  first = list(itertools.islice(
      gan.batches(0, 0, config=config, source=source), 3))
  later = next(gan.batches(0, 2, config=config, source=source))
  jax.tree.map(np.testing.assert_array_equal, first[2], later)
  known = {label.tobytes() for label in source.labels}
  for batch in first:
    assert batch['sampled_cameras'].shape == (4, 3, 25)
    assert {x.tobytes() for x in batch['sampled_cameras'].reshape(12, 25)} <= known
  assert [batch['grid'].shape[1] for batch in first] == [4, 4, 8]


def test_drawn_cameras_are_mirrored_with_the_images(config, source):
  mirrored = config.copy_and_resolve_references()
  mirrored.data.mirror = True
  mirrored.batch = 16
  batch = next(gan.batches(0, 0, config=mirrored, source=source))
  known = {label.tobytes() for label in source.labels}
  twins = {camera_labels.mirror_label(label).tobytes()
           for label in source.labels}
  drawn = [x.tobytes() for x in batch['sampled_cameras'].reshape(-1, 25)]
  share = np.mean([x in twins for x in drawn])
  assert set(drawn) <= known | twins and 0.2 < share < 0.8


@pytest.mark.parametrize('seen, size', [
    (0, 64), (99, 64), (125_000, 64), (250_000, 80), (999_999, 112),
    (1_000_000, 128), (9_000_000, 128)])
def test_the_rendering_grows_in_buckets(seen, size):
  schedule = ((0, 64), (1_000_000, 128))
  assert gan.render_size(seen, schedule, 16) == size


@pytest.mark.parametrize('change, sentence', [
    ({'batch': 0}, r'--config\.batch is 0; it must be at least 1'),
    ({'data.count': 0}, r'data\.count is 0'),
    ({'data.count': 3}, 'has 3 images, too few to measure'),
    ({'schedule.d_reg_interval': -1}, 'd_reg_interval is -1; it must be at least 0'),
    ({'schedule.ada_interval': 0}, 'ada_interval is 0'),
    ({'render_bucket': 0}, 'render_bucket is 0'),
    ({'render_size': (0, 32)}, 'write pairs'),
    ({'render_size': ((0, 2),)}, r'at least render_bucket \(4\)'),
    ({'render_size': ((9, 8), (0, 8))}, 'images seen must rise')])
def test_numbers_that_no_training_is_made_of(config, change, sentence):
  config = config.copy_and_resolve_references()
  with config.ignore_type():
    config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=sentence):
    gan.make(config)


def test_each_chip_gets_the_images_that_are_compared(config):
  config = config.copy_and_resolve_references()
  assert gan.make(config).least == 1
  config.model.discriminator.mbstd_group = 4
  assert gan.make(config).least == 4
  config.batch = 2
  assert gan.make(config).least == 2


@pytest.mark.parametrize('path, sentence', [
    ('', 'There are no images: give --config.data.path'),
    ('shapes:care', "Did you mean 'car'"),
    ('/nowhere/at/all.zip', 'neither a folder nor a zip')])
def test_data_that_are_not_there(config, path, sentence):
  data = config.data.copy_and_resolve_references()
  data.path = path
  with pytest.raises(ValueError, match=sentence):
    gan.open_data(data)


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


def test_the_typical_camera_is_in_the_middle_of_the_data(source):
  median_camera = gan.median_camera(source.labels)
  known = cameras.angles(source.labels[:, [3, 7, 11]])[1]
  np.testing.assert_allclose(median_camera['elevation'], np.median(known), rtol=1e-4)
  np.testing.assert_allclose(
      [median_camera['distance'], median_camera['focal']], [1.7, 1.35], rtol=1e-4)
  assert median_camera['yaw_range'] is None
  before = np.asarray(cameras.to_label(cameras.orbit(
      np.linspace(-30, 30, 201), 0.0, 1.7, 1.35)))
  np.testing.assert_allclose(gan.median_camera(before)['yaw_range'], 28.5, atol=0.3)


def test_a_generator_of_images_needs_no_cameras(config, source):
  plain = plain_file.get_config('tiny')
  task = gan.make(plain)
  batch = next(task.batches(0, 0))
  assert batch['label'].shape == (4, 0) and batch['grid'].shape == (4, 0)
  networks = gan.build(plain, 0)
  variables = gan_networks.new_generator(networks, jax.random.key(0))
  sheet = gan.sample_sheet_fn(plain, networks, source)(variables, 0)
  assert sheet.shape == (4 * 10 - 2, 8 * 10 - 2, 3)
  assert not np.array_equal(sheet[:8, :8], sheet[:8, 10:18])


def test_reports_tell_made_from_real(config, source):
  networks = gan.build(config)
  variables = gan_networks.new_generator(networks, jax.random.key(0))
  measure = gan.frechet_distance_fn(config, networks, source)
  found = measure(variables, 8)
  assert found['frechet_clip/generated'] > found['frechet_clip/real_halves'] > 0
  assert measure(variables, 8) == found
  assert measure(variables, 4) != found
  labels = source.labels[:5]
  draw = gan.sampler(networks, config.render_size[-1][1], batch=2)
  five = draw(variables, labels)
  assert five.shape == (5, 16, 16, 3)
  np.testing.assert_array_equal(five[:4], draw(variables, labels[:4]))


def test_a_training_goes_on_from_what_another_left(config, source, tmp_path):
  del source  # its pictures are in the cache
  config = config.copy_and_resolve_references()
  config.distance_count = 0
  task = gan.make(config)
  state = task.init(jax.random.key(0))
  config.start_from = str(task.finish(state, str(tmp_path))[0])
  begun = gan.make(config).init(jax.random.key(1))
  for ours, theirs in ((begun.ema, state.ema), *(
      (begun.params[name], state.params[name])
      for name in ('generator', 'discriminator'))):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-3, atol=1e-6), ours, theirs)
  assert begun.step == 0
  config.model.discriminator.most = 4
  with pytest.raises(ValueError, match='shapes_discriminator.safetensors is of '
                                       'another discriminator'):
    gan.make(config).init(jax.random.key(1))
