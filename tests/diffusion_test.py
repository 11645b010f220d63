"""Noise and samplers where the ideal denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.diffusion import noise, samplers

SCHEDULE = noise.cosine_schedule()
MEAN, DEVIATION = 0.3, 0.4


def _ideal(x_t, t):
  """eps of the posterior mean for data from N(MEAN, DEVIATION^2)."""
  alpha, sigma = (f(t)[:, None] for f in SCHEDULE)
  gain = alpha * DEVIATION ** 2 / (alpha ** 2 * DEVIATION ** 2 + sigma ** 2)
  x = MEAN + gain * (x_t - alpha * MEAN)
  return (x_t - alpha * x) / sigma


def test_the_schedule_keeps_variance_and_goes_from_image_to_noise():
  t = jnp.linspace(0, 1, 101)
  alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
  np.testing.assert_allclose(alpha ** 2 + sigma ** 2, 1, atol=1e-6)
  assert (jnp.diff(alpha) <= 0).all() and alpha[0] > .999 and alpha[-1] > 0
  np.testing.assert_allclose(alpha[50] ** 2, .5, atol=1e-6)


def test_conversions_are_inverse():
  key = jax.random.key(0)
  x, eps = jax.random.normal(key, (2, 5, 3))
  t = jnp.array([.02, .2, .5, .8, .98])
  x_t = noise.diffuse(SCHEDULE, x, eps, t)
  v = noise.to_v(SCHEDULE, x, eps, t)
  np.testing.assert_allclose(
      noise.eps_from_v(SCHEDULE, x_t, v, t), eps, atol=1e-5)
  np.testing.assert_allclose(
      noise.x_from_eps(SCHEDULE, x_t, eps, t), x, atol=1e-4)
  np.testing.assert_allclose(
      noise.eps_from_x(SCHEDULE, x_t, x, t), eps, atol=1e-4)
  np.testing.assert_allclose(
      noise.v_from_x(SCHEDULE, x_t, x, t)[1:], v[1:], atol=1e-4)
  # Where there is no noise to speak of, an error in x is not magnified.
  off = noise.v_from_x(SCHEDULE, x_t, x + .1, t) - noise.v_from_x(
      SCHEDULE, x_t, x, t)
  np.testing.assert_allclose(off[0], -.1 / .05, rtol=1e-3)


@pytest.mark.parametrize('eta', [0.0, 0.5, 1.0])
def test_samplers_reach_the_gaussian_that_the_denoiser_knows(eta):
  x = np.asarray(samplers.sample(
      jax.random.key(1), _ideal, SCHEDULE, (4000, 2), steps=100, eta=eta,
      clip=None))
  np.testing.assert_allclose(x.mean(0), MEAN, atol=.03)
  np.testing.assert_allclose(x.std(0), DEVIATION, atol=.03)
  assert abs(np.corrcoef(x.T)[0, 1]) < .06


def test_ddim_is_deterministic_and_bounded_by_clip():
  draw = lambda key, **kwargs: samplers.sample(
      key, _ideal, SCHEDULE, (50, 2), steps=20, **kwargs)
  np.testing.assert_array_equal(
      draw(jax.random.key(2)), draw(jax.random.key(2)))
  assert jnp.abs(draw(jax.random.key(3), clip=.5)).max() <= .5


def test_guidance_is_the_linear_combination_in_one_call():
  calls = []
  def denoise(weights, x_t, t, text):
    calls.append(x_t.shape)
    return weights * text['states'] + x_t * t[:, None]
  text, null = {'states': jnp.full((3, 2), 2.)}, {'states': jnp.ones((3, 2))}
  predict = samplers.guided(denoise, 10., text, null, 4.)
  x_t, t = jnp.ones((3, 2)), jnp.full(3, .5)
  np.testing.assert_allclose(predict(x_t, t), 10 + 4 * (20 - 10) + .5)
  assert calls == [(6, 2)]
  same = samplers.guided(denoise, 10., text, null, 1.)(x_t, t)
  np.testing.assert_allclose(same, denoise(10., x_t, t, text))
