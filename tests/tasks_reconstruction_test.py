"""Reconstruction: frames, batches, several devices, and its quality."""

import json
import pathlib
from functools import partial

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import nerf, triplanes
from gen3d import legacy
from gen3d.data.captures import posed
from gen3d.engine import loop, sharding
from gen3d.io import meshes
from gen3d.ops import cameras
from gen3d.tasks import reconstruction


def _posed(azimuths, elevation=20.0, target=(3.0, 1.0, -2.0), scale=4.0):
  azimuths = np.asarray(azimuths, np.float32)
  camera = jax.tree.map(np.asarray, cameras.orbit(
      azimuths, elevation, scale * 3.0, 1.5, target))
  box = np.array(target) + scale * np.array([[-1, -0.5, -1], [1, 0.5, 1]])
  count = len(azimuths)
  pixels = np.arange(count * 6 * 8 * 4, dtype=np.uint32).reshape(
      count, 6, 8, 4) % 251
  return posed.Posed(
      'test', tuple(f'{i}.png' for i in range(count)), camera,
      pixels.astype(np.uint8), 8.0, 16.0, box.astype(np.float32), True)


def test_unit_frame_keeps_projections():
  before = _posed((0.0, 90.0, 200.0))
  frame, after = reconstruction.to_unit_frame(before, 4)
  np.testing.assert_allclose(after.box, [[-1, -0.5, -1], [1, 0.5, 1]],
                             atol=1e-6)
  np.testing.assert_allclose(frame.bounds, [2, 4], rtol=1e-6)
  points = np.random.default_rng(0).uniform(-1, 1, size=(20, 3))
  world = points @ frame.to_world[:3, :3].T + frame.to_world[:3, 3]
  for i in range(3):
    pick = lambda p: jax.tree.map(lambda x: x[i], p.camera)  # noqa: B023
    there, depth = cameras.project(pick(before), jnp.asarray(
        world, jnp.float32))
    here, nearer = cameras.project(pick(after), jnp.asarray(
        points, jnp.float32))
    np.testing.assert_allclose(here, there, atol=1e-5)
    np.testing.assert_allclose(depth, 4 * nearer, rtol=1e-4)


def test_camera_path_is_a_circle_or_a_loop_on_one_side():
  around = reconstruction.to_unit_frame(_posed(range(0, 360, 30)), 8)[0].path
  azimuth, elevation, distance = cameras.angles(
      jnp.asarray(around.c2w[:, :3, 3]))
  np.testing.assert_allclose(np.sort(np.round(azimuth, 3) % 360),
                             np.arange(8) * 45, atol=1e-2)
  np.testing.assert_allclose(elevation, 20, atol=1e-2)
  np.testing.assert_allclose(distance, 3, atol=1e-3)
  side = reconstruction.to_unit_frame(
      _posed((170.0, 180.0, 190.0)), 8)[0].path
  azimuth = np.asarray(cameras.angles(
      jnp.asarray(side.c2w[:, :3, 3]))[0]) % 360
  assert 165 < azimuth.min() < 175 and 185 < azimuth.max() < 195


def test_batches_are_pixels_of_the_photographs_and_resume_exactly():
  _, train = reconstruction.to_unit_frame(_posed((0.0, 120.0)), 4)
  batches = partial(reconstruction.batches, train=train, size=64, crop_steps=2,
                    crop_fraction=0.5)
  feed = batches(5, 0)
  first, second, third = (next(feed) for _ in range(3))
  for batch, limits in ((first, (0.25, 0.75)), (third, (0.0, 1.0))):
    column = np.round(batch['pixel'][:, 0] * 8 - 0.5).astype(int)
    row = np.round(batch['pixel'][:, 1] * 6 - 0.5).astype(int)
    which = np.argmax(np.all(
        batch['camera'].c2w[:, None] == train.camera.c2w, axis=(2, 3)), 1)
    np.testing.assert_array_equal(
        batch['color'], train.images[which, row, column])
    low, high = limits
    assert np.all((column >= 8 * low) & (column < 8 * high))
    assert np.all((row >= np.floor(6 * low)) & (row < np.ceil(6 * high)))
    assert set(which) == {0, 1}
  assert set(np.round(third['pixel'][:, 0] * 8 - 0.5)) == set(range(8))
  resumed = next(batches(5, 1))
  jax.tree.map(np.testing.assert_array_equal, resumed, second)


def _train(config, devices, steps):
  task = reconstruction.make(config)
  mesh = jax.make_mesh(
      (devices,), ('devices',), devices=jax.devices()[:devices],
      axis_types=(jax.sharding.AxisType.Auto,))
  state = loop.replicate_state(task.init(jax.random.key(0)), mesh)
  step = sharding.pmap(task.step, mesh)
  key = sharding.replicate(jax.random.key(1), mesh)
  for batch, _ in zip(task.batches(0, 0), range(steps)):
    state, metrics = step(state, sharding.to_devices(batch, mesh), key)
    jax.block_until_ready(metrics)
  return task, sharding.unreplicate(state), jax.device_get(metrics)


def compare_device_counts():
  """One device and eight, fed the same rays (in a subprocess)."""
  config = triplanes.get_config('tiny')
  config.optimizer.eps, config.scene.background = 0.1, 'random'
  results = [_train(config, devices, 10) for devices in (1, 8)]
  start = results[0][0].init(jax.random.key(0))
  for a, b, was in zip(*(jax.tree.leaves(r[1].params['fine'])
                         for r in results),
                       jax.tree.leaves(start.params['fine'])):
    moved = np.abs(np.asarray(a) - np.asarray(was)).max()
    assert moved > 1e-5
    np.testing.assert_allclose(a, b, atol=1e-3 * moved)
  np.testing.assert_allclose(
      results[1][2]['psnr'], results[0][2]['psnr'], rtol=1e-4)


def test_eight_devices_equal_one(on_eight_devices):
  done = on_eight_devices('tasks_reconstruction_test', 'compare_device_counts')
  assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope='module')
def trained():
  config = triplanes.get_config('tiny')
  config.data.update({'path': 'shapes:a red apple with green leaf',
                      'count': 24, 'size': 32})
  config.batch, config.optimizer.lr_multipliers = 512, {'encode': 10.0}
  config.scene.coarse.samples = config.scene.fine.samples = 24
  config.scene.field.width, config.scene.field.encode.resolution = 32, 24
  config.optimizer.learning_rate, config.steps = 3e-3, 250
  return config, *_train(config, 1, config.steps)


@pytest.mark.optimized
def test_object_is_reconstructed_from_its_photographs(trained):
  _, task, state, metrics = trained
  scalars, images = task.evaluate(state, jax.random.key(0))
  assert metrics['psnr'] > 21, metrics
  # Test cameras stand between those of the training.
  assert scalars['test/psnr'] > 19 and scalars['test/ssim'] > 0.8, scalars
  assert images['test'].shape[1] == 3 * 32


def test_files_of_a_finished_run_are_in_the_world_of_the_capture(
    trained, tmp_path):
  config, task, state, _ = trained
  frame = state.params['frame']
  moved = frame._replace(to_world=np.diag([5.0, 5, 5, 1]).astype(np.float32))
  files = task.finish(state.replace(
      params={**state.params, 'frame': moved}), tmp_path)
  assert {pathlib.Path(f).name for f in files} == {
      'test.json', 'test', 'turntable.mp4', 'preview.png', 'mesh.glb',
      'mesh.ply', 'similarity.json'}
  similarity = json.loads((tmp_path / 'similarity.json').read_text())
  assert similarity == {'scene_to_mesh': np.diag([5.0, 5, 5, 1]).tolist()}
  scores = json.loads((tmp_path / 'test.json').read_text())
  assert scores['test/psnr'] > 18
  assert len(list((tmp_path / 'test').iterdir())) == 6
  mesh, = meshes.load(tmp_path / 'mesh.ply')
  # It fills most of the unit cube, which is ten units wide here.
  assert 5 < np.ptp(mesh.vertices, axis=0).max() < 10
  red = mesh.colors[:, 0] - mesh.colors[:, 2]
  assert np.mean(red > 0.2) > 0.4


def test_finished_run_is_loaded_without_its_photographs(tmp_path):
  workdir = tmp_path / 'run'
  done = commands.run('gen3d.train', '--config=configs/voxels.py:tiny',
                      f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr[-2000:]
  stored = json.loads((workdir / 'config.json').read_text())
  stored['data']['path'] = '/nowhere'
  (workdir / 'config.json').write_text(json.dumps(stored))
  shown = reconstruction.load(workdir)
  film = shown.render(shown.path, 8, shown.modes)
  assert film.shape == (8, 8, 24, 3)
  done = commands.run('gen3d.export', f'--workdir={workdir}', '--size=20',
                      '--resolution=12', f'--out={tmp_path / "again"}')
  assert done.returncode == 0, done.stderr[-2000:]
  assert (tmp_path / 'again' / 'mesh.glb').exists()


@pytest.mark.parametrize('path, words', [
    ('', 'no photographs'), ('shapes:a zeppelin', "named in 'a zeppelin'"),
    ('/nowhere', '/nowhere')])
def test_unreadable_data_is_refused(path, words):
  config = nerf.get_config('tiny')
  config.data.path = path
  with pytest.raises(ValueError, match=words):
    reconstruction.make(config)


def test_costs_are_of_the_rays_of_a_step():
  config = nerf.get_config('tiny')
  task = reconstruction.make(config)
  costs = task.costs()
  assert costs.unit == ('rays', config.batch)
  assert costs.sizes == {'rays a step': config.batch, 'samples a ray': (8, 8)}
  params = task.init(jax.random.key(0)).params
  parts = costs.parts(params, next(task.batches(0, 0)), 2)
  assert set(parts) == {'rays rendered'}
  assert parts['rays rendered']().shape == (config.batch // 2, 3)


def test_config_keys_of_version_1_are_upgraded():
  upgraded = legacy.upgrade({
      'crop': {'share': 0.5}, 'scene': {
          'field': {'padding': 0.0, 'encode': {'spread': 0.1}},
          'coarse': {'loss': 1.0}, 'fine': {'merge': True, 'padding': 0.0}}})
  config = triplanes.get_config('tiny')
  assert set(upgraded['crop']) <= set(config.crop)
  for part in ('coarse', 'fine', 'field'):
    assert set(upgraded['scene'][part]) <= set(config.scene[part])
  assert set(upgraded['scene']['field']['encode']) <= set(
      config.scene.field.encode)
