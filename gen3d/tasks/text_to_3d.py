"""A prompt becomes an object: a scene, a guidance and a teacher meet.

One step renders `views` views of the scene, divided over the chips, asks the
guidance about each and averages the gradients (DreamFusion: one view on each
of four chips). A view's randomness is its number's and the step's, so that
the result does not depend on the spreading.
"""

import inspect
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError, check, pick
from gen3d.diffusion import open_teachers
from gen3d.engine import checkpoints, optim
from gen3d.engine import state as states
from gen3d.guidance import prompts, score
from gen3d.io import images as image_io
from gen3d.ops import cameras
from gen3d.render import finished
from gen3d.scenes import dreamfusion
from gen3d.tasks import Task, text_to_image

SCENES = {'dreamfusion': dreamfusion.make}
COEFFICIENTS = {'sds': score.sds, 'csd': score.csd}

TEACHERS = {'shapes': text_to_image.teacher, **open_teachers.TEACHERS}


def make(config, teacher=None):
  """The Task of configs/dreamfusion.py.

  Args:
    config: ConfigDict.
    teacher: diffusion.teachers.Teacher; None for the one that the config
      names.

  Raises:
    UserError: at an empty prompt or an unknown name.
  """
  table = [*prompts.with_views(config.prompt), '', config.negative_prompt]
  scene, optimizer = make_scene(config), _optimizer(config)
  coefficients, text_of = _coefficients(config), _text_of(config)
  teacher = teacher or make_teacher(config.teacher)
  guidance = score.make(teacher, coefficients, **config.guidance.options)
  return Task(
      init=partial(_init, scene=scene, guidance=guidance, teacher=teacher,
                   table=table, optimizer=optimizer),
      step=partial(_step, scene=scene, guidance=guidance, optimizer=optimizer,
                   views=config.views, text_of=partial(
                       _text_of_view, text_of=text_of, look=teacher.look)),
      batches=partial(_batches, views=config.views),
      evaluate=partial(
          _evaluate, path=finished.turntable(4, dict(config.orbit)),
          view=finished.make_renderer(scene, 96, ('color', 'normal'))),
      finish=lambda state, workdir: _finish(
          shown(scene, state.params['scene'], config), workdir))


def make_scene(config):
  """The Scene of a config: all that showing and exporting need."""
  return pick('scene', SCENES, config.scene.name)(config.scene)


def make_teacher(config):
  """The Teacher of a mapping with `name` and what that teacher takes.

  What is empty or False is left to the teacher.

  Raises:
    UserError: at an unknown name, a setting that the teacher does not have,
      or a checkpoint that does not fit.
  """
  make = pick('teacher', TEACHERS, config['name'])
  given = {k: v for k, v in config.items() if v and k != 'name'}
  for key in given:
    check(f'setting of the teacher {config["name"]!r}',
          inspect.signature(make).parameters, key)
  return make(**given)


def load_run(workdir, step=None):
  """(scene, its parameters, config) of a run of this task.

  Args:
    workdir: of the run.
    step: which checkpoint; the newest one if None.

  Raises:
    UserError: where there is no such run or it is damaged.
    FileNotFoundError: where there is no such checkpoint.
  """
  config = checkpoints.load_config(workdir)
  if config.get('task') != 'text_to_3d':
    raise UserError(
        f'The run in {workdir} is of the task {config.get("task")!r}; only '
        "runs of 'text_to_3d' have an object to export.")
  # The object is there without its teacher, which may be on no disk here.
  scene = make_scene(config)
  like = _start(jax.random.key(0), scene, lambda key: {}, _optimizer(config))
  state = checkpoints.load(workdir, like, step)
  return scene, state.params['scene'], config


def load(workdir, step=None):
  """The finished.Finished of a run; errors as in `load_run`."""
  return shown(*load_run(workdir, step))


def shown(scene, params, config):
  """The finished.Finished of a run's scene."""
  return finished.from_scene(
      scene, params, finished.turntable(
          config.export.frames, dict(config.orbit)),
      defaults=finished.export_options(config.export))


def _coefficients(config):
  """The score.Coefficients of a config."""
  guidance = config.guidance
  made = pick('guidance', COEFFICIENTS, guidance.name)(guidance.scale)
  weight = guidance.perp_neg.weight
  if config.negative_prompt or weight:
    return score.with_negative(made, weight)
  return made


def _text_of(config):
  """(embedded table, azimuth, elevation) -> text of one view; see Guidance.

  Raises:
    UserError: at Perp-Neg away from what is not there.
  """
  words, perp_neg = dict(config.words), config.guidance.perp_neg
  views = len(prompts.VIEWS)
  null, negative = views, views + 1
  rows = lambda table, *index: prompts.pick(table, jnp.array(index))
  again = lambda tree: jax.tree.map(lambda x: x[None], tree)

  def between(table, azimuth, elevation):
    shares, weights = prompts.between(
        azimuth, elevation, overhead=words['overhead'])
    sides = rows(table, *range(views))
    # A negative prompt takes the empty one's place, as in samplers.
    return {'cond': again(prompts.blend(sides, shares)),
            'null': rows(table, negative), 'weights': weights[None],
            'negative': again(rows(table, prompts.FRONT, prompts.SIDE))}

  def nearest(table, azimuth, elevation):
    row = prompts.nearest(azimuth, elevation, **words)
    return {'cond': again(prompts.pick(table, row)),
            'null': rows(table, null), 'weights': jnp.ones((1, 1)),
            'negative': again(rows(table, negative))}

  away = pick('thing to lead away from',
              {'views': between, 'prompt': nearest}, perp_neg.away_from)
  if perp_neg.weight and away is nearest and not config.negative_prompt:
    raise UserError("guidance.perp_neg.away_from='prompt' needs one: set "
                    'negative_prompt.')
  return away if perp_neg.weight else nearest


def _text_of_view(frozen, camera, *, text_of, look):
  """Text of one view; of the camera itself only the prompt may know."""
  azimuth, elevation, _ = cameras.angles(camera.c2w[:3, 3])
  text = text_of(frozen['text'], azimuth, elevation)
  return text | {'cond': look(frozen['teacher'], text['cond'],
                              cameras.to_label(camera)[None])}


def _optimizer(config):
  return optim.make_optimizer(config.optimizer, config.steps)


def _init(key, *, scene, guidance, teacher, table, optimizer):
  """The TrainState at step 0; the teacher and the texts are its `frozen`."""
  state = _start(key, scene, guidance.init, optimizer)
  # The text encoder is gone before the rest of the teacher is read.
  text = teacher.embed(table)
  return state.replace(frozen={'text': text, 'teacher': teacher.load()})


def _start(key, scene, init_guidance, optimizer):
  """The part of the TrainState at step 0 that is trained."""
  key_scene, key_guidance = jax.random.split(key)
  return states.create({'scene': jax.jit(scene.init)(key_scene),
                        'guidance': init_guidance(key_guidance)}, optimizer)


def _step(state, batch, key, *, scene, guidance, optimizer, views, text_of):
  """One update from this chip's share of the views; see tasks.Task."""
  one = partial(_view_loss, scene=scene, guidance=guidance, views=views,
                text_of=text_of)

  def loss(params):
    losses, metrics = jax.vmap(
        lambda index: one(params, state.frozen, key, index, state.step))(
            batch['view'])
    return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

  grads, metrics = jax.grad(loss, has_aux=True)(state.params)
  grads = jax.lax.pmean(grads, 'devices')
  return optim.apply_gradients(state, grads, optimizer), metrics


def _view_loss(params, frozen, key, index, step, *, scene, guidance, views,
               text_of):
  """Loss and metrics of view `index` of the step's `views`."""
  key_view, key_render, key_guidance = jax.random.split(
      jax.random.fold_in(key, index), 3)
  # The views of a step look from different sides, as the chance of one run
  # in many would have it: less noise in the gradient.
  part = (index / views, (index + 1) / views)
  view = scene.sample_view(key_view, step, part)
  render = scene.render(params['scene'], key_render, view)
  loss, metrics = guidance.loss(
      params['guidance'], frozen['teacher'], key_guidance, render.image[None],
      text_of(frozen, view.camera), step, render.color_only[None])
  penalties = scene.penalties(params['scene'], render, step)
  metrics |= {f'loss/{name}': value for name, value in penalties.items()}
  metrics['opacity'] = jnp.mean(render.opacity)
  return loss + sum(penalties.values()), metrics


def _batches(seed, first_step, *, views):
  """The same numbers of views for ever: chance comes from the run's key."""
  del seed, first_step
  return itertools.repeat({'view': np.arange(views, dtype=np.int32)})


def _finish(shown, workdir):
  return finished.export(shown, workdir)


def _evaluate(state, key, *, view, path):
  """A sheet of four sides, each in color and as normals."""
  del key
  film = view(state.params['scene'], path)
  return {}, {'preview': image_io.tile(film, 2)}
