"""Noise schedules and conversions between predictions."""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.diffusion import noise

SCHEDULE = noise.cosine_schedule()


def test_cosine_schedule_preserves_variance_and_is_monotonic():
  t = jnp.linspace(0, 1, 101)
  alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
  np.testing.assert_allclose(alpha ** 2 + sigma ** 2, 1, atol=1e-6)
  assert (jnp.diff(alpha) <= 0).all() and alpha[0] > .999 and alpha[-1] > 0
  np.testing.assert_allclose(alpha[50] ** 2, .5, atol=1e-6)


def test_conversions_of_predictions_are_inverse():
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
  # min_sigma bounds the error of v near t = 0.
  off = noise.v_from_x(SCHEDULE, x_t, x + .1, t) - noise.v_from_x(
      SCHEDULE, x_t, x, t)
  np.testing.assert_allclose(off[0], -.1 / .05, rtol=1e-3)


def test_tabulated_schedules_equal_the_published_values():
  for squared, values in (
      (noise.scaled_linear(), {
          0: .99915, 20: .98131, 250: .67379, 500: .27633, 750: .05617,
          980: .005844, 999: .004660}),
      (noise.squared_cosine(), {
          20: .99811, 250: .84589, 500: .49229, 750: .14318, 980: .000877})):
    assert squared.shape == (1000,) and (np.diff(squared) < 0).all()
    for k, value in values.items():
      np.testing.assert_allclose(squared[k], value, rtol=2e-3 if
                                 value < .01 else 2e-5)


def test_discrete_schedule_equals_the_table_at_its_steps():
  squared = noise.squared_cosine()
  schedule = noise.discrete_schedule(squared)
  k = jnp.arange(-1, 1000)
  t = (k + 1) / 1000
  np.testing.assert_array_equal(noise.to_step(t), k)
  np.testing.assert_array_equal(noise.to_step(t[1:] - .0004), k[1:])
  np.testing.assert_array_equal(noise.to_step(t[1:] + .0004), k[1:])
  np.testing.assert_allclose(schedule.alpha(t)[1:] ** 2, squared, rtol=1e-5)
  np.testing.assert_allclose(
      schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1, atol=1e-6)
  assert (schedule.alpha(jnp.zeros(2)) == 1).all()
  assert (schedule.sigma(jnp.zeros(2)) == 0).all()
  # It is the continuous schedule, made discrete.
  np.testing.assert_allclose(schedule.alpha(t[:981]),
                             SCHEDULE.alpha(t[:981]), atol=.02)
