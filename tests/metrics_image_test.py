"""PSNR and SSIM against closed forms and scikit-image; LPIPS per image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.metrics

from gen3d.metrics import image
from gen3d.models import perceptual


def smooth_and_noisy(shape, seed=0, noise=0.1):
  """A smooth image with an edge and a flat part, and a noisy copy."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:shape[-3], :shape[-2]] / max(shape)
  a = 0.5 + 0.4 * np.sin(9 * x + 5 * y + rng.uniform(0, 6, (*shape[:-3], 1, 1)
                                                      ))[..., None]
  a = np.where((x > 0.4)[..., None], a, 0.98) * np.ones(shape)
  b = a + noise * rng.normal(size=shape) * (y < 0.5)[..., None]
  return a.astype(np.float32), np.clip(b, 0, 1).astype(np.float32)


def test_psnr_of_a_known_error():
  a = jnp.full((2, 4, 5, 3), 0.25)
  b = a + jnp.array([0.1, 0.01]).reshape(2, 1, 1, 1)
  np.testing.assert_allclose(image.psnr(a, b), [20, 40], rtol=1e-4)
  # One pixel of the twenty is wrong by 0.5 in one of three channels.
  c = a[0].at[1, 2, 0].add(0.5)
  np.testing.assert_allclose(
      image.psnr(a[0], c), 10 * np.log10(60 / 0.25), rtol=1e-5)
  assert np.isposinf(image.psnr(a[0], a[0]))


def test_psnr_equals_scikit_image():
  a, b = smooth_and_noisy((20, 24, 3))
  np.testing.assert_allclose(
      image.psnr(a, b), skimage.metrics.peak_signal_noise_ratio(
          a.astype(np.float64), b.astype(np.float64), data_range=1),
      rtol=1e-5)


def scikit_ssim(a, b):
  _, full = skimage.metrics.structural_similarity(
      a.astype(np.float64), b.astype(np.float64), channel_axis=-1,
      gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
      data_range=1, full=True)
  return full[5:-5, 5:-5].mean()


@pytest.mark.parametrize('noise', [0.003, 0.1, 0.5])
def test_ssim_equals_scikit_image(noise):
  a, b = smooth_and_noisy((3, 25, 40, 3), noise=noise)
  expected = [scikit_ssim(x, y) for x, y in zip(a, b)]
  assert np.ptp(expected) > 1e-5  # so that a mix-up of the images shows
  np.testing.assert_allclose(image.ssim(a, b), expected, atol=2e-5)
  np.testing.assert_allclose(jax.jit(image.ssim)(a[0], b[0]), expected[0],
                             atol=2e-5)


def test_ssim_equals_its_definition_in_one_window():
  a, b = smooth_and_noisy((11, 11, 3), noise=0.3)
  i = np.arange(11) - 5
  weights = np.exp(-(i[:, None] ** 2 + i**2) / (2 * 1.5**2))
  weights /= weights.sum()
  values = []
  for channel in range(3):
    x, y = a[..., channel], b[..., channel]
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    var_x = (weights * (x - mean_x) ** 2).sum()
    var_y = (weights * (y - mean_y) ** 2).sum()
    cov = (weights * (x - mean_x) * (y - mean_y)).sum()
    values.append((2 * mean_x * mean_y + 1e-4) * (2 * cov + 9e-4)
                  / ((mean_x**2 + mean_y**2 + 1e-4)
                     * (var_x + var_y + 9e-4)))
  np.testing.assert_allclose(image.ssim(a, b), np.mean(values), atol=1e-5)


def test_ssim_in_closed_form():
  a, _ = smooth_and_noisy((2, 16, 16, 3))
  np.testing.assert_allclose(image.ssim(a, a), 1, atol=1e-6)
  # Constant images have no structure: only the means count.
  light, dark = jnp.full((12, 12, 3), 0.8), jnp.full((12, 12, 3), 0.3)
  np.testing.assert_allclose(
      image.ssim(light, dark),
      (2 * 0.24 + 1e-4) / (0.64 + 0.09 + 1e-4), rtol=1e-4)


def test_ssim_has_a_gradient():
  a, b = smooth_and_noisy((13, 12, 3))
  slope = jax.grad(lambda x: image.ssim(x, b))(jnp.array(a))
  step = np.random.default_rng(1).normal(size=a.shape).astype(np.float32)
  moved = [image.ssim(a + sign * 1e-2 * step, b) for sign in (1, -1)]
  np.testing.assert_allclose(
      np.sum(slope * step), (moved[0] - moved[1]) / 2e-2, rtol=0.02)


def test_lpips_is_one_symmetric_value_per_image():
  backbone = perceptual.Backbone('toy', (
      perceptual.Stage(0, (perceptual.Conv(0, 4),)),
      perceptual.Stage(2, (perceptual.Conv(1, 6),))))
  params = perceptual.LPIPS(backbone).init(
      jax.random.key(0), jnp.zeros((1, 16, 16, 3)))['params']
  network = perceptual.Perceptual(params, backbone)
  a, b = smooth_and_noisy((2, 3, 16, 12, 3))
  distance = jax.jit(image.lpips)(network, a, b)
  assert distance.shape == (2, 3) and (distance > 1e-4).all()
  np.testing.assert_allclose(distance, image.lpips(network, b, a), rtol=1e-5)
  np.testing.assert_allclose(
      distance[1, 2], image.lpips(network, a[1, 2], b[1, 2]), rtol=1e-5)
  np.testing.assert_array_equal(image.lpips(network, a, a), 0)


@pytest.mark.parametrize('metric', [
    image.psnr, image.ssim, lambda a, b: image.lpips(None, a, b)])
def test_images_of_different_shapes_are_refused(metric):
  a = jnp.zeros((2, 16, 16, 3))
  for b in (a[:1], a[..., :1]):
    with pytest.raises(ValueError, match='of one shape'):
      metric(a, b)
  with pytest.raises(ValueError, match=r'\[16, 16, 4\]'):
    metric(jnp.zeros((16, 16, 4)), jnp.zeros((16, 16, 4)))


def test_ssim_of_images_smaller_than_a_window_is_refused():
  with pytest.raises(ValueError, match='20 x 10'):
    image.ssim(jnp.zeros((20, 10, 3)), jnp.zeros((20, 10, 3)))
