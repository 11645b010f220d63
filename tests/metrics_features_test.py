"""Features of images for distances between sets."""

import numpy as np

from gen3d.metrics import distribution, features
from gen3d.models import clip_pair


def images(seed, count=6):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
  return coarse.repeat(8, 1).repeat(8, 2)


def test_the_shipped_features_are_those_of_the_clip_pair():
  clip = features.shapes_clip()
  assert clip.name == 'shapes_clip'
  x = images(0)
  embedded = clip.embed(x)
  assert embedded.shape[0] == len(x) and embedded.ndim == 2
  np.testing.assert_allclose(
      embedded, clip_pair.load().image_features(x / 255.0), atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-5)


def test_division_by_255_is_that_of_double_precision():
  """So that features do not depend on where bytes become floats."""
  levels = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(
      levels / np.float32(255), (levels / 255.0).astype(np.float32))


def test_distances_to_real_halves_are_those_of_the_features():
  mean_color = features.Features(
      'mean_color', lambda images: images.mean((1, 2)))
  first, second, generated = images(1), images(2), images(3)
  measure = distribution.distance_to_real(
      lambda: mean_color, lambda: np.concatenate([first, second]))
  moments = lambda x: distribution.moments(mean_color.embed(x))
  numbers = measure(generated)
  assert numbers == {
      'frechet_mean_color/generated': distribution.frechet(
          moments(generated), moments(first)),
      'frechet_mean_color/real_halves': distribution.frechet(
          moments(second), moments(first))}
  assert min(numbers.values()) > 0
  np.testing.assert_allclose(
      measure(first)['frechet_mean_color/generated'], 0, atol=1e-6)
