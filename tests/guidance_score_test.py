"""Score distillation by a teacher whose score is known in closed form."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen3d.diffusion import noise, samplers
from gen3d.guidance import score

SPREAD = 0.3  # standard deviation of the toy's images
SHAPE = (4, 4, 3)
MEANS = {'cond': 0.4, 'null': -0.2, 'negative': 0.1}
SCHEDULE = noise.cosine_schedule()


def _denoise(weights, x_t, t, text):
  """The ideal denoiser of N(mean of the text, SPREAD^2)."""
  alpha = SCHEDULE.alpha(t)[:, None, None, None]
  sigma = SCHEDULE.sigma(t)[:, None, None, None]
  mean = text['states'].mean((1, 2))[:, None, None, None] * weights['one']
  return sigma * (x_t - alpha * mean) / (alpha**2 * SPREAD**2 + sigma**2)


TEACHER = SimpleNamespace(
    schedule=SCHEDULE, encode=lambda weights, images, key: 2 * images - 1,
    denoise=_denoise, weights={'one': jnp.ones(())})


def _text(count):
  return _with_one_negative({
      name: {'states': jnp.full((count, 2, 3), mean),
             'mask': jnp.ones((count, 2))} for name, mean in MEANS.items()})


def _with_one_negative(text):
  """The text with its negatives as a row of one, which counts once."""
  count = len(jax.tree.leaves(text)[0])
  return {**text, 'weights': jnp.ones((count, 1)),
          'negative': jax.tree.map(lambda x: x[:, None], text['negative'])}


def _images(count=2):
  return jax.random.uniform(jax.random.key(5), (count, *SHAPE))


def _gradient(guidance, images, key, step=0):
  loss = lambda images: guidance.loss(
      {}, TEACHER.weights, key, images, _text(len(images)), step)[0]
  return jax.grad(loss)(images)


def _levels(t):
  return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)


def test_sds_is_its_definition_on_average():
  t, scale, images = 0.6, 3.0, _images()
  guidance = score.make(TEACHER, score.sds(scale), time_min=t, time_max=t)
  got = jax.jit(lambda keys: jax.vmap(functools.partial(
      _gradient, guidance, images))(keys).mean(0))(
          jax.random.split(jax.random.key(0), 20_000))
  alpha, sigma = _levels(t)
  # E over eps of w (eps_u + s (eps_c - eps_u) - eps), w = sigma^2, times the
  # encoder's dx / dimage = 2, over the batch.
  mean = MEANS['null'] + scale * (MEANS['cond'] - MEANS['null'])
  expected = sigma**2 * alpha * sigma * ((2 * images - 1) - mean) / (
      alpha**2 * SPREAD**2 + sigma**2) * 2 / len(images)
  np.testing.assert_allclose(got, expected, atol=1.5e-2)
  assert np.abs(expected).max() > 0.2


def test_weighed_as_an_image_it_is_the_way_to_the_clean_one():
  t, images = 0.7, _images()
  guidance = score.make(TEACHER, score.sds(1.0), weighting='image',
                        time_min=t, time_max=t)
  got = jax.jit(lambda keys: jax.vmap(functools.partial(
      _gradient, guidance, images))(keys).mean(0))(
          jax.random.split(jax.random.key(0), 20_000))
  alpha, sigma = _levels(t)
  # The posterior mean of x given x_t, on average over eps.
  share = alpha**2 * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
  x = 2 * images - 1
  clean = MEANS['cond'] + share * (x - MEANS['cond'])
  np.testing.assert_allclose(got, (x - clean) * 2 / len(images), atol=1e-2)


@pytest.mark.parametrize('coefficients', [score.sds(5.0), score.csd(5.0)])
def test_colors_follow_a_share_of_the_guidance(coefficients):
  color, key, share = _images(), jax.random.key(4), ((0, 1.0), (10, 0.3))
  # No linear encoder, since that of a latent model is none.
  teacher = SimpleNamespace(**{
      **vars(TEACHER), 'encode': lambda weights, images, key: images**2})

  def gradients(coefficients, share, step):
    guidance = score.make(
        teacher, coefficients, time_min=0.6, time_max=0.6, color_share=share)

    def loss(opacity, color):
      return guidance.loss(
          {}, teacher.weights, key, opacity * color, _text(len(color)), step,
          jax.lax.stop_gradient(opacity) * color)[0]
    return jax.grad(loss, (0, 1))(jnp.full((2, 1, 1, 1), 0.5), color)

  guided, alone = (gradients(c, 1.0, 0) for c in (
      coefficients, score.sds(1.0)))
  assert np.abs(guided[1] - alone[1]).max() > 0.1
  for step, part in ((0, 1.0), (5, 0.65), (10, 0.3)):
    opacity, colors = gradients(coefficients, share, step)
    np.testing.assert_allclose(opacity, guided[0], rtol=1e-5)
    np.testing.assert_allclose(
        colors, part * guided[1] + (1 - part) * alone[1], atol=1e-5)


def test_many_draws_have_the_same_mean_and_less_noise():
  images = _images()

  def gradients(draws):
    guidance = score.make(TEACHER, score.sds(3.0), draws=draws)
    return jax.jit(jax.vmap(functools.partial(_gradient, guidance, images)))(
        jax.random.split(jax.random.key(draws), 4000))

  one, six = gradients(1), gradients(6)
  np.testing.assert_allclose(one.mean(0), six.mean(0), atol=0.06)
  assert one.var(0).mean() / six.var(0).mean() > 5.5


def test_each_draw_leaves_the_teachers_jacobian_out():
  # With eps of one draw known from a teacher that is silent, that of another
  # teacher with the same key must be g = w (eps_hat - eps), no more.
  t, key, images = 0.5, jax.random.key(3), _images(1)
  make = lambda *numbers: score.make(
      TEACHER, score.Coefficients(*numbers), weighting='uniform', time_min=t,
      time_max=t)
  silent = _gradient(make(0.0, 1e-30, 0.0, -1.0), images, key)
  eps = -silent / 2
  alpha, sigma = _levels(t)
  x_t = alpha * (2 * images - 1) + sigma * eps
  eps_c = sigma * (x_t - alpha * MEANS['cond']) / (
      alpha**2 * SPREAD**2 + sigma**2)
  np.testing.assert_allclose(
      _gradient(make(1.0, 0.0, 0.0, -1.0), images, key), 2 * (eps_c - eps),
      atol=1e-4)
  assert abs(float(eps.std()) - 1) < 0.3


@pytest.mark.parametrize('coefficients, towards', [
    (score.csd(2.0), 2 * (MEANS['cond'] - MEANS['null'])),
    (score.Coefficients(1.0, 0.0, -1.0, 0.0),
     MEANS['cond'] - MEANS['negative'])])
def test_differences_of_scores_have_no_noise(coefficients, towards):
  t, images = 0.3, _images()
  alpha, sigma = _levels(t)
  for weighting, w in (('uniform', 1), ('sigma_squared', sigma**2),
                       ('fantasia3d', alpha * sigma**2)):
    guidance = score.make(TEACHER, coefficients, weighting=weighting,
                          time_min=t, time_max=t)
    expected = -w * sigma * alpha * towards / (
        alpha**2 * SPREAD**2 + sigma**2) * 2 / len(images)
    np.testing.assert_allclose(
        _gradient(guidance, images, jax.random.key(0)), expected, rtol=1e-3)


def test_pixels_converge_to_the_mode():
  guidance = score.make(TEACHER, score.sds(1.0), time_max=((0, 0.98),
                                                            (300, 0.3)))
  optimizer = optax.adam(0.03)
  images = _images()

  def update(carry, step):
    images, state = carry
    gradient = _gradient(
        guidance, images, jax.random.fold_in(jax.random.key(1), step), step)
    updates, state = optimizer.update(gradient, state)
    images = optax.apply_updates(images, updates)
    return (images, state), images

  (_, _), path = jax.lax.scan(
      update, (images, optimizer.init(images)), jnp.arange(600))
  mode = (MEANS['cond'] + 1) / 2
  np.testing.assert_allclose(path[-200:].mean(0), mode, atol=0.05)


def test_times_are_annealed():
  guidance = score.make(
      TEACHER, score.sds(1.0), time_min=0.1, time_max=((0, 0.9), (100, 0.2)))
  times = lambda step: jax.vmap(lambda key: guidance.loss(
      {}, TEACHER.weights, key, _images(1), _text(1), step)[1]['sds/t'])(
          jax.random.split(jax.random.key(0), 500))
  early, late = times(0), times(100)
  assert 0.1 <= early.min() < 0.15 and 0.85 < early.max() <= 0.9
  assert late.min() >= 0.1 and 0.19 < late.max() <= 0.2


def test_clip_keeps_the_wanted_image_in_range():
  t, images = 0.8, _images()
  alpha, sigma = _levels(t)
  wanted = {}
  for clip in (0.0, 1.0):
    guidance = score.make(TEACHER, score.sds(40.0), weighting='uniform',
                          time_min=t, time_max=t, clip=clip)
    gradient = _gradient(guidance, images, jax.random.key(2))
    wanted[clip] = 2 * images - 1 - sigma / alpha * gradient * len(images) / 2
  assert np.abs(wanted[0.0]).max() > 3
  assert np.abs(wanted[1.0]).max() <= 1 + 1e-4
  # Thresholding divides by the largest value; order and sign stay.
  np.testing.assert_allclose(
      wanted[1.0], wanted[0.0] / np.abs(wanted[0.0]).max(
          (1, 2, 3), keepdims=True), atol=1e-3)


def test_rescale_brings_the_deviation_back():
  t, images = 0.8, _images()
  alpha, sigma = _levels(t)
  deviation = {}
  for scale, rescale in ((1.0, 0.0), (9.0, 0.0), (9.0, 1.0)):
    # The toy's guidance only shifts the mean: make it stretch instead.
    teacher = SimpleNamespace(**{
        **vars(TEACHER), 'denoise': lambda w, x, t, text: (
            1 + text['states'].mean((1, 2))[:, None, None, None]) * _denoise(
                w, x, t, text)})
    guidance = score.make(teacher, score.sds(scale), weighting='uniform',
                          time_min=t, time_max=t, rescale=rescale)
    g = _gradient(guidance, images, jax.random.key(2)) * len(images) / 2
    deviation[scale, rescale] = float(
        jnp.std(2 * images - 1 - sigma / alpha * g, axis=(1, 2, 3))[0])
  assert deviation[9.0, 0.0] > 1.5 * deviation[1.0, 0.0]
  np.testing.assert_allclose(
      deviation[9.0, 1.0], deviation[1.0, 0.0], rtol=1e-3)


def test_several_steps_ask_for_the_samplers_own_image():
  t, images, key = 0.8, _images(1), jax.random.key(2)
  alpha, sigma = _levels(t)
  guidance = score.make(TEACHER, score.sds(3.0), weighting='uniform',
                        time_min=t, time_max=t, steps=4)
  g = _gradient(guidance, images, key) * len(images) / 2
  wanted = 2 * images - 1 - sigma / alpha * g
  # The noise that was drawn: what is left of a teacher that says nothing.
  silent = score.make(TEACHER, score.Coefficients(0.0, 1e-30, 0.0, -1.0),
                      weighting='uniform', time_min=t, time_max=t)
  eps = -_gradient(silent, images, key) * len(images) / 2
  x_t = alpha * (2 * images - 1) + sigma * eps
  text = _text(1)
  predict = samplers.guided(
      TEACHER.denoise, TEACHER.weights, text['cond'], text['null'], 3.0)
  clean = samplers.denoise(
      key, predict, SCHEDULE, x_t, jnp.full(1, t), 4)
  np.testing.assert_allclose(wanted, clean, atol=1e-4)


@pytest.mark.parametrize('make', [
    score.sds, score.csd, lambda scale: score.with_negative(score.sds(scale)),
    lambda scale: score.with_negative(score.sds(scale), 0.5)])
def test_the_scale_may_be_a_schedule(make):
  images, key = _images(), jax.random.key(4)
  annealed, two = (score.make(TEACHER, make(scale)) for scale in (
      ((0, 3.0), (100, 1.0)), 2.0))
  np.testing.assert_allclose(
      _gradient(annealed, images, key, 50), _gradient(two, images, key),
      rtol=1e-5)
  assert score._predicts(make(((0, 3.0), (100, 1.0)))) == score._predicts(
      make(2.0))


@pytest.mark.parametrize('coefficients, more', [
    (score.csd(), {}), (score.sds(3.0), {'clip': 0.9})])
def test_several_steps_need_a_noise_prediction(coefficients, more):
  with pytest.raises(ValueError, match='4 steps of guidance'):
    score.make(TEACHER, coefficients, steps=4, **more)


def _spoken(key, count=3):
  """Three random predictions [B, *SHAPE], far from parallel."""
  keys = jax.random.split(key, 3)
  return {name: jax.random.normal(k, (count, *SHAPE))
          for name, k in zip(MEANS, keys)}


def _gradient_of(coefficients, text):
  """g of a teacher that says its `text`, without noise and weight."""
  teacher = SimpleNamespace(**{
      **vars(TEACHER), 'denoise': lambda w, x_t, t, text: text})
  guidance = score.make(teacher, coefficients._replace(noise=0.0),
                        weighting='uniform')
  images = _images(3)
  return jax.grad(lambda images: guidance.loss(
      {}, {}, jax.random.key(0), images, text, 0)[0])(images) * 3 / 2


def test_across_is_what_least_squares_leave():
  said = _spoken(jax.random.key(7))
  got = score.across(said['negative'], said['null'], said['cond'])
  for i in range(3):
    towards, away = (np.asarray(said[name][i] - said['null'][i]).reshape(-1, 1)
                     for name in ('cond', 'negative'))
    share = np.linalg.lstsq(towards, away, rcond=None)[0]
    np.testing.assert_allclose(
        got[i].reshape(-1, 1), away - towards @ share, atol=1e-5)


def test_a_negative_stands_in_for_the_empty_prompt():
  said = _spoken(jax.random.key(8))
  got = _gradient_of(score.with_negative(score.sds(4.0)),
                     _with_one_negative(said))
  np.testing.assert_allclose(
      got, said['negative'] + 4 * (said['cond'] - said['negative']),
      rtol=1e-4, atol=1e-4)


def test_perp_neg_follows_the_prompt_as_if_there_were_no_negative():
  said = _spoken(jax.random.key(9))
  towards = said['cond'] - said['null']
  text = _with_one_negative(said)
  got = _gradient_of(score.with_negative(score.sds(4.0), 0.5), text)
  plain = _gradient_of(score.sds(4.0), text)
  perp = score.across(said['negative'], said['null'], said['cond'])
  np.testing.assert_allclose(got, plain - 0.5 * 4 * perp, atol=1e-4)
  dot = lambda a, b: jnp.sum(a * b, axis=(1, 2, 3))
  np.testing.assert_allclose(
      dot(got, towards), dot(plain, towards), rtol=1e-3)
  assert float(jnp.abs(got - plain).max()) > 1
  # It also stays a noise prediction, so that several steps may be made of it.
  assert score._predicts(score.with_negative(score.sds(4.0), 0.5))


def test_each_of_several_negatives_counts_by_its_weight_and_image():
  said = _spoken(jax.random.key(10))
  other = jax.random.normal(jax.random.key(11), said['null'].shape)
  weights = jnp.array([[1.0, 0.5], [0.0, 2.0], [0.0, 0.0]])
  text = {**said, 'weights': weights,
          'negative': jnp.stack([said['negative'], other], axis=1)}
  perp = [score.across(eps, said['null'], said['cond'])
          for eps in (said['negative'], other)]
  each = lambda k: weights[:, k, None, None, None]
  plain = said['null'] + 4 * (said['cond'] - said['null'])
  np.testing.assert_allclose(
      _gradient_of(score.with_negative(score.sds(4.0), 1.0), text),
      plain - 4 * (each(0) * perp[0] + each(1) * perp[1]), atol=1e-4)
  np.testing.assert_allclose(
      _gradient_of(score.Coefficients(1.0, 0.0, -1.0, 0.0), text),
      said['cond'] - each(0) * said['negative'] - each(1) * other, atol=1e-4)


def test_noise_of_the_image_gives_a_gradient_without_noise():
  """SDI by an ideal denoiser, whose inversion is known in closed form."""
  t, images = 0.6, _images()
  make = lambda fresh: score.make(
      TEACHER, score.sds(5.0), weighting='uniform', time_min=t, time_max=t,
      inversion={'steps': 300, 'scale': 1.0, 'fresh': fresh})
  got = _gradient(make(0.0), images, jax.random.key(0))
  np.testing.assert_array_equal(
      got, _gradient(make(0.0), images, jax.random.key(1)))
  alpha, sigma = _levels(t)
  deviation = np.sqrt(alpha**2 * SPREAD**2 + sigma**2)
  off = 2 * images - 1 - MEANS['cond']
  x_t = alpha * MEANS['cond'] + deviation / SPREAD * off
  found = (x_t - alpha * (2 * images - 1)) / sigma
  mean = MEANS['null'] + 5 * (MEANS['cond'] - MEANS['null'])
  wanted = sigma * (x_t - alpha * mean) / deviation**2
  np.testing.assert_allclose(
      got, (wanted - found) * 2 / len(images), atol=0.02)
  # Where some of it is drawn, the gradient is spread by what of that the
  # teacher does not take for noise, and its mean is of what is left.
  several = jax.vmap(lambda key: _gradient(make(0.3), images, key))(
      jax.random.split(jax.random.key(2), 200))
  np.testing.assert_allclose(
      several.std(0).mean(), 0.3 * (alpha * SPREAD / deviation)**2, rtol=0.1)
  softer = np.sqrt(1 - 0.3**2) * found
  x_t = alpha * (2 * images - 1) + sigma * softer
  wanted = sigma * (x_t - alpha * mean) / deviation**2
  np.testing.assert_allclose(
      several.mean(0), (wanted - softer) * 2 / len(images), atol=0.02)


def test_metric_is_the_gradients_norm():
  images = _images()
  guidance = score.make(TEACHER, score.csd(), time_min=0.4, time_max=0.4)
  _, metrics = guidance.loss({}, TEACHER.weights, jax.random.key(0), images,
                             _text(2), 0)
  g = _gradient(guidance, images, jax.random.key(0)) * len(images) / 2
  np.testing.assert_allclose(
      metrics['sds/grad_norm'], np.linalg.norm(g[0]), rtol=1e-4)


def test_unknown_weighting():
  with pytest.raises(ValueError, match="'none'.*'uniform'"):
    score.make(TEACHER, score.csd(), weighting='none')
