"""Resampling against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def stuffed(x):
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
  found = images.filter2d(jnp.array(image), taps, before, after)
  np.testing.assert_allclose(found, loop_filter(
      image, np.outer(taps, taps), before, after), atol=1e-5)


def test_upsampling_stuffs_zeros_and_filters(image):
  np.testing.assert_allclose(
      images.upsample2(jnp.array(image)),
      loop_filter(stuffed(image), 4 * BINOMIAL, 2, 1), atol=1e-5)


@pytest.mark.parametrize('margin', [1, 2])
def test_downsampling_filters_and_skips(image, margin):
  np.testing.assert_allclose(
      images.downsample2(jnp.array(image), margin),
      loop_filter(image, BINOMIAL, margin, margin)[::2, ::2], atol=1e-5)


@pytest.mark.parametrize('sigma, largest', [(2., 2.), (1.2, 3.), (.2, 3.)])
def test_blur_is_the_kernel_that_its_docstring_states(image, sigma, largest):
  reach = int(3 * sigma)
  i = np.arange(-reach, reach + 1)
  kernel = np.exp2(-(i / sigma) ** 2)
  kernel /= kernel.sum()
  np.testing.assert_allclose(
      jax.jit(lambda x, s: images.blur(x, (s, largest)))(image, sigma),
      loop_filter(image, np.outer(kernel, kernel), reach, reach), atol=1e-5)


def test_shrinking_is_antialiased():
  squares = jnp.arange(8.)[:, None, None] ** 2 + jnp.zeros((8, 8, 1))
  np.testing.assert_allclose(
      images.resize(squares, 4)[:, 0, 0], [1, 7, 21, 40], atol=.1)
  assert images.resize(squares, 8) is squares
