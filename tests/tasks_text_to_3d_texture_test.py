"""Text to 3-D of textures: steps on several devices, and resumption."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import task_steps

from configs import scene_tex as configs
from gen3d.engine import sharding
from gen3d.guidance import Guidance
from gen3d.tasks import text_to_3d

GREEN = jnp.array([0.0, 1.0, 0.0])
PAINTING = Guidance(
    load=lambda prompt, negative: GREEN, init=lambda key, frozen: {},
    condition=lambda frozen, camera: frozen,
    loss=lambda params, frozen, key, render, text, step: (
        jnp.sum((render.image - text) ** 2), {}))


@functools.cache
def _compiled(devices):
  """(task, its compiled step, mesh of devices)."""
  config = configs.tiny()
  config.views = 8
  # Adam's first steps have the sign of the gradient, even where that is noise.
  config.optimizer.eps = 1e-2
  task, mesh = text_to_3d.make(config, PAINTING), task_steps.devices(devices)
  return task, sharding.pmap(task.step, mesh), mesh


def _three_steps(devices):
  """Arrays of the field after three steps, by their path."""
  task, step, mesh = _compiled(devices)
  state, _ = task_steps.run(task, step, mesh, task_steps.start(task, mesh), 3)
  field = sharding.unreplicate(state).params['scene']
  return {jax.tree_util.keystr(path): np.ravel(x).tolist()
          for path, x in jax.tree_util.tree_leaves_with_path(field)}


def print_three_steps_on_eight_devices():
  """For a process of its own: `_three_steps` as JSON."""
  print(json.dumps(_three_steps(8)))


def test_eight_devices_equal_one(on_eight_devices):
  done = on_eight_devices(
      'tasks_text_to_3d_texture_test', 'print_three_steps_on_eight_devices')
  assert done.returncode == 0, done.stderr[-2000:]
  one, eight = _three_steps(1), json.loads(done.stdout)
  task, _, mesh = _compiled(1)
  before = jax.device_get(sharding.unreplicate(
      task_steps.start(task, mesh)).params['scene'])
  moved = [np.abs(np.ravel(x) - now).max() for x, now in zip(
      jax.tree.leaves(before), one.values(), strict=True)]
  assert max(moved) > 1e-3
  assert set(one) == set(eight)
  for name, value in one.items():
    np.testing.assert_allclose(
        eight[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_resumed_training_is_bit_identical(tmp_path):
  task_steps.assert_resumption_is_exact(*_compiled(1), tmp_path)
