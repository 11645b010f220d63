"""Parity with threestudio, ProlificDreamer and CSD: gradients and losses.

The data are in the folder $GEN3D_REFERENCE, vsd_csd.npz. Its networks are
closed formulas, so that no weights are needed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.diffusion import noise, teachers
from gen3d.guidance import perp_neg, score, student, texts
from gen3d.ops import schedules

SCHEDULE = noise.discrete_schedule(noise.scaled_linear())


@pytest.fixture(scope='module')
def data(reference_data):
  return reference_data('vsd_csd')


def _last(x):
  """[B, C, H, W] to [B, H, W, C]."""
  return jnp.moveaxis(jnp.asarray(x), 1, -1)


def _time(t):
  return (jnp.asarray(t) + 1) / 1000


def _bias(text):
  return text.mean((1, 2))[:, None, None, None]


def _camera_bias(pose):
  return (pose * jnp.arange(1, 17) / 16).mean(1)[:, None, None, None]


def _step(t):
  return noise.to_step(t)[:, None, None, None] / 1000


def _teacher_eps(weights, x, t, text):
  del weights
  return (0.5 + _step(t)) * jnp.tanh(x + _bias(text)) + 0.1 * jnp.roll(x, 1, 2)


def _mixed_eps(weights, x, t, text):
  """`_teacher_eps` on the inputs that CSD's code pairs with the view negatives.

  For more than one image the negatives of view k get the image of row k, which
  is a mistake of that code: each should get its own, as ours does.
  """
  count = len(x) // 5
  own = jnp.arange(3 * count)
  mixed = jnp.concatenate([own, jnp.repeat(jnp.arange(2), count)])
  return _teacher_eps(weights, x[mixed], t[mixed], text)


def _student_output(x, t, text, pose):
  return (0.7 * jnp.sin(1.3 * x + _bias(text)) + (_step(t) - 0.5) * x
          + 0.2 * _camera_bias(pose))


def _student(predicts_v):
  def predict(params, weights, x_t, t, text, pose):
    del params, weights
    output = _student_output(x_t, t, text, pose)
    return noise.eps_from_v(SCHEDULE, x_t, output, t) if predicts_v else output

  return student.Student(lambda key, weights: {}, predict)


def _teacher(encode=None, shape=(8, 8, 4)):
  return teachers.Teacher(
      SCHEDULE, encode, teachers.unit_images, _teacher_eps, None, shape, None,
      None)


def _vsd_gradient(data, name, predicts_v, clip=None):
  """The gradient with respect to the latents, of the mean over the batch."""
  x, eps = _last(data['latents']), _last(data[f'{name}.noise'])
  count = len(x)
  t = jnp.broadcast_to(_time(data[f'{name}.t']), count)
  text = data['emb_vd_cond_then_uncond']
  view = texts.ViewText(text[:count], text[count:])
  plain = data['emb_vi_cond_then_uncond'][:count]
  pose = data['camera'].reshape(count, 16)

  def reference(context, key, noised):
    return _student(predicts_v).predict(
        {}, {}, noised.x_t, noised.t, plain, pose)

  settings = score.Settings(score.sds(7.5), clip=clip, reference=(
      score.the_noise if name.endswith('sds') else reference))
  noised = score.Noised(x, eps, noise.diffuse(SCHEDULE, x, eps, t), t)
  context = score.Context(_teacher(), {}, view, 0.02)
  g, _ = score.gradients(context, settings, jax.random.key(0), noised, 0)
  return score.limit(g, settings, 0)


@pytest.mark.parametrize('name, predicts_v, clip', [
    ('vsd3s', True, None), ('vsd_official.vpred', True, None),
    ('vsd_official.eps_t5_clip', False, 0.5), ('vsd_official.sds', True, None)])
def test_vsd_gradient_on_latents(data, name, predicts_v, clip):
  g = _vsd_gradient(data, name, predicts_v, clip)
  np.testing.assert_allclose(
      g / len(g), _last(data[f'{name}.dlatents']), atol=1e-5)


@pytest.mark.parametrize('name, known', [
    ('lora3s.camera', 1.0), ('lora3s.uncond_branch', 0.0)])
def test_loss_of_a_student_that_predicts_v(data, name, known):
  x = _last(data['latents'])
  loss = student.denoising_loss(
      _student(True), 'v', SCHEDULE, {}, {}, x, _last(data[f'{name}.noise']),
      _time(data[f'{name}.t']), data['emb_vi_cond_then_uncond'][:len(x)],
      known * data['camera'].reshape(len(x), 16))
  np.testing.assert_allclose(loss, data[f'{name}.loss'], rtol=1e-5)


def _encode(weights, images, key):
  shape = (len(images), 64, 64, 3)
  return 2 * jax.image.resize(images, shape, 'bilinear', antialias=False) - 1


@pytest.mark.parametrize('name, step, weighting, normalize', [
    ('csd.if_start', 0, 'uniform', True),
    ('csd.if_mid_perp', 2500, 'uniform', True),
    ('csd.sds_form', 0, 'sigma_squared', False)])
def test_csd_gradient_on_images(data, name, step, weighting, normalize):
  cond, uncond, null, reference, perp = map(
      float, data[f'{name}.scales_cond_uncond_null_noise_perp'])
  images = jnp.asarray(data['csd.rgb_nhwc'])
  count = len(images)
  rows = data['csd.emb5_cond_uncond_neg2B_null' if perp else
              'csd.emb3_cond_uncond_null']
  groups = [rows[i:i + count] for i in range(0, len(rows), count)]
  # The rows of the two views alternate.
  views = (rows[2 * count:4 * count][0::2], rows[2 * count:4 * count][1::2])
  text = texts.ViewText(
      groups[0], groups[1], others={'empty': groups[-1]},
      negatives=perp_neg.Negatives(views, data['csd.neg_guidance_weights']))
  coefficients = score.Coefficients(cond, uncond, reference, null)
  settings = score.Settings(
      coefficients, score.WEIGHTINGS[weighting], normalize=normalize,
      perp_neg=perp, time_min=0.0)
  t, eps = _time(data[f'{name}.t']), _last(data[f'{name}.noise'])
  x, pullback = jax.vjp(lambda x: _encode({}, x, None), images)
  noised = score.Noised(x, eps, noise.diffuse(SCHEDULE, x, eps, t), t)
  teacher = _teacher(_encode, (64, 64, 3))
  if perp:
    teacher = teacher._replace(denoise=_mixed_eps)
  context = score.Context(teacher, {}, text, 0.0)
  g, _ = score.gradients(context, settings, jax.random.key(0), noised, step)
  g = score.limit(g, settings, step)
  np.testing.assert_allclose(
      jnp.linalg.norm(g), data[f'{name}.grad_norm'], rtol=1e-5)
  expected = data[f'{name}.drgb']
  np.testing.assert_allclose(
      pullback(g / count)[0], expected, atol=2e-6 * np.abs(expected).max())


def test_schedules_of_csd(data):
  for prefix, weight in (('if', ((0, 0.0), (5000, 1.0))),
                         ('refine', ((0, 1.0), (10_000, 0.5)))):
    coefficients = score.csd(1.0, weight)
    for name, schedule in (('uncond', coefficients.null),
                           ('null', coefficients.empty)):
      np.testing.assert_allclose(
          [schedules.piecewise(step, schedule)
           for step in data['csd.schedule_steps']],
          data[f'csd.schedule.{prefix}_{name}'], atol=1e-6)
