"""Fast sines against NumPy's in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import trigonometry

_RANDOM = np.random.default_rng(0).uniform(-1e4, 1e4, 4000)
ANGLES = np.concatenate([
    np.linspace(-40, 40, 4001), _RANDOM, np.pi * np.arange(-3, 4) / 2, [0.0]
]).astype(np.float32)


def test_values():
  exact = ANGLES.astype(np.float64)
  for actual, expected in (
      (trigonometry.sine(ANGLES), np.sin(exact)),
      (trigonometry.cosine(ANGLES), np.cos(exact))):
    np.testing.assert_allclose(actual, expected, atol=3e-7)
  both = trigonometry.sine_and_cosine(ANGLES)
  np.testing.assert_allclose(both[0], trigonometry.sine(ANGLES), atol=1e-7)
  np.testing.assert_allclose(both[1], trigonometry.cosine(ANGLES), atol=1e-7)


def test_gradients():
  exact = ANGLES.astype(np.float64)
  slope = lambda function: jax.grad(
      lambda x: jnp.sum(function(x)))(jnp.asarray(ANGLES))
  np.testing.assert_allclose(
      slope(trigonometry.sine), np.cos(exact), atol=3e-7)
  np.testing.assert_allclose(
      slope(lambda x: trigonometry.sine_and_cosine(x)[1]), -np.sin(exact),
      atol=2e-6)
