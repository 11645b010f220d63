"""ASD, SDS-Bridge, ISM, SDI, HiFA, flows: teachers with a known score."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dreamfusion, score_distillation
from gen3d.diffusion import noise, samplers, teachers
from gen3d.guidance import noising, score, texts
from gen3d.ops import cameras
from gen3d.scenes import Render
from gen3d.tasks import text_to_3d

DEVIATION = 0.3  # of the toy's images
SHAPE = (2, 2, 3)
SCHEDULE = noise.cosine_schedule()
MEANS = {'cond': 0.4, 'null': -0.2, 'empty': 0.1, 'source': 0.3}
UNIFORM = lambda alpha, sigma: jnp.ones_like(sigma)


def _eps(x_t, t, mean, schedule=SCHEDULE):
  """The ideal prediction for N(mean, DEVIATION^2)."""
  alpha, sigma = schedule.alpha(t), schedule.sigma(t)
  return sigma * (x_t - alpha * mean) / (alpha**2 * DEVIATION**2 + sigma**2)


def _teacher(schedule=SCHEDULE):
  def denoise(weights, x_t, t, text):
    return jax.vmap(functools.partial(_eps, schedule=schedule))(x_t, t, text)

  return teachers.Teacher(
      schedule, lambda weights, images, key: 2 * images - 1,
      teachers.unit_images, denoise, None, SHAPE, None, None)


def _context(count=2, time_min=0.1, schedule=SCHEDULE):
  text = {name: jnp.full(count, mean) for name, mean in MEANS.items()}
  view = texts.ViewText(text['cond'], text['null'], others=text)
  return score.Context(_teacher(schedule), {}, view, time_min)


def _x(count=2):
  return jax.random.uniform(jax.random.key(5), (count, *SHAPE), minval=-1.0)


def _gradient(settings, t, context=None):
  """(g, Noised) of two images at the time t."""
  context, x, key = context or _context(), _x(), jax.random.key(1)
  noised = settings.noising(context, key, x, jnp.full(len(x), t))
  return score.gradients(context, settings, key, noised, 0)[0], noised


def test_asd_subtracts_the_prompts_prediction_at_a_later_time():
  settings = score.Settings(
      score.sds(3.0), UNIFORM, reference=functools.partial(
          noising.later_prediction, ratio=0.5, random=False))
  g, noised = _gradient(settings, 0.5)
  later = 0.5 + 0.5 * (0.5 - 0.1)
  x_later = (SCHEDULE.alpha(later) * noised.x
             + SCHEDULE.sigma(later) * noised.eps)
  eps_c, eps_u = (_eps(noised.x_t, 0.5, MEANS[name])
                  for name in ('cond', 'null'))
  expected = eps_u + 3 * (eps_c - eps_u) - _eps(x_later, later, MEANS['cond'])
  np.testing.assert_allclose(g, expected, atol=1e-5)


def test_random_shifts_of_asd_are_between_none_and_the_whole():
  x, t = jnp.ones((500, *SHAPE)), jnp.full(500, 0.5)
  context = _context(500)
  noised = score.drawn(context, jax.random.key(0), x, t)
  used = []
  teacher = context.teacher._replace(
      denoise=lambda weights, x_t, t, text: used.append(t) or x_t)
  noising.later_prediction(
      context._replace(teacher=teacher), jax.random.key(2), noised, ratio=0.5,
      random=True)
  assert 0.5 <= used[0].min() < 0.51 and 0.69 < used[0].max() <= 0.7


def test_bridge_is_the_difference_of_two_prompts_scores():
  settings = score.Settings(
      score.Coefficients(4.0, 0.0, -4.0), UNIFORM,
      reference=noising.source_prediction)
  g, _ = _gradient(settings, 0.4)
  alpha, sigma = SCHEDULE.alpha(0.4), SCHEDULE.sigma(0.4)
  expected = -4 * sigma * alpha * (MEANS['cond'] - MEANS['source']) / (
      alpha**2 * DEVIATION**2 + sigma**2)
  np.testing.assert_allclose(g, jnp.full(g.shape, expected), rtol=1e-4)


def _invert_slowly(x, times, mean):
  """DDIM inversion along `times`, one image value at a time."""
  for t, later in zip(times[:-1], times[1:]):
    eps = _eps(x, t, mean)
    clean = (x - SCHEDULE.sigma(t) * eps) / SCHEDULE.alpha(t)
    x = SCHEDULE.alpha(later) * clean + SCHEDULE.sigma(later) * eps
  return x


def test_ism_goes_on_from_the_empty_prompts_prediction_one_interval_before():
  settings = score.Settings(
      score.sds(2.0), UNIFORM, noising=functools.partial(
          noising.interval, length=0.1, stride=0.3, steps=2))
  g, noised = _gradient(settings, 0.6)
  # Two strides of 0.3 lead back beyond 0, where sigma is nearly 0.
  start = score.drawn(_context(), jax.random.key(1), _x(), jnp.zeros(2)).x_t
  np.testing.assert_allclose(start, _x(), atol=0.01)
  x_s = _invert_slowly(start, (0.0, 0.25, 0.5), MEANS['empty'])
  reference = _eps(x_s, 0.5, MEANS['empty'])
  x_t = _invert_slowly(x_s, (0.5, 0.6), MEANS['empty'])
  np.testing.assert_allclose(noised.x_t, x_t, atol=1e-4)
  eps_c, eps_u = (_eps(noised.x_t, 0.6, MEANS[name])
                  for name in ('cond', 'null'))
  np.testing.assert_allclose(
      g, eps_u + 2 * (eps_c - eps_u) - reference, atol=1e-4)


def test_ism_starts_from_a_noised_image_where_the_strides_are_short():
  noised = noising.interval(
      _context(), jax.random.key(3), _x(), jnp.full(2, 0.9), length=0.1,
      stride=0.1, steps=2)
  start = score.drawn(_context(), jax.random.key(3), _x(), jnp.full(2, 0.6))
  x_s = _invert_slowly(start.x_t, (0.6, 0.7, 0.8), MEANS['empty'])
  np.testing.assert_allclose(
      noised.eps, _eps(x_s, 0.8, MEANS['empty']), rtol=1e-4)


def test_sdi_takes_the_noise_of_a_guided_inversion():
  _, noised = _gradient(score.Settings(
      score.sds(2.0), noising=functools.partial(
          noising.inverted, scale=-1.5, steps=3)), 0.6)
  # Guidance of scale s between two Gaussians is a Gaussian of a mixed mean.
  mean = MEANS['null'] - 1.5 * (MEANS['cond'] - MEANS['null'])
  x_t = _invert_slowly(_x(), (0.0, 0.2, 0.4, 0.6), mean)
  np.testing.assert_allclose(noised.x_t, x_t, atol=1e-4)
  np.testing.assert_allclose(
      SCHEDULE.alpha(0.6) * noised.x + SCHEDULE.sigma(0.6) * noised.eps,
      noised.x_t, rtol=1e-5)


def test_inversion_is_undone_by_denoising():
  predict = lambda x_t, t: jax.vmap(_eps)(x_t, t, jnp.full(2, 0.4))
  x, t = _x(), jnp.full(2, 0.8)
  x_t = samplers.invert(predict, SCHEDULE, x, jnp.zeros(2), t, 800)
  np.testing.assert_allclose(samplers.denoise(
      jax.random.key(0), predict, SCHEDULE, x_t, t, 800, clip=None), x,
                             atol=0.01)


@pytest.mark.parametrize('steps', [2, 3])
def test_steps_of_hifa_lead_to_the_clean_image_of_ddim(steps):
  settings = score.Settings(score.sds(1.0), score.WEIGHTINGS['image'],
                            denoising_steps=steps)
  g, noised = _gradient(settings, 0.7)
  x_t, times = noised.x_t, np.linspace(0.7, 0, steps + 1)
  for t, s in zip(times[:-1], times[1:]):
    eps = _eps(x_t, t, MEANS['cond'])
    clean = (x_t - SCHEDULE.sigma(t) * eps) / SCHEDULE.alpha(t)
    x_t = SCHEDULE.alpha(s) * clean + SCHEDULE.sigma(s) * eps
  np.testing.assert_allclose(g, noised.x - clean, atol=1e-4)


def test_velocity_weighting_of_a_flow_is_the_difference_of_velocities():
  flow = noise.rectified_flow()
  settings = score.Settings(score.sds(1.0), score.WEIGHTINGS['velocity'])
  g, noised = _gradient(settings, 0.4, _context(schedule=flow))
  eps_hat = _eps(noised.x_t, 0.4, MEANS['cond'], flow)
  clean = noise.x_from_eps(flow, noised.x_t, eps_hat, jnp.full(2, 0.4))
  np.testing.assert_allclose(
      g, (eps_hat - clean) - (noised.eps - noised.x), atol=1e-5)
  np.testing.assert_allclose(noise.eps_from_flow(
      flow, noised.x_t, eps_hat - clean, jnp.full(2, 0.4)), eps_hat, rtol=1e-4)


@pytest.mark.parametrize(
    'variant', [name for name in score_distillation.VARIANTS if name != 'tiny'])
def test_every_variant_moves_images_towards_the_prompt(variant, monkeypatch):
  config = score_distillation.VARIANTS[variant](dreamfusion.tiny())
  config.guidance.scale = (3.0,)
  options = config.guidance.options
  options.time_min = options.time_max = (0.6,)
  options.color_guidance_ratio = 1.0

  def embed(texts):
    return jnp.array([0.8 if text.startswith('a red') and 'foggy' not in text
                      else -0.8 for text in texts])

  monkeypatch.setattr(score.loading, 'make_teacher',
                      lambda settings: _teacher()._replace(
                          embed=embed, load=lambda: {}))
  guidance = text_to_3d.GUIDANCES[config.guidance.name](config)
  frozen = guidance.load('a red chair', '')
  text = guidance.condition(frozen, cameras.orbit(20.0, 10.0, 1.6, 1.3))
  image = jnp.full(SHAPE, 0.5)

  def loss(image, key):
    render = Render(image, *(None,) * 5)
    return guidance.loss({}, frozen, key, render, text, 0)[0]

  mean = jax.vmap(jax.grad(loss), (None, 0))(
      image, jax.random.split(jax.random.key(0), 64)).mean()
  assert mean < -1e-3

