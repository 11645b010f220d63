"""Text to 3-D with a toy teacher: steps, chips, files, refusals."""

import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dreamfusion as configs
from gen3d.diffusion import noise
from gen3d.engine import sharding
from gen3d.ops import cameras
from gen3d.tasks import text_to_3d

SCHEDULE = noise.cosine_schedule()


def _denoise(weights, x_t, t, text):
  """The ideal denoiser of flat images whose color is the text's."""
  alpha = SCHEDULE.alpha(t)[:, None, None, None]
  sigma = SCHEDULE.sigma(t)[:, None, None, None]
  mean = text['states'][:, 0, None, None] * weights
  return sigma * (x_t - alpha * mean) / (0.01 * alpha**2 + sigma**2)


def _embed(prompts):
  """Green wherever there is a prompt, grey without; see the view in blue."""
  colors = np.array([[-1.0, 0.8, -0.2 * len(p) % 1] if p else [0.0, 0, 0]
                      for p in prompts], np.float32)
  return {'states': jnp.asarray(colors)[:, None],
          'mask': jnp.ones((len(prompts), 1))}


TEACHER = SimpleNamespace(
    schedule=SCHEDULE, encode=lambda weights, images, key: 2 * images - 1,
    denoise=_denoise, embed=_embed, load=lambda: jnp.ones(()),
    look=lambda weights, text, labels: text)


def _config(views=2, steps=4):
  config = configs.tiny(steps)
  config.views = views
  config.scene.size, config.scene.samples = 8, 6
  config.scene.importance.samples = 0
  config.scene.random_background_prob = 0.5  # Else it is not learned.
  config.optimizer.schedule = 'constant'
  return config


def _run(config, devices, steps, teacher=TEACHER):
  """Parameters and metrics after `steps` on the first `devices`."""
  task = text_to_3d.make(config, teacher)
  mesh = jax.make_mesh((devices,), ('devices',), devices=jax.devices()[:devices])
  state = sharding.replicate(task.init(jax.random.key(0)), mesh)
  step = sharding.pmap(task.step, mesh)
  for _, batch in zip(range(steps), task.batches(0, 0)):
    state, metrics = step(
        state, sharding.to_devices(batch, mesh),
        sharding.replicate(jax.random.key(1), mesh))
  return task, sharding.unreplicate(state), jax.device_get(metrics)


def compare_spreadings():
  """One device and eight, fed the same eight views (in a subprocess).

  With Adam's usual eps a parameter whose gradient is next to nothing moves as
  far as any other, in the direction of its rounding error.
  """
  config = _config(views=8)
  config.optimizer.eps = 0.1
  results = [_run(config, devices, steps=10)[1:] for devices in (1, 8)]
  start = text_to_3d.make(config, TEACHER).init(jax.random.key(0))
  for a, b, was in zip(*(jax.tree.leaves(r[0].params) for r in results),
                       jax.tree.leaves(start.params), strict=True):
    moved = np.abs(np.asarray(a) - np.asarray(was)).max()
    assert moved > 1e-3
    np.testing.assert_allclose(a, b, atol=1e-4 * moved)
  for name, value in results[0][1].items():
    np.testing.assert_allclose(results[1][1][name], value, rtol=1e-4,
                               atol=1e-6, err_msg=name)


def test_eight_chips_equal_one(on_eight_devices):
  done = on_eight_devices('tasks_text_to_3d_test', 'compare_spreadings')
  assert done.returncode == 0, done.stderr[-2000:]


def test_an_object_takes_the_teachers_color_and_is_exported(tmp_path):
  config = _config(steps=60)
  config.scene.random_background_prob = 1.0
  task, state, metrics = _run(config, 1, steps=60)
  assert int(state.step) == 60
  assert {'opacity', 'sds/grad_norm', 'loss/orientation'} <= set(metrics)
  scene = text_to_3d.make_scene(config)
  seen = scene.show(state.params['scene'], cameras.orbit(0.0, 0.0, 1.6, 1.3),
                    9, ('albedo',))['albedo']
  assert seen[4, 4, 1] > seen[4, 4, 0] + 0.3
  scalars, images = task.evaluate(state, jax.random.key(2))
  assert images['preview'].dtype == np.uint8 and images['preview'].ndim == 3
  files = task.finish(state, tmp_path)
  assert {pathlib.Path(f).name for f in files} == {
      'turntable.mp4', 'preview.png', 'mesh.glb', 'mesh.ply'}
  assert all(pathlib.Path(f).stat().st_size > 100 for f in files)


def test_a_teacher_that_knows_cameras_is_told_the_views():
  config = _config(steps=60)
  config.scene.random_background_prob = 1.0
  # Of much noise throughout, where this teacher does not ask what it sees.
  options = config.guidance.options
  options.time_min, options.time_max = (0.7,), (0.93,)
  config.guidance.scale = (1.0,)

  def look(weights, text, labels):
    del weights
    z = cameras.from_label(labels).c2w[:, 2, 3]
    red = jnp.where(z > 0, 1.0, -1.0)
    return {**text, 'states': jnp.stack([red, -red, -red], -1)[:, None]}

  teacher = SimpleNamespace(**{**vars(TEACHER), 'look': look})
  _, state, _ = _run(config, 1, 60, teacher)
  scene = text_to_3d.make_scene(config)
  red = [scene.show(state.params['scene'], cameras.orbit(
      azimuth, 0.0, 1.6, 1.3), 9, ('albedo',))['albedo'][4, 4, 0]
         for azimuth in (0.0, 180.0)]
  assert red[0] > red[1] + 0.05


def test_texts_are_heard_before_the_teacher_is_read():
  calls = []
  noting = lambda name: lambda *args: calls.append(name) or getattr(
      TEACHER, name)(*args)
  teacher = SimpleNamespace(**{
      **vars(TEACHER), 'embed': noting('embed'), 'load': noting('load')})
  text_to_3d.make(_config(), teacher).init(jax.random.key(0))
  assert calls == ['embed', 'load']


def test_negatives_are_led_away_from():
  # Without its negative, only what the toy hears as a color could differ.
  moved = []
  for changes in ({}, {'negative_prompt': 'a green thing'},
                  {'guidance.perp_neg.weight': 1.0},
                  {'guidance.perp_neg.weight': 1.0,
                   'guidance.perp_neg.away_from': 'prompt',
                   'negative_prompt': 'a green thing'}):
    config = _config()
    config.guidance.scale = (5.0,)
    config.update_from_flattened_dict(changes)
    _, state, _ = _run(config, 1, steps=2)
    moved.append(state.params['scene']['field']['params']['planes'])
  for i, one in enumerate(moved):
    for other in moved[:i]:
      assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize('change, words', [
    ({'guidance.perp_neg.weight': 1.0,
      'guidance.perp_neg.away_from': 'prompt'}, 'set negative_prompt'),
    ({'guidance.perp_neg.away_from': 'view'}, "'view'.*'views'"),
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
    ({'teacher.name': 'imagen'}, "'imagen'.*'shapes'"),
    ({'scene.name': 'cave'}, "'cave'.*'dreamfusion'")])
def test_refusals_are_sentences(change, words):
  config = _config()
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=words):
    text_to_3d.make(config)
