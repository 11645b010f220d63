"""Score distillation with a teacher whose score is known in closed form."""

import functools

import checkpoint_folders as folders
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from jax.interpreters import partial_eval

from configs import dreamfusion, scene_tex, text_to_image
from gen3d import assets
from gen3d.choices import UserError
from gen3d.diffusion import noise, pixel_model, teachers
from gen3d.guidance import prompts, score, texts
from gen3d.ops import cameras
from gen3d.scenes import Render

DEVIATION = 0.3  # of the toy's images
SHAPE = (4, 4, 3)
MEANS = {'cond': 0.4, 'null': -0.2, 'negative': 0.1}
SCHEDULE = noise.cosine_schedule()
WEIGHTS = {'scale': jnp.ones(())}
UNIFORM = lambda alpha, sigma: jnp.ones_like(sigma)


def _denoise(weights, x_t, t, text):
  """The ideal denoiser of N(mean of the text, DEVIATION^2)."""
  alpha = SCHEDULE.alpha(t)[:, None, None, None]
  sigma = SCHEDULE.sigma(t)[:, None, None, None]
  mean = text['states'].mean((1, 2))[:, None, None, None] * weights['scale']
  return sigma * (x_t - alpha * mean) / (alpha**2 * DEVIATION**2 + sigma**2)


def _embed(texts):
  """States that are the length of each text, in hundredths."""
  return {'states': jnp.array([len(text) / 100 for text in texts])[
      :, None, None] * jnp.ones((1, 2, 3))}


TEACHER = teachers.Teacher(
    SCHEDULE, lambda weights, images, key: 2 * images - 1,
    teachers.unit_images, _denoise, _embed, SHAPE, None, lambda: WEIGHTS)


def _text(count, null='null'):
  states = lambda mean: {'states': jnp.full((count, 2, 3), mean),
                         'mask': jnp.ones((count, 2))}
  return texts.ViewText(states(MEANS['cond']), states(MEANS[null]))


def _settings(coefficients, t=None, **options):
  """Settings, at the one time t if it is given."""
  times = {} if t is None else {'time_min': t, 'time_max': t}
  return score.Settings(coefficients, **times, **options)


def _images(count=2):
  return jax.random.uniform(jax.random.key(5), (count, *SHAPE))


def _gradient(settings, images, key, step=0, null='null'):
  loss = lambda images: score.distillation_loss(
      TEACHER, settings, WEIGHTS, key, images, _text(len(images), null),
      step)[0]
  return jax.grad(loss)(images)


def _levels(t):
  return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)


def test_mean_of_sds_equals_its_closed_form():
  t, scale, images = 0.6, 3.0, _images()
  settings = _settings(score.sds(scale), t)
  got = jax.jit(lambda keys: jax.vmap(functools.partial(
      _gradient, settings, images))(keys).mean(0))(
          jax.random.split(jax.random.key(0), 20_000))
  alpha, sigma = _levels(t)
  # E over eps of w (eps_u + s (eps_c - eps_u) - eps), w = sigma^2, times the
  # encoder's dx / dimage = 2, over the batch.
  mean = MEANS['null'] + scale * (MEANS['cond'] - MEANS['null'])
  expected = sigma**2 * alpha * sigma * ((2 * images - 1) - mean) / (
      alpha**2 * DEVIATION**2 + sigma**2) * 2 / len(images)
  np.testing.assert_allclose(got, expected, atol=1.5e-2)
  assert np.abs(expected).max() > 0.2


def test_image_weighting_gives_x_minus_the_predicted_clean_image():
  t, images = 0.7, _images()
  settings = _settings(
      score.sds(1.0), t, weighting=score.WEIGHTINGS['image'])
  got = jax.jit(lambda keys: jax.vmap(functools.partial(
      _gradient, settings, images))(keys).mean(0))(
          jax.random.split(jax.random.key(0), 20_000))
  alpha, sigma = _levels(t)
  # The posterior mean of x given x_t, on average over eps.
  gain = alpha**2 * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
  x = 2 * images - 1
  clean = MEANS['cond'] + gain * (x - MEANS['cond'])
  np.testing.assert_allclose(got, (x - clean) * 2 / len(images), atol=1e-2)


@pytest.mark.parametrize('coefficients', [score.sds(5.0), score.csd(5.0)])
def test_color_guidance_ratio_mixes_the_gradient_of_color_only(coefficients):
  color, key, ratio = _images(), jax.random.key(4), ((0, 1.0), (10, 0.3))
  # A non-linear encoder, as that of a latent model.
  teacher = TEACHER._replace(encode=lambda weights, images, key: images**2)

  def gradients(coefficients, ratio, step):
    settings = _settings(coefficients, 0.6, color_guidance_ratio=ratio)

    def loss(opacity, color):
      return score.distillation_loss(
          teacher, settings, WEIGHTS, key, opacity * color, _text(len(color)),
          step, jax.lax.stop_gradient(opacity) * color)[0]
    return jax.grad(loss, (0, 1))(jnp.full((2, 1, 1, 1), 0.5), color)

  guided, unguided = (gradients(c, 1.0, 0) for c in (
      coefficients, score.sds(1.0)))
  assert np.abs(guided[1] - unguided[1]).max() > 0.1
  for step, part in ((0, 1.0), (5, 0.65), (10, 0.3)):
    opacity, colors = gradients(coefficients, ratio, step)
    np.testing.assert_allclose(opacity, guided[0], rtol=1e-5)
    np.testing.assert_allclose(
        colors, part * guided[1] + (1 - part) * unguided[1], atol=1e-5)


def test_color_guidance_ratio_needs_color_only():
  settings = _settings(score.sds(5.0), color_guidance_ratio=0.5)
  with pytest.raises(UserError, match='color_guidance_ratio=1'):
    score.distillation_loss(TEACHER, settings, WEIGHTS, jax.random.key(0),
                            _images(), _text(2), 0)


def test_several_noises_have_the_same_mean_and_less_variance():
  images = _images()

  def gradients(num_noises):
    settings = _settings(score.sds(3.0), num_noises=num_noises)
    return jax.jit(jax.vmap(functools.partial(_gradient, settings, images)))(
        jax.random.split(jax.random.key(num_noises), 4000))

  one, six = gradients(1), gradients(6)
  np.testing.assert_allclose(one.mean(0), six.mean(0), atol=0.06)
  assert one.var(0).mean() / six.var(0).mean() > 5.5


def test_sds_gradient_is_eps_hat_minus_eps_without_the_jacobian():
  # A teacher with coefficients of zero gives -eps; with the same key the
  # gradient must be w (eps_hat - eps), without the denoiser's Jacobian.
  t, key, images = 0.5, jax.random.key(3), _images(1)
  settings = lambda *numbers: _settings(
      score.Coefficients(*numbers), t, weighting=UNIFORM)
  eps = -_gradient(settings(0.0, 1e-30, -1.0), images, key) / 2
  alpha, sigma = _levels(t)
  x_t = alpha * (2 * images - 1) + sigma * eps
  eps_c = sigma * (x_t - alpha * MEANS['cond']) / (
      alpha**2 * DEVIATION**2 + sigma**2)
  np.testing.assert_allclose(
      _gradient(settings(1.0, 0.0, -1.0), images, key), 2 * (eps_c - eps),
      atol=1e-4)
  assert abs(float(eps.std()) - 1) < 0.3


@pytest.mark.parametrize('coefficients, null, difference', [
    (score.csd(2.0), 'null', 2 * (MEANS['cond'] - MEANS['null'])),
    (score.csd(1.0), 'negative', MEANS['cond'] - MEANS['negative'])])
def test_csd_gradient_is_the_difference_of_scores_without_noise(
    coefficients, null, difference):
  t, images = 0.3, _images()
  alpha, sigma = _levels(t)
  for weighting, w in ((UNIFORM, 1),
                       (score.WEIGHTINGS['sigma_squared'], sigma**2),
                       (score.WEIGHTINGS['image'], sigma / alpha)):
    settings = _settings(coefficients, t, weighting=weighting)
    expected = -w * sigma * alpha * difference / (
        alpha**2 * DEVIATION**2 + sigma**2) * 2 / len(images)
    np.testing.assert_allclose(
        _gradient(settings, images, jax.random.key(0), null=null), expected,
        rtol=1e-3)


@pytest.mark.parametrize('combination, noise_weight', [
    (score.sds, -1.0), (score.csd, 0.0)])
def test_predictions_are_combined_by_their_coefficients(
    combination, noise_weight):
  # A teacher whose predictions are random arrays, far from parallel.
  keys = jax.random.split(jax.random.key(8), 2)
  predictions = texts.ViewText(
      *(jax.random.normal(key, (3, *SHAPE)) for key in keys))
  teacher = TEACHER._replace(denoise=lambda w, x_t, t, text: text)
  eps_c, eps_u, *_ = predictions
  assert combination(4.0).noise == noise_weight
  combined, cond = score.combine_predictions(
      teacher, WEIGHTS, eps_c, jnp.zeros(3), predictions, combination(4.0), 0)
  np.testing.assert_array_equal(cond, eps_c)
  null_weight = 1.0 if combination is score.sds else 0.0
  np.testing.assert_allclose(
      combined, null_weight * eps_u + 4 * (eps_c - eps_u), rtol=1e-4,
      atol=1e-4)


def test_sds_of_scale_one_evaluates_the_prompt_alone():
  batches = []

  def denoise(weights, x_t, t, text):
    batches.append(len(x_t))
    return _denoise(weights, x_t, t, text)

  for scale in (1.0, 3.0):
    score.distillation_loss(
        TEACHER._replace(denoise=denoise), _settings(score.sds(scale)),
        WEIGHTS, jax.random.key(0), _images(), _text(2), 0)
  assert batches == [2, 4]


def test_pixels_converge_to_the_mode():
  settings = score.Settings(
      score.sds(1.0), time_max=((0, 0.98), (300, 0.3)))
  optimizer = optax.adam(0.03)
  images = _images()

  def update(carry, step):
    images, state = carry
    gradient = _gradient(
        settings, images, jax.random.fold_in(jax.random.key(1), step), step)
    updates, state = optimizer.update(gradient, state)
    images = optax.apply_updates(images, updates)
    return (images, state), images

  (_, _), path = jax.lax.scan(
      update, (images, optimizer.init(images)), jnp.arange(600))
  mode = (MEANS['cond'] + 1) / 2
  np.testing.assert_allclose(path[-200:].mean(0), mode, atol=0.05)


def test_times_are_annealed():
  settings = score.Settings(
      score.sds(1.0), time_min=0.1, time_max=((0, 0.9), (100, 0.2)))
  times = lambda step: jax.vmap(lambda key: score.distillation_loss(
      TEACHER, settings, WEIGHTS, key, _images(1), _text(1), step)[1][
          'sds/t'])(jax.random.split(jax.random.key(0), 500))
  early, late = times(0), times(100)
  assert 0.1 <= early.min() < 0.15 and 0.85 < early.max() <= 0.9
  assert late.min() >= 0.1 and 0.19 < late.max() <= 0.2


@pytest.mark.parametrize('combination', [score.sds, score.csd])
def test_the_scale_may_be_a_schedule(combination):
  images, key = _images(), jax.random.key(4)
  annealed, two = (_settings(combination(scale)) for scale in (
      ((0, 3.0), (100, 1.0)), 2.0))
  np.testing.assert_allclose(
      _gradient(annealed, images, key, 50), _gradient(two, images, key),
      rtol=1e-5)


def test_metric_is_the_norm_of_the_gradient():
  images = _images()
  settings = _settings(score.csd(), 0.4)
  _, metrics = score.distillation_loss(
      TEACHER, settings, WEIGHTS, jax.random.key(0), images, _text(2), 0)
  g = _gradient(settings, images, jax.random.key(0)) * len(images) / 2
  np.testing.assert_allclose(
      metrics['sds/grad_norm'], np.linalg.norm(g[0]), rtol=1e-4)


def test_guidance_embeds_before_it_loads_the_weights():
  calls = []
  noting = lambda name: lambda *args: calls.append(name) or getattr(
      TEACHER, name)(*args)
  teacher = TEACHER._replace(embed=noting('embed'), load=noting('load'))
  guidance = score.make(teacher, _settings(score.sds(3.0)))
  frozen = guidance.load('a dog', '')
  assert calls == ['embed', 'load'] and frozen.weights is WEIGHTS
  assert guidance.init(jax.random.key(0), frozen) == {}


@pytest.mark.parametrize('azimuth, elevation, view', [
    (10.0, 0.0, prompts.FRONT), (80.0, 0.0, prompts.SIDE),
    (170.0, 0.0, prompts.BACK), (0.0, 70.0, prompts.OVERHEAD)])
def test_condition_is_the_prompt_of_the_view_and_the_negative_prompt(
    azimuth, elevation, view):
  added = []

  def add_camera(weights, text, labels):
    added.append(labels)
    return {'states': text['states'] + 1}

  teacher = TEACHER._replace(add_camera=add_camera, camera_conditioned=True)
  guidance = score.make(teacher, _settings(score.sds(3.0)))
  camera = cameras.orbit(azimuth, elevation, 1.6, 1.3)
  text = guidance.condition(guidance.load('a dog', 'blurry'), camera)
  expected = _embed([f'a dog, {prompts.VIEWS[view]}', 'blurry'])['states']
  np.testing.assert_allclose(text.cond['states'], expected[:1] + 1)
  np.testing.assert_array_equal(text.null['states'], expected[1:])
  np.testing.assert_array_equal(added, [cameras.to_label(camera)[None]])


def test_guidance_loss_is_that_of_the_rendered_image():
  settings = _settings(score.sds(3.0), color_guidance_ratio=0.25)
  guidance = score.make(TEACHER, settings)
  image, color_only = _images()
  render = Render(image, *(None,) * 5, color_only=color_only)
  key, text = jax.random.key(0), _text(1)
  loss, _ = guidance.loss({}, texts.Frozen(None, WEIGHTS), key, render, text, 0)
  expected, _ = score.distillation_loss(
      TEACHER, settings, WEIGHTS, key, image[None], text, 0, color_only[None])
  assert loss == expected != 0


def _with_depth(denoise):
  """TEACHER whose `denoise` gets the mean of the text's depth map."""
  def with_map(weights, x_t, t, text):
    bias = text['depth'].mean((1, 2, 3))[:, None, None, None]
    return denoise(weights, x_t, t, text) + bias * (
        text['states'][:, :1, :1, None])

  return TEACHER._replace(
      denoise=with_map, depth_conditioned=True,
      add_depth=lambda weights, text, maps: text | {
          'depth': maps * weights['scale']})


@pytest.mark.parametrize('coefficients', [score.sds(3.0), score.csd(2.0)])
def test_loss_with_a_depth_map_equals_that_by_hand(coefficients):
  teacher = _with_depth(_denoise)
  settings = _settings(coefficients, 0.5, weighting=UNIFORM)
  guidance = score.make(teacher, settings)
  frozen = guidance.load('a dog', 'blurry')
  camera = cameras.orbit(20.0, 10.0, 1.6, 1.3)
  text = guidance.condition(frozen, camera)
  key = jax.random.key(2)
  depth = jax.random.uniform(jax.random.key(3), SHAPE[:2], minval=1, maxval=2)
  opacity = jnp.ones(SHAPE[:2]).at[0].set(0.0)

  def loss(image, depth):
    render = Render(image, opacity, depth, *(None,) * 3)
    return guidance.loss({}, frozen, key, render, text, 0)[0]

  image = _images(1)[0]
  to_image, to_depth = jax.grad(loss, (0, 1))(image, depth)
  # The map is inverted and stretched over the covered pixels.
  z = cameras.axial_depth(camera, depth)[1:]
  value = (50 + 205 * (z.max() - z) / (z.max() - z.min())) / 255
  bias = (value.sum() + 4 * 10 / 255) / 16
  # It is the same for both prompts; the gradient of g x is 2 g.
  plain = score.make(TEACHER, settings)
  without = jax.grad(lambda image: plain.loss(
      {}, frozen, key, Render(image, *(None,) * 5),
      plain.condition(frozen, camera), 0)[0])(image)
  states = [x['states'][0, 0, 0] for x in (text.cond, text.null)]
  added = bias * (coefficients.cond * states[0] + coefficients.null * states[1])
  np.testing.assert_allclose(to_image, without + 2 * added, rtol=1e-4)
  assert np.abs(added) > 1e-2
  np.testing.assert_array_equal(to_depth, 0)


def test_without_depth_conditioning_the_text_has_no_camera():
  guidance = score.make(TEACHER, _settings(score.sds(3.0)))
  text = guidance.condition(guidance.load('a dog', ''), cameras.orbit(
      10.0, 10.0, 1.6, 1.3))
  assert text.camera is None
  assert texts.add_depth(TEACHER, WEIGHTS, text, None) is text


def _small_shapes_teacher(path):
  """Teacher settings of a random shapes model with a ControlNet."""
  config = text_to_image.get_config('depth_tiny').model.to_dict()
  model = pixel_model.build(config, assets.tokenizer().vocab_size)
  params = jax.tree.map(
      lambda x: np.full(x.shape, 0.1, x.dtype), jax.eval_shape(
          lambda key: model.init(key, assets.CAPTION_LENGTH),
          jax.random.key(0)))
  control = {'control': params.pop('control')}
  base, _ = assets.save(
      path / 'base.safetensors', params,
      {'config': {'task': 'text_to_image',
                  'model': {**config, 'control': None}}})
  digest = assets.load(base)[1]['sha256']
  saved, _ = assets.save(path / 'control.safetensors', control,
                         {'config': {'task': 'text_to_image', 'model': config},
                          'base': digest})
  return {'name': 'shapes', 'path': str(base), 'control': str(saved)}


@pytest.mark.parametrize('settings', [
    folders.write_small_stable_diffusion, _small_shapes_teacher])
def test_every_teacher_takes_the_depth_of_a_render_by_its_config(
    settings, tmp_path):
  config = dreamfusion.get_config('tiny')
  config.teacher = ml_collections.ConfigDict(settings(tmp_path))
  frozen = score.from_config(score.sds, config).load('a red car', '')
  assert 'control' in frozen.weights

  def loss(image, frozen, camera, depth, opacity, guidance):
    render = Render(image, opacity, depth, *(None,) * 3, color_only=image)
    text = guidance.condition(frozen, camera)
    assert text.camera is not None
    return guidance.loss({}, frozen, jax.random.key(0), render, text, 0)[0]

  # What the gradient depends on, without computing it.
  image, depth = jnp.zeros((12, 12, 3)), jnp.ones((12, 12))
  inputs = image, frozen, cameras.orbit(20.0, 10.0, 1.6, 1.3), depth, depth
  are_depth = [x.shape == depth.shape for x in jax.tree.leaves(inputs)]
  for combination in (score.sds, score.csd):
    guidance = score.from_config(combination, config)
    program = jax.make_jaxpr(jax.grad(functools.partial(
        loss, guidance=guidance)))(*inputs).jaxpr
    assert [x.aval.shape for x in program.outvars] == [image.shape]
    _, used = partial_eval.dce_jaxpr(program, [True])
    assert [use for use, is_depth in zip(used, are_depth, strict=True)
            if is_depth] == [True, True]


def test_each_subject_has_its_own_prompt_in_every_view():
  guidance = score.make(TEACHER, _settings(score.sds(3.0)))
  frozen = guidance.load(('a cat', 'a long blue table'), '')
  for subject, prompt in enumerate(('a cat', 'a long blue table')):
    for azimuth, view in ((0.0, 'front view'), (90.0, 'side view')):
      text = guidance.condition(
          frozen, cameras.orbit(azimuth, 0.0, 1.5, 1.0), jnp.int32(subject))
      np.testing.assert_allclose(
          text.cond['states'], len(f'{prompt}, {view}') / 100, rtol=1e-6)
      np.testing.assert_allclose(text.null['states'], 0)


def test_sds_has_scenetexs_gradient(reference_data, monkeypatch):
  data = reference_data('scenetex')
  latents, eps, noisy = (
      np.moveaxis(data[f'vsd.{name}'], 1, -1)
      for name in ('latents', 'noise', 'noisy'))
  # The reference's toy mixes latents and noise in ratios of its own.
  alpha, sigma = np.linalg.lstsq(
      np.stack([latents.ravel(), eps.ravel()], -1), noisy.ravel())[0]
  scale = float(data['vsd.guidance'])
  schedule = noise.Schedule(lambda t: jnp.full_like(t, alpha),
                            lambda t: jnp.full_like(t, sigma))
  teacher = TEACHER._replace(
      schedule=schedule, encode=lambda weights, images, key: images,
      denoise=lambda weights, x_t, t, text: text['states'][
          :, :1, :1, None] * jnp.tanh(x_t))
  text = texts.ViewText({'states': jnp.full((1, 1, 1), 0.1)},
                        {'states': jnp.zeros((1, 1, 1))})
  weight = float(data['vsd.w_at_t'])
  settings = _settings(
      score.sds(scale), weighting=lambda a, s: jnp.full_like(s, weight))
  monkeypatch.setattr(score.jax.random, 'normal', lambda key, shape: eps)
  gradient = jax.grad(lambda latents: score.distillation_loss(
      teacher, settings, {}, jax.random.key(0), latents, text, 0)[0])(
          jnp.asarray(latents))
  # Its loss is a mean over the latents, ours a sum.
  np.testing.assert_allclose(
      gradient / eps.size, np.moveaxis(data['sds.dlatents'], 1, -1), atol=1e-7)


def test_scenetexs_times_are_half_as_large_after_the_first_steps():
  options = scene_tex.paper().guidance.options
  times = [score.schedules.in_steps(time, 30_000)
           for time in (options.time_min, options.time_max)]
  for step, expected in ((0, (0.02, 0.98)), (4_999, (0.02, 0.98)),
                         (5_000, (0.02, 0.5)), (29_999, (0.02, 0.5))):
    np.testing.assert_allclose(
        [score.schedules.piecewise(step, time) for time in times], expected,
        rtol=1e-5)
