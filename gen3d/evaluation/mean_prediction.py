"""Error of the teacher's prediction at t = 0.99 against the true mean image.

At this noise level x_t carries almost no information, so the best prediction
is the mean of all images that a prompt allows from a given camera. Score
distillation begins with it: a blurred mean gives a blurred shape. In the
shapes world the true mean can be computed by sampling.
"""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import assets, notices
from gen3d.data.shapes import captions, categories
from gen3d.data.shapes import render as shapes_render
from gen3d.diffusion import noise, pixel_model
from gen3d.io import images as image_io
from gen3d.ops import cameras

COLOR = 'orange'
NUM_VIEWS = 4
TIME = 0.99
NUM_SAMPLES = 16  # objects of a true mean, and noises of a predicted one


def report(weights: str | os.PathLike = assets.TEXT_TO_IMAGE,
           out: str | os.PathLike | None = None) -> str:
  """Lines with the relative error of each prompt and their mean.

  Args:
    weights: of a text-to-image model.
    out: folder for a sheet, true mean beside prediction; None for no sheet.

  Raises:
    UserError: the weights are missing or damaged.
  """
  prompts, means, predictions = compare(weights)
  errors = relative_errors(means, predictions)
  if out:
    pairs = np.concatenate([means, predictions], axis=3)[:, [0, 1]]
    image_io.save(pathlib.Path(out) / 'mean_prediction.png', image_io.tile(
        np.clip(pairs.reshape(-1, *pairs.shape[2:]), 0, 1), 8,
        [f'{prompt}, {side}' for prompt in prompts
         for side in ('front', 'side')]))
  lines = [f'{prompt}: {error:.2f}' for prompt, error in zip(prompts, errors)]
  return '\n'.join([*lines, (
      f'mean relative error of the prediction at t = {TIME}: '
      f'{errors.mean():.3f}')])


def compare(
    weights: str | os.PathLike = assets.TEXT_TO_IMAGE,
    num_samples: int = NUM_SAMPLES
) -> tuple[list[str], np.ndarray, np.ndarray]:
  """True and predicted mean images of one colored object of each category.

  Args:
    weights: of a text-to-image model.
    num_samples: objects of a true mean, each in its own light before gray;
      and noises of a predicted one.

  Returns:
    (prompts, means, predictions), the last two [categories, NUM_VIEWS, H, W,
    3], about in [0, 1].
  """
  model, params, _ = pixel_model.load(weights)
  prompts = [captions.plain(captions.Spec(category, COLOR, ''))
             for category in captions.CATEGORIES]
  # Prompt-major: the first NUM_VIEWS labels are the cameras of every prompt.
  texts, labels = pixel_model.around(prompts, NUM_VIEWS)
  means = np.stack([
      mean_images(category, labels[:NUM_VIEWS], model.size, num_samples)
      for category in notices.track(
          captions.CATEGORIES, 'Averaging images')])
  tokens, mask = assets.tokenizer().encode(texts)
  predictions = _predict_means(
      params, tokens, mask, jnp.asarray(labels),
      jax.random.split(jax.random.key(0), len(texts)), model=model,
      num_samples=num_samples)
  return prompts, means, np.asarray(predictions).reshape(means.shape)


def relative_errors(means: np.ndarray, predictions: np.ndarray) -> np.ndarray:
  """Squared error by category [N], 1 for a prediction of uniform gray.

  Args:
    means: [N, V, H, W, 3], true mean images in [0, 1].
    predictions: the same shape.
  """
  axes = (1, 2, 3, 4)
  return ((predictions - means) ** 2).mean(axes) / (
      (means - 0.5) ** 2).mean(axes)


def mean_images(category: str, labels: np.ndarray, size: int,
                num_samples: int) -> np.ndarray:
  """Mean [V, H, W, 3] over proportions, second colors and lights.

  Args:
    category: one of captions.CATEGORIES.
    labels: [V, 25], of the cameras.
    size: H and W, in pixels.
    num_samples: of objects, the same for all views.
  """
  # The prompt fixes category and main color; the rest is averaged over.
  rng = np.random.default_rng(captions.CATEGORIES.index(category))
  parts = [categories.build(captions.Spec(
      category, COLOR, rng.choice(list(captions.COLORS))), rng.uniform).parts
           for _ in range(num_samples)]
  return np.asarray(_mean_of_each(
      np.stack(parts), jax.random.split(jax.random.key(0), num_samples),
      jnp.asarray(labels), size=size))


@functools.partial(jax.jit, static_argnames='size')
def _mean_of_each(parts, keys, labels, *, size):
  def mean_image(label):
    def image(sample):
      part, key = sample
      view = shapes_render.trace(part, cameras.from_label(label), size)
      # Over gray 0.5, the mean of the world's backgrounds.
      return shapes_render.sample_image(key, view, 0.0, 0.5)

    return jnp.mean(jax.lax.map(image, (parts, keys)), axis=0)

  return jax.lax.map(mean_image, labels)


def predict_mean(denoise: Callable, weights: Any, schedule: noise.Schedule,
                 text: Any, x_t: jax.Array) -> jax.Array:
  """Mean [H, W, 3] of the predictions of x from noises, in about [0, 1].

  Args:
    denoise: (weights, x_t, t, text) -> eps.
    weights: of the denoiser.
    schedule: noise.Schedule.
    text: of one image, a pytree without a batch axis.
    x_t: [K, H, W, 3], K noises.
  """
  text = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (len(x_t), *x.shape)), text)
  t = jnp.full(len(x_t), TIME)
  eps = denoise(weights, x_t, t, text)
  # The mean over noises removes what little depends on them.
  x = noise.x_from_eps(schedule, x_t, eps, t)
  return jnp.mean(x, axis=0) / 2 + 0.5


@functools.partial(jax.jit, static_argnames=('model', 'num_samples'))
def _predict_means(params, tokens, mask, labels, keys, *, model, num_samples):
  texts = model.add_camera(params, model.embed(params, tokens, mask), labels)

  def predict(row):
    text, key = row
    # At t = 0.99 the image's weight is about 0.016: x_t is noise.
    x_t = jax.random.normal(key, (num_samples, model.size, model.size, 3))
    return predict_mean(model.denoise, params, model.schedule, text, x_t)

  return jax.lax.map(predict, (texts, keys))
