"""Augmentation against scipy.ndimage and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial

from gen3d.ops import augment

SIZE = 24
apply = jax.jit(augment.apply)
draw = jax.jit(jax.vmap(augment.draw, (0, None, None)), static_argnums=2)


def smooth(size=SIZE, seed=0):
  """A smooth image without symmetries."""
  rng = np.random.default_rng(seed)
  noise = rng.normal(size=(size, size, 3))
  x = scipy.ndimage.gaussian_filter(noise, (2.5, 2.5, 0), mode='mirror')
  return (x / np.abs(x).max()).astype(np.float32)


def batched(draws):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32)[None], draws)


def changed(x, **draws):
  draws = batched(augment.NEUTRAL._replace(
      **{name: np.array(value) for name, value in draws.items()}))
  return np.asarray(apply(jnp.asarray(x)[None], draws)[0])


def affine(x, matrix):
  """By scipy, about the center; (row, column) of the result to that of x."""
  middle = (np.array(x.shape[:2]) - 1) / 2
  matrix = np.array(matrix)
  planes = [scipy.ndimage.affine_transform(
      x[..., c], matrix, middle - matrix @ middle, order=3, mode='mirror')
            for c in range(3)]
  return np.stack(planes, -1)


def shifted(x, right, down):
  by = np.array([down, right]) * len(x)
  return scipy.ndimage.shift(x, (*by, 0), order=3, mode='mirror')


@pytest.mark.parametrize('draws, reference', [
    ({'flip': 1}, lambda x: x[:, ::-1]),
    ({'quarters': 1}, np.rot90),
    ({'quarters': 3}, lambda x: np.rot90(x, 3)),
    ({'shift': (2 / SIZE, -3 / SIZE)},
     lambda x: shifted(x, 2 / SIZE, -3 / SIZE)),
    ({'scale': 1.3}, lambda x: affine(x, np.eye(2) / 1.3)),
    ({'scale': 0.6}, lambda x: affine(x, np.eye(2) / 0.6)),
    ({'angle': 0.5}, lambda x: scipy.ndimage.rotate(
        x, np.rad2deg(0.5), reshape=False, order=3, mode='mirror')),
    ({'stretch': 1.4}, lambda x: affine(x, np.diag([1.4, 1 / 1.4]))),
    ({'turn': -2.0}, lambda x: scipy.ndimage.rotate(
        x, np.rad2deg(-2.0), reshape=False, order=3, mode='mirror')),
    ({'offset': (0.11, 0.07)}, lambda x: shifted(x, 0.11, 0.07))],
    ids=lambda x: '-'.join(x) if isinstance(x, dict) else '')
def test_geometry_against_scipy(draws, reference):
  x = smooth()
  actual, expected = changed(x, **draws), reference(x)
  assert np.abs(expected - x).mean() > 0.1
  np.testing.assert_allclose(actual, expected, atol=0.04)
  assert np.abs(actual - expected).mean() < 0.006


def test_geometric_transformations_have_the_order_of_the_paper():
  x = smooth(40)
  expected = np.rot90(x[:, ::-1], 2)
  expected = affine(shifted(expected, 0.1, -0.05), np.eye(2) / 1.2)
  turn = lambda x, angle: scipy.ndimage.rotate(
      x, np.rad2deg(angle), reshape=False, order=3, mode='mirror')
  expected = affine(turn(expected, 0.3), np.diag([1.1, 1 / 1.1]))
  expected = shifted(turn(expected, -0.4), 0.02, 0.03)
  actual = changed(
      x, flip=1, quarters=2, shift=(0.1, -0.05), scale=1.2, angle=0.3,
      stretch=1.1, turn=-0.4, offset=(0.02, 0.03))
  inner = slice(12, -12)  # Independent of pixels beyond the edges.
  np.testing.assert_allclose(actual[inner, inner], expected[inner, inner],
                             atol=0.03)


@pytest.mark.parametrize('draws, reference', [
    ({'brightness': 0.3}, lambda x: x + 0.3),
    ({'contrast': 1.7}, lambda x: 1.7 * x),
    ({'luma': 1}, lambda x: x - 2 * x.mean(-1, keepdims=True)),
    ({'hue': 0.8}, lambda x: scipy.spatial.transform.Rotation.from_rotvec(
        0.8 * np.full(3, 3 ** -0.5)).apply(x.reshape(-1, 3)).reshape(x.shape)),
    ({'saturation': 0.4}, lambda x: (
        x.mean(-1, keepdims=True) + 0.4 * (x - x.mean(-1, keepdims=True)))),
    ({'brightness': 0.2, 'contrast': 2, 'luma': 1},
     lambda x: 2 * (x + 0.2) - 4 * (x + 0.2).mean(-1, keepdims=True))],
    ids=lambda x: '-'.join(x) if isinstance(x, dict) else '')
def test_colors_against_numpy(draws, reference):
  x = smooth()
  np.testing.assert_allclose(changed(x, **draws), reference(x), atol=2e-6)


def test_probability_zero_is_the_identity():
  keys = jax.random.split(jax.random.key(0), 8)
  draws = draw(keys, 0.0, 16)
  x = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))  # not smooth
  np.testing.assert_allclose(apply(x, draws), x, atol=5e-6)


def test_linear_images_stay_linear():
  # A flip is exact: no coordinate is rounded.
  row, column = np.mgrid[:16, :16] / 16
  x = np.stack([column, row, row - column], -1).astype(np.float32)
  actual = changed(x, flip=1)
  inner = slice(5, -5)
  np.testing.assert_allclose(
      actual[inner, inner], x[inner, ::-1][:, inner], atol=2e-4)


def test_probabilities_and_strengths_are_those_of_the_paper():
  keys = jax.random.split(jax.random.key(0), 4000)
  draws = jax.device_get(draw(keys, 1.0, 40))
  frequencies = lambda x, n: np.bincount(x.astype(int), minlength=n) / len(x)
  np.testing.assert_allclose(frequencies(draws.flip, 2), 1 / 2, atol=.03)
  np.testing.assert_allclose(frequencies(draws.luma, 2), 1 / 2, atol=.03)
  np.testing.assert_allclose(frequencies(draws.quarters, 4), 1 / 4, atol=.03)
  pixels = draws.shift * 40
  np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-4)
  assert set(np.unique(np.round(pixels))) == set(range(-5, 6))
  for name, log, sigma in (
      ('scale', True, .2), ('stretch', True, .2), ('offset', False, .125),
      ('brightness', False, .2), ('contrast', True, .5),
      ('saturation', True, 1.0)):
    x = getattr(draws, name)
    x = np.log2(x) if log else x
    np.testing.assert_allclose([x.mean() / sigma, x.std() / sigma], [0, 1],
                               atol=.06, err_msg=name)
  for name in ('angle', 'turn', 'hue'):
    x = getattr(draws, name) / np.pi
    np.testing.assert_allclose(
        [x.min(), x.max(), x.std()], [-1, 1, 3 ** -.5], atol=.03, err_msg=name)
  assert np.abs(np.corrcoef(draws.angle, draws.turn)[0, 1]) < .06

  draws = jax.device_get(draw(keys, 0.3, 40))
  frequency = lambda name: np.mean(
      np.any(np.reshape(getattr(draws, name) != getattr(augment.NEUTRAL, name),
                        (4000, -1)), axis=1))
  for name in ('scale', 'stretch', 'offset', 'brightness', 'contrast', 'hue',
               'saturation'):
    np.testing.assert_allclose(frequency(name), .3, atol=.03, err_msg=name)
  rotation = 1 - np.sqrt(.7)
  np.testing.assert_allclose(
      [frequency('angle'), frequency('turn')], rotation, atol=.03)
  np.testing.assert_allclose(frequency('flip'), .15, atol=.03)
  np.testing.assert_allclose(frequency('quarters'), .3 * 3 / 4, atol=.03)


def test_gradients_against_finite_differences():
  keys = jax.random.split(jax.random.key(3), 3)
  draws = draw(keys, 1.0, 10)
  x, to, along = jax.random.normal(jax.random.key(4), (3, 3, 10, 10, 3))
  loss = jax.jit(lambda x: jnp.sum(jnp.sin(augment.apply(x, draws)) * to))
  slope = jax.jit(jax.grad(loss))(x)
  assert np.isfinite(slope).all()
  numeric = (loss(x + 1e-2 * along) - loss(x - 1e-2 * along)) / 2e-2
  np.testing.assert_allclose(jnp.sum(slope * along), numeric, rtol=2e-2)
  # As R1 needs: the gradient of a gradient's square.
  twice = jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2)))(x)
  assert np.isfinite(twice).all() and np.abs(twice).max() > 0
