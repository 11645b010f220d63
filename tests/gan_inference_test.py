"""Loading of generators and their renderings, on a few pixels."""

import json
import shutil

import blob_generator
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_eg3d

from gen3d import assets
from gen3d.choices import UserError
from gen3d.gan import inference, noise_buffers
from gen3d.io import meshes
from gen3d.ops import cameras, mesh

CAMERA = tiny_eg3d.CAMERA


@pytest.fixture(scope='module')
def config():
  return tiny_eg3d.config()


@pytest.fixture(scope='module')
def trained():
  return tiny_eg3d.trained()


def test_cameras_are_on_a_sphere_and_look_at_the_pivot():
  camera = {**CAMERA, 'pivot': (0.0, 0.1, 0.2)}
  path = inference.camera_at(camera, np.array([0.0, 130.0]))
  azimuth, elevation, distance = cameras.angles(path.c2w[:, :3, 3])
  np.testing.assert_allclose(azimuth, [0, 130], atol=1e-3)
  np.testing.assert_allclose(elevation, 20, atol=1e-3)
  np.testing.assert_allclose(distance, 1.7, rtol=1e-5)
  projected, depth = cameras.project(
      path, jnp.tile(np.array(camera['pivot']), (2, 1, 1)))
  np.testing.assert_allclose(projected, 0.5, atol=1e-5)
  assert (depth > 1).all()


def test_official_cameras_equal_those_of_the_official_programs():
  # One of theirs: (sin .637 d) around the middle of their pitch is d = .2.
  elevation = np.rad2deg(np.arcsin(0.3438 / 2.7))
  azimuth = np.rad2deg(np.arctan2(1.0429, 2.4666))
  camera = {'elevation': elevation, 'distance': 2.7, 'focal': 4.2647,
            'pivot': (0.0, 0.0, 0.2)}
  label = cameras.to_label(inference.camera_at(camera, azimuth))
  np.testing.assert_allclose(label[:16].reshape(4, 4)[:3], [
      [0.9085, 0.0571, -0.4141, 1.0429], [0, -0.9906, -0.1365, 0.3438],
      [-0.4180, 0.1240, -0.9000, 2.4666]], atol=2e-4)


@pytest.mark.parametrize('yaw_range', [None, 20.0])
def test_sampled_cameras_have_the_azimuths_of_the_typical_camera(yaw_range):
  camera = {**CAMERA, 'yaw_range': yaw_range}
  _, sample_camera = inference._front_and_sampler(camera)
  path = jax.vmap(sample_camera)(jax.random.split(jax.random.key(0), 200))
  azimuth, elevation, distance = cameras.angles(path.c2w[:, :3, 3])
  limit = yaw_range or 180.0
  assert -limit <= azimuth.min() < -0.9 * limit
  assert 0.9 * limit < azimuth.max() <= limit
  np.testing.assert_allclose(elevation, 20, atol=1e-3)
  np.testing.assert_allclose(distance, 1.7, rtol=1e-5)


def test_a_view_does_not_depend_on_the_other_views(trained):
  render = inference.make_renderer(trained)
  ws = inference.map_seed(trained, 3)
  azimuths = jnp.array([0.0, 50.0, 100.0])
  path = inference.camera_at(trained.camera, azimuths)
  film = render(ws, path)
  assert film.shape == (3, 16, 48, 3) and film.dtype == np.uint8
  np.testing.assert_array_equal(
      film[1:], render(ws, jax.tree.map(lambda x: x[1:], path)))
  assert not np.array_equal(film[0], film[1])
  other = inference.map_seed(trained, 4)
  assert not np.array_equal(film, render(other, path))


def test_truncation_ends_in_the_mean_of_w(trained):
  buffers = trained.variables['buffers']
  average = jnp.arange(8.0)
  buffers = {**buffers, 'backbone': {
      **buffers['backbone'],
      'mapping': {**buffers['backbone']['mapping'], 'w_avg': average}}}
  trained = trained._replace(
      variables={**trained.variables, 'buffers': buffers})
  z = inference.latent(trained, 0)
  mean = inference.map_latent(trained, z, psi=0.0)
  np.testing.assert_allclose(mean, jnp.broadcast_to(average, mean.shape))
  half, full = (inference.map_latent(trained, z, psi) for psi in (0.5, 1.0))
  np.testing.assert_allclose(half, (mean + full) / 2, rtol=1e-5)


def test_the_front_is_the_default_camera_conditioning(config, trained):
  config = config.copy_and_resolve_references()
  config.model.pose_conditioning = 1.0
  trained = inference.from_config(config, trained.variables, CAMERA, 8)
  z = jax.random.normal(jax.random.key(0), (2, trained.generator.z_dim))
  at = lambda azimuth: inference.camera_at(CAMERA, np.full(2, azimuth))
  ws_of = lambda camera: trained.generator.map(
      trained.variables, z, camera, 1.0, None)
  np.testing.assert_array_equal(ws_of(None), ws_of(at(0.0)))
  assert not np.allclose(ws_of(None), ws_of(at(90.0)), atol=1e-4)


def test_noise_is_constant_random_or_none(trained):
  variables = tiny_eg3d.with_noise(trained).variables
  ws = inference.map_seed(trained, 0)[None]
  planes = lambda noise, seed=None: trained.generator.synthesize(
      variables, ws, noise, None if seed is None else jax.random.key(seed))
  np.testing.assert_array_equal(planes('const'), planes('const'))
  assert len({planes(*options).tobytes() for options in (
      ('const',), ('none',), ('random', 0), ('random', 1))}) == 4


def test_noise_buffers_are_those_that_the_planes_depend_on(trained):
  every = noise_buffers(trained.variables)
  used = trained.generator.noise_buffers(trained.variables)
  assert used and all('/backbone/' in path for path in used)
  assert {path: every[path] is x for path, x in used.items()} == dict.fromkeys(
      used, True)
  assert noise_buffers(blob_generator.trained().variables) == {}


@pytest.mark.parametrize('suffix', ['.glb', '.ply'])
def test_meshes_have_the_position_and_colors_of_the_field(tmp_path, suffix):
  blob = blob_generator.trained()
  ws = inference.map_seed(blob, 0)
  surface = inference.make_mesh_extractor(blob, 40)(ws)
  meshes.save(tmp_path / f'a{suffix}', surface)
  loaded, = meshes.load(tmp_path / f'a{suffix}')
  low, high = loaded.vertices.min(0), loaded.vertices.max(0)
  center, radius = blob.generator.synthesize(
      blob.variables, ws[None], 'const', None)
  np.testing.assert_allclose((low + high) / 2, center[0], atol=0.02)
  np.testing.assert_allclose(high - low, 2 * radius[0], rtol=0.05)
  np.testing.assert_allclose(loaded.colors, loaded.vertices + 0.5, atol=0.06)


def test_meshes_of_eg3d_have_its_density_and_colors(trained):
  solid = tiny_eg3d.dense(trained)
  surface = inference.make_mesh_extractor(solid, 12)(
      inference.map_seed(solid, 0))
  np.testing.assert_allclose(
      np.ptp(surface.vertices, axis=0), 2 * trained.generator.bound, rtol=0.1)
  assert surface.colors.min() >= 0 and surface.colors.max() <= 1
  with pytest.raises(mesh.EmptyField):
    inference.make_mesh_extractor(trained, 12)(
        inference.map_seed(trained, 0))


def test_azimuths_go_once_around_or_back_and_forth():
  np.testing.assert_allclose(inference.azimuths(CAMERA, 4), [0, 90, 180, 270])
  np.testing.assert_allclose(
      inference.azimuths({**CAMERA, 'yaw_range': 20.0}, 4), [0, 20, 0, -20],
      atol=1e-6)


def test_saved_weights_render_the_same_images(config, trained, tmp_path):
  path, _ = assets.save(
      tmp_path / 'mine.safetensors', trained.variables,
      {'config': config.to_dict(), 'camera': CAMERA})
  again = inference.load(path)
  assert again.camera == CAMERA and again.size == trained.size
  path = inference.camera_at(CAMERA, jnp.zeros(1))
  ws = inference.map_seed(trained, 0)
  np.testing.assert_array_equal(inference.make_renderer(trained)(ws, path),
                                inference.make_renderer(again)(ws, path))


def test_a_generator_of_images_is_refused(config, trained, tmp_path):
  flat = {**config.to_dict(), 'networks': 'stylegan2'}
  path, _ = assets.save(
      tmp_path / 'flat.safetensors', trained.variables,
      {'config': flat, 'camera': None})
  with pytest.raises(ValueError, match='flat.safetensors is a generator of im'):
    inference.load(path)


def test_weights_of_another_kind_are_refused():
  clip = assets.FOLDER / 'clip_shapes.safetensors'
  with pytest.raises(ValueError, match='clip_shapes.safetensors is no genera'):
    inference.load(clip)


def test_files_that_are_no_networks_are_refused(tmp_path):
  for name, message in (('a.json', 'a.json is no network'),
                        ('README.md', 'README.md is no network')):
    (tmp_path / name).write_text('{}')
    with pytest.raises(ValueError, match=message):
      inference.load(tmp_path / name)
  (tmp_path / 'a.pkl').write_text('')
  with pytest.raises(ValueError, match='a.pkl is an official network, wh'):
    inference.load_with_config(tmp_path / 'a.pkl')


@pytest.mark.parametrize(
    'path', ['nothing', 'nothing.safetensors', 'nothing.pkl'])
def test_missing_networks_are_refused(path):
  with pytest.raises(ValueError, match=f"No network '{path}' ships with gen3d"):
    inference.load(path)


@pytest.mark.parametrize('text, seeds', [
    ('3', [3]), ('0-2, 7', [0, 1, 2, 7]), ('5-5', [5])])
def test_seeds_are_numbers_and_ranges(text, seeds):
  assert inference.parse_seeds(text) == seeds


@pytest.mark.parametrize('text', ['', '1-', 'a', '4-2', '1;2', '-3'])
def test_other_seeds_are_refused(text):
  with pytest.raises(ValueError, match='write them like'):
    inference.parse_seeds(text)


@pytest.mark.parametrize('text', [
    '4294967296', '0,99999999999999999999', '0-4294967295'])
def test_seeds_that_are_too_large_are_refused(text):
  with pytest.raises(ValueError, match='go too far'):
    inference.parse_seeds(text)


def changed(record, keys, value):
  *parents, last = keys.split('/')
  node = record
  for key in parents:
    node = node[key]
  if value is None:
    del node[last]
  else:
    node[last] = value


@pytest.mark.parametrize('keys, value', [
    ('camera', {}), ('camera', 5), ('camera/distance', 'x'),
    ('camera/pivot', [1]), ('config/model', None), ('config/networks', [1]),
    ('config/networks', {}), ('config/render_bucket', 0),
    ('config/render_size', []), ('config/render_size', [[0, 10 ** 6]]),
    ('config/model/z_dim', 'x'), ('config/model/z_dim', 10 ** 10),
    ('config/model/synthesis/resolution', 2 ** 20), ('official', {}),
    ('official', 5)])
def test_records_of_other_values_are_refused(tmp_path, keys, value):
  for suffix in ('.safetensors', '.json'):
    shutil.copy(assets.FOLDER / f'eg3d_shapes{suffix}', tmp_path)
  file = tmp_path / 'eg3d_shapes.json'
  _, record = assets.load(file.with_suffix('.safetensors'))
  record = json.loads(json.dumps(record))
  changed(record, keys, value)
  file.write_text(json.dumps(record))
  with pytest.raises(UserError, match='eg3d_shapes'):
    inference.load(file.with_suffix('.safetensors'))
