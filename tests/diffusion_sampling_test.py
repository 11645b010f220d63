"""Images of prompts, in batches."""

import jax
import numpy as np
import pytest

from configs import text_to_image as config_file
from gen3d import assets
from gen3d.diffusion import pixel_model, sampling


@pytest.fixture(scope='module')
def model():
  config = config_file.get_config('tiny')
  return pixel_model.build(config.model, assets.tokenizer().vocab_size)


@pytest.fixture(scope='module')
def params(model):
  return jax.jit(model.init, static_argnums=1)(
      jax.random.key(0), assets.CAPTION_LENGTH)


def test_samples_do_not_depend_on_the_number_of_prompts(model, params):
  prompts = ['a red car', 'a blue duck', 'a green tree']
  key = jax.random.key(1)
  draw = lambda n, **kwargs: sampling.sample(
      key, pixel_model.to_teacher(model, params), prompts[:n], steps=3,
      batch=2, **kwargs)
  three = draw(3)
  assert three.shape == (3, 16, 16, 3) and three.dtype == np.uint8
  np.testing.assert_array_equal(three[:2], draw(2))
  assert not np.array_equal(three, draw(3, eta=1.0))
