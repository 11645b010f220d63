"""What a teacher should believe in where all is noise."""

import jax
import numpy as np
import pytest

from gen3d.data.shapes import captions, categories
from gen3d.data.shapes import world as shapes_world
from gen3d.evaluation import mean_prediction
from gen3d.ops import cameras


def test_a_mean_picture_is_the_mean_of_pictures():
  label = np.asarray(cameras.to_label(cameras.orbit(30.0, 20.0, 1.6, 1.3)))
  mean = mean_prediction._mean_pictures('mug', label[None], 12, 3)[0]
  rng = np.random.default_rng(captions.CATEGORIES.index('mug'))
  keys = jax.random.split(jax.random.key(0), 3)
  images = []
  for key in keys:
    spec = captions.Spec(
        'mug', mean_prediction.COLOR, rng.choice(list(captions.COLORS)))
    parts = categories.build(spec, rng.uniform).parts
    view = shapes_world.trace(parts, cameras.orbit(30.0, 20.0, 1.6, 1.3), 12)
    images.append(shapes_world.sample_image(key, view, 0.0, 0.5))
  np.testing.assert_allclose(mean, np.mean(images, axis=0), atol=1e-2)
  # Its corner is grey, for there is never anything.
  np.testing.assert_allclose(mean[0, 0], 0.5, atol=1e-3)


def test_errors_are_relative_to_a_belief_in_grey():
  means = np.random.default_rng(0).uniform(size=(2, 4, 3, 3, 3))
  grey = np.full_like(means, 0.5)
  np.testing.assert_allclose(mean_prediction.relative_errors(means, grey), 1)
  half = (means + grey) / 2
  np.testing.assert_allclose(mean_prediction.relative_errors(means, half), 0.25)


@pytest.mark.optimized
def test_the_shipped_teacher_believes_in_more_than_grey():
  prompts, means, believed = mean_prediction.compare(draws=2)
  assert len(prompts) == len(captions.CATEGORIES)
  assert means.shape == believed.shape == (len(prompts), 4, 64, 64, 3)
  assert mean_prediction.relative_errors(means, believed).mean() < 0.5
