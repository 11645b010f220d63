"""Text to 3-D of meshes: where they start, steps, devices, resumption."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import task_steps

from configs import dreamfusion as field_configs
from configs import refine as configs
from gen3d.choices import UserError
from gen3d.engine import checkpoints, sharding
from gen3d.guidance import Guidance
from gen3d.io import meshes
from gen3d.ops import bake, surfaces
from gen3d.ops import mesh as mesh_ops
from gen3d.ops.mesh import Mesh
from gen3d.tasks import load_finished, text_to_3d

GREEN = jnp.array([0.0, 1.0, 0.0])


def _painting():
  """A guidance that pulls images to green."""
  def loss(params, frozen, key, render, text, step):
    error = jnp.sum((render.image - text) ** 2)
    return error, {'painting/error': error}

  return Guidance(lambda prompt, negative: GREEN, lambda key, frozen: {},
                  lambda frozen, camera: frozen, loss)


def _config(**scene):
  config = configs.tiny(steps=4)
  config.views = 8
  config.scene.size, config.scene.subdivisions = 12, 0
  config.scene.update(scene)
  config.optimizer.schedule, config.optimizer.eps = 'constant', 1e-3
  return config


@functools.cache
def _compiled():
  """The config of most tests, and its compiled step."""
  config = _config()
  return config, *_step(config, 1)


def _step(config, devices):
  """(task, its compiled step, mesh of devices)."""
  task, mesh = text_to_3d.make(config, _painting()), task_steps.devices(devices)
  return task, sharding.pmap(task.step, mesh), mesh


def print_four_steps_on_eight_devices():
  """For a process of its own: what `_four_steps` returns, as JSON."""
  print(json.dumps(_four_steps(*_step(_config(), 8))))


def _four_steps(task, step, mesh):
  """{name: list of numbers}: the parameters and metrics after four steps."""
  state, metrics = task_steps.run(
      task, step, mesh, task_steps.start(task, mesh), 4)
  scene = jax.device_get(sharding.unreplicate(state).params['scene'])
  return {name: np.ravel(x).tolist() for name, x in {
      **scene, **sharding.unreplicate(metrics)}.items()}


def test_eight_devices_equal_one(on_eight_devices):
  done = on_eight_devices(
      'tasks_text_to_3d_mesh_test', 'print_four_steps_on_eight_devices')
  assert done.returncode == 0, done.stderr[-2000:]
  _, task, step, mesh = _compiled()
  one, eight = _four_steps(task, step, mesh), json.loads(done.stdout)
  assert set(one) == set(eight)
  assert np.abs(one['offsets']).max() > 1e-4
  # The texture moves by up to the learning rate of 0.01 in each step.
  for name, value in one.items():
    np.testing.assert_allclose(
        eight[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_sphere_turns_green_and_its_run_can_be_loaded(tmp_path):
  config, task, step, mesh = _compiled()
  state, metrics = task_steps.run(
      task, step, mesh, task_steps.start(task, mesh), 30)
  saving = checkpoints.Checkpoints(tmp_path)
  assert {'weighted_penalty/laplacian',
          'weighted_penalty/normal_consistency'} <= set(metrics)
  saving.save(state)
  saving.close()
  (tmp_path / 'config.json').write_text(config.to_json())
  state = sharding.unreplicate(state)
  texture = np.asarray(state.params['scene']['texture'])
  assert texture.min() >= 0 and texture.max() <= 1
  assert texture[..., 1].mean() > texture[..., 0].mean() + 0.1
  # Loaded without its guidance, and refined once more.
  scene, params, _ = text_to_3d.load_run(tmp_path)
  expected = scene.mesh(
      {**state.params['scene'], **state.extra}, 0, 1.0)
  again = text_to_3d.starting_mesh(tmp_path, _config(
      texture={'size': 16}).scene)
  for name in ('vertices', 'faces', 'uv', 'texture'):
    np.testing.assert_array_equal(
        getattr(again, name), getattr(expected, name))
  np.testing.assert_array_equal(
      scene.mesh(params, 0, 1.0).vertices, expected.vertices)


def test_a_resumed_training_is_bit_identical(tmp_path):
  _, task, step, mesh = _compiled()
  task_steps.assert_resumption_is_exact(task, step, mesh, tmp_path)


def test_a_finished_field_becomes_a_textured_mesh(tmp_path):
  config = field_configs.tiny()
  config.scene.density_bias.update({'strength': 400.0, 'radius': 0.3})
  config.scene.field.resolution = 4
  scene = text_to_3d.make_scene(config)
  saving = checkpoints.Checkpoints(tmp_path)
  task = text_to_3d.make(config, _painting())
  saving.save(task.init(jax.random.key(0)))
  saving.close()
  (tmp_path / 'config.json').write_text(config.to_json())
  refine = _config(resolution=24, texture={'size': 64})
  start = text_to_3d.starting_mesh(tmp_path, refine.scene)
  radius = np.linalg.norm(start.vertices, axis=1)
  assert radius.min() > 0.25 and radius.max() < 0.35
  assert start.texture.shape == (64, 64, 3)
  field = load_finished(tmp_path)
  color = np.zeros((mesh_ops.CHUNK, 3), np.float32)
  color[:len(start.vertices)] = start.vertices
  expected = np.asarray(field.color(color))[:len(start.vertices)]
  difference = np.abs(bake.vertex_colors(start) - expected)
  assert np.median(difference) < 0.03
  config.scene.inset += 0.02
  (tmp_path / 'config.json').write_text(config.to_json())
  inner = text_to_3d.starting_mesh(tmp_path, refine.scene)
  np.testing.assert_allclose(
      np.median(radius) - np.median(np.linalg.norm(inner.vertices, axis=1)),
      0.02, atol=0.002)
  scene = text_to_3d.make_scene(refine, start=start)
  params = jax.jit(scene.init)(jax.random.key(0))
  np.testing.assert_allclose(params['texture'], start.texture / 255, atol=1e-6)
  exported = scene.mesh({**params, **scene.running.init}, 0, 1.0)
  np.testing.assert_allclose(
      np.sort(exported.vertices, axis=0), np.sort(start.vertices, axis=0),
      atol=1e-6)


def test_a_mesh_file_is_scaled_and_its_colors_become_a_texture(
    tmp_path, capsys):
  sphere = surfaces.icosphere(1)
  places, index = mesh_ops.weld(sphere.vertices)
  colors = 0.5 + 0.5 * places
  meshes.save(tmp_path / 'ball.ply', Mesh(
      3 * places + 5, index[sphere.faces], colors=colors))
  start = text_to_3d.starting_mesh(
      tmp_path / 'ball.ply', _config(texture={'size': 64}).scene)
  assert 'no texture coordinates' in capsys.readouterr().err
  np.testing.assert_allclose(
      np.linalg.norm(start.vertices, axis=1), 0.5, atol=1e-5)
  np.testing.assert_allclose(
      bake.vertex_colors(start), 0.5 + start.vertices, atol=0.08)


@pytest.mark.parametrize('name, words', [
    ('nothing', 'no run and no mesh file'),
    ('folder', 'no run in'),
    ('text.glb', 'cannot be read as a mesh')])
def test_errors_of_the_start_name_the_file(name, words, tmp_path):
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'text.glb').write_text('text')
  config = _config(start_from=str(tmp_path / name))
  config.scene.texture.size = 64
  with pytest.raises(UserError, match=words) as error:
    text_to_3d.make(config, _painting())
  assert str(pathlib.Path(tmp_path, name)) in str(error.value)
