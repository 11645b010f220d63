"""A prompt becomes an object: a scene, a guidance and a teacher meet.

One step renders `views` views of the scene, divided over the chips, asks the
guidance about each and averages the gradients (DreamFusion: one view on each
of four chips). A view's randomness is its number's and the step's, so that
the result does not depend on the spreading.
"""

import itertools
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from gen3d.choices import pick
from gen3d.engine import checkpoints, optim
from gen3d.engine import state as states
from gen3d.guidance import prompts, score
from gen3d.io import meshes, pictures, video
from gen3d.ops import cameras, mesh
from gen3d.scenes import dreamfusion
from gen3d.tasks import Task, text_to_image

SCENES = {'dreamfusion': dreamfusion.make}
COEFFICIENTS = {'sds': score.sds, 'csd': score.csd}
SHOWN = ('color', 'normal', 'textureless')


TEACHERS = {'shapes': text_to_image.teacher}


def make(config, teacher=None):
  """The Task of configs/dreamfusion.py.

  Args:
    config: ConfigDict.
    teacher: diffusion.teachers.Teacher; None for the one that the config
      names.

  Raises:
    ValueError: at an empty prompt or an unknown name.
  """
  table = prompts.with_views(config.prompt)
  scene = make_scene(config)
  coefficients = pick('guidance', COEFFICIENTS, config.guidance.name)(
      config.guidance.scale)
  if teacher is None:
    teacher = pick('teacher', TEACHERS, config.teacher.name)()
  guidance = score.make(teacher, coefficients, **config.guidance.options)
  optimizer = optax.chain(
      optim.make_optimizer({**config.optimizer, 'steps': config.steps}),
      _scale('background', config.background_rate))
  return Task(
      init=partial(_init, scene=scene, guidance=guidance, teacher=teacher,
                   table=[*table, ''], optimizer=optimizer),
      step=partial(_step, scene=scene, guidance=guidance, optimizer=optimizer,
                   views=config.views, words=dict(config.words)),
      batches=partial(_batches, views=config.views),
      evaluate=partial(_evaluate, view=viewer(
          scene, 96, dict(config.orbit), ('color', 'normal'))),
      finish=lambda state, workdir: export(
          scene, state.params['scene'], workdir, orbit=dict(config.orbit),
          **config.export))


def make_scene(config):
  """The Scene of a config: all that showing and exporting need."""
  return pick('scene', SCENES, config.scene.name)(config.scene)


def load_run(workdir, step=None):
  """(scene, its parameters, config) of a run of this task.

  Args:
    workdir: of the run.
    step: which checkpoint; the newest one if None.

  Raises:
    ValueError: where there is no such run or it is damaged.
    FileNotFoundError: where there is no such checkpoint.
  """
  config = checkpoints.load_config(workdir)
  if config.get('task') != 'text_to_3d':
    raise ValueError(
        f'The run in {workdir} is of the task {config.get("task")!r}; only '
        "runs of 'text_to_3d' have an object to export.")
  task = make(config)
  state = checkpoints.load(workdir, task.init(jax.random.key(0)), step)
  return make_scene(config), state.params['scene'], config


def export(scene, params, workdir, *, orbit, resolution=128, size=256,
           frames=48, fps=24):
  """Writes what a person wants to have of a scene.

  Args:
    scene: scenes.Scene.
    params: its parameters (`state.params['scene']`).
    workdir: where turntable.mp4, preview.png, mesh.glb and mesh.ply go.
    orbit: {'elevation', 'distance', 'focal'} of the cameras.
    resolution: of the mesh's grid.
    size: of the frames, in pixels.
    frames, fps: of the turntable.

  Returns:
    The paths written.

  Raises:
    ValueError: if there is no surface to export.
  """
  workdir = pathlib.Path(workdir)
  turns = np.linspace(0.0, 360.0, frames, endpoint=False)
  film = viewer(scene, size, orbit)(params, turns)
  video.save(workdir / 'turntable.mp4', film, fps)
  eight = np.arange(8) * frames // 8
  pictures.save(workdir / 'preview.png', pictures.tile(
      film[eight][:, :, :size], 4, [f'{turns[i]:.0f} degrees' for i in eight]))
  query = jax.jit(partial(scene.query, params))
  surface = mesh.extract(query, scene.bound, resolution)
  meshes.save(workdir / 'mesh.glb', surface)
  meshes.save(workdir / 'mesh.ply', surface)
  return [workdir / name for name in (
      'turntable.mp4', 'preview.png', 'mesh.glb', 'mesh.ply')]


def viewer(scene, size, orbit, modes=SHOWN):
  """A compiled (params, azimuths [N]) -> uint8 [N, size, M size, 3].

  The M `modes` (scenes.Scene.show) side by side, on white, from cameras at
  `azimuths` on the orbit {'elevation', 'distance', 'focal'}. The views are
  divided over this process's devices.
  """
  devices = jax.local_devices()
  chips = jax.make_mesh(
      (len(devices),), ('chips',), devices=devices,
      axis_types=(jax.sharding.AxisType.Auto,))

  def look(params, azimuth):
    camera = cameras.orbit(azimuth, **orbit)
    images = scene.show(params, camera, size, modes, jnp.ones(3))
    image = jnp.concatenate([images[mode] for mode in modes], axis=1)
    return jnp.round(255 * image).astype(jnp.uint8)

  @jax.jit
  @partial(jax.shard_map, mesh=chips, in_specs=(P(), P('chips')),
           out_specs=P('chips'), check_vma=False)
  def look_around(params, azimuths):
    return jax.lax.map(partial(look, params), azimuths)

  def view(params, azimuths):
    azimuths = np.asarray(azimuths, np.float32)
    fill = -len(azimuths) % len(devices)
    images = look_around(jax.device_get(params), np.pad(azimuths, (0, fill)))
    return np.asarray(images)[:len(azimuths)]

  return view


def _init(key, *, scene, guidance, teacher, table, optimizer):
  """The TrainState at step 0; the teacher and the texts are its `frozen`."""
  key_scene, key_guidance = jax.random.split(key)
  params = {'scene': jax.jit(scene.init)(key_scene),
            'guidance': guidance.init(key_guidance)}
  frozen = {'teacher': teacher.weights, 'text': teacher.embed(table)}
  return states.create(params, optimizer, frozen=frozen)


def _step(state, batch, key, *, scene, guidance, optimizer, views, words):
  """One update from this chip's share of the views; see tasks.Task."""
  one = partial(_view_loss, scene=scene, guidance=guidance, views=views,
                words=words)

  def loss(params):
    losses, metrics = jax.vmap(
        lambda index: one(params, state.frozen, key, index, state.step))(
            batch['view'])
    return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

  grads, metrics = jax.grad(loss, has_aux=True)(state.params)
  grads = jax.lax.pmean(grads, 'chips')
  return optim.apply_gradients(state, grads, optimizer), metrics


def _view_loss(params, frozen, key, index, step, *, scene, guidance, views,
               words):
  """Loss and metrics of view `index` of the step's `views`."""
  key_view, key_render, key_guidance = jax.random.split(
      jax.random.fold_in(key, index), 3)
  # The views of a step look from different sides, as the chance of one run
  # in many would have it: less noise in the gradient.
  part = (index / views, (index + 1) / views)
  view = scene.sample_view(key_view, step, part)
  render = scene.render(params['scene'], key_render, view)
  azimuth, elevation, _ = cameras.angles(view.camera.c2w[:3, 3])
  row = prompts.nearest(azimuth, elevation, **words)
  said = lambda row: prompts.pick(frozen['text'], row[None])
  text = {'cond': said(row), 'null': said(jnp.array(len(prompts.VIEWS)))}
  loss, metrics = guidance.loss(
      params['guidance'], frozen['teacher'], key_guidance, render.image[None],
      text, step)
  penalties = scene.penalties(params['scene'], render, step)
  metrics |= {f'loss/{name}': value for name, value in penalties.items()}
  metrics['opacity'] = jnp.mean(render.opacity)
  return loss + sum(penalties.values()), metrics


def _batches(seed, first_step, *, views):
  """The same numbers of views for ever: chance comes from the run's key."""
  del seed, first_step
  return itertools.repeat({'view': np.arange(views, dtype=np.int32)})


def _evaluate(state, key, *, view):
  """A sheet of four sides, each in colour and as normals."""
  del key
  film = view(state.params['scene'], (0.0, 90.0, 180.0, 270.0))
  return {}, {'preview': pictures.tile(film, 2)}


def _scale(name, factor):
  """Scales the updates of the scene's part `name`."""

  def update(updates, state, params=None):
    del params
    part = jax.tree.map(lambda x: factor * x, updates['scene'][name])
    return {**updates, 'scene': {**updates['scene'], name: part}}, state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
