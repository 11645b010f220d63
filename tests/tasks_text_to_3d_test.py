"""Text to 3-D with toy guidances: steps, devices, files, errors."""

import inspect
import pathlib
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import dreamfusion as configs
from gen3d.choices import UserError
from gen3d.data.shapes import captions
from gen3d.diffusion import loading, noise, teachers
from gen3d.engine import checkpoints, sharding
from gen3d.guidance import Guidance, score, texts
from gen3d.ops import cameras
from gen3d.scenes import Render
from gen3d.tasks import text_to_3d

SCHEDULE = noise.cosine_schedule()


def _denoise(weights, x_t, t, text):
  """The ideal denoiser of flat images whose color is the text's."""
  alpha = SCHEDULE.alpha(t)[:, None, None, None]
  sigma = SCHEDULE.sigma(t)[:, None, None, None]
  mean = text['states'][:, 0, None, None] * weights
  return sigma * (x_t - alpha * mean) / (0.01 * alpha**2 + sigma**2)


def _embed(prompts):
  """Green for a prompt, gray for none; the blue depends on the view."""
  colors = np.array([[-1.0, 0.8, -0.2 * len(p) % 1] if p else [0.0, 0, 0]
                     for p in prompts], np.float32)
  return {'states': jnp.asarray(colors)[:, None],
          'mask': jnp.ones((len(prompts), 1))}


TEACHER = teachers.Teacher(
    SCHEDULE, lambda weights, images, key: 2 * images - 1,
    teachers.unit_images, _denoise, _embed, (8, 8, 3), 1.0,
    lambda: jnp.ones(()))


def _guidance(config, teacher=TEACHER):
  """Score distillation with a toy teacher in place of the config's."""
  options = dict(config.guidance.options)
  weighting = score.WEIGHTINGS[options.pop('weighting')]
  return score.make(teacher, score.Settings(
      score.sds(config.guidance.scale), weighting, **options))


def _config(views=2, steps=4):
  config = configs.tiny(steps)
  config.views = views
  config.complete_prompt = False
  config.scene.size, config.scene.samples = 8, 6
  config.scene.importance.samples = 0
  # Below 1, where the learned background would have no gradient.
  config.scene.random_background_prob = 0.5
  config.optimizer.schedule = 'constant'
  return config


def _run(config, devices, steps, teacher=TEACHER):
  """Parameters and metrics after `steps` on the first `devices`."""
  task = text_to_3d.make(config, _guidance(config, teacher))
  mesh = jax.make_mesh(
      (devices,), ('devices',), devices=jax.devices()[:devices])
  state = sharding.replicate(task.init(jax.random.key(0)), mesh)
  step = sharding.pmap(task.step, mesh)
  for _, batch in zip(range(steps), task.batches(0, 0)):
    state, metrics = step(
        state, sharding.to_devices(batch, mesh),
        sharding.replicate(jax.random.key(1), mesh))
  return task, sharding.unreplicate(state), jax.device_get(metrics)


def compare_device_counts():
  """One device and eight, fed the same eight views (in a subprocess).

  A large eps of Adam, because with a small one a parameter whose gradient is
  almost zero moves in the direction of its rounding error.
  """
  config = _config(views=8)
  config.optimizer.eps = 0.1
  results = [_run(config, devices, steps=10)[1:] for devices in (1, 8)]
  start = text_to_3d.make(config, _guidance(config)).init(jax.random.key(0))
  for a, b, was in zip(*(jax.tree.leaves(r[0].params) for r in results),
                       jax.tree.leaves(start.params), strict=True):
    moved = np.abs(np.asarray(a) - np.asarray(was)).max()
    assert moved > 1e-3
    np.testing.assert_allclose(a, b, atol=1e-4 * moved)
  for name, value in results[0][1].items():
    np.testing.assert_allclose(results[1][1][name], value, rtol=1e-4,
                               atol=1e-6, err_msg=name)


def test_eight_devices_equal_one(on_eight_devices):
  done = on_eight_devices('tasks_text_to_3d_test', 'compare_device_counts')
  assert done.returncode == 0, done.stderr[-2000:]


def test_an_object_gets_the_color_of_the_prompt_and_is_exported(tmp_path):
  config = _config(steps=60)
  config.scene.random_background_prob = 1.0
  task, state, metrics = _run(config, 1, steps=60)
  assert int(state.step) == 60
  assert {'opacity', 'sds/grad_norm',
          'weighted_penalty/orientation'} <= set(metrics)
  scene = text_to_3d.make_scene(config)
  albedo = scene.show(state.params['scene'], cameras.orbit(0.0, 0.0, 1.6, 1.3),
                      9, ('albedo',))['albedo']
  assert albedo[4, 4, 1] > albedo[4, 4, 0] + 0.3
  scalars, images = task.evaluate(state, jax.random.key(2))
  assert images['preview'].dtype == np.uint8 and images['preview'].ndim == 3
  files = task.finish(state, tmp_path)
  assert {pathlib.Path(f).name for f in files} == {
      'turntable.mp4', 'preview.png', 'mesh.glb', 'mesh.ply'}
  assert all(pathlib.Path(f).stat().st_size > 100 for f in files)


def test_camera_conditioning_colors_front_and_back_differently():
  config = _config(steps=60)
  config.scene.random_background_prob = 1.0
  # Large noise levels only, where the prediction depends on the text alone.
  options = config.guidance.options
  options.time_min, options.time_max = (0.7,), (0.93,)
  config.guidance.scale = (1.0,)

  def add_camera(weights, text, labels):
    del weights
    z = cameras.from_label(labels).c2w[:, 2, 3]
    red = jnp.where(z > 0, 1.0, -1.0)
    return {**text, 'states': jnp.stack([red, -red, -red], -1)[:, None]}

  teacher = TEACHER._replace(add_camera=add_camera, camera_conditioned=True)
  _, state, _ = _run(config, 1, 60, teacher)
  scene = text_to_3d.make_scene(config)
  red = [scene.show(state.params['scene'], cameras.orbit(
      azimuth, 0.0, 1.6, 1.3), 9, ('albedo',))['albedo'][4, 4, 0]
         for azimuth in (0.0, 180.0)]
  assert red[0] > red[1] + 0.05


def test_the_gradient_points_away_from_the_negative_prompt():
  # The negative prompt is red, the empty and the positive one are gray.
  def embed(prompts):
    return {'states': jnp.array([
        [0.8, -0.8, -0.8] if p == 'a red thing' else [0.0, 0.0, 0.0]
        for p in prompts])[:, None]}

  config = _config()
  config.guidance.scale = (5.0,)
  guidance = _guidance(config, TEACHER._replace(embed=embed))

  def descent_direction(negative_prompt):
    frozen = guidance.load('a thing', negative_prompt)
    text = guidance.condition(frozen, cameras.orbit(0.0, 0.0, 1.6, 1.3))
    loss = lambda image: guidance.loss(
        {}, frozen, jax.random.key(0),
        Render(image, *(None,) * 5, color_only=image), text, 0)[0]
    return -jax.grad(loss)(jnp.full((8, 8, 3), 0.5)).mean((0, 1))

  change = descent_direction('a red thing') - descent_direction('')
  assert change[0] < -1e-3 and (change[1:] > 1e-3).all()


class _Painting(NamedTuple):
  """Frozen data of a guidance without a diffusion model."""
  color: jax.Array


def _painting(learned):
  """A guidance that pulls images to one color, shifted by a learned value."""
  def load(prompt, negative_prompt):
    assert (prompt, negative_prompt) == ('a red chair', 'blurry')
    return _Painting(jnp.array([0.0, 1.0, 0.0]))

  def init(key, frozen):
    return {'shift': jnp.zeros_like(frozen.color)} if learned else {}

  def condition(frozen, camera):
    del camera
    return frozen.color

  def loss(params, frozen, key, render, text, step):
    target = text + params.get('shift', 0.0)
    error = jnp.sum((render.image - target) ** 2)
    return error, {'painting/error': error}

  return Guidance(load, init, condition, loss)


@pytest.mark.parametrize('learned', [False, True])
def test_a_guidance_without_diffusion_and_with_parameters(learned, tmp_path):
  config = _config(steps=40)
  config.scene.random_background_prob = 1.0
  config.negative_prompt = 'blurry'
  task = text_to_3d.make(config, _painting(learned))
  mesh = sharding.device_mesh(1)
  start = task.init(jax.random.key(0))
  state = sharding.replicate(start, mesh)
  step, errors = sharding.pmap(task.step, mesh), []
  for _, batch in zip(range(40), task.batches(0, 0)):
    state, metrics = step(state, sharding.to_devices(batch, mesh),
                          sharding.replicate(jax.random.key(1), mesh))
    errors.append(float(metrics['painting/error']))
  assert np.mean(errors[-5:]) < 0.7 * np.mean(errors[:5])
  state = sharding.unreplicate(state)
  shift = state.params['guidance'].get('shift')
  assert (shift is not None) == learned
  if learned:
    assert np.abs(shift).max() > 0.1


def test_load_restores_the_scene_without_the_guidance(tmp_path):
  config = _config()
  state = text_to_3d.make(config, _guidance(config)).init(jax.random.key(3))
  saving = checkpoints.Checkpoints(tmp_path)
  saving.save(state)
  saving.close()
  config.teacher.path = '/not/on/this/machine'
  (tmp_path / 'config.json').write_text(config.to_json())
  _, params, _ = text_to_3d.load_run(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, params, state.params['scene'])
  path = text_to_3d.load(tmp_path).path
  assert path.c2w.shape == (config.export.frames, 4, 4)


@pytest.mark.parametrize('change, words', [
    ({'teacher.revision': 'v1'}, "teacher 'shapes' 'revision'.*'path'"),
    ({'teacher.path': 'none.safetensors'}, 'none.safetensors'),
    ({'teacher.name': 'deepfloyd'}, "'deepfloyd' needs a path"),
    ({'teacher.name': 'stable_diffusion', 'teacher.path': '/no/where'},
     'no folder /no/where'),
    ({'teacher.name': 'deepfloyd', 'teacher.remat': True},
     "teacher 'deepfloyd' 'remat'"),
    ({'teacher.name': 'deepfloyd', 'teacher.path': 'owner/model',
      'teacher.flash': True}, 'NVIDIA GPU'),
    ({'teacher.name': 'deepfloyd', 'teacher.path': 'owner/model',
      'teacher.prediction': 'v'}, "'v'.*'v_prediction'"),
    ({'teacher.name': 'deepfloyd', 'teacher.path': '.'}, 'no folder unet'),
    ({'prompt': ' '}, 'prompt is empty'),
    ({'guidance.name': 'isd'}, "'isd'.*'sds'"),
    ({'guidance.options.weighting': 'none'}, "'none'.*'sigma_squared'"),
    ({'teacher.name': 'imagen'}, "'imagen'.*'shapes'"),
    ({'scene.name': 'cave'}, "'cave'.*'dreamfusion'")])
def test_errors_name_the_key_and_the_choices(change, words):
  config = _config()
  for key, value in change.items():
    *parents, last = key.split('.')
    node = config
    for parent in parents:
      node = node[parent]
    node[last] = value
  with pytest.raises(UserError, match=words):
    text_to_3d.make(config)


@pytest.mark.parametrize('variant', ['shapes', 'csd', 'sd', 'if', 'paper'])
def test_variants_have_settings_of_their_teacher_only(variant):
  teacher = dict(configs.get_config(variant).teacher)
  make = loading.TEACHERS[teacher.pop('name')]
  assert set(teacher) == set(inspect.signature(make).parameters)


@pytest.mark.parametrize('complete', [False, True])
def test_guidance_gets_the_prompt_with_its_open_color_drawn(complete, capsys):
  config = _config()
  config.prompt, config.complete_prompt = 'a red chair.', complete
  loaded = []
  guidance = _guidance(config)
  guidance = guidance._replace(load=lambda prompt, negative: loaded.append(
      prompt) or texts.load(TEACHER, {}, prompt, negative))
  text_to_3d.make(config, guidance).init(jax.random.key(0))
  expected = captions.complete('a red chair', config.seed) if complete else (
      'a red chair')
  assert loaded == [expected]
  assert (repr(expected) in capsys.readouterr().err) == complete


def test_drawn_colors_of_several_subjects_are_printed(capsys):
  scene: Any = types.SimpleNamespace(init=lambda key: {}, running=None)
  guidance: Any = types.SimpleNamespace(
      load=lambda *_: None, init=lambda *_: {})
  parts = text_to_3d.Parts(scene, guidance, optax.sgd(0.0), 1)
  given = ('a red chair', 'a yellow duck')
  for prompt in (given, ('a red chair with blue legs', 'a yellow duck')):
    text_to_3d._init(jax.random.key(0), parts=parts, prompt=prompt,
                     negative_prompt='', given=given)
    printed = capsys.readouterr().err
    assert (', '.join(prompt) in printed) == (prompt != given)


def test_lr_multiplier_of_the_config_is_a_schedule():
  config = _config(steps=4)
  config.optimizer.lr_multipliers = {'out': ((0.5, 0.0), (0.5, 1.0))}
  moved = []
  for steps in (2, 4):
    task, state, _ = _run(config, 1, steps)
    start = task.init(jax.random.key(0))
    moved.append(jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), state.params['scene']['field'],
        jax.device_get(start.params['scene']['field'])))
  (early, late) = (jax.tree.leaves(tree['params']['out']) for tree in moved)
  assert max(early) == 0 < min(late)
