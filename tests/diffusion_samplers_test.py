"""Samplers with the ideal denoiser of a Gaussian, and beside diffusers."""

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


@pytest.mark.parametrize('eta', [0.0, 0.5, 1.0])
def test_samples_have_the_mean_and_deviation_of_the_gaussian(eta):
  x = np.asarray(samplers.sample(
      jax.random.key(1), _ideal, SCHEDULE, (4000, 2), steps=100, eta=eta,
      clip=None))
  np.testing.assert_allclose(x.mean(0), MEAN, atol=.03)
  np.testing.assert_allclose(x.std(0), DEVIATION, atol=.03)
  assert abs(np.corrcoef(x.T)[0, 1]) < .06


def test_ddim_is_deterministic_and_clipped():
  draw = lambda key, **kwargs: samplers.sample(
      key, _ideal, SCHEDULE, (50, 2), steps=20, **kwargs)
  np.testing.assert_array_equal(
      draw(jax.random.key(2)), draw(jax.random.key(2)))
  assert jnp.abs(draw(jax.random.key(3), clip=.5)).max() <= .5


def test_classifier_free_guidance_is_the_combination_in_one_call():
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


TABLES = {'scaled_linear': noise.scaled_linear(),
          'squaredcos_cap_v2': noise.squared_cosine()}


def peer(name, betas, **options):
  pytest.importorskip('torch', reason='PyTorch is a parity extra')
  diffusers = pytest.importorskip('diffusers', reason='a parity extra')
  return getattr(diffusers, name)(
      beta_schedule=betas, beta_start=.00085, beta_end=.012,
      timestep_spacing='trailing', **options)


def prediction_of(x, k, library):
  """A prediction that depends on the image and the step."""
  return library.tanh(x * (1 + k / 400)) + .2 * library.cos(3 * x)


def predict(schedule, prediction):
  def eps(x_t, t):
    output = prediction_of(x_t, noise.to_step(t)[:, None], jnp)
    return output if prediction == 'epsilon' else noise.eps_from_v(
        schedule, x_t, output, t)
  return eps


@pytest.mark.parity
@pytest.mark.parametrize('betas', list(TABLES))
@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction'])
def test_a_ddim_trajectory_equals_that_of_diffusers(betas, prediction):
  scheduler = peer('DDIMScheduler', betas, prediction_type=prediction,
                   clip_sample=False)
  import torch
  np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), TABLES[betas],
                             rtol=1e-4)
  scheduler.set_timesteps(20)
  start = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  x = torch.tensor(start)
  for k in scheduler.timesteps:
    x = scheduler.step(prediction_of(x, k, torch), k, x).prev_sample
  schedule = noise.discrete_schedule(TABLES[betas])
  ours = samplers.denoise(
      jax.random.key(0), predict(schedule, prediction), schedule,
      jnp.asarray(start), jnp.ones(3), steps=20, clip=None)
  theirs = x.numpy()
  assert np.abs(theirs - start).max() > .1
  np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parity
@pytest.mark.parametrize('betas', list(TABLES))
def test_a_ddpm_trajectory_equals_that_of_diffusers(monkeypatch, betas):
  scheduler = peer('DDPMScheduler', betas, variance_type='fixed_small')
  import torch
  from diffusers.schedulers import scheduling_ddpm
  key = jax.random.key(0)
  draws = iter([np.array(jax.random.normal(k, (3, 5)))
                for k in jax.random.split(key, 20)])
  monkeypatch.setattr(scheduling_ddpm, 'randn_tensor',
                      lambda *args, **kwargs: torch.tensor(next(draws)))
  scheduler.set_timesteps(20)
  start = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  x = torch.tensor(start)
  for k in scheduler.timesteps:
    x = scheduler.step(prediction_of(x, k, torch), k, x).prev_sample
  schedule = noise.discrete_schedule(TABLES[betas])
  ours = samplers.denoise(key, predict(schedule, 'epsilon'), schedule,
                          jnp.asarray(start), jnp.ones(3), steps=20, eta=1.0)
  np.testing.assert_allclose(ours, x.numpy(), atol=1e-4)
