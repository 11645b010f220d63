"""Regularization terms against closed forms and explicit Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.gan import regularizers


def test_r1_is_the_mean_squared_gradient_of_the_logits():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 3, 3, 1)), rng.normal(size=(2, 2, 2, 1))
  discriminate = lambda x: (
      jnp.sum(jnp.sin(x['image']), axis=(1, 2, 3))
      + jnp.sum(x['image_raw'] ** 3, axis=(1, 2, 3)))
  actual = regularizers.r1_penalty(
      discriminate, {'image': jnp.array(a), 'image_raw': jnp.array(b)})
  expected = (np.sum(np.cos(a) ** 2) + np.sum((3 * b ** 2) ** 2)) / 2
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_path_length_by_the_jacobian():
  ws = jax.random.normal(jax.random.key(0), (3, 2, 4))
  mix = jax.random.normal(jax.random.key(1), (2, 4, 5 * 5 * 1))
  synthesize = lambda ws: jnp.tanh(
      jnp.einsum('nld,ldp->np', ws, mix)).reshape(-1, 5, 5, 1)
  keys, mean = jax.random.split(jax.random.key(2), 3), jnp.float32(.7)
  penalty, pl_mean = regularizers.path_length(synthesize, ws, keys, mean)
  y = np.stack([jax.random.normal(key, (5, 5, 1)) for key in keys]) / 5
  lengths = []
  for i in range(3):
    jacobian = np.asarray(
        jax.jacobian(lambda w: synthesize(w[None])[0])(ws[i]))
    product = np.tensordot(y[i], jacobian, 3)
    lengths.append(np.sqrt(np.mean(np.sum(product ** 2, axis=1))))
  mean = .7 + .01 * (np.mean(lengths) - .7)
  np.testing.assert_allclose(pl_mean, mean, rtol=1e-5)
  np.testing.assert_allclose(
      penalty, np.mean((np.array(lengths) - mean) ** 2), rtol=1e-4)


def test_density_variation_of_a_linear_density():
  slope = lambda points: 3 * points[..., 0]
  actual = regularizers.density_variation(
      slope, jax.random.split(jax.random.key(0)), points=20_000, distance=.01)
  # The mean of |N(0, s)| is s sqrt(2 / pi).
  np.testing.assert_allclose(actual, 3 * .01 * np.sqrt(2 / np.pi), rtol=.02)
