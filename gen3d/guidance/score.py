"""Score distillation: SDS (DreamFusion), CSD and what differs in the others.

Notation: x is an image in the teacher's space (pixels or latents), x_t = alpha
x + sigma eps its noised version at time t in [0, 1]. eps_c, eps_u and eps_0
are the noise predictions with the prompt, with the negative prompt, which is
the empty one by default, and with the empty prompt. The gradient g on x is a
linear combination of them and of a *reference*, which is the noise eps in SDS;
the Jacobian of the U-Net is left out (DreamFusion, eq. 3).

noising.py has other references and ways to noise an image (ASD, ISM, SDI),
student.py the reference that is learned along (VSD), perp_neg.py the negative
prompts of other views.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from gen3d.choices import UserError, check, pick
from gen3d.diffusion import loading, noise, samplers
from gen3d.diffusion.teachers import Teacher, Text, Weights
from gen3d.guidance import Guidance, Metrics, perp_neg, prompts, texts
from gen3d.ops import schedules

Scalar = float | tuple  # a number or a schedule, see ops.schedules.piecewise
Weighting = Callable[[jax.Array, jax.Array], jax.Array]

# w(alpha, sigma), by the name in a config.
WEIGHTINGS = {
    'sigma_squared': lambda alpha, sigma: sigma**2,
    # g is then x minus the predicted clean image, as in HiFA (2305.18766).
    'image': lambda alpha, sigma: sigma / alpha,
    'uniform': lambda alpha, sigma: jnp.ones_like(sigma),
    # Of a rectified flow, alpha = 1 - t and sigma = t: g is then the difference
    # of its velocities eps - x.
    'velocity': lambda alpha, sigma: 1 / alpha,
}


class Coefficients(NamedTuple):
  """g = cond eps_c + null eps_u + noise reference + empty eps_0."""
  cond: Scalar
  null: Scalar
  noise: Scalar
  empty: Scalar = 0.0


def sds(scale: Scalar) -> Coefficients:
  """DreamFusion (2209.14988): eps_u + scale (eps_c - eps_u) - eps.

  The paper's omega is scale - 1: it writes (1 + omega) eps_c - omega eps_u.
  """
  return Coefficients(scale, schedules.affine(scale, -1, 1), -1.0)


def csd(scale: float | tuple = 1.0, negative: Scalar = 1.0) -> Coefficients:
  """Classifier score distillation (2310.19415) with a negative prompt.

  scale ((eps_c - eps_0) - negative (eps_u - eps_0)); with a `negative` of 1,
  scale (eps_c - eps_u).

  Raises:
    UserError: both are schedules, whose product is none.
  """
  if negative == 1.0:
    return Coefficients(scale, schedules.affine(scale, -1), 0.0)
  (_, scale), *more = schedules.points(scale)
  if more:
    raise UserError(
        'CSD with a weight of the negative prompt needs a constant scale; set '
        '--config.guidance.scale to a number.')
  return Coefficients(scale, schedules.affine(negative, -scale), 0.0,
                      schedules.affine(negative, scale, -scale))


class Noised(NamedTuple):
  """Images with noise, leading axis M.

  Attributes:
    x: clean, without gradient.
    eps: the noise in x_t, drawn or by inversion: x_t = alpha x + sigma eps,
      but for ISM, whose x_t goes on from an earlier time.
    x_t: noised.
    t: [M].
  """
  x: Any
  eps: Any
  x_t: Any
  t: Any


class Context(NamedTuple):
  """What a noising and a reference depend on besides the images.

  Attributes:
    teacher: Teacher.
    weights: of the teacher.
    text: texts.ViewText of M images.
    time_min: the smallest time of this step.
  """
  teacher: Teacher
  weights: Any
  text: Any
  time_min: Any


# (context, key, x [M, ...], t [M]) -> Noised
Noising = Callable[[Context, jax.Array, jax.Array, jax.Array], Noised]
# (context, key, Noised) -> what is subtracted, [M, ...]
Reference = Callable[[Context, jax.Array, Noised], jax.Array]


def drawn(context: Context, key: jax.Array, x: jax.Array, t: jax.Array
          ) -> Noised:
  """Noising by Gaussian noise, as in SDS."""
  eps = jax.random.normal(key, x.shape)
  return Noised(x, eps, noise.diffuse(context.teacher.schedule, x, eps, t), t)


def the_noise(context: Context, key: jax.Array, noised: Noised) -> jax.Array:
  """The reference of SDS: the noise itself."""
  del context, key
  return noised.eps


class Settings(NamedTuple):
  """Settings of score distillation; Scalars are numbers or schedules.

  Attributes:
    coefficients: Coefficients of g.
    weighting: w(t) as a function of alpha and sigma.
    time_min, time_max: Scalars; t is uniform between them.
    color_guidance_ratio: Scalar. The unconditional prediction is a desaturated
      mean image. Guidance away from it sharpens geometry but over-saturates
      color, so color gets only this fraction of the guidance: its gradient is
      ratio g + (1 - ratio) (eps_c - reference), that of opacity is g.
    num_noises: noises and times per image (times stratified); g is their mean.
      Reduces the variance where rendering costs more than the teacher.
    noising: Noising.
    reference: Reference.
    denoising_steps: evaluations of the teacher from x_t to the clean image
      that takes the place of a single prediction, as in HiFA (2305.18766).
    clip: Scalar, bound of the absolute values of w g (D-SDS, 2303.15413); None
      for none.
    normalize: whether w g is divided by its norm over the images of a view, as
      in CSD's first stage.
    perp_neg: Scalar, weight of the negative prompts of other views; 0 without.
  """
  coefficients: Coefficients
  weighting: Weighting = WEIGHTINGS['sigma_squared']
  time_min: Scalar = 0.02
  time_max: Scalar = 0.98
  color_guidance_ratio: Scalar = 1.0
  num_noises: int = 1
  noising: Noising = drawn
  reference: Reference = the_noise
  denoising_steps: int = 1
  clip: Scalar | None = None
  normalize: bool = False
  perp_neg: Scalar = 0.0


def from_config(
    combination: Callable[..., Coefficients],
    config: ml_collections.ConfigDict) -> Guidance:
  """The Guidance of configs/dreamfusion.py.

  Args:
    combination: `sds` or `csd`, called with the guidance scale.
    config: with `guidance`, `teacher` and `view_prompts`.

  Raises:
    UserError: a name is unknown or the teacher does not fit its settings.
  """
  options = dict(config.guidance.options)
  if 'negative' in options:
    if not config.negative_prompt:
      raise UserError(
          'guidance.options.negative is a weight of the negative prompt, and '
          'there is none; set --config.negative_prompt, or '
          '--config.guidance.options.negative=1.')
    combination = partial(combination, negative=options.pop('negative'))
  settings = settings_of(combination(config.guidance.scale), options)
  return make(loading.make_teacher(config.teacher), settings,
              partial(prompts.nearest_view, **config.view_prompts))


def settings_of(coefficients: Coefficients, options: dict[str, Any],
                **functions: Any) -> Settings:
  """The Settings of a config's guidance.options and of functions.

  Args:
    coefficients: Coefficients.
    options: with `weighting`, a key of WEIGHTINGS, and fields of Settings.
    **functions: `noising` and `reference`, where they differ from those of SDS.

  Raises:
    UserError: the weighting or an option is unknown, or noise levels are
      impossible.
  """
  options = dict(options)
  weighting = pick('weighting', WEIGHTINGS, options.pop('weighting'))
  for name in options:
    check('option of the guidance', Settings._fields, name)
  for name in ('time_min', 'time_max'):
    if any(not 0 <= t <= 1 for _, t in schedules.points(options.get(name, 0))):
      raise UserError(f'--config.guidance.options.{name} is {options[name]}; '
                      'noise levels are from 0 (none) to 1 (pure noise).')
  settings = Settings(coefficients, weighting, **options, **functions)
  low, high = settings.time_min, settings.time_max
  for step, _ in (*schedules.points(low), *schedules.points(high)):
    if float(schedules.piecewise(step, low)) > float(
        schedules.piecewise(step, high)):
      raise UserError(
          f'--config.guidance.options.time_min is above time_max at step {step}'
          f' ({low} and {high}); give a smaller time_min.')
  return settings


def make(teacher: Teacher, settings: Settings,
         nearest_view: texts.NearestView = prompts.nearest_view,
         templates: Mapping[str, str] | None = None) -> Guidance:
  """The Guidance of a teacher.

  Args:
    teacher: diffusion.teachers.Teacher.
    settings: Settings.
    nearest_view: (azimuth, elevation) -> index into prompts.VIEWS.
    templates: {name: template} of further texts for the reference, see
      prompts.expand.
  """
  templates = needed_templates(settings, templates or {})

  def loss(params, frozen, key, render, text, step):
    del params
    return distill(teacher, settings, frozen.weights, key, render, text, step
                   )[:2]

  return Guidance(
      load=partial(texts.load, teacher, templates),
      init=lambda key, frozen: {},
      condition=partial(texts.condition, teacher, nearest_view, templates,
                        settings.perp_neg != 0),
      loss=loss)


def needed_templates(settings: Settings, templates: Mapping[str, str]
                     ) -> dict[str, str]:
  """The templates, with that of the empty prompt where Settings need it."""
  empty = {'empty': ''} if settings.coefficients.empty != 0 else {}
  return {**templates, **empty}


def distill(
    teacher: Teacher, settings: Settings, weights: Weights, key: jax.Array,
    render: Any, text: texts.ViewText, step: jax.Array | int
) -> tuple[jax.Array, Metrics, jax.Array, texts.ViewText]:
  """`distillation_loss` of one rendered view.

  Args:
    render: scenes.Render without leading axis.
    teacher, settings, weights, key, step: of `distillation_loss`.
    text: texts.ViewText of the view, without depth conditioning.

  Returns:
    (loss, metrics, x [1, ...] without gradient, the text with the depth).
  """
  text = texts.add_depth(teacher, weights, text, render)
  color_only = render.color_only
  loss, metrics, x = _distill(
      teacher, settings, weights, key, render.image[None], text, step,
      None if color_only is None else color_only[None])
  return loss, metrics, x, text


def distillation_loss(
    teacher: Teacher, settings: Settings, weights: Weights, key: jax.Array,
    images: jax.Array, text: texts.ViewText, step: jax.Array | int,
    color_only: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
  """A surrogate loss whose gradient in x is w g / B (DreamFusion, eq. 3).

  Args:
    teacher: Teacher.
    settings: Settings.
    weights: of the teacher.
    key: PRNG key.
    images: [B, H, W, 3] in [0, 1].
    text: texts.ViewText of B views.
    step: of the training, for schedules.
    color_only: [B, H, W, 3], see scenes.Render; not needed where the color
      guidance ratio is one.

  Returns:
    (scalar, {'sds/grad_norm', 'sds/t'}).

  Raises:
    UserError: color_only is missing.
  """
  return _distill(teacher, settings, weights, key, images, text, step,
                  color_only)[:2]


def _distill(teacher, settings, weights, key, images, text, step, color_only):
  """`distillation_loss`, and x [B, ...] without gradient."""
  key_encode, key_t, key_noise = jax.random.split(key, 3)
  encode = lambda images: teacher.encode(weights, images, key_encode)
  x = encode(images)
  t = _times(key_t, settings, len(x), step)

  # Noised images, `num_noises` for each.
  repeat = lambda a: jnp.repeat(a, settings.num_noises, axis=0)
  clean = jax.lax.stop_gradient(x)
  context = Context(teacher, weights, jax.tree.map(repeat, text),
                    schedules.piecewise(step, settings.time_min))
  noised = settings.noising(context, key_noise, repeat(clean), t)
  g, g_color = gradients(context, settings, key_noise, noised, step)
  # Averaged over the noises of an image.
  mean = lambda g: jnp.mean(
      g.reshape(len(x), settings.num_noises, *x.shape[1:]), axis=1)
  g = limit(mean(g), settings, step)
  loss = jnp.sum(g * x) / len(x)

  # A second surrogate whose gradient reaches colors only: it replaces
  # (1 - ratio) of the guided gradient by the conditional one.
  if settings.color_guidance_ratio != 1.0:
    if color_only is None:
      raise UserError(
          'The scene has no image of colors alone (color_only); set '
          '--config.guidance.options.color_guidance_ratio=1.')
    change = (1 - schedules.piecewise(step, settings.color_guidance_ratio)) * (
        mean(g_color) - g)
    _, pullback = jax.vjp(encode, jax.lax.stop_gradient(images))
    loss += jnp.sum(
        jax.lax.stop_gradient(pullback(change)[0]) * color_only) / len(x)
  norm = jnp.sqrt(jnp.mean(jnp.sum(g**2, axis=tuple(range(1, g.ndim)))))
  return loss, {'sds/grad_norm': norm, 'sds/t': t.mean()}, clean


def gradients(
    context: Context, settings: Settings, key: jax.Array, noised: Noised,
    step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
  """(w g, w (eps_c - reference)) [M, ...] of noised images, without gradient.

  Args:
    context: Context.
    settings: Settings.
    key: PRNG key of the reference.
    noised: Noised.
    step: of the training, for schedules.
  """
  schedule = context.teacher.schedule
  eps_hat, eps_c = combine_predictions(
      context.teacher, context.weights, noised.x_t, noised.t, context.text,
      settings.coefficients, step, settings.perp_neg)
  if settings.denoising_steps > 1:
    eps_hat = _prediction_of_steps(context, settings, noised, eps_hat, step)
  reference = settings.reference(context, key, noised)
  alpha, sigma = (level(noised.t).reshape(-1, *(1,) * (noised.x.ndim - 1))
                  for level in (schedule.alpha, schedule.sigma))
  w = settings.weighting(alpha, sigma)
  g = eps_hat + reference * schedules.piecewise(
      step, settings.coefficients.noise)
  return jax.lax.stop_gradient((w * g, w * (eps_c - reference)))


def _prediction_of_steps(context, settings, noised, eps_hat, step):
  """The eps that leads from x_t to the clean image after several steps.

  The first of them, of DDIM, has the prediction eps_hat that is there.
  """
  teacher, steps = context.teacher, settings.denoising_steps
  predict = lambda x_t, t: combine_predictions(
      teacher, context.weights, x_t, t, context.text, settings.coefficients,
      step, settings.perp_neg)[0]
  clean = noise.x_from_eps(teacher.schedule, noised.x_t, eps_hat, noised.t)
  if teacher.bound is not None:
    clean = jnp.clip(clean, -teacher.bound, teacher.bound)
    eps_hat = noise.eps_from_x(teacher.schedule, noised.x_t, clean, noised.t)
  t = noised.t * (steps - 1) / steps
  clean = samplers.denoise(
      jax.random.key(0), predict, teacher.schedule,
      noise.diffuse(teacher.schedule, clean, eps_hat, t), t, steps - 1,
      clip=teacher.bound)
  return noise.eps_from_x(teacher.schedule, noised.x_t, clean, noised.t)


def limit(g: jax.Array, settings: Settings, step: jax.Array | int
          ) -> jax.Array:
  """w g [B, ...], clipped and normalized as the Settings have it."""
  if settings.clip is not None:
    bound = schedules.piecewise(step, settings.clip)
    g = jnp.clip(g, -bound, bound)
  return g / (jnp.linalg.norm(g) + 1e-8) if settings.normalize else g


def _times(key, settings, count, step):
  """Times [count * num_noises], stratified for each image."""
  low, high = (schedules.piecewise(step, time) for time in (
      settings.time_min, settings.time_max))
  strata = (jnp.arange(settings.num_noises)
            + jax.random.uniform(key, (count, 1))) / settings.num_noises
  return (low + (high - low) * strata).reshape(-1)


def combine_predictions(
    teacher: Teacher, weights: Weights, x_t: jax.Array, t: jax.Array,
    text: texts.ViewText, coefficients: Coefficients, step: jax.Array | int,
    perp_weight: Scalar = 0.0) -> tuple[jax.Array, jax.Array]:
  """The combination of the teacher's predictions, by one call of the denoiser.

  Args:
    teacher: Teacher.
    weights: of the teacher.
    x_t: [B, ...].
    t: [B].
    text: texts.ViewText of B views.
    coefficients: Coefficients; that of the reference is not used here.
    step: of the training, for schedules.
    perp_weight: Scalar, weight of the negative prompts of other views.

  Returns:
    (cond eps_c + null eps_u + empty eps_0 + perp_weight n, eps_c), all [B,
    ...], n of perp_neg.combine.
  """
  # Only what is used is evaluated: without guidance (scale 1) half of the cost.
  named = [('cond', text.cond)]
  if coefficients.null != 0 or perp_weight != 0:
    named.append(('null', text.null))
  if coefficients.empty != 0:
    named.append(('empty', text.others['empty']))
  if perp_weight != 0:
    named += [('view', one) for one in text.negatives.texts]
  rows: Text = jax.tree.map(
      lambda *rows: jnp.concatenate(rows), *(one for _, one in named))
  several = lambda a: jnp.concatenate([a] * len(named))
  predictions = jnp.split(
      teacher.denoise(weights, several(x_t), several(t), rows), len(named))
  eps = dict(zip((name for name, _ in named), predictions))
  combined = schedules.piecewise(step, coefficients.cond) * eps['cond']
  for name in ('null', 'empty'):
    if name in eps:
      combined += schedules.piecewise(
          step, getattr(coefficients, name)) * eps[name]
  if perp_weight != 0:
    combined += schedules.piecewise(step, perp_weight) * perp_neg.combine(
        eps['cond'] - eps['null'], [x - eps['null'] for x in predictions[-2:]],
        text.negatives.weights)
  return combined, eps['cond']
