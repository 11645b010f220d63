"""Random backgrounds: parity with Dream Fields, and their statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.ops import backgrounds


@pytest.fixture
def reference(reference_data):
  return reference_data('dreamfields')


def test_texture_of_a_spectrum(reference):
  real, imaginary = reference['fftbg.spectrum_re_im']
  image = backgrounds.texture(
      jnp.asarray(real + 1j * imaginary), reference['fftbg.rgb'].shape[0])
  np.testing.assert_allclose(image, reference['fftbg.rgb'], atol=1e-5)


def test_checkerboard(reference):
  for key in reference.files:
    if key.startswith('checker.image'):
      size, squares = key.removeprefix('checker.image').split('_nsq')
      np.testing.assert_array_equal(
          backgrounds.checkerboard(
              reference['checker.colors'], int(size), int(squares)),
          reference[key])


def test_checkerboard_with_a_traced_number_of_squares():
  colors = jnp.array([[0.0, 0, 0], [1, 1, 1]])
  image = jax.jit(backgrounds.checkerboard, static_argnums=1)(colors, 9, 3)
  block = np.kron([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.ones((3, 3)))
  np.testing.assert_array_equal(image[..., 0], block)


def test_texture_is_smoother_than_noise():
  size = 33  # odd, too
  step = lambda x: np.abs(np.diff(np.asarray(x), axis=0)).mean()
  texture = backgrounds.random_texture(jax.random.key(0), size)
  assert texture.shape == (size, size, 3)
  assert step(texture) < 0.3 * step(backgrounds.noise(jax.random.key(0), size))


def test_all_kinds_occur_and_blur_reduces_contrast():
  draw = lambda blur: jax.vmap(lambda key: backgrounds.dream_fields(
      key, 16, squares=4, blur_radius=3, blur_max=blur))(
          jax.random.split(jax.random.key(0), 24))
  sharp, blurred = (np.asarray(draw(blur)) for blur in (1e-6, 3.0))
  colors = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in sharp]
  assert 3 < sum(n == 2 for n in colors) < 14  # checkerboards
  assert sharp.min() >= 0 and sharp.max() <= 1
  assert np.mean(np.std(blurred, axis=(1, 2))) < 0.8 * np.mean(
      np.std(sharp, axis=(1, 2)))
