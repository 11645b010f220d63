"""What a generator makes, on an untrained one of a few pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from configs import eg3d as config_file
from gen3d import assets
from gen3d.gan import inference
from gen3d.gan import networks as gan_networks
from gen3d.io import meshes
from gen3d.models import eg3d
from gen3d.ops import cameras

CAMERA = {'elevation': 20.0, 'distance': 1.7, 'focal': 1.35}


@pytest.fixture(scope='module')
def config():
  return config_file.get_config('tiny')


@pytest.fixture(scope='module')
def network(config):
  variables = gan_networks.new_generator(gan_networks.build(config), jax.random.key(0))
  return inference.trained(config, variables, CAMERA, 8)


def dense(network):
  """The same with density everywhere, so that there is a surface."""
  params = network.variables['params']
  layer = params['decoder']['net.2']
  layer = {**layer, 'bias': layer['bias'].at[0].set(30.0)}
  params = {**params, 'decoder': {**params['decoder'], 'net.2': layer}}
  return network._replace(variables={**network.variables, 'params': params})


def test_cameras_are_around_the_origin_and_look_at_the_pivot():
  camera = {**CAMERA, 'pivot': (0.0, 0.1, 0.2)}
  found = cameras.from_label(inference.label(camera, np.array([0.0, 130.0])))
  azimuth, elevation, distance = cameras.angles(found.c2w[:, :3, 3])
  np.testing.assert_allclose(azimuth, [0, 130], atol=1e-3)
  np.testing.assert_allclose(elevation, 20, atol=1e-3)
  np.testing.assert_allclose(distance, 1.7, rtol=1e-5)
  seen, depth = cameras.project(
      found, jnp.tile(np.array(camera['pivot']), (2, 1, 1)))
  np.testing.assert_allclose(seen, 0.5, atol=1e-5)
  assert (depth > 1).all()


def test_official_cameras_stand_where_official_programs_put_them():
  # One of theirs: (sin .637 d) around the middle of their pitch is d = .2.
  elevation = np.rad2deg(np.arcsin(0.3438 / 2.7))
  azimuth = np.rad2deg(np.arctan2(1.0429, 2.4666))
  camera = {'elevation': elevation, 'distance': 2.7, 'focal': 4.2647,
            'pivot': (0.0, 0.0, 0.2)}
  label = inference.label(camera, azimuth)
  np.testing.assert_allclose(label[:16].reshape(4, 4)[:3], [
      [0.9085, 0.0571, -0.4141, 1.0429], [0, -0.9906, -0.1365, 0.3438],
      [-0.4180, 0.1240, -0.9000, 2.4666]], atol=2e-4)


def test_views_do_not_depend_on_what_else_is_asked_for(network):
  paint = inference.painter(network)
  ws = inference.ws_of(network, inference.latent(network, 3))
  labels = inference.label(network.camera, jnp.array([0.0, 50.0, 100.0]))
  film = paint(ws, labels)
  assert film.shape == (3, 16, 48, 3) and film.dtype == np.uint8
  np.testing.assert_array_equal(film[1:], paint(ws, labels[1:]))
  assert not np.array_equal(film[0], film[1])
  other = inference.ws_of(network, inference.latent(network, 4))
  assert not np.array_equal(film, paint(other, labels))


def test_depth_panels_show_what_is_near_brighter_and_fog_dark():
  depth = jnp.array([[[1.0, 1.5, 2.0], [2.5, 0.2, 9.0]]])
  opacity = jnp.array([[[1.0, 1.0, 1.0], [1.0, 0.02, 0.1]]])
  made = eg3d.Generated(None, None, depth, opacity)
  (near, middle, far), (back, *fog) = np.asarray(inference._closeness(made)[0])
  assert near > middle > far > back > 0.15
  np.testing.assert_allclose(near, 1, atol=0.02)
  np.testing.assert_allclose(fog, [0.02, 0.02], atol=1e-6)
  empty = made._replace(opacity=0.1 * opacity)
  np.testing.assert_array_equal(inference._closeness(empty), 0)


def test_truncation_ends_in_the_mean_of_w(network):
  buffers = network.variables['buffers']
  average = jnp.arange(8.0)
  buffers = {**buffers, 'backbone': {
      **buffers['backbone'],
      'mapping': {**buffers['backbone']['mapping'], 'w_avg': average}}}
  network = network._replace(
      variables={**network.variables, 'buffers': buffers})
  z = inference.latent(network, 0)
  mean = inference.ws_of(network, z, psi=0.0)
  np.testing.assert_allclose(mean, jnp.broadcast_to(average, mean.shape))
  half, full = (inference.ws_of(network, z, psi) for psi in (0.5, 1.0))
  np.testing.assert_allclose(half, (mean + full) / 2, rtol=1e-5)


def test_files_of_a_solid_cube(network, tmp_path):
  written = inference.export(
      dense(network), (0, 1), tmp_path, frames=8, resolution=12)
  assert [p.name for p in written] == [
      'grid.png', *(f'seed{i:04d}{s}' for i in (0, 1)
                    for s in ('.mp4', '.glb', '.ply'))]
  shape = trimesh.load_mesh(tmp_path / 'seed0000.ply')
  assert shape.is_watertight
  # World units: density is everywhere within the cube of side `box`.
  side = network.generator.rendering.box_warp
  np.testing.assert_allclose(shape.extents, side, rtol=0.1)


class Blob:
  """In place of a generator: a ball off the center, colored by place."""
  rendering = eg3d.RenderingConfig(box_warp=1.2)
  CENTER, RADIUS = (0.2, -0.1, 0.05), 0.25

  def apply(self, variables, *args, method):
    if method == 'planes':
      return jnp.zeros(())
    _, points = args
    distance = jnp.linalg.norm(points - jnp.array(self.CENTER), axis=-1)
    return jnp.clip(4000 * (self.RADIUS - distance), -50, 50), points + 0.5


@pytest.mark.parametrize('suffix', ['.glb', '.ply'])
def test_meshes_are_where_and_as_colored_as_the_field(tmp_path, suffix):
  shape = inference.mesher(
      inference.Network(Blob(), {}, 4, 8, CAMERA), 40)(jnp.zeros((1, 4)))
  meshes.save(tmp_path / f'a{suffix}', shape)
  found, = meshes.load(tmp_path / f'a{suffix}')
  low, high = found.vertices.min(0), found.vertices.max(0)
  np.testing.assert_allclose((low + high) / 2, Blob.CENTER, atol=0.02)
  np.testing.assert_allclose(high - low, 2 * Blob.RADIUS, rtol=0.05)
  np.testing.assert_allclose(found.colors, found.vertices + 0.5, atol=0.06)


@pytest.fixture
def films(monkeypatch):
  """{file name: frames} of the films that are written."""
  kept = {}
  monkeypatch.setattr(
      inference.video, 'save',
      lambda path, film, fps: kept.update({path.name: np.stack(list(film))}))
  return kept


def seen(network, seed, azimuth, psi=1.0, cutoff=None):
  ws = inference.ws_of(network, inference.latent(network, seed), psi, cutoff)
  labels = inference.label(network.camera, azimuth)[None]
  return inference.painter(network)(ws, labels)[0]


def test_a_film_goes_from_object_to_object_and_back(network, tmp_path, films):
  inference.interpolate(network, [0, 1], tmp_path / 'x.mp4', frames=4)
  film = films['x.mp4']
  assert film.shape == (8, 16, 48, 3)
  np.testing.assert_array_equal(film[0], seen(network, 0, 0.0))
  np.testing.assert_array_equal(film[4], seen(network, 1, 0.0))
  # A quarter of the way, 3/16 - 2/64 of it in w; and on the way back.
  start, end = (inference.ws_of(network, inference.latent(network, seed))
                for seed in (0, 1))
  for frame, a, b in ((1, start, end), (5, end, start)):
    between = inference.painter(network)(
        a + (3 / 16 - 2 / 64) * (b - a),
        inference.label(network.camera, 90.0)[None])[0]
    np.testing.assert_array_equal(film[frame], between)


def test_truncation_reaches_films_and_turntables(network, tmp_path, films):
  for cutoff in (None, 1):
    inference.export(network, (0, 1), tmp_path, psi=0.3, cutoff=cutoff, frames=8,
                   resolution=12)
    inference.interpolate(network, (0, 1), tmp_path / 'x.mp4', psi=0.3,
                        cutoff=cutoff, frames=4)
    np.testing.assert_array_equal(
        films['seed0001.mp4'][2], seen(network, 1, 90.0, 0.3, cutoff))
    np.testing.assert_array_equal(
        films['x.mp4'][4], seen(network, 1, 0.0, 0.3, cutoff))
  assert not np.array_equal(
      seen(network, 1, 0.0, 0.3), seen(network, 1, 0.0, 0.3, 1))


def test_an_object_without_a_surface_costs_only_its_mesh(
    network, tmp_path, capsys):
  written = inference.export(network._replace(generator=Nothing(
      network.generator)), (3, 4), tmp_path, frames=8, resolution=12)
  assert [p.name for p in written] == [
      'grid.png', 'seed0003.mp4', 'seed0004.mp4']
  assert 'Seed 3 has no surface' in capsys.readouterr().err


class Nothing:
  """A generator whose density is nowhere."""

  def __init__(self, generator):
    self.generator, self.rendering = generator, generator.rendering

  def apply(self, *args, method, **rest):
    found = self.generator.apply(*args, method=method, **rest)
    if method != 'query':
      return found
    return jnp.full_like(found[0], -jnp.inf), found[1]


def test_rows_are_views_then_the_raw_image_and_depth_of_the_first(network):
  labels = inference.label(network.camera, np.array([0.0, 90.0]))
  ws = inference.ws_of(network, inference.latent(network, 0))
  whole = inference.painter(network)(ws, labels)
  alone = {panel: inference.painter(network, (panel,))(ws, labels)
           for panel in inference.PANELS}
  expected = [*alone['image'], alone['raw'][0], alone['depth'][0]]
  found = inference.row(whole)
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a, b)


def test_cameras_go_around_or_to_and_fro():
  np.testing.assert_allclose(inference.azimuths(CAMERA, 4), [0, 90, 180, 270])
  np.testing.assert_allclose(
      inference.azimuths({**CAMERA, 'yaw_range': 20.0}, 4), [0, 20, 0, -20],
      atol=1e-6)


def test_weights_come_back_from_a_file(config, network, tmp_path):
  path, _ = assets.save(
      tmp_path / 'mine.safetensors', network.variables,
      {'config': config.to_dict(), 'camera': CAMERA})
  again = inference.load(path)
  assert again.camera == CAMERA and again.size == network.size
  labels = inference.label(CAMERA, jnp.zeros(1))
  ws = inference.ws_of(network, inference.latent(network, 0))
  np.testing.assert_array_equal(
      inference.painter(network)(ws, labels), inference.painter(again)(ws, labels))


def test_a_generator_of_pictures_is_refused(config, network, tmp_path):
  flat = {**config.to_dict(), 'networks': 'stylegan2'}
  path, _ = assets.save(
      tmp_path / 'flat.safetensors', network.variables,
      {'config': flat, 'camera': None})
  with pytest.raises(ValueError, match='flat.safetensors is a generator of pi'):
    inference.load(path)


def test_weights_of_something_else_are_refused():
  judge = assets.FOLDER / 'clip_shapes.safetensors'
  with pytest.raises(ValueError, match='clip_shapes.safetensors is no genera'):
    inference.load(judge)


def test_files_that_are_no_networks_are_told_apart(tmp_path):
  for name, said in (('a.json', 'a.json is no network'),
                     ('README.md', 'README.md is no network')):
    (tmp_path / name).write_text('{}')
    with pytest.raises(ValueError, match=said):
      inference.load(tmp_path / name)
  (tmp_path / 'a.pkl').write_text('')
  with pytest.raises(ValueError, match='a.pkl is an official network, of'):
    inference.load_trained(tmp_path / 'a.pkl')


@pytest.mark.parametrize(
    'path', ['nothing', 'nothing.safetensors', 'nothing.pkl'])
def test_networks_that_are_not_there(path):
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
def test_seeds_that_go_too_far_are_refused(text):
  with pytest.raises(ValueError, match='go too far'):
    inference.parse_seeds(text)
