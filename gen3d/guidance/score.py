"""Score distillation: what a diffusion model would change in an image.

Vocabulary. x is an image as the teacher sees it, x_t = alpha x + sigma eps
its noised version at time t in [0, 1]. eps_c, eps_u and eps_n are the noise
that the teacher predicts with the prompt, with the empty one and with a
negative one; of several negatives the weighted sum counts. The gradient g on
x is a linear combination of these and of eps itself; the teacher's own
Jacobian is left out (DreamFusion, eq. 3). *Across* is the part of eps_n -
eps_u that is orthogonal to eps_c - eps_u: what the negative prompt says that
does not speak for or against the prompt.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError, pick
from gen3d.diffusion import noise, samplers
from gen3d.ops import schedules

WEIGHTINGS = {
    'sigma_squared': lambda alpha, sigma: sigma**2,
    'uniform': lambda alpha, sigma: jnp.ones_like(sigma),
    'fantasia3d': lambda alpha, sigma: alpha * sigma**2,
    # g is then x less the clean image that is asked for.
    'image': lambda alpha, sigma: sigma / alpha,
}


class Guidance(NamedTuple):
  """What judges an image against a text.

  Attributes:
    init: key -> params; {} where nothing is learned along.
    loss: (params, frozen, key, images, text, step, colors) -> (loss,
      metrics). `frozen` is the teacher's weights, `images` [B, H, W, 3] in
      [0, 1], `colors` as many that have their gradient in the scene's
      colors alone (scenes.Render; None where they follow all guidance),
      `text` {'cond', 'null'}: embeddings with leading axis B, and where
      negatives count {'negative'} with leading axes B, K and {'weights'}
      [B, K] (those only whose coefficient is not zero; all of them for
      `across`).
      The gradient of the loss is what counts; its value says nothing.
  """
  init: Callable
  loss: Callable


class Coefficients(NamedTuple):
  """g = cond eps_c + null eps_u + negative eps_n + noise eps + across perp.

  Each a number or a schedule (ops.schedules.piecewise); perp is `across`.
  """
  cond: Any
  null: Any
  negative: Any
  noise: Any
  across: Any = 0.0


def sds(scale):
  """DreamFusion: eps_u + scale (eps_c - eps_u) - eps.

  The paper's omega is scale - 1: it writes (1 + omega) eps_c - omega eps_u.
  `scale` is a number or a schedule, here and in `csd`.
  """
  return Coefficients(scale, schedules.affine(scale, -1, 1), 0.0, -1.0)


def csd(scale=1.0):
  """Classifier score distillation (2310.19415): eps_c - eps_u alone."""
  return Coefficients(scale, schedules.affine(scale, -1), 0.0, 0.0)


def with_negative(coefficients, perp=0.0):
  """The same Coefficients away from a negative prompt.

  Args:
    coefficients: Coefficients of a prompt and the empty one.
    perp: 0 puts the negative prompt in the place of the empty one, as samplers
      do. Else Perp-Neg (2304.04968): the empty prompt stays, and only what is
      across to the prompt is pushed away from, `perp` times as much as the
      prompt is followed; so that a negative that shares most of its meaning
      with the prompt does not take it back.
  """
  if perp:
    return coefficients._replace(
        across=schedules.affine(coefficients.cond, -perp))
  return coefficients._replace(null=0.0, negative=coefficients.null)


def across(eps_n, eps_u, eps_c):
  """What of eps_n - eps_u is orthogonal to eps_c - eps_u, [B, ...].

  Perp-Neg (2304.04968); each of the B by itself.
  """
  axes = tuple(range(1, eps_c.ndim))
  dot = lambda a, b: jnp.sum(a * b, axis=axes, keepdims=True)
  towards, away = eps_c - eps_u, eps_n - eps_u
  # Where the prompt says nothing, all is across.
  share = dot(away, towards) / jnp.maximum(dot(towards, towards), 1e-6)
  return away - share * towards


def make(teacher, coefficients, *, weighting='sigma_squared',
         time_min=0.02, time_max=0.98, color_share=1.0, draws=1, steps=1,
         clip=0.0, rescale=0.0, inversion=None):
  """The Guidance of a teacher by a fixed linear combination.

  Args:
    teacher: diffusion.teachers.Teacher.
    coefficients: Coefficients.
    weighting: w(t), a key of WEIGHTINGS.
    time_min, time_max: numbers or schedules; t is uniform between them.
    color_share: number or schedule. Colors and shading follow this share of
      the guidance, and for the rest the prompt's own prediction, g = eps_c -
      eps; opacity follows all of it. What the teacher says untold is a pale
      mean of everything there, so that guidance away from it makes parts
      solid, and their colors darker and more garish than any picture's.
    draws: how many noises and times, the latter spread evenly, each image is
      judged by; g is their mean. Less noise where rendering, not the teacher,
      is what a step costs.
    steps: DDIM's steps from x_t to the image that g asks for. One is score
      distillation as DreamFusion has it; with more (HiFA, 2305.18766, section
      4.1) that image is a sample of the teacher's, not a mean of many, and
      guidance as weak as a sampler's is enough.
    clip: where not zero, the image that g asks for, x - sigma / alpha g, is
      thresholded as Imagen does when it samples (2205.11487, section 2.3):
      its `clip` quantile of absolute values is scaled to 1. Keeps strong
      guidance from asking for ever more color.
    rescale: how far the deviation of that image is brought back to that of
      the one that eps_c asks for (2305.08891, section 3.4), from 0 to 1.
    inversion: mapping with `steps`, `scale` and `fresh`. Where steps is not
      zero, eps is not drawn but what DDIM inversion of the image in so many
      steps with this guidance scale finds, and a share `fresh` of its length
      is drawn (SDI, 2405.15891): noise that goes with the image, so that g
      changes little from step to step and weak guidance is enough.

  Raises:
    UserError: at an unknown weighting, or several steps with coefficients
      that make no noise prediction, with a correction or a share of colors.
  """
  if steps > 1 and (clip or rescale or color_share != 1.0
                    or not _predicts(coefficients)):
    raise UserError(
        f'{steps} steps of guidance need coefficients that sum to a noise '
        'prediction (sds), color_share 1, and neither clip nor rescale.')
  weigh = pick('weighting', WEIGHTINGS, weighting)
  correct = partial(_correct, clip=clip, rescale=rescale)
  return Guidance(
      init=lambda key: {},
      loss=partial(_loss, teacher=teacher, coefficients=coefficients,
                   weigh=weigh, times=(time_min, time_max),
                   color_share=color_share, draws=draws, steps=steps,
                   correct=correct if clip or rescale else None,
                   inversion=dict(inversion or {'steps': 0})))


def _loss(params, frozen, key, images, text, step, colors=None, *, teacher,
          coefficients, weigh, times, color_share, draws, steps, correct,
          inversion):
  """sum(stop_gradient(w g) x) / B, whose gradient in x is w g / B.

  Plus one like it in the pixels of `colors`, of what their g is else.
  """
  del params
  key_encode, key_t, key_eps = jax.random.split(key, 3)
  encode = lambda images: teacher.encode(frozen, images, key_encode)
  x = encode(images)
  many = lambda a: jnp.repeat(a, draws, axis=0)
  low, high = (schedules.piecewise(step, time) for time in times)
  even = (jnp.arange(draws) + jax.random.uniform(key_t, (len(x), 1))) / draws
  t = (low + (high - low) * even).reshape(-1)
  still = many(jax.lax.stop_gradient(x))
  texts = jax.tree.map(many, text)
  eps = jax.random.normal(key_eps, still.shape)
  if inversion['steps']:
    eps = _of_the_image(teacher, frozen, still, t, texts, eps, **inversion)
  per_image = lambda a: a.reshape(-1, *(1,) * (x.ndim - 1))
  alpha, sigma = (per_image(level(t)) for level in (
      teacher.schedule.alpha, teacher.schedule.sigma))
  x_t = noise.diffuse(teacher.schedule, still, eps, t)

  predict = partial(_answer, teacher, frozen, texts, coefficients, step)
  if steps == 1:
    eps_hat, eps_cond = predict(x_t, t)
  else:
    # DDIM draws no noise of its own, so that the key is free.
    clean = samplers.denoise(
        key_eps, lambda *x: predict(*x)[0], teacher.schedule, x_t, t, steps)
    # The prediction that would have led there in one step.
    eps_hat = noise.eps_from_x(teacher.schedule, x_t, clean, t)
  g = eps_hat + eps * schedules.piecewise(step, coefficients.noise)
  if correct:
    g = correct(g, eps_cond - eps, still, sigma / alpha)
  mean = lambda g: jax.lax.stop_gradient(jnp.mean(
      (weigh(alpha, sigma) * g).reshape(len(x), draws, *x.shape[1:]), axis=1))
  g = mean(g)
  loss = jnp.sum(g * x) / len(x)
  if color_share != 1.0:
    other = (1 - schedules.piecewise(step, color_share)) * (
        mean(eps_cond - eps) - g)
    _, pull = jax.vjp(encode, jax.lax.stop_gradient(images))
    loss += jnp.sum(jax.lax.stop_gradient(pull(other)[0]) * colors) / len(x)
  norm = jnp.sqrt(jnp.mean(jnp.sum(g**2, axis=tuple(range(1, g.ndim)))))
  return loss, {'sds/grad_norm': norm, 'sds/t': t.mean()}


def _answer(teacher, frozen, text, coefficients, step, x_t, t):
  """(the combination of predictions that counts at `step`, eps_c), [B, ...]."""
  said = _predict(teacher, frozen, x_t, t, text, coefficients)
  cond = said['cond']
  if 'negative' in said:
    # Large weights of what nearly cancels: not a matmul, which accelerators
    # round to half precision.
    weigh = lambda each: jnp.sum(each * text['weights'].reshape(
        *text['weights'].shape, *(1,) * (each.ndim - 2)), axis=1)
    if not _is_zero(coefficients.across):
      said['across'] = weigh(jax.vmap(across, (1, None, None), 1)(
          said['negative'], said['null'], cond))
    said['negative'] = weigh(said['negative'])
  return sum(schedules.piecewise(step, getattr(coefficients, name)) * value
             for name, value in said.items()), cond


def _of_the_image(teacher, frozen, x, t, text, eps, *, steps, scale, fresh):
  """Noise that goes with images x at times t, with some of eps; see make."""
  predict = samplers.guided(
      teacher.denoise, frozen, text['cond'], text['null'], scale)
  x_t = samplers.invert(predict, teacher.schedule, x, t, steps)
  found = noise.eps_from_x(teacher.schedule, x_t, x, t)
  return jnp.sqrt(1 - fresh**2) * found + fresh * eps


def _predict(teacher, frozen, x_t, t, text, coefficients):
  """{name: eps} of the texts that count, by one call of the denoiser.

  eps are [B, ...], those of 'negative' [B, K, ...].
  """
  names = [name for name in ('cond', 'null', 'negative')
           if name == 'cond' or not (_is_zero(getattr(coefficients, name))
                                     and _is_zero(coefficients.across))]
  # How many of each, and all of them in one row.
  counts = [text['weights'].shape[1] if name == 'negative' else 1
            for name in names]
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  texts = [jax.tree.map(flat, text[name]) if name == 'negative'
           else text[name] for name in names]
  several = lambda x: jnp.concatenate(
      [jnp.repeat(x, count, axis=0) for count in counts])
  eps = teacher.denoise(
      frozen, several(x_t), several(t),
      jax.tree.map(lambda *rows: jnp.concatenate(rows), *texts))
  parts = jnp.split(eps, len(x_t) * np.cumsum(counts)[:-1])
  said = dict(zip(names, parts, strict=True))
  if 'negative' in said:
    said['negative'] = said['negative'].reshape(
        len(x_t), counts[-1], *x_t.shape[1:])
  return said


def _correct(g, g_cond, x, ratio, *, clip, rescale):
  """g such that the image it asks for, x - ratio g, is a plausible one."""
  axes = tuple(range(1, x.ndim))
  wanted = x - ratio * g
  if rescale:
    deviation = jnp.std(x - ratio * g_cond, axis=axes, keepdims=True)
    factor = deviation / jnp.std(wanted, axis=axes, keepdims=True)
    wanted = (rescale * factor + 1 - rescale) * wanted
  if clip:
    bound = jnp.maximum(1.0, jnp.quantile(
        jnp.abs(wanted), clip, axis=axes, keepdims=True))
    wanted = jnp.clip(wanted, -bound, bound) / bound
  return (x - wanted) / ratio


def _predicts(coefficients):
  """Whether the coefficients of the predictions sum to one, at every step."""
  predictions = coefficients[:3]
  # Between the corners of all of them the sum is a straight line.
  corners = {step for value in predictions
             for step, _ in schedules.points(value)}
  return all(abs(sum(float(schedules.piecewise(step, value))
                     for value in predictions) - 1) < 1e-4
             for step in corners)


def _is_zero(value):
  return isinstance(value, (int, float)) and value == 0
