"""True and predicted mean images at t = 0.99."""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.data.shapes import captions, categories
from gen3d.data.shapes import render as shapes_render
from gen3d.diffusion import noise
from gen3d.evaluation import mean_prediction
from gen3d.ops import cameras

COUNT, SIZE = 32, 12


@jax.jit
def image_of(parts, key, camera):
  view = shapes_render.trace(parts, camera, SIZE)
  return shapes_render.sample_image(key, view, 0.0, 0.5)


def sampled_images(category, color, camera):
  """Images of other objects and lights than those of the module's mean."""
  rng = np.random.default_rng(12345)
  images = []
  for i in range(COUNT):
    second = list(captions.COLORS)[rng.integers(len(captions.COLORS))]
    true_object = categories.build(
        captions.Spec(category, color, second), rng.uniform)
    images.append(image_of(
        true_object.parts, jax.random.key(1000 + i), camera))
  return np.stack(images)


def test_mean_image_is_the_expectation_over_objects_and_lights():
  cameras_of = [cameras.orbit(azimuth, 20.0, 1.6, 1.3)
                for azimuth in (0.0, 90.0)]
  labels = np.stack([cameras.to_label(camera) for camera in cameras_of])
  means = mean_prediction.mean_images('car', labels, SIZE, COUNT)
  assert means.shape == (2, SIZE, SIZE, 3)
  images = [sampled_images('car', mean_prediction.COLOR, camera)
            for camera in cameras_of]
  error = lambda mean, samples: np.sqrt(np.mean(
      (mean - samples.mean(0)) ** 2) / np.mean(samples.var(0) * 2 / COUNT))
  # Two means of 32 samples each: the error has its standard deviation.
  assert error(means[0], images[0]) < 1.6 and error(means[1], images[1]) < 1.6
  # It has not for another camera, color or category.
  assert error(means[0], images[1]) > 3
  assert error(means[0], sampled_images('car', 'blue', cameras_of[0])) > 3
  assert error(means[0], sampled_images(
      'duck', mean_prediction.COLOR, cameras_of[0])) > 3
  # No object reaches the corner, and the background is gray.
  np.testing.assert_allclose(means[:, 0, 0], 0.5, atol=1e-3)


def test_prediction_of_an_ideal_denoiser_is_its_mean_image():
  schedule = noise.cosine_schedule()
  true_mean = np.random.default_rng(0).uniform(size=(6, 6, 3))
  x_t = jax.random.normal(jax.random.key(0), (5, 6, 6, 3))

  def denoise(weights, x_t, t, text):
    """Exact where the data are `text` plus a fifth of the sampled noise."""
    np.testing.assert_allclose(t, mean_prediction.TIME)
    x = 2 * text - 1 + weights * (x_t - x_t.mean(0))
    sigma, alpha = schedule.sigma(t[0]), jnp.sqrt(1 - schedule.sigma(t[0]) ** 2)
    return (x_t - alpha * x) / sigma

  predicted = mean_prediction.predict_mean(
      denoise, 0.2, schedule, jnp.asarray(true_mean), x_t)
  np.testing.assert_allclose(predicted, true_mean, atol=1e-4)


def test_relative_error_of_uniform_gray_is_one():
  means = np.random.default_rng(0).uniform(size=(2, 4, 3, 3, 3))
  gray = np.full_like(means, 0.5)
  np.testing.assert_allclose(mean_prediction.relative_errors(means, gray), 1)
  half = (means + gray) / 2
  np.testing.assert_allclose(mean_prediction.relative_errors(means, half), 0.25)


def test_bundled_model_predicts_means_better_than_gray():
  # Of one sample each, whose noise is most of the error: with 16 it is 0.11.
  prompts, means, predictions = mean_prediction.compare(num_samples=1)
  assert len(prompts) == len(captions.CATEGORIES)
  assert means.shape == predictions.shape == (len(prompts), 4, 64, 64, 3)
  error = mean_prediction.relative_errors(means, predictions).mean()
  assert error < 0.65
  # It is larger for other cameras, and above that of gray, which is 1, for
  # other categories.
  other = lambda axis: mean_prediction.relative_errors(
      means, np.roll(predictions, 1, axis)).mean()
  assert other(1) > error + 0.15 and other(0) > 1.1
