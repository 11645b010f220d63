"""Score distillation: SDS (DreamFusion) and CSD, with a diffusion teacher.

Notation: x is an image in the teacher's space (pixels or latents), x_t = alpha
x + sigma eps its noised version at time t in [0, 1]. eps_c and eps_u are the
noise predictions with the prompt and with the negative prompt, which is the
empty one by default. The gradient g on x is a linear combination of eps_c,
eps_u and eps; the Jacobian of the U-Net is left out (DreamFusion, eq. 3).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from gen3d.choices import UserError, pick
from gen3d.diffusion import loading, noise
from gen3d.diffusion.teachers import Teacher, Text, Weights
from gen3d.guidance import Guidance, Metrics, prompts
from gen3d.ops import cameras, schedules
from gen3d.ops import images as image_ops
from gen3d.ops.cameras import Camera

Scalar = float | tuple  # a number or a schedule, see ops.schedules.piecewise
Weighting = Callable[[jax.Array, jax.Array], jax.Array]
NearestView = Callable[[jax.Array, jax.Array], jax.Array]

# w(alpha, sigma), by the name in a config.
WEIGHTINGS = {
    'sigma_squared': lambda alpha, sigma: sigma**2,
    # g is then x minus the predicted clean image, as in HiFA (2305.18766).
    'image': lambda alpha, sigma: sigma / alpha,
}


class Coefficients(NamedTuple):
  """g = cond eps_c + null eps_u + noise eps."""
  cond: Scalar
  null: Scalar
  noise: Scalar


def sds(scale: Scalar) -> Coefficients:
  """DreamFusion (2209.14988): eps_u + scale (eps_c - eps_u) - eps.

  The paper's omega is scale - 1: it writes (1 + omega) eps_c - omega eps_u.
  """
  return Coefficients(scale, schedules.affine(scale, -1, 1), -1.0)


def csd(scale: Scalar = 1.0) -> Coefficients:
  """Classifier score distillation (2310.19415): scale (eps_c - eps_u)."""
  return Coefficients(scale, schedules.affine(scale, -1), 0.0)


class Settings(NamedTuple):
  """Settings of score distillation; Scalars are numbers or schedules.

  Attributes:
    coefficients: Coefficients of g.
    weighting: w(t) as a function of alpha and sigma.
    time_min, time_max: Scalars; t is uniform between them.
    color_guidance_ratio: Scalar. The unconditional prediction is a desaturated
      mean image. Guidance away from it sharpens geometry but over-saturates
      color, so color gets only this fraction of the guidance: its gradient is
      ratio g + (1 - ratio) (eps_c - eps), that of opacity is g.
    num_noises: noises and times per image (times stratified); g is their mean.
      Reduces the variance where rendering costs more than the teacher.
  """
  coefficients: Coefficients
  weighting: Weighting = WEIGHTINGS['sigma_squared']
  time_min: Scalar = 0.02
  time_max: Scalar = 0.98
  color_guidance_ratio: Scalar = 1.0
  num_noises: int = 1


class Frozen(NamedTuple):
  """Guidance's `frozen` of score distillation."""
  # Text with leading axis 4 N + 1: prompts.VIEWS of N prompts, negative prompt.
  prompts: Any
  weights: Any  # of the teacher


class ViewText(NamedTuple):
  """Embeddings for B views, pytrees with leading axis B."""
  cond: Any  # the view-dependent prompt, with the camera
  null: Any  # the negative prompt
  # ops.cameras.Camera [B] of the views, for `add_depth`; None where it is done
  # or the teacher has no depth conditioning.
  camera: Any = None


def from_config(combination: Callable[[Scalar], Coefficients],
                config: ml_collections.ConfigDict) -> Guidance:
  """The Guidance of configs/dreamfusion.py.

  Args:
    combination: `sds` or `csd`, called with the guidance scale.
    config: with `guidance`, `teacher` and `view_prompts`.

  Raises:
    UserError: a name is unknown or the teacher does not fit its settings.
  """
  options = dict(config.guidance.options)
  weighting = pick('weighting', WEIGHTINGS, options.pop('weighting'))
  settings = Settings(
      combination(config.guidance.scale), weighting, **options)
  return make(loading.make_teacher(config.teacher), settings,
              partial(prompts.nearest_view, **config.view_prompts))


def make(teacher: Teacher, settings: Settings,
         nearest_view: NearestView = prompts.nearest_view) -> Guidance:
  """The Guidance of a teacher.

  Args:
    teacher: diffusion.teachers.Teacher.
    settings: Settings.
    nearest_view: (azimuth, elevation) -> index into prompts.VIEWS.
  """
  def load(prompt, negative_prompt):
    # First the embeddings, whose text encoder is freed before `load` reads the
    # rest of the teacher.
    several = (prompt,) if isinstance(prompt, str) else prompt
    texts = [text for one in several for text in prompts.with_views(one)]
    embeddings = teacher.embed([*texts, negative_prompt])
    return Frozen(embeddings, teacher.load())

  def loss(params, frozen, key, render, text, step):
    del params
    text = add_depth(teacher, frozen.weights, text, render)
    color_only = render.color_only
    return distillation_loss(
        teacher, settings, frozen.weights, key, render.image[None], text, step,
        None if color_only is None else color_only[None])

  return Guidance(
      load=load, init=lambda key, frozen: {},
      condition=partial(_condition, teacher, nearest_view), loss=loss)


def _condition(teacher: Teacher, nearest_view: NearestView, frozen: Frozen,
               camera: Camera, subject: jax.Array | int = 0) -> ViewText:
  """ViewText of one camera, B = 1, with the prompt of index `subject`."""
  azimuth, elevation, _ = cameras.angles(camera.c2w[:3, 3])
  row = len(prompts.VIEWS) * subject + nearest_view(azimuth, elevation)
  cond = jax.tree.map(lambda x: x[row][None], frozen.prompts)
  null = jax.tree.map(lambda x: x[-1:], frozen.prompts)
  label = cameras.to_label(camera)[None]
  # The negative prompt stays without a camera, as in the teacher's training,
  # where captions are dropped together with cameras.
  view = jax.tree.map(lambda x: x[None], camera)
  return ViewText(teacher.add_camera(frozen.weights, cond, label), null,
                  view if teacher.depth_conditioned else None)


def add_depth(teacher: Teacher, weights: Weights, text: ViewText,
              render: Any) -> ViewText:
  """The text of a view with depth conditioning by its render's depth map.

  The prompt and the negative prompt get the same map, as with a ControlNet:
  their difference is then that of the words. The map has no gradient. The text
  is returned as it is where the teacher has no depth conditioning.

  Args:
    teacher: Teacher.
    weights: of the teacher.
    text: ViewText of one view, B = 1, with its camera.
    render: scenes.Render, or any record with `depth` [H, W], the distance
      along the rays, and `opacity` [H, W].
  """
  if not teacher.depth_conditioned:
    return text
  depth, opacity = jax.lax.stop_gradient((render.depth, render.opacity))
  maps = image_ops.depth_map(
      cameras.axial_depth(text.camera, depth[None]), opacity[None])
  return ViewText(*(teacher.add_depth(weights, prompt, maps)
                    for prompt in (text.cond, text.null)))


def distillation_loss(
    teacher: Teacher, settings: Settings, weights: Weights, key: jax.Array,
    images: jax.Array, text: ViewText, step: jax.Array | int,
    color_only: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
  """A surrogate loss whose gradient in x is w g / B (DreamFusion, eq. 3).

  Args:
    teacher: Teacher.
    settings: Settings.
    weights: of the teacher.
    key: PRNG key.
    images: [B, H, W, 3] in [0, 1].
    text: ViewText of B views.
    step: of the training, for schedules.
    color_only: [B, H, W, 3], see scenes.Render; not needed where the color
      guidance ratio is one.

  Returns:
    (scalar, {'sds/grad_norm', 'sds/t'}).

  Raises:
    UserError: color_only is missing.
  """
  key_encode, key_t, key_eps = jax.random.split(key, 3)
  encode = lambda images: teacher.encode(weights, images, key_encode)
  x = encode(images)
  t = _times(key_t, settings, len(x), step)

  # Noised images, `num_noises` for each.
  repeat = lambda a: jnp.repeat(a, settings.num_noises, axis=0)
  clean = repeat(jax.lax.stop_gradient(x))
  eps = jax.random.normal(key_eps, clean.shape)
  x_t = noise.diffuse(teacher.schedule, clean, eps, t)
  eps_hat, eps_c = combine_predictions(
      teacher, weights, x_t, t, jax.tree.map(repeat, text),
      settings.coefficients, step)

  # The weighted gradient, averaged over the noises of an image.
  alpha, sigma = (level(t).reshape(-1, *(1,) * (x.ndim - 1)) for level in (
      teacher.schedule.alpha, teacher.schedule.sigma))
  average = lambda g: jax.lax.stop_gradient(jnp.mean(
      (settings.weighting(alpha, sigma) * g).reshape(
          len(x), settings.num_noises, *x.shape[1:]), axis=1))
  g = average(
      eps_hat + eps * schedules.piecewise(step, settings.coefficients.noise))
  loss = jnp.sum(g * x) / len(x)

  # A second surrogate whose gradient reaches colors only: it replaces
  # (1 - ratio) of the guided gradient by the conditional one.
  if settings.color_guidance_ratio != 1.0:
    if color_only is None:
      raise UserError(
          'The scene has no image of colors alone (color_only); set '
          '--config.guidance.options.color_guidance_ratio=1.')
    change = (1 - schedules.piecewise(step, settings.color_guidance_ratio)) * (
        average(eps_c - eps) - g)
    _, pullback = jax.vjp(encode, jax.lax.stop_gradient(images))
    loss += jnp.sum(
        jax.lax.stop_gradient(pullback(change)[0]) * color_only) / len(x)
  norm = jnp.sqrt(jnp.mean(jnp.sum(g**2, axis=tuple(range(1, g.ndim)))))
  return loss, {'sds/grad_norm': norm, 'sds/t': t.mean()}


def _times(key, settings, count, step):
  """Times [count * num_noises], stratified for each image."""
  low, high = (schedules.piecewise(step, time) for time in (
      settings.time_min, settings.time_max))
  strata = (jnp.arange(settings.num_noises)
            + jax.random.uniform(key, (count, 1))) / settings.num_noises
  return (low + (high - low) * strata).reshape(-1)


def combine_predictions(
    teacher: Teacher, weights: Weights, x_t: jax.Array, t: jax.Array,
    text: ViewText, coefficients: Coefficients, step: jax.Array | int
    ) -> tuple[jax.Array, jax.Array]:
  """The combination of the teacher's predictions, by one call of the denoiser.

  Args:
    teacher: Teacher.
    weights: of the teacher.
    x_t: [B, ...].
    t: [B].
    text: ViewText of B views.
    coefficients: Coefficients; that of the noise is not used here.
    step: of the training, for schedules.

  Returns:
    (cond eps_c + null eps_u, eps_c), both [B, ...].
  """
  if coefficients.null == 0:
    # Without guidance (scale 1) half of the cost.
    eps_c = teacher.denoise(weights, x_t, t, text.cond)
    return schedules.piecewise(step, coefficients.cond) * eps_c, eps_c
  both: Text = jax.tree.map(
      lambda *rows: jnp.concatenate(rows), text.cond, text.null)
  twice = lambda a: jnp.concatenate([a, a])
  eps_c, eps_u = jnp.split(
      teacher.denoise(weights, twice(x_t), twice(t), both), 2)
  return (schedules.piecewise(step, coefficients.cond) * eps_c
          + schedules.piecewise(step, coefficients.null) * eps_u), eps_c
