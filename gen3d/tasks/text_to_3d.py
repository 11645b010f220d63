"""Text to 3-D: optimizes a scene by the guidance of a text.

One step renders `views` views of the scene, divided over the devices,
evaluates the guidance's loss for each and averages the gradients (DreamFusion:
one view on each of four devices). A view's randomness depends on its index and
the step, so that the result does not depend on the number of devices.
"""

import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from gen3d import notices
from gen3d.choices import UserError, check_prompt, pick
from gen3d.data import untextured
from gen3d.data.shapes import captions
from gen3d.engine import checkpoints, devices, optim, workdirs
from gen3d.engine import state as states
from gen3d.guidance import Guidance, clip, noising, prompts, score, student
from gen3d.io import images as image_io
from gen3d.io import keyframes, surfaces
from gen3d.ops import bake, schedules
from gen3d.ops import mesh as mesh_ops
from gen3d.ops.mesh import Mesh
from gen3d.render import finished
from gen3d.scenes import Scene, dream_fields, dreamfusion, particles, texture
from gen3d.scenes import mesh as mesh_scene
from gen3d.tasks import (
    Costs,
    Task,
    check_least,
    load_config,
    load_finished,
    scheduled_rate,
)

# (config.scene) -> Scene, and (config) -> Guidance, by name.
SCENES = {'dreamfusion': dreamfusion.make, 'dream_fields': dream_fields.make,
          'mesh': mesh_scene.make, 'texture': texture.make}
GUIDANCES = {'sds': partial(score.from_config, score.sds),
             'csd': partial(score.from_config, score.csd),
             'asd': noising.asd, 'bridge': noising.bridge,
             'ism': noising.ism, 'sdi': noising.sdi,
             'vsd': student.from_config, 'clip': clip.from_config}
# Parts of a step whose operations are counted apart: rendering, the encoder of
# the teacher, the student of VSD, the teacher's noise predictions.
SCOPES = ('render', 'encoder', 'student', 'unet')


class Parts(NamedTuple):
  """The parts of a step: scene, guidance, optimizer, and views per step."""
  scene: Scene
  guidance: Guidance
  optimizer: optax.GradientTransformation
  views: int


def make(config: ml_collections.ConfigDict,
         guidance: Guidance | None = None) -> Task:
  """The Task of a config whose `task` is 'text_to_3d'.

  Args:
    config: ConfigDict.
    guidance: Guidance; None for the one that the config names.

  Raises:
    UserError: the prompt is empty, a name is unknown or an option of the export
      is not possible.
  """
  finished.export_options(config.export)  # raises before the training
  check_least(config, {
      'views': 1, 'particles': 1, 'scene.size': 1, 'scene.samples': 1,
      'scene.chunk': 1, 'scene.importance.samples': 0,
      'scene.importance.stride': 1, 'scene.bound': 0.01, 'export.frames': 1})
  settings = config.to_dict()
  config = ml_collections.ConfigDict(_in_steps(settings, config.steps))
  scene = make_scene(config, **_start(config))
  check_prompt(config.negative_prompt)
  prompt = prompts.normalize(config.prompt) if scene.subjects == 1 else (
      prompts.split(config.prompt, scene.subjects))
  given = prompt
  if config.get('complete_prompt'):
    complete = partial(captions.complete, seed=config.seed)
    prompt = complete(prompt) if isinstance(prompt, str) else tuple(
        map(complete, prompt))
  guidance = guidance or pick(
      'guidance', GUIDANCES, config.guidance.name)(config)
  count = _particles(config)
  parts = Parts(scene if count == 1 else particles.stack(scene, count),
                guidance, _optimizer(config), config.views)
  return Task(
      init=partial(_init, parts=parts, prompt=prompt,
                   negative_prompt=config.negative_prompt,
                   given=given),
      step=partial(_step, parts=parts),
      batches=partial(_batches, views=config.views),
      evaluate=partial(
          _evaluate, path=finished.turntable(4, dict(config.orbit)),
          view=finished.make_renderer(scene, 96, ('color', 'normal')),
          count=count),
      finish=partial(_finish, scene=scene, config=config, settings=settings),
      costs=lambda: Costs(_sizes(config), scopes=SCOPES),
      scheduled=_scheduled(config))


def _particles(config) -> int:
  """The number of objects of a run; configs of one need not have it."""
  return config.particles if 'particles' in config else 1


def _optimizer(config):
  """That of the scene, and of what the guidance learns along if it has one."""
  settings = config.optimizer.to_dict()
  settings['lr_multipliers'] = {
      name: partial(schedules.piecewise, value=factor)
      if schedules.is_schedule(factor) else factor
      for name, factor in settings.get('lr_multipliers', {}).items()}
  optimizer = optim.make_optimizer(settings, config.steps)
  if 'optimizer' not in config.guidance:
    return optimizer
  return optax.partition(
      {'scene': optimizer,
       'guidance': optim.make_optimizer(config.guidance.optimizer,
                                        config.steps)},
      lambda params: {name: jax.tree.map(lambda _, name=name: name, tree)
                      for name, tree in params.items()})


def _in_steps(settings, steps):
  """Nested settings with the times of their schedules in steps."""
  return {key: _in_steps(value, steps) if isinstance(value, dict) else
          schedules.in_steps(value, steps) for key, value in settings.items()}


def _scheduled(config):
  """Task.scheduled: learning rate, guidance scale, every schedule's value.

  Their names are the keys of the config.
  """
  rate = scheduled_rate(config)
  shown = {key: value for key, value in _flat(config.to_dict())
           if key == 'guidance.scale' or schedules.is_schedule(value)}
  return lambda step: {
      **rate(step),
      **{f'schedule/{key}': float(schedules.piecewise(step, value))
         for key, value in shown.items()}}


def _flat(settings, prefix=''):
  """Yields (dotted key, value) of nested settings."""
  for key, value in settings.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def make_scene(config: ml_collections.ConfigDict, **start: Any) -> Scene:
  """The Scene of a config: all that rendering and exporting need.

  Args:
    config: ConfigDict.
    **start: arguments of the scene that only its `init` needs.

  Raises:
    UserError: a name is unknown.
  """
  return pick('scene', SCENES, config.scene.name)(config.scene, **start)


def starting_mesh(path: str | os.PathLike, scene: Any) -> Mesh:
  """The textured mesh from which a mesh scene starts.

  Args:
    path: the workdir of a finished run, or a mesh file. A mesh file is scaled
      into a ball.
    scene: ConfigDict with texture.size, resolution, keep_share, radius.

  Raises:
    UserError: there is no such run or file, it has no surface, or it is
      damaged.
  """
  path, size = pathlib.Path(path), scene.texture.size
  bake.check_size(size, '--config.scene.texture.size')
  if path.is_dir():
    run = load_finished(path)
    return finished.textured(
        run, run.mesh(scene.resolution, scene.keep_share), size)
  if not path.is_file():
    raise UserError(
        f'There is no run and no mesh file {path}; give '
        '--config.scene.start_from the workdir of a finished run, a mesh file, '
        "or '' for a sphere.")
  mesh, = mesh_ops.normalize_to_ball(
      [surfaces.load(path, uv_size=size)], scene.radius)
  # White vertices do not change a texture.
  if mesh.colors is None or (
      mesh.texture is not None and np.all(mesh.colors == 1)):
    return mesh._replace(colors=None)
  return mesh._replace(
      texture=bake.texture_of_colors(mesh, size), colors=None)


def _start(config):
  """What a config's scene starts from: {name of an argument: value}."""
  if config.scene.name == 'texture':
    return _texture_start(config.scene)
  path = config.scene.get('start_from', '')
  return {'start': starting_mesh(path, config.scene)} if path else {}


def _texture_start(scene):
  """The meshes of a texture's config, and its cameras if they are of a file."""
  bake.check_size(scene.texture_size)
  start: dict[str, Any] = {'objects': [
      untextured.read(name, scene.up, scene.texture_size,
                      scene.shapes_resolution)
      for name in texture.names(scene.meshes)]}
  if scene.view_distribution == texture.KEYFRAMES:
    start['keyframes'] = keyframes.load(scene.keyframes, scene.up)
  return start


def folders(workdir: str | os.PathLike) -> list[pathlib.Path]:
  """The folders of a run's objects, each of which `load_run` takes.

  A run of one object has itself, one of several a folder for each particle;
  arguments and errors are those of tasks.load_config.
  """
  workdir = pathlib.Path(workdir)
  config = load_config(workdir, ['text_to_3d'])
  if _particles(config) == 1 or 'particle' in config:
    return [workdir]
  return [workdir / f'particle_{index}' for index in range(config.particles)]


def load_run(workdir: str | os.PathLike, step: int | None = None
             ) -> tuple[Scene, Any, ml_collections.ConfigDict]:
  """(scene, its parameters, config) of a run of this task.

  Args:
    workdir: of the run, or the folder of one of its particles; of a run with
      several, the first is read.
    step: of the checkpoint; None for the newest.

  Raises:
    UserError: there is no such run, it is damaged, or it is of another task.
    FileNotFoundError: there is no such checkpoint.
  """
  config = load_config(workdir, ['text_to_3d'])
  # Of the checkpoint only the scene is read: the guidance's teacher may not be
  # on this machine.
  scene = make_scene(config)
  return scene, _load_params(workdir, scene, config, step)[0], config


def _load_params(workdir, scene, config, step):
  """The parameters of a scene in a checkpoint, of each object of the run."""
  if 'particle' in config:
    workdir = pathlib.Path(workdir).absolute().parent
  params = checkpoints.load_tree(workdir, 'params/scene', step)
  if _particles(config) == 1:
    return [_checked(workdir, scene, params, step)]
  chosen = ([config.particle] if 'particle' in config
            else range(config.particles))
  return [_checked(workdir, scene, particles.select(params, index), step)
          for index in chosen]


def _checked(workdir, scene, params, step):
  """The parameters of an object, if they are those of its scene."""
  sizes = lambda tree: sorted(np.shape(x) for x in jax.tree.leaves(tree))
  if sizes(params) != sizes(jax.eval_shape(scene.init, jax.random.key(0))):
    raise UserError(
        f'The config.json of {workdir} describes a scene of other sizes than '
        'its checkpoint has; put back the one that the training wrote.')
  if scene.running:
    params = {**params, **checkpoints.load_tree(workdir, 'extra', step)}
  return jax.tree.map(jnp.asarray, params)


def load(workdir: str | os.PathLike,
         step: int | None = None) -> finished.Finished:
  """The finished scene of a run; arguments and errors of `load_run`."""
  config = load_config(workdir, ['text_to_3d'])
  scene = make_scene(config)
  load_params = partial(_load_params, workdir, scene, config)
  first, *others = load_params(step)
  return _finished(scene, first, config, load_params, others)


def _finish(state, workdir, *, scene, config, settings):
  """Exports the object, or each of several into a folder of its own.

  A particle's folder also gets the config, with its index, by which commands
  find the checkpoint in the folder above.
  """
  params = _scene_params(state)
  if _particles(config) == 1:
    return finished.export(_finished(scene, params, config), workdir)
  files = []
  for index in range(config.particles):
    folder = pathlib.Path(workdir) / f'particle_{index}'
    files += finished.export(
        _finished(scene, particles.select(params, index), config), folder)
    workdirs.write_config(ml_collections.ConfigDict(
        {**settings, 'particle': index}), folder)
  return files


def _finished(scene: Scene, params: Any, config: ml_collections.ConfigDict,
              load_params: Any = None, others: Sequence[Any] = ()
              ) -> finished.Finished:
  """The Finished of a run's scene, with the orbit of its config as path."""
  return finished.from_scene(
      scene, params,
      finished.turntable(config.export.frames, dict(config.orbit)),
      defaults=finished.export_options(config.export),
      load_params=load_params, others=others)


def _sizes(config):
  """The quantities of a scene's config that the cost of a step depends on."""
  scene = config.scene
  sizes = {'views a step': config.views, 'rays a side': scene.size}
  if 'samples' in scene:
    sizes['samples a ray'] = (
        (scene.samples, scene.importance.samples) if 'importance' in scene
        else scene.samples)
  return sizes


def _scene_params(state):
  """The scene's trained parameters and its running values."""
  params = state.params['scene']
  return {**params, **state.extra} if state.extra else params


def _init(key, *, parts, prompt, negative_prompt, given):
  """The TrainState at step 0; `frozen` is the guidance's.

  Where the prompt is not the one that was given, this is said.
  """
  if prompt != given:
    drawn = prompt if isinstance(prompt, str) else ', '.join(prompt)
    notices.message(
        f'The prompt leaves a color open, which is drawn: {drawn!r}. Another '
        '--config.seed draws another; with --config.complete_prompt=false the '
        'part becomes a mean of all colors.')
  key_scene, key_guidance = jax.random.split(key)
  frozen = parts.guidance.load(prompt, negative_prompt)
  params = {'scene': devices.jit_once(parts.scene.init)(key_scene),
            'guidance': parts.guidance.init(key_guidance, frozen)}
  running = parts.scene.running
  return states.create(params, parts.optimizer, frozen=frozen,
                       extra=running.init if running else None)


def _step(state, batch, key, *, parts):
  """One update from the views of one device; see tasks.Task."""
  def mean_loss(params):
    losses, aux = jax.vmap(
        lambda index: _view_loss(
            params, state.replace(params=None), key, index, parts=parts))(
                batch['view'])
    return jnp.mean(losses), jax.tree.map(lambda x: jnp.mean(x, axis=0), aux)

  grads, (metrics, measured) = jax.grad(mean_loss, has_aux=True)(state.params)
  grads, measured = jax.lax.pmean((grads, measured), 'devices')
  if parts.scene.running:
    state = state.replace(
        extra=parts.scene.running.update(state.extra, measured))
  state = optim.apply_gradients(state, grads, parts.optimizer)
  return state.replace(params={
      **state.params, 'scene': parts.scene.project(state.params['scene'])
      }), metrics


def _view_loss(params, state, key, index, *, parts):
  """Loss, metrics and what is measured of view `index` of a step.

  Args:
    params: of the scene and the guidance.
    state: TrainState; all of it but the params.
    key: of the step.
    index: of the view.
    parts: Parts.
  """
  scene, guidance = parts.scene, parts.guidance
  step, frozen = state.step, state.frozen
  scene_params = _scene_params(state.replace(params=params))
  key_view, key_render, key_guidance = jax.random.split(
      jax.random.fold_in(key, index), 3)
  # Azimuths are stratified over the views of a step: less variance.
  part = (index / parts.views, (index + 1) / parts.views)
  view = scene.sample_view(key_view, step, part)
  with jax.named_scope('render'):
    render = scene.render(scene_params, key_render, view)
  # Guidances of a single prompt need not know of subjects.
  subject = () if scene.subjects == 1 else (view.subject,)
  loss, metrics = guidance.loss(
      params['guidance'], frozen, key_guidance, render,
      guidance.condition(frozen, view.camera, *subject), step)
  penalties = scene.penalties(scene_params, render, step)
  metrics |= {f'weighted_penalty/{name}': value
              for name, value in penalties.items()}
  metrics['opacity'] = jnp.mean(render.opacity)
  return loss + sum(penalties.values()), (metrics, render.measured)


def _batches(seed: int, first_step: int, *, views: int
             ) -> Iterator[dict[str, np.ndarray]]:
  """The view indices, the same each step: randomness is in the run's key."""
  del seed, first_step
  return itertools.repeat({'view': np.arange(views, dtype=np.int32)})


def _evaluate(state, key, *, view, path, count):
  """A sheet of four sides, each in color and as normals, of each object."""
  del key
  params = _scene_params(state)
  objects = [params] if count == 1 else [
      particles.select(params, index) for index in range(count)]
  return {}, {'preview': np.concatenate(
      [image_io.tile(view(one, path), 2) for one in objects])}
