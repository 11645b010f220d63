"""Successors of SDS that change how an image is noised or what is subtracted.

Notation as in score.py. Each is score distillation with another Noising or
Reference:

  ASD     ScaleDreamer (2407.02040): the reference is the prompt's own
          prediction at a slightly later time, with the same noise.
  Bridge  SDS-Bridge (2406.09417): the reference is the prediction with a prompt
          that describes a bad render of the same object.
  ISM     LucidDreamer (2311.11284): x_t is reached from x by DDIM inversion;
          the reference is the empty prompt's prediction one interval before t.
  SDI     Score distillation via inversion (2405.15891): x_t is reached by DDIM
          inversion with the prompt; the reference is the noise that it holds.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import ml_collections

from gen3d.diffusion import loading, noise, samplers
from gen3d.guidance import Guidance, prompts, score
from gen3d.guidance.score import Context, Noised
from gen3d.ops import schedules

# A description of poor renders, of SDS-Bridge.
BAD_RENDER = ('{prompt}, {view}, oversaturated, smooth, pixelated, cartoon, '
              'foggy, hazy, blurry, bad structure, noisy, malformed')


def later_prediction(context: Context, key: jax.Array, noised: Noised, *,
                     ratio: float, random: bool) -> jax.Array:
  """The reference of ASD: eps_c at t + ratio (t - time_min), the same noise.

  Args:
    context: Context.
    key: PRNG key.
    noised: Noised.
    ratio: of the shift.
    random: whether the shift is uniform between 0 and that instead.
  """
  shift = ratio * (noised.t - context.time_min)
  if random:
    shift *= jax.random.uniform(key, shift.shape)
  t = jnp.clip(noised.t + shift, 0.0, 1.0)
  x_t = noise.diffuse(context.teacher.schedule, noised.x, noised.eps, t)
  return context.teacher.denoise(context.weights, x_t, t, context.text.cond)


def source_prediction(context: Context, key: jax.Array, noised: Noised
                      ) -> jax.Array:
  """The reference of SDS-Bridge: the prediction with the prompt 'source'."""
  del key
  return context.teacher.denoise(
      context.weights, noised.x_t, noised.t, context.text.others['source'])


def interval(context: Context, key: jax.Array, x: jax.Array, t: jax.Array, *,
             length: float, stride: float, steps: int) -> Noised:
  """Noising of ISM; its `eps` is the reference, eps_0 at s = t - length.

  Args:
    context: Context.
    key: PRNG key of the noise at the first of the times.
    x: clean [M, ...].
    t: [M].
    length: of the interval, delta_T of the paper.
    stride, steps: x_s is reached by so many steps of this length, delta_S.
      Where they do not lead back to 0, the first image is noised.
  """
  schedule = context.teacher.schedule
  s = jnp.maximum(t - length, 0.0)
  first = jnp.maximum(s - stride * steps, 0.0)
  predict = lambda x_t, t: context.teacher.denoise(
      context.weights, x_t, t, context.text.others['empty'])
  start = noise.diffuse(schedule, x, jax.random.normal(key, x.shape), first)
  x_s = samplers.invert(predict, schedule, start, first, s, steps)
  eps = predict(x_s, s)
  return Noised(x, eps, noise.diffuse(
      schedule, noise.x_from_eps(schedule, x_s, eps, s), eps, t), t)


def inverted(context: Context, key: jax.Array, x: jax.Array, t: jax.Array, *,
             scale: float, steps: int) -> Noised:
  """Noising of SDI, by DDIM inversion with classifier-free guidance.

  Args:
    context: Context.
    key: not used.
    x: clean [M, ...].
    t: [M].
    scale: guidance scale of the inversion, negative in the paper.
    steps: of the inversion.
  """
  del key
  teacher, schedule = context.teacher, context.teacher.schedule
  predict = samplers.guided(teacher.denoise, context.weights, context.text.cond,
                            context.text.null, scale)
  x_t = samplers.invert(predict, schedule, x, jnp.zeros_like(t), t, steps)
  return Noised(x, noise.eps_from_x(schedule, x_t, x, t), x_t, t)


def asd(config: ml_collections.ConfigDict) -> Guidance:
  """ASD; config.guidance.options has `shift_ratio` and `shift_random`.

  Errors are those of score.from_config, here and below.
  """
  options = dict(config.guidance.options)
  reference = partial(later_prediction, ratio=options.pop('shift_ratio'),
                      random=options.pop('shift_random'))
  return _make(config, options, score.sds, reference=reference)


def bridge(config: ml_collections.ConfigDict) -> Guidance:
  """SDS-Bridge: scale (eps_c - eps_source).

  The option `source` is a template (prompts.expand); '' is BAD_RENDER.
  """
  options = dict(config.guidance.options)
  template = options.pop('source') or BAD_RENDER
  combination = lambda scale: score.Coefficients(
      scale, 0.0, schedules.affine(scale, -1))
  return _make(config, options, combination, {'source': template},
               reference=source_prediction)


def ism(config: ml_collections.ConfigDict) -> Guidance:
  """ISM; options `interval`, `inversion_stride` and `inversion_steps`."""
  options = dict(config.guidance.options)
  noising = partial(interval, length=options.pop('interval'),
                    stride=options.pop('inversion_stride'),
                    steps=options.pop('inversion_steps'))
  return _make(config, options, score.sds, {'empty': ''}, noising=noising)


def sdi(config: ml_collections.ConfigDict) -> Guidance:
  """SDI; options `inversion_scale` and `inversion_steps`."""
  options = dict(config.guidance.options)
  noising = partial(inverted, scale=options.pop('inversion_scale'),
                    steps=options.pop('inversion_steps'))
  return _make(config, options, score.sds, noising=noising)


def _make(config, options, combination: Callable, templates=None, **functions):
  """The Guidance of a config whose options are popped but for Settings."""
  settings = score.settings_of(
      combination(config.guidance.scale), options, **functions)
  return score.make(
      loading.make_teacher(config.teacher), settings,
      partial(prompts.nearest_view, **config.view_prompts), templates)
