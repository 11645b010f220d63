"""FID and KID of a generator: statistics, cache, cameras, errors."""

import functools

import blob_generator
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_state
from PIL import Image

from gen3d.data.images import dataset
from gen3d.evaluation import fid
from gen3d.gan import inference
from gen3d.metrics import distribution
from gen3d.metrics.features import Features
from gen3d.models import inception
from gen3d.ops import cameras

SIZE = blob_generator.SIZE


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('GEN3D_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'fid'


def labels(count, seed=0):
  rng = np.random.default_rng(seed)
  return np.asarray(cameras.to_label(cameras.orbit(
      rng.uniform(-40, 40, count), rng.uniform(-15, 15, count), 2.0, 1.5)))


@pytest.fixture
def source(tmp_path):
  """A folder of images with cameras."""
  folder, rng = tmp_path / 'photos', np.random.default_rng(0)
  folder.mkdir()
  for i in range(9):
    pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f'{i}.png')
  return dataset.open_images(folder)._replace(labels=labels(9))


def counting():
  """Features of four numbers, and the list of the images that they embed."""
  seen = []

  def embed(images):
    seen.append(images)
    x = images.reshape(len(images), -1, 3) / 255
    return np.concatenate([x.mean(1), x[:, :1, 0]], 1).astype(np.float32)

  return Features('four', embed, 'digest'), seen


PROTOCOL = fid.Protocol(samples=7, divisor='n-1', kid_size=4)


def test_distances_are_those_of_all_images(source):
  features, seen = counting()
  trained = blob_generator.trained()
  result = fid.distances(trained, source, features, PROTOCOL)
  real = np.stack([source.pixels(i) for i in range(9)])
  np.testing.assert_array_equal(seen[0], real)
  generated, = fid.generated_images(trained, source, PROTOCOL)
  assert generated.shape == (7, SIZE, SIZE, 3) and generated.dtype == np.uint8
  one, other = features.embed(real), features.embed(generated)
  np.testing.assert_allclose(
      result.frechet, distribution.frechet_of_features(one, other), rtol=1e-5)
  expected = distribution.kernel_distance(one, other, size=4)
  np.testing.assert_allclose(result.kernel.each, expected.each)
  assert result.real == 9 and len(result.kernel.each) == 100
  biased = fid.distances(
      trained, source, features, PROTOCOL._replace(divisor='n'))
  assert biased.frechet != result.frechet


def test_statistics_are_stored_under_the_content(source, cache):
  features, seen = counting()
  first = fid.real_statistics(source, features)
  again = fid.real_statistics(source, features)
  assert len(seen) == 1
  np.testing.assert_array_equal(first.features, again.features)
  for a, b in zip(first.sums, again.sums, strict=True):
    np.testing.assert_array_equal(a, b)
  fid.real_statistics(source, features._replace(digest='other'))
  fid.real_statistics(source, features._replace(name='other'))
  assert len(seen) == 3
  # The same file name with another content.
  Image.new('RGB', (SIZE, SIZE)).save(f'{source.where}/3.png')
  changed = fid.real_statistics(source, features)
  assert len(seen) == 4 and not changed.features[3].any()
  # Half of a pair of files is not used.
  stored, = (p for p in cache.glob('*.npy')
             if not np.load(p)[3].any())
  stored.unlink()
  fid.real_statistics(source, features)
  assert len(seen) == 5
  assert not [p for p in cache.iterdir() if p.name.startswith('.')]


def test_images_without_files_are_hashed_by_their_pixels(source):
  rng = np.random.default_rng(1)
  pixels = rng.integers(0, 256, (70, 4, 4, 3), np.uint8)
  made = lambda pixels: source._replace(
      where='shapes', names=tuple(f'{i:02d}' for i in range(len(pixels))),
      pixels=pixels.__getitem__, size=4)
  digest = fid.content_digest(made(pixels))
  assert digest == fid.content_digest(made(pixels.copy()))
  pixels[69, 3, 3, 2] += 1
  assert digest != fid.content_digest(made(pixels))
  # More than one chunk: the order of the features is that of the images.
  features, seen = counting()
  statistics = fid.real_statistics(made(pixels), features)
  assert [len(x) for x in seen] == [64, 64] and statistics.sums.count == 70
  np.testing.assert_allclose(statistics.features, features.embed(pixels))
  np.testing.assert_allclose(
      distribution.moments_of(statistics.sums).covariance,
      distribution.moments(features.embed(pixels)).covariance, atol=1e-6)


def recording(trained):
  """The same with z, cameras and quantized color instead of an image."""
  def render(variables, representation, ws, camera, size, key):
    _, mapped = representation
    values = jnp.concatenate([mapped[:, 0], camera.c2w[:, 0, 0][:, None]], 1)
    image = jnp.broadcast_to(values[:, None, None], (1, size, size, 3)) / 2
    return blob_generator.Generated(image, image, image[..., 0], image[..., 0])

  generator = trained.generator._replace(
      map=lambda variables, z, camera, psi, cutoff: jnp.stack(
          [z[:, 0], camera.c2w[:, 0, 0]], 1)[:, None],
      synthesize=lambda variables, ws, noise, key: (
          jnp.zeros(1), jnp.where(noise == 'random', 1., 0.) * ws),
      render=render)
  return trained._replace(generator=generator)


@pytest.mark.parametrize('independent', [False, True])
def test_the_conditioning_camera_is_that_of_the_image_or_another(
    source, independent):
  trained = recording(blob_generator.trained())
  protocol = PROTOCOL._replace(
      samples=70, independent_cameras=independent, seed=3)
  images = np.concatenate(list(fid.generated_images(
      trained, source, protocol)))[:, 0, 0].astype(int)
  assert images.shape == (70, 3)
  same = np.abs(images[:, 1] - images[:, 2]) <= 1
  assert same.all() != independent and len(set(images[:, 0])) > 30
  known = np.floor(source.labels[:, 0] / 2 * 127.5 + 128).astype(int)
  assert set(images[:, 2]) == set(known)
  # Image i depends on i only.
  fewer = np.concatenate(list(fid.generated_images(
      trained, source, protocol._replace(samples=5))))[:, 0, 0]
  np.testing.assert_array_equal(fewer, images[:5])


def test_cameras_without_labels_are_those_of_the_generator(source):
  bare = source._replace(labels=np.zeros((9, 0), np.float32))
  trained = blob_generator.trained()
  draw = fid.camera_draws(trained, bare, 0)
  one, other = draw(np.arange(3), 0), draw(np.arange(3), 1)
  assert one.shape == (3, 25) and np.abs(one - other).max(1).min() > 1e-3
  np.testing.assert_allclose(draw(np.array([2]), 0), one[2:], atol=1e-6)
  c2w = cameras.from_label(jnp.asarray(one)).c2w
  np.testing.assert_allclose(
      jnp.linalg.det(c2w[:, :3, :3]), 1, atol=1e-5)


def test_a_report_by_inception_from_its_file(
    source, tmp_path, monkeypatch):
  inputs = (jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32),)
  weights = torch_state.zeros(inception.Inception(), inputs)
  # The first layer of features takes less time than the last.
  monkeypatch.setattr(inception, 'SIDE', 75)
  monkeypatch.setattr(fid.feature_extractors, 'inception', functools.partial(
      fid.feature_extractors.inception, layer='64'))
  path = torch_state.save(tmp_path / 'inception.pth', weights | {
      name: np.random.default_rng(0).uniform(0.01, 0.2, x.shape)
      for name, x in weights.items() if name.startswith('Conv2d')})
  monkeypatch.setattr(inference, 'load', lambda name: blob_generator.trained())
  protocol = PROTOCOL._replace(samples=4)
  text = fid.report('blob', source.where, str(path), protocol=protocol)
  head, distance, kernel = text.splitlines()
  assert head == (f'fid4_full: 4 generated against all 9 images of '
                  f'{source.where}, features inception_tf_64, covariance '
                  'divided by n-1')
  assert distance.startswith('FID ') and float(distance.split()[1]) > 0
  assert kernel.startswith('KID x 1000 ') and 'subsets of 4' in kernel
  features = Features('x', lambda images: np.zeros((len(images), 2)))
  monkeypatch.setattr(
      fid.feature_extractors, 'inception', lambda *args, **named: features)
  text = fid.report('blob', source.where, str(path), protocol=fid.Protocol(
      4, independent_cameras=True, kid_size=2))
  assert text.startswith('fid3d4_full') and '\nFID_3D 0.0000\n' in text


def test_mistakes_are_found_before_the_work(source, tmp_path, monkeypatch):
  trained = blob_generator.trained()
  monkeypatch.setattr(inference, 'load', lambda name: trained)
  features, seen = counting()
  for protocol, words in (
      (PROTOCOL._replace(samples=1), '--samples=1 is too few'),
      (PROTOCOL._replace(kid_size=8), 'subsets of 8, but there are 9 real and '
       '7 generated images; lower --kid_subset')):
    with pytest.raises(ValueError, match=words):
      fid.distances(trained, source, features, protocol)
  with pytest.raises(ValueError, match='The set has 1 images'):
    fid.distances(trained, source._replace(names=('0.png',)), features,
                  PROTOCOL)
  assert not seen
  with pytest.raises(ValueError, match='give --inception'):
    fid.report('blob', source.where, '')
  with pytest.raises(ValueError, match="divisor 'm'"):
    fid.report('blob', source.where, 'x', protocol=fid.Protocol(divisor='m'))
  small = tmp_path / 'small'
  small.mkdir()
  Image.new('RGB', (8, 8)).save(small / 'a.png')
  with pytest.raises(ValueError, match='of 8 pixels a side, but blob '
                                       f'generates {SIZE}'):
    fid.open_both('blob', str(small))
  Image.new('RGB', (9, 9)).save(small / 'b.png')
  with pytest.raises(ValueError, match='b.png has 9 x 9 pixels'):
    fid.open_both('blob', str(small))
  official = tmp_path / 'ffhq.pkl'
  official.write_bytes(b'')
  with pytest.raises(ValueError, match='give them by --data'):
    fid.open_both(official, '')
