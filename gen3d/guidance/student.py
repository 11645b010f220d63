"""Variational score distillation (ProlificDreamer, Wang et al., 2305.16213).

Notation as in score.py. The reference is the noise prediction of a *student*, a
diffusion model of the renders that is learned along with them: g = eps_hat -
eps_student, eq. 9. SDS is VSD whose student answers with the drawn noise.

A student is the teacher with LoRA on its attention, or a copy of its U-Net. Its
conditions are the prompt without the words of a view, and the camera: a teacher
without camera conditioning gets an embedding of the camera-to-world matrix,
which is added to that of the time.
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
from gen3d.guidance import Guidance, Params, prompts, score, texts
from gen3d.models import conditional_unet, lora, unet

# The layer whose output is the time embedding, in conditional_unet.
_TIME_LAYER = ('time_embedding.linear_2',)
_PLAIN = {'plain': '{prompt}'}

# Weight of the squared error of eps, as a function of alpha: of a student that
# predicts v, (eps_hat - eps) / alpha is the error of v.
LOSSES = {'epsilon': jnp.ones_like, 'v': lambda alpha: 1 / alpha**2}


class Student(NamedTuple):
  """A diffusion model that is learned along with a scene.

  Attributes:
    init: (key, weights of the teacher) -> params.
    predict: (params, weights, x_t [B, ...], t [B], text, pose [B, 16]) -> eps;
      zeros are an unknown pose.
  """
  init: Callable[[jax.Array, Weights], Params]
  predict: Callable[..., jax.Array]


class Settings(NamedTuple):
  """Settings of the student's own loss.

  Attributes:
    loss: a key of LOSSES.
    drop_camera: probability of an unknown pose.
    noises: noises and times per view.
  """
  loss: str = 'epsilon'
  drop_camera: float = 0.1
  noises: int = 1


def low_rank(teacher: Teacher, rank: int = 4) -> Student:
  """A student that is the teacher with LoRA, and an embedding of the pose.

  Args:
    teacher: Teacher, whose weights have the U-Net as 'unet'.
    rank: of the LoRA.

  Raises:
    UserError: the rank is not positive.
  """
  if rank < 1:
    raise UserError(f'A LoRA of rank {rank} adapts nothing; set '
                    '--config.guidance.student.rank to 1 or more.')

  def init(key, weights):
    key_lora, key_in, key_out = jax.random.split(key, 3)
    network = weights['unet']['params']
    params: dict[str, Any] = {'lora': lora.init(
        key_lora, lora.attention_layers(network), rank)}
    if not teacher.camera_conditioned:
      _, width = network[_TIME_LAYER[0]]['kernel'].shape
      # The last layer starts at zero: the student is the teacher at first.
      params['pose'] = {
          'in': jax.random.normal(key_in, (16, width)) / 4,
          'in_bias': jnp.zeros(width),
          'out': jnp.zeros((width, width)), 'out_bias': jnp.zeros(width)}
    return params

  def predict(params, weights, x_t, t, text, pose):
    functions = lora.additions(params['lora'])
    if 'pose' in params:
      functions[_TIME_LAYER] = lambda x: _embed_pose(params['pose'], pose)
    with lora.applied(functions, (unet.UNet, conditional_unet.UNet)):
      return teacher.denoise(weights, x_t, t, text)

  return Student(init, jax.named_scope('student')(predict))


def _embed_pose(params, pose):
  hidden = jax.nn.silu(pose @ params['in'] + params['in_bias'])
  return hidden @ params['out'] + params['out_bias']


def copy(teacher: Teacher) -> Student:
  """A student that is a copy of the teacher's U-Net, all of it learned.

  Raises:
    UserError: the teacher has no camera conditioning, which a copy needs.
  """
  if not teacher.camera_conditioned:
    raise UserError(
        'A copy of a teacher without camera conditioning would not know the '
        'camera; set --config.guidance.student.kind=lora.')

  def predict(params, weights, x_t, t, text, pose):
    del pose  # The text has the camera.
    return teacher.denoise({**weights, **params}, x_t, t, text)

  return Student(lambda key, weights: {
      'unet': jax.tree.map(jnp.array, weights['unet'])},
                 jax.named_scope('student')(predict))


def from_config(config: ml_collections.ConfigDict) -> Guidance:
  """The Guidance of configs/prolific_dreamer.py.

  Args:
    config: with `guidance`, `teacher` and `view_prompts`; guidance.student has
      `kind` ('lora' or 'copy'), `rank`, `path`, `loss`, `drop_camera` and
      `noises`. The student is made of the teacher at `path`, '' for the
      teacher itself.

  Raises:
    UserError: a name is unknown, or the teacher does not fit its settings or
      the student.
  """
  options = dict(config.guidance.student)
  kind, rank, path = (options.pop(name) for name in ('kind', 'rank', 'path'))
  settings = Settings(**options)
  pick('loss of the student', LOSSES, settings.loss)
  teacher = loading.make_teacher(config.teacher)
  base = loading.make_teacher({**config.teacher, 'path': path}) if path else (
      teacher)
  make_student = pick('student', {
      'lora': partial(low_rank, rank=rank), 'copy': copy}, kind)
  return make(
      teacher, score.settings_of(score.sds(config.guidance.scale),
                                 config.guidance.options),
      make_student(base), settings,
      partial(prompts.nearest_view, **config.view_prompts),
      base.load if path else None)


def make(teacher: Teacher, settings: score.Settings, student: Student,
         student_settings: Settings,
         nearest_view: texts.NearestView = prompts.nearest_view,
         load_base: Callable[[], Weights] | None = None) -> Guidance:
  """The Guidance of VSD.

  Args:
    teacher: Teacher.
    settings: score.Settings; their reference is replaced.
    student: Student.
    student_settings: Settings.
    nearest_view: (azimuth, elevation) -> index into prompts.VIEWS.
    load_base: () -> weights from which the student is made; None for those of
      the teacher.
  """
  templates = score.needed_templates(settings, _PLAIN)

  def load(prompt, negative_prompt):
    frozen = texts.load(teacher, templates, prompt, negative_prompt)
    return frozen._replace(
        base={'unet': load_base()['unet']}) if load_base else frozen

  def base_of(frozen):
    return frozen.weights if frozen.base is None else frozen.base

  def loss(params, frozen, key, render, text, step):
    key_distill, key_fit = jax.random.split(key)
    fixed = jax.lax.stop_gradient(params)

    def reference(context, key, noised):
      del key
      return student.predict(
          fixed, base_of(frozen), noised.x_t, noised.t,
          context.text.others['plain'], context.text.pose)

    value, metrics, x, text = score.distill(
        teacher, settings._replace(reference=reference), frozen.weights,
        key_distill, render, text, step)
    fit = fit_loss(student, student_settings, teacher.schedule, params,
                   base_of(frozen), key_fit, x, text.others['plain'],
                   text.pose)
    return value + fit, metrics | {'student/loss': fit}

  return Guidance(
      load=load, init=lambda key, frozen: student.init(key, base_of(frozen)),
      condition=partial(texts.condition, teacher, nearest_view, templates,
                        settings.perp_neg != 0),
      loss=loss)


def fit_loss(
    student: Student, settings: Settings, schedule: noise.Schedule,
    params: Params, weights: Weights, key: jax.Array, x: jax.Array,
    text: Text, pose: jax.Array) -> jax.Array:
  """The student's denoising loss [] on renders (eq. 10 of the paper).

  Args:
    student: Student.
    settings: Settings.
    schedule: noise.Schedule.
    params: of the student.
    weights: that it is made of.
    key: PRNG key of the noise, of times in [0, 1] and of dropped poses.
    x: [B, ...] renders in the teacher's space, without gradient.
    text: of B views.
    pose: [B, 16].
  """
  key_t, key_eps, key_drop = jax.random.split(key, 3)
  repeat = lambda a: jnp.repeat(a, settings.noises, axis=0)
  x, text, pose = jax.tree.map(repeat, (x, text, pose))
  t = jax.random.uniform(key_t, (len(x),))
  eps = jax.random.normal(key_eps, x.shape)
  known = jax.random.uniform(key_drop) >= settings.drop_camera
  return denoising_loss(student, settings.loss, schedule, params, weights, x,
                        eps, t, text, pose * known)


def denoising_loss(
    student: Student, loss: str, schedule: noise.Schedule, params: Params,
    weights: Weights, x: jax.Array, eps: jax.Array, t: jax.Array, text: Text,
    pose: jax.Array) -> jax.Array:
  """The mean squared error [] of a student's prediction at noises and times.

  Args:
    loss: a key of LOSSES: what the error is of.
    eps: [B, ...].
    t: [B].
    student, schedule, params, weights, x, text, pose: of `fit_loss`.
  """
  prediction = student.predict(
      params, weights, noise.diffuse(schedule, x, eps, t), t, text, pose)
  weight = LOSSES[loss](schedule.alpha(t)).reshape(-1, *(1,) * (x.ndim - 1))
  return jnp.mean(weight * jnp.square(prediction - eps))
