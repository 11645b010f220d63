"""Objects are found again by an untrained generator of a few pixels."""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import models_nvidia_test
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from configs import eg3d as config_file
from gen3d import assets
from gen3d.gan import inference, inversion
from gen3d.gan import networks as gan_networks
from gen3d.models import eg3d, perceptual
from gen3d.ops import cameras

CAMERA = {'elevation': 20.0, 'distance': 1.7, 'focal': 1.35}
# Pixels, and their means over 4 x 4: cheap to compile.
PLAIN = inversion.Measure((), lambda _, x: (
    x / 16, x.reshape(len(x), 4, 4, 4, 4, 3).mean((2, 4)) / 4))


@pytest.fixture(scope='module')
def config():
  return config_file.get_config('tiny')


@pytest.fixture(scope='module')
def network(config):
  variables = gan_networks.new_generator(gan_networks.build(config), jax.random.key(0))
  # With noise that is seen, as after a training.
  params = variables['params']
  layer = params['backbone']['synthesis']['b8']['conv1']
  layer = {**layer, 'noise_strength': jnp.float32(0.1)}
  block = {**params['backbone']['synthesis']['b8'], 'conv1': layer}
  synthesis = {**params['backbone']['synthesis'], 'b8': block}
  params = {**params, 'backbone': {**params['backbone'],
                                   'synthesis': synthesis}}
  return inference.trained(
      config, {**variables, 'params': params}, CAMERA, 8)


@pytest.fixture(scope='module')
def target(network):
  ws = inference.ws_of(network, inference.latent(network, 5))
  label = inference.label(CAMERA, 30.0)
  paint = jax.jit(functools.partial(inversion.paint, network))
  return inversion.Target(paint(network.variables, ws, label), label)


def test_what_is_painted_is_what_is_shown(network, target):
  shown = inference.painter(network, ('image',))(
      inference.ws_of(network, inference.latent(network, 5)), target.label[None])
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


@pytest.fixture
def compiled(tmp_path):
  """() -> the names of the programs compiled since; none is known before."""
  usual = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'programs'))
  compilation_cache.reset_cache()
  yield lambda: {p.name for p in (tmp_path / 'programs').glob('*-cache')}
  jax.config.update('jax_compilation_cache_dir', usual)
  compilation_cache.reset_cache()


def test_another_picture_is_found_by_the_same_programs(
    network, target, compiled):
  def invert(target, steps):
    ws, variables, _ = inversion.project(network, target, PLAIN, steps=steps)
    found = network._replace(variables=variables)
    inversion.tune(found, target, PLAIN, ws, steps=steps)
    return compiled()

  other = inversion.Target(-target.image, inference.label(CAMERA, 70.0))
  first = invert(target, 1)
  assert sum(name.startswith('jit_step') for name in first) == 2
  assert invert(other, 2) - first == set()


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


@pytest.fixture(scope='module')
def vgg16(tmp_path_factory):
  """A file of random weights, and one of LPIPS' that weigh all alike."""
  rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp('vgg16')
  tensors, width = {}, 3
  convs = [c for stage in perceptual.VGG16.stages for c in stage.convs]
  for conv in convs:
    shape = (conv.features, width, 3, 3)
    tensors[f'features.{conv.index}.weight'] = rng.standard_normal(
        shape, np.float32) / (3 * width ** 0.5)
    tensors[f'features.{conv.index}.bias'] = np.zeros(
        conv.features, np.float32)
    width = conv.features
  np.savez(folder / 'vgg16.npz', **tensors)
  widths = [stage.convs[-1].features for stage in perceptual.VGG16.stages]
  for name, weight in (('ones', 1), ('fours', 4)):
    np.savez(folder / f'{name}.npz', **{
        f'lin{i}.model.1.weight': np.full((1, width, 1, 1), weight, np.float32)
        for i, width in enumerate(widths)})
  return folder


def test_vgg16_is_a_measure_without_and_with_lpips(vgg16):
  x = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)

  def distance(*files):
    measure = inversion.supplied_measure(*(vgg16 / f for f in files))
    # What is larger is shrunk before.
    large = jax.eval_shape(measure.embed, measure.weights, jax.ShapeDtypeStruct(
        (1, 512, 512, 3), jnp.float32))
    assert large[0].shape == (1, 256, 256, 64)
    embed = jax.jit(measure.embed)
    return float(perceptual.distance(*(
        embed(measure.weights, image[None]) for image in x))[0])

  plain = distance('vgg16.npz')
  assert plain > 0.1
  np.testing.assert_allclose(distance('vgg16.npz', 'ones.npz'), plain,
                             rtol=1e-5)
  np.testing.assert_allclose(distance('fours.npz', 'vgg16.npz'), 4 * plain,
                             rtol=1e-5)
  with pytest.raises(ValueError, match=r'missing: features\.0'):
    inversion.supplied_measure(vgg16 / 'ones.npz')


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
  z = jax.random.normal(jax.random.key(3), (50, network.z_dim))
  w = np.stack([inference.ws_of(network, one)[0] for one in z[:50]])
  np.testing.assert_allclose(mean, w.mean(0), atol=1e-5)
  np.testing.assert_allclose(
      deviation, np.sqrt(np.sum((w - w.mean(0)) ** 2) / 50), rtol=1e-4)


def test_files_can_be_used_again(config, network, target, tmp_path, capsys):
  name, _ = assets.save(
      tmp_path / 'mine.safetensors', network.variables,
      {'config': config.to_dict(), 'camera': CAMERA})
  written = inversion.export(
      name, network, target, PLAIN, tmp_path / 'out', steps=4, tuning_steps=2,
      plus=True, views=(0.0, 90.0), frames=8)
  assert [p.name for p in written] == [
      'inversion.png', 'latent.npz', 'tuned.safetensors', 'tuned.json',
      'turntable.mp4']
  assert all(p.stat().st_size > 100 for p in written)
  assert sorted((tmp_path / 'out').iterdir()) == sorted(written)
  assert capsys.readouterr().err.splitlines()[-1].startswith(
      'The tuned object has no surface, so no mesh of it is written;')
  sheet = np.asarray(Image.open(written[0]))
  assert sheet.shape[1] == 5 * 130 - 2  # the picture, two steps, two views
  picture = 255 * np.clip(np.asarray(target.image) / 2 + 0.5, 0, 1)
  np.testing.assert_allclose(sheet[4:128:8, 4:128:8], picture, atol=0.51)
  latent = np.load(written[1])
  assert latent['ws'].shape == (4, 8) and latent['projection_loss'].shape == (
      4,)
  assert not np.array_equal(latent['ws'][0], latent['ws'][1])
  again = inference.load(written[2])
  assert again.camera == CAMERA
  shown = inference.painter(again, ('image',))(
      latent['ws'], latent['label'][None])[0].astype(int)
  np.testing.assert_allclose(
      sheet[4:128:8, 264:388:8], shown, atol=1)


def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    network, target, tmp_path, monkeypatch):
  monkeypatch.setattr(inversion, 'project', lambda *_, **__: pytest.fail())
  export = lambda out: inversion.export(
      'shapes', network, target, PLAIN, out, steps=1, tuning_steps=1,
      plus=False, views=())
  file = write(tmp_path / 'file', 'mine')
  with pytest.raises(ValueError, match='file is a file; name a folder'):
    export(file)
  with pytest.raises(ValueError, match='Cannot write .*Not a directory'):
    export(file / 'in')
  assert file.read_text() == 'mine'


def test_a_tuned_official_network_can_be_used_again(tmp_path, monkeypatch):
  module, rng = models_nvidia_test.NETWORK, np.random.default_rng(0)
  label = jnp.zeros((1, 25))
  shapes = jax.eval_shape(lambda: module.init(
      jax.random.key(0), jnp.zeros((1, 8)), label, label, 4,
      eg3d.draw(None, 1, 4, module.rendering)))
  draw = lambda: jax.tree.map(
      lambda x: rng.standard_normal(x.shape, np.float32), shapes)
  path = models_nvidia_test.pickled(tmp_path / 'n.pkl', draw())
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.chdir(tmp_path)
  out = tmp_path / 'out'
  for name in ('n.pkl', 'out/tuned_official.safetensors'):
    network = inference.load(name)._replace(variables=draw())
    files = inversion._save(inversion._record(name), network, out)
    assert files == (out / 'tuned_official.safetensors',
                     out / 'tuned_official.json')
    record = json.loads(files[1].read_text())
    assert record['model'] == 'n.pkl'
    assert record['official'] == {'path': str(path), 'sha256': digest}
    again = inference.load(files[0])
    assert again._replace(variables=None) == network._replace(variables=None)
    jax.tree.map(np.testing.assert_array_equal, again.variables,
                 network.variables)


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


@pytest.mark.parametrize('names, picture, found', [
    (['a/x.png', 'b/x.png'], 'data/a/x.png', 'a/x.png'),
    (['b/x.png', 'a/x.png'], 'data/a/x.png', 'a/x.png'),
    (['b\\x.png', 'a\\x.png'], 'data/a/x.png', 'a\\x.png'),
    (['1/a/x.png', '2/a/x.png', '2/b/x.png'], '2/a/x.png', '2/a/x.png'),
    (['x.png', 'b/x.png'], 'data/a/x.png', 'x.png'),
    (['b/x.png', 'xx.png'], 'a/x.png', 'b/x.png'),
    # From within the folder, whose name is not said.
    (['{}/x.png', 'b/x.png'], 'x.png', '{}/x.png')])
def test_a_camera_is_that_of_the_path_most_like_the_pictures(
    tmp_path, monkeypatch, names, picture, found):
  monkeypatch.chdir(tmp_path)
  here = lambda name: name.format(tmp_path.name)
  label = lambda name: cameras.to_label(cameras.orbit(
      float(len(names) + names.index(name)), 10., 1.7, 1.35)).tolist()
  listing = write(tmp_path / 'dataset.json', {
      'labels': [[here(name), label(name)] for name in names]})
  np.testing.assert_allclose(
      inversion.read_camera(listing, picture), label(found), rtol=1e-6)


@pytest.mark.parametrize('names, picture', [
    (['a/x.png', 'b/x.png'], 'data/x.png'),
    (['a/x.png', 'b/x.png'], 'c/x.png'),
    (['1/a/x.png', '2/a/x.png'], 'a/x.png'),
    (['a/x.png', 'a/x.png'], 'a/x.png')])
def test_cameras_that_may_be_of_several_pictures(tmp_path, names, picture):
  listing = write(tmp_path / 'dataset.json', {
      'labels': [[name, LABEL.tolist()] for name in names]})
  with pytest.raises(ValueError, match=(
      f'lists {names[0]} and {names[1]}, and {picture} may be either; ')):
    inversion.read_camera(listing, picture)


@pytest.mark.parametrize('content, sentence', [
    ('[1, 2', 'cannot be read'),
    ([1.0] * 16, 'a list of 25 numbers is wanted'),
    ({'camera': 1}, 'a list of 25 numbers is wanted'),
    ([1, 2], 'a list of 25 numbers is wanted'),
    ([10 ** 400] * 25, 'a list of 25 numbers is wanted'),
    ({'labels': None}, r'"labels" must be a list of \[file name, '),
    ({'labels': {'ab': LABEL.tolist()}}, '"labels" must be a list'),
    ({'labels': [1, 2]}, '"labels" must be a list'),
    ({'labels': [['a.png']]}, '"labels" must be a list'),
    ({'labels': [[3, [1]]]}, '"labels" must be a list'),
    ({'labels': []}, 'has no label for a.png'),
    ({'labels': [['a.png', [1, 'x']]]}, 'a list of 25 numbers is wanted'),
    ({'labels': [['a.png', [3.0, *LABEL[1:].tolist()]]]}, 'not orthonormal'),
    ([*LABEL[:3], 5.0, *LABEL[4:12], 1, *LABEL[13:]], 'last row is not'),
    ([3.0, *LABEL[1:]], 'rotation that is not orthonormal'),
    ([*LABEL[:16], *(64 * LABEL[16:])], 'intrinsics in pixels')])
def test_cameras_that_are_none(tmp_path, content, sentence):
  content = content if isinstance(content, (str, dict)) else [
      x if isinstance(x, int) else float(x) for x in content]
  with pytest.raises(ValueError, match=sentence):
    inversion.read_camera(write(tmp_path / 'camera.json', content), 'a.png')
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


def with_background(network, white):
  generator = network.generator
  return network._replace(generator=generator.clone(
      rendering=generator.rendering._replace(white_background=white)))


@pytest.mark.parametrize('white_background', [True, False])
def test_what_is_transparent_shows_the_networks_background(
    network, tmp_path, white):
  behind = 1 if white else -1
  read = lambda name: inversion.read_target(
      with_background(network, white), tmp_path / name, LABEL).image
  Image.new('RGBA', (16, 16), (255, 0, 0, 0)).save(tmp_path / 'none.png')
  np.testing.assert_array_equal(read('none.png'), behind)
  Image.new('RGBA', (16, 16), (255, 0, 0, 51)).save(tmp_path / 'faint.png')
  np.testing.assert_allclose(
      read('faint.png')[3, 4], np.array([.2, -.2, -.2]) + .8 * behind,
      atol=1e-2)
  Image.new('LA', (16, 16), (128, 0)).save(tmp_path / 'grey.png')
  np.testing.assert_array_equal(read('grey.png'), behind)
  palette = Image.new('P', (16, 16), 1)
  palette.putpalette([255, 0, 0, 0, 255, 0])
  palette.save(tmp_path / 'palette.png', transparency=1)
  np.testing.assert_array_equal(read('palette.png'), behind)
  palette.save(tmp_path / 'opaque.png', transparency=0)
  np.testing.assert_array_equal(read('opaque.png')[3, 4], [-1, 1, -1])


def test_pictures_stand_upright_as_their_camera_says(network, tmp_path):
  pixels = np.zeros((16, 16, 3), np.uint8)
  pixels[:4] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # What is above in the file belongs to the right.
  Image.fromarray(pixels).save(tmp_path / 'a.png', exif=exif)
  image = inversion.read_target(network, tmp_path / 'a.png', LABEL).image
  np.testing.assert_array_equal(image[:, 12:], 1)
  np.testing.assert_array_equal(image[:, :12], -1)


@pytest.mark.parametrize('kind, dtype', [
    ('png', np.uint16), ('tiff', np.uint16), ('tiff', '>u2'),
    ('tiff', np.int32)])
def test_greys_of_16_bits(network, tmp_path, kind, dtype):
  pixels = np.full((16, 16), 30_000, dtype)
  pixels[:8] = 65_535
  path = tmp_path / f'a.{kind}'
  Image.fromarray(pixels).save(path)
  image = inversion.read_target(network, path, LABEL).image
  np.testing.assert_array_equal(image[:6], 1)
  np.testing.assert_allclose(image[10:], 2 * 30_000 / 65_535 - 1, atol=4e-3)


@pytest.mark.parametrize('pixels, sentence', [
    (np.full((16, 16), 70_000, np.int32), 'more than 16 bits'),
    (np.full((16, 16), 0.5, np.float32), 'which of its numbers is white')])
def test_pictures_whose_white_is_not_known(
    network, tmp_path, pixels, sentence):
  Image.fromarray(pixels).save(tmp_path / 'a.tiff')
  with pytest.raises(ValueError, match=rf'a\.tiff cannot be .*{sentence}'):
    inversion.read_target(network, tmp_path / 'a.tiff', LABEL)
