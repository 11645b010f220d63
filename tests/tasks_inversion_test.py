"""Objects are found again by an untrained generator of a few pixels."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import eg3d as config_file
from gen3d.engine import checkpoints
from gen3d.models import perceptual
from gen3d.ops import cameras
from gen3d.tasks import adversaries, gan, inversion, objects

CAMERA = {'elevation': 20.0, 'distance': 1.7, 'focal': 1.35}
# Pixels, and their means over 4 x 4: cheap to compile.
PLAIN = inversion.Measure((), lambda _, x: (
    x / 16, x.reshape(len(x), 4, 4, 4, 4, 3).mean((2, 4)) / 4))


@pytest.fixture(scope='module')
def config():
  return config_file.get_config('tiny')


@pytest.fixture(scope='module')
def network(config):
  variables = adversaries.new_generator(gan.build(config), jax.random.key(0))
  # With noise that is seen, as after a training.
  params = variables['params']
  layer = params['backbone']['synthesis']['b8']['conv1']
  layer = {**layer, 'noise_strength': jnp.float32(0.1)}
  block = {**params['backbone']['synthesis']['b8'], 'conv1': layer}
  synthesis = {**params['backbone']['synthesis'], 'b8': block}
  params = {**params, 'backbone': {**params['backbone'],
                                   'synthesis': synthesis}}
  return objects.trained(
      config, {**variables, 'params': params}, CAMERA, 8)


@pytest.fixture(scope='module')
def target(network):
  ws = objects.ws_of(network, objects.latent(network, 5))
  label = objects.label(CAMERA, 30.0)
  paint = jax.jit(functools.partial(inversion.paint, network))
  return inversion.Target(paint(network.variables, ws, label), label)


def test_what_is_painted_is_what_is_shown(network, target):
  shown = objects.painter(network, ('image',))(
      objects.ws_of(network, objects.latent(network, 5)), target.label[None])
  expected = 255 * np.clip(np.asarray(target.image) / 2 + 0.5, 0, 1)
  np.testing.assert_allclose(shown[0], expected, atol=0.51)


def test_an_object_of_the_generator_is_found_and_then_tuned(network, target):
  ws, variables, losses = inversion.project(
      network, target, PLAIN, steps=150, seed=1)
  assert ws.shape == (4, 8)
  np.testing.assert_array_equal(ws, ws[:1].repeat(4, 0))
  assert losses[-1] < losses[0] / 10
  after = inversion.paint(network, variables, ws, target.label)
  before = float(np.mean((inversion.paint(
      network, network.variables, jnp.tile(inversion.statistics(network)[0],
                                           (4, 1)), target.label)
                          - target.image) ** 2))
  assert np.mean((after - target.image) ** 2) < before / 10
  for noise in inversion.noises_of(variables).values():
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=1e-4)

  found = network._replace(variables=variables)
  tuned, losses = inversion.tune(found, target, PLAIN, ws, steps=60)
  assert losses[-1] < losses[0] / 3
  np.testing.assert_allclose(
      losses[0], inversion._difference(
          PLAIN, (), after, target.image,
          inversion._embedded(PLAIN, target)), rtol=1e-3)
  # What is not looked at through the pivot stays.
  mapping = lambda v: v['params']['backbone']['mapping']
  jax.tree.map(np.testing.assert_array_equal, mapping(tuned),
               mapping(variables))
  jax.tree.map(np.testing.assert_array_equal, tuned['buffers'],
               variables['buffers'])


def test_the_shipped_features_tell_where_something_is():
  measure = inversion.shipped_measure()
  rng = np.random.default_rng(0)
  x = np.full((3, 48, 48, 3), 0.9, np.float32)
  x[0, 10:20, 10:20] = x[1, 11:21, 10:20] = x[2, 28:38, 28:38] = (.8, .1, .1)
  x += rng.normal(size=x.shape).astype(np.float32) / 500
  embed = jax.jit(measure.embed)
  maps = embed(measure.weights, x)
  assert [m.shape for m in maps] == [(3, 6, 6, 128)] * 4
  # Every patch has a unit state, and the mean over patches is what counts.
  np.testing.assert_allclose(jnp.sum(maps[2][0] ** 2), 1.0, rtol=1e-5)
  pick = lambda i: tuple(m[i] for m in maps)
  same, near, far = (float(perceptual.distance(pick(0), pick(i)))
                     for i in range(3))
  assert same == 0 and near < far / 2
  slope = jax.jit(jax.grad(lambda y: jnp.sum(perceptual.distance(
      measure.embed(measure.weights, y), pick(slice(0, 1))))))(x[1:2])
  assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_the_rate_rises_and_falls():
  t = jnp.array([0, .025, .05, .5, .75, .875, 1])
  np.testing.assert_allclose(
      inversion.ramp(t), [0, .5, 1, 1, 1, .5, 0], atol=1e-6)


def test_correlation_against_loops():
  rng = np.random.default_rng(0)
  noise, total = rng.normal(size=(16, 16)), 0.0
  levels = [noise, np.array([[noise[2 * i:2 * i + 2, 2 * j:2 * j + 2].mean()
                              for j in range(8)] for i in range(8)])]
  for x in levels:
    n = len(x)
    total += np.mean([[x[i, j] * x[i - 1, j] for j in range(n)]
                      for i in range(n)]) ** 2
    total += np.mean([[x[i, j] * x[i, j - 1] for j in range(n)]
                      for i in range(n)]) ** 2
  np.testing.assert_allclose(
      inversion.correlation(jnp.array(noise)), total, rtol=1e-4)


def test_w_has_its_mean_and_deviation(network):
  mean, deviation = inversion.statistics(network, count=50, seed=3)
  z = jax.random.normal(jax.random.key(3), (50, network.z_width))
  w = np.stack([objects.ws_of(network, one)[0] for one in z[:50]])
  np.testing.assert_allclose(mean, w.mean(0), atol=1e-5)
  np.testing.assert_allclose(
      deviation, np.sqrt(np.sum((w - w.mean(0)) ** 2) / 50), rtol=1e-4)


def test_files_can_be_used_again(config, network, target, tmp_path):
  name, _ = checkpoints.save_asset(
      tmp_path / 'mine.safetensors', network.variables,
      {'config': config.to_dict(), 'camera': CAMERA})
  written = inversion.export(
      name, network, target, PLAIN, tmp_path / 'out', steps=4, tuning_steps=2,
      plus=True, views=(0.0, 90.0), frames=8)
  assert [p.name for p in written] == [
      'inversion.png', 'latent.npz', 'tuned.safetensors', 'tuned.json',
      'turntable.mp4']
  assert all(p.stat().st_size > 100 for p in written)
  sheet = np.asarray(Image.open(written[0]))
  assert sheet.shape[1] == 5 * 130 - 2  # the picture, two steps, two views
  picture = 255 * np.clip(np.asarray(target.image) / 2 + 0.5, 0, 1)
  np.testing.assert_allclose(sheet[4:128:8, 4:128:8], picture, atol=0.51)
  latent = np.load(written[1])
  assert latent['ws'].shape == (4, 8) and latent['projection_loss'].shape == (
      4,)
  assert not np.array_equal(latent['ws'][0], latent['ws'][1])
  again = objects.load(written[2])
  assert again.camera == CAMERA
  shown = objects.painter(again, ('image',))(
      latent['ws'], latent['label'][None])[0].astype(int)
  np.testing.assert_allclose(
      sheet[4:128:8, 264:388:8], shown, atol=1)


LABEL = np.asarray(cameras.to_label(cameras.orbit(30., 10., 1.7, 1.35)))


def write(path, content):
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


def test_a_camera_from_either_kind_of_file(tmp_path):
  numbers = write(tmp_path / 'camera.json', LABEL.tolist())
  np.testing.assert_allclose(inversion.read_camera(numbers), LABEL)
  listing = write(tmp_path / 'dataset.json', {'labels': [
      ['00000/a.png', (LABEL * 0).tolist()], ['00000/b.png', LABEL.tolist()]]})
  np.testing.assert_allclose(
      inversion.read_camera(listing, 'somewhere/b.png'), LABEL)
  with pytest.raises(ValueError, match='has no label for c.png'):
    inversion.read_camera(listing, 'c.png')


@pytest.mark.parametrize('content, sentence', [
    ('[1, 2', 'cannot be read'),
    ([1.0] * 16, 'a list of 25 numbers is wanted'),
    ({'camera': 1}, 'a list of 25 numbers is wanted'),
    ([*LABEL[:3], 5.0, *LABEL[4:12], 1, *LABEL[13:]], 'last row is not'),
    ([3.0, *LABEL[1:]], 'rotation that is not orthonormal'),
    ([*LABEL[:16], *(64 * LABEL[16:])], 'intrinsics in pixels')])
def test_cameras_that_are_none(tmp_path, content, sentence):
  content = content if isinstance(content, (str, dict)) else [
      float(x) for x in content]
  with pytest.raises(ValueError, match=sentence):
    inversion.read_camera(write(tmp_path / 'camera.json', content))
  with pytest.raises(ValueError, match='cannot be read'):
    inversion.read_camera(tmp_path / 'none.json')


def test_pictures_that_do_not_fit(network, tmp_path):
  with pytest.raises(ValueError, match='cannot be read as an image'):
    inversion.read_target(
        network, write(tmp_path / 'a.png', 'no picture'), LABEL)
  Image.new('RGB', (20, 16)).save(tmp_path / 'b.png')
  with pytest.raises(ValueError, match='20 x 16 pixels; crop it to a square'):
    inversion.read_target(network, tmp_path / 'b.png', LABEL)
  Image.new('RGBA', (64, 64), (255, 0, 51, 255)).save(tmp_path / 'c.png')
  target = inversion.read_target(network, tmp_path / 'c.png', LABEL)
  assert target.image.shape == (16, 16, 3)
  np.testing.assert_allclose(target.image[3, 5], [1, -1, -.6], atol=1e-5)


@pytest.mark.parametrize('flags, sentence', [
    ((), 'Say from where the picture was taken'),
    (('--azimuth=3', '--views=0,left'), '--views=0,left are no angles')])
def test_the_command_says_what_is_missing(flags, sentence):
  result = subprocess.run(
      [sys.executable, '-m', 'gen3d.invert', '--network=shapes',
       '--image=x.png', '--out=/nowhere', *flags], capture_output=True,
      text=True, timeout=600)
  assert result.returncode == 2 and 'Traceback' not in result.stderr
  assert sentence in result.stderr
