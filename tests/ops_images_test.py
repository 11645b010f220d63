"""Resampling, blur and resizing against loops and PIL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen3d.ops import images

BINOMIAL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def loop_filter(x, kernel, before, after):
  """Correlation of [H, W, C] with a 2-D kernel, zeros around, by loops."""
  x = np.pad(x, ((before, after), (before, after), (0, 0)))
  size = kernel.shape[0]
  out = np.zeros((x.shape[0] - size + 1, x.shape[1] - size + 1, x.shape[2]))
  for i in range(out.shape[0]):
    for j in range(out.shape[1]):
      window = x[i:i + size, j:j + size]
      out[i, j] = np.sum(window * kernel[..., None], axis=(0, 1))
  return out


def zeros_inserted(x):
  """[H, W, C] with a zero after every pixel."""
  out = np.zeros((2 * x.shape[0], 2 * x.shape[1], x.shape[2]))
  out[::2, ::2] = x
  return out


@pytest.fixture
def image():
  return np.random.default_rng(0).normal(size=(6, 8, 2)).astype(np.float32)


@pytest.mark.parametrize('before, after', [(2, 1), (1, 1), (0, 0)])
def test_filter_is_a_correlation(image, before, after):
  taps = [.5, -1., 2., .25]
  actual = images.filter2d(jnp.array(image), taps, before, after)
  np.testing.assert_allclose(actual, loop_filter(
      image, np.outer(taps, taps), before, after), atol=1e-5)


def test_upsampling_inserts_zeros_and_filters(image):
  np.testing.assert_allclose(
      images.upsample2(jnp.array(image)),
      loop_filter(zeros_inserted(image), 4 * BINOMIAL, 2, 1), atol=1e-5)


@pytest.mark.parametrize('margin', [1, 2])
def test_downsampling_filters_and_takes_every_second_pixel(image, margin):
  np.testing.assert_allclose(
      images.downsample2(jnp.array(image), margin),
      loop_filter(image, BINOMIAL, margin, margin)[::2, ::2], atol=1e-5)


@pytest.mark.parametrize('sigma, largest', [(2., 2.), (1.2, 3.), (.2, 3.)])
def test_blur_has_its_kernel(image, sigma, largest):
  radius = int(3 * sigma)
  i = np.arange(-radius, radius + 1)
  kernel = np.exp2(-(i / sigma) ** 2)
  kernel /= kernel.sum()
  np.testing.assert_allclose(
      jax.jit(lambda x, s: images.blur(x, s, largest))(image, sigma),
      loop_filter(image, np.outer(kernel, kernel), radius, radius), atol=1e-5)


def test_downsizing_is_antialiased():
  squares = jnp.arange(8.)[:, None, None] ** 2 + jnp.zeros((8, 8, 1))
  np.testing.assert_allclose(
      images.resize(squares, 4)[:, 0, 0], [1, 7, 21, 40], atol=.1)
  assert images.resize(squares, 8) is squares


def noise(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize('height, width, size', [
    (300, 451, 224), (97, 64, 224), (512, 512, 224), (50, 41, 24), (41, 50, 24),
    (224, 300, 224), (8, 8, 8)])
def test_clip_preprocess_equals_transformers(height, width, size):
  processing = pytest.importorskip(
      'transformers.models.clip.image_processing_pil_clip')
  theirs = processing.CLIPImageProcessorPil(
      size={'shortest_edge': size}, crop_size={'height': size, 'width': size})
  mean, std = theirs.image_mean, theirs.image_std
  for image in (noise((height, width, 3)),
                noise((height, width, 3)) // 128 * 255):  # edges overshoot
    expected = theirs(Image.fromarray(image), return_tensors='np')
    expected = expected['pixel_values'][0].transpose(1, 2, 0)
    level = 255 * np.array(std)  # of normalized values to gray levels
    fitted = np.asarray(images.clip_preprocess(image, size))
    assert fitted.dtype == np.uint8 and fitted.std() > 20
    off = (fitted / 255 - mean) / std - expected
    assert np.abs(off * level).max() < 1e-3
    # PIL rounds twice, by half a level each; the second pass can enlarge the
    # first error a little. Floats are not rounded.
    fitted = np.asarray(images.clip_preprocess(np.float32(image / 255), size))
    off = np.abs(((fitted - mean) / std - expected) * level)
    assert off.max() < 1.15 and np.mean(off > 1) < 1e-3


def test_clip_preprocess_of_batches_and_its_gradient():
  batch = noise((2, 3, 30, 20, 3))
  fitted = images.clip_preprocess(batch, 12)
  assert fitted.shape == (2, 3, 12, 12, 3)
  np.testing.assert_array_equal(
      fitted[1, 2], images.clip_preprocess(batch[1, 2], 12))
  gray = jnp.full((30, 20, 3), 0.4)
  np.testing.assert_allclose(images.clip_preprocess(gray, 12), 0.4, rtol=1e-6)
  slope = jax.grad(lambda x: jnp.sum(images.clip_preprocess(x, 12)))(gray)
  # Cropped rows have no gradient; the weights of the others add up to 144.
  np.testing.assert_allclose(jnp.sum(slope), 3 * 144, rtol=1e-5)
  assert float(jnp.abs(slope[0]).max()) == 0


def test_depth_map_equals_a_loop():
  rng = np.random.default_rng(0)
  depth = rng.uniform(1, 3, (3, 5, 7)).astype(np.float32)
  coverage = rng.random((3, 5, 7), np.float32)
  coverage[1], depth[2] = 0.2, 2.0  # an empty view, and one of a single depth
  expected = np.full((3, 5, 7, 1), 10 / 255)
  for view in (0, 2):
    inside = [depth[view, i, j] for i, j in np.ndindex(5, 7)
              if coverage[view, i, j] > 0.5]
    span = max(inside) - min(inside)
    for i, j in np.ndindex(5, 7):
      if coverage[view, i, j] > 0.5:
        expected[view, i, j] = (50 + 205 * (
            (max(inside) - depth[view, i, j]) / span if span else 1)) / 255
  # What lies behind an empty pixel is not a number.
  depth = np.where(coverage > 0.5, depth, np.inf)
  got = images.depth_map(jnp.asarray(depth), jnp.asarray(coverage))
  np.testing.assert_allclose(got, expected, atol=1e-6)
  assert got.min() > 0
  gradient = jax.grad(lambda depth: images.depth_map(depth, coverage).sum())(
      jnp.where(coverage > 0.5, depth, 0.0))
  assert np.all(np.isfinite(gradient))


def test_depth_map_is_that_of_scenetex(reference_data):
  data = reference_data('scenetex')
  depth = data['uv.zbuf'][..., 0]
  got = images.depth_map(jnp.asarray(depth), jnp.asarray(depth > 0) * 1.0)
  theirs = np.moveaxis(data['depth.controlnet'], 1, -1)
  np.testing.assert_allclose(got.repeat(3, -1), theirs, atol=1e-6)


def test_gaussian_blur_mirrors_at_the_edges(image):
  offset = np.arange(-2, 3)
  taps = np.exp(-0.5 * (offset / 1.3)**2)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), 'reflect')
  np.testing.assert_allclose(
      images.gaussian_blur(jnp.array(image), 1.3, 2), loop_filter(
          padded, np.outer(taps, taps) / taps.sum()**2, 0, 0), atol=1e-5)
  np.testing.assert_allclose(
      images.gaussian_blur(jnp.array(image), 0.0, 2), image, atol=1e-6)


def test_resizing_and_blur_of_clip_mesh(reference_data):
  reference = reference_data('clipmesh')
  last = lambda key: np.moveaxis(reference[key][0], 0, -1)
  for key in reference.files:
    kind, _, name = key.partition('.')
    kernel, _, size = name.partition('_')
    if kind == 'resize' and kernel in images.KERNELS:
      np.testing.assert_allclose(images.resize_filter(
          jnp.asarray(last('resize.in')), int(size), kernel, 'zero'),
                                 last(key), atol=1e-5)
    if kind == 'blur' and name != 'in':
      size, sigma = (int(x) for x in name[1:].split('s'))
      np.testing.assert_allclose(images.gaussian_blur(
          jnp.asarray(last('blur.in')), sigma, size // 2),
                                 last(key), atol=1e-5)


@pytest.mark.parametrize('kernel', sorted(images.KERNELS))
def test_normalized_weights_keep_a_constant(kernel):
  weights = images.resize_weights(13, 5, kernel)
  np.testing.assert_allclose(weights.sum(1), 1.0)
  assert np.abs(images.resize_weights(13, 5, kernel, 'zero').sum(1)
                - 1).max() > 0.01
