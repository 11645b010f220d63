"""Text to 3-D: optimizes a scene by the guidance of a text.

One step renders `views` views of the scene, divided over the devices,
evaluates the guidance's loss for each and averages the gradients (DreamFusion:
one view on each of four devices). A view's randomness depends on its index and
the step, so that the result does not depend on the number of devices.
"""

import itertools
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from gen3d.choices import pick
from gen3d.data import untextured
from gen3d.engine import checkpoints, optim
from gen3d.engine import state as states
from gen3d.guidance import Guidance, prompts, score
from gen3d.io import images as image_io
from gen3d.io import keyframes
from gen3d.render import finished
from gen3d.scenes import Scene, dreamfusion, texture
from gen3d.scenes import mesh as mesh_scene
from gen3d.tasks import Costs, Task, load_config


def _texture(config):
  """The Scene of a texture's config; its files are read by its `init`."""
  read = lambda: [untextured.read(
      name, config.up, config.texture_size, config.shapes_resolution)
                  for name in texture.names(config.meshes)]
  return texture.make(config, read, partial(
      keyframes.load, config.keyframes, config.up))


# (config.scene) -> Scene, and (config) -> Guidance, by name.
SCENES = {'dreamfusion': dreamfusion.make, 'mesh': mesh_scene.make,
          'texture': _texture}
GUIDANCES = {'sds': partial(score.from_config, score.sds),
             'csd': partial(score.from_config, score.csd)}


class Parts(NamedTuple):
  """The parts of a step: scene, guidance, optimizer, and views per step."""
  scene: Scene
  guidance: Guidance
  optimizer: optax.GradientTransformation
  views: int


def make(config: ml_collections.ConfigDict,
         guidance: Guidance | None = None) -> Task:
  """The Task of configs/dreamfusion.py.

  Args:
    config: ConfigDict.
    guidance: Guidance; None for the one that the config names.

  Raises:
    UserError: the prompt is empty, a name is unknown or an option of the export
      is not possible.
  """
  finished.export_options(config.export)  # raises before the training
  scene = make_scene(config)
  prompt = prompts.normalize(config.prompt) if scene.subjects == 1 else (
      prompts.split(config.prompt, scene.subjects))
  guidance = guidance or pick(
      'guidance', GUIDANCES, config.guidance.name)(config)
  optimizer = optim.make_optimizer(config.optimizer, config.steps)
  parts = Parts(scene, guidance, optimizer, config.views)
  return Task(
      init=partial(_init, parts=parts, prompt=prompt,
                   negative_prompt=config.negative_prompt),
      step=partial(_step, parts=parts),
      batches=partial(_batches, views=config.views),
      evaluate=partial(
          _evaluate, path=finished.turntable(4, dict(config.orbit)),
          view=finished.make_renderer(scene, 96, ('color', 'normal'))),
      finish=lambda state, workdir: finished.export(
          _finished(scene, scene_params(state), config), workdir),
      costs=partial(_costs, config))


def _costs(config):
  """The Costs of a step: a mesh has no samples along a ray."""
  samples = {'samples a ray': (
      config.scene.samples, config.scene.importance.samples)} if (
          'samples' in config.scene) else {}
  return Costs({'views a step': config.views,
                'rays a side': config.scene.size, **samples})


def make_scene(config: ml_collections.ConfigDict) -> Scene:
  """The Scene of a config: all that rendering and exporting need.

  Raises:
    UserError: a name is unknown.
  """
  return pick('scene', SCENES, config.scene.name)(config.scene)


def load_run(workdir: str | os.PathLike, step: int | None = None
             ) -> tuple[Scene, Any, ml_collections.ConfigDict]:
  """(scene, its parameters, config) of a run of this task.

  Args:
    workdir: of the run.
    step: of the checkpoint; None for the newest.

  Raises:
    UserError: there is no such run, it is damaged, or it is of another task.
    FileNotFoundError: there is no such checkpoint.
  """
  config = load_config(workdir, ['text_to_3d'])
  # Of the checkpoint only the scene is read: the guidance's teacher may not be
  # on this machine.
  params = checkpoints.load_tree(workdir, 'params/scene', step)
  scene = make_scene(config)
  if scene.fixed:
    params |= checkpoints.load_tree(workdir, 'extra/scene', step)
  return scene, jax.tree.map(jnp.asarray, params), config


def load(workdir: str | os.PathLike,
         step: int | None = None) -> finished.Finished:
  """The finished scene of a run; arguments and errors of `load_run`."""
  return _finished(*load_run(workdir, step))


def _finished(scene: Scene, params: Any,
              config: ml_collections.ConfigDict) -> finished.Finished:
  """The Finished of a run's scene, with the orbit of its config as path."""
  return finished.from_scene(
      scene, params,
      finished.turntable(config.export.frames, dict(config.orbit)),
      defaults=finished.export_options(config.export))


def _init(key, *, parts, prompt, negative_prompt):
  """The TrainState at step 0; `frozen` is the guidance's."""
  key_scene, key_guidance = jax.random.split(key)
  # Before the guidance reads its teacher: the scene may read a mesh.
  scene = jax.jit(parts.scene.init)(key_scene)
  frozen = parts.guidance.load(prompt, negative_prompt)
  fixed = {name: scene.pop(name) for name in parts.scene.fixed}
  params = {'scene': scene,
            'guidance': parts.guidance.init(key_guidance, frozen)}
  return states.create(params, parts.optimizer, frozen=frozen,
                       extra={'scene': fixed} if fixed else None)


def scene_params(state: states.TrainState) -> Any:
  """The parameters of the scene of a state, with those that are fixed."""
  return _with_fixed(state.params['scene'], state.extra)


def _with_fixed(params, extra):
  return params if extra is None else {**params, **extra['scene']}


def _step(state, batch, key, *, parts):
  """One update from the views of one device; see tasks.Task."""
  def mean_loss(params):
    params = {**params, 'scene': _with_fixed(params['scene'], state.extra)}
    losses, metrics = jax.vmap(
        lambda index: _view_loss(
            params, state.frozen, key, index, state.step, parts=parts))(
                batch['view'])
    return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

  grads, metrics = jax.grad(mean_loss, has_aux=True)(state.params)
  grads = jax.lax.pmean(grads, 'devices')
  state = optim.apply_gradients(state, grads, parts.optimizer)
  return state.replace(params={
      **state.params, 'scene': parts.scene.project(state.params['scene'])
      }), metrics


def _view_loss(params, frozen, key, index, step, *, parts):
  """Loss and metrics of view `index` of a step."""
  scene, guidance = parts.scene, parts.guidance
  key_view, key_render, key_guidance = jax.random.split(
      jax.random.fold_in(key, index), 3)
  # Azimuths are stratified over the views of a step: less variance.
  part = (index / parts.views, (index + 1) / parts.views)
  view = scene.sample_view(key_view, step, part)
  render = scene.render(params['scene'], key_render, view)
  # Guidances for a single prompt need not know of subjects.
  subject = () if scene.subjects == 1 else (view.subject,)
  loss, metrics = guidance.loss(
      params['guidance'], frozen, key_guidance, render,
      guidance.condition(frozen, view.camera, *subject), step)
  penalties = scene.penalties(params['scene'], render, step)
  metrics |= {f'loss/{name}': value for name, value in penalties.items()}
  metrics['opacity'] = jnp.mean(render.opacity)
  return loss + sum(penalties.values()), metrics


def _batches(seed: int, first_step: int, *, views: int
             ) -> Iterator[dict[str, np.ndarray]]:
  """The view indices, the same each step: randomness is in the run's key."""
  del seed, first_step
  return itertools.repeat({'view': np.arange(views, dtype=np.int32)})


def _evaluate(state, key, *, view, path):
  """A sheet of four sides, each in color and as normals."""
  del key
  film = view(scene_params(state), path)
  return {}, {'preview': image_io.tile(film, 2)}
