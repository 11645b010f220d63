"""Images of prompts, in batches."""

import jax
import numpy as np

from gen3d.diffusion import pixel_model, sampling


def test_samples_do_not_depend_on_the_number_of_prompts(tiny_pixel_model):
  model, params = tiny_pixel_model
  prompts = ['a red car', 'a blue duck', 'a green tree']
  key = jax.random.key(1)
  draw = lambda n, **kwargs: sampling.sample(
      key, pixel_model.to_teacher(model, params), prompts[:n], steps=3,
      batch=2, **kwargs)
  three = draw(3)
  assert three.shape == (3, 16, 16, 3) and three.dtype == np.uint8
  np.testing.assert_array_equal(three[:2], draw(2))
  assert not np.array_equal(three, draw(3, eta=1.0))
