"""Lifted generators as Generator3D, their losses, 2-D generators from files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lifted_gan as config_file
from configs import stylegan2 as stylegan2_file
from gen3d import assets
from gen3d.choices import UserError
from gen3d.gan import generator2d, inference, lifting, lifting_losses
from gen3d.ops import cameras, depth_mesh, mesh

CAMERA = {'elevation': 0.0, 'distance': 1.7, 'focal': 1.35, 'yaw_range': 40.0}


@pytest.fixture(scope='module')
def config():
  return config_file.get_config('tiny')


@pytest.fixture(scope='module')
def settings(config):
  return lifting.Settings(**config.model.settings)


@pytest.fixture(scope='module')
def source(config):
  return generator2d.untrained(config.model.generator, jax.random.key(0))


@pytest.fixture(scope='module')
def front():
  return inference.camera_at(CAMERA, 0.0)


@pytest.fixture(scope='module')
def generator(config, front):
  return lifting.generator(config.model, front, lambda key: front)


@pytest.fixture(scope='module')
def ball(settings):
  """An Estimate: a ball of radius 1/4 around the center, before white."""
  side = 32
  rays = depth_mesh.points(
      jnp.ones((1, side, side)), depth_mesh.focal_of(settings.fov))
  rays /= jnp.linalg.norm(rays, axis=-1, keepdims=True)
  along = rays[..., 2]  # of the center, at depth 1
  inside = 0.25**2 - (1 - along**2)
  hit = inside > 0
  distance = along - jnp.sqrt(jnp.maximum(inside, 0))
  depth = jnp.where(hit, distance * rays[..., 2], settings.border_depth)
  albedo = jnp.where(hit[..., None], jnp.array([0.6, -0.2, -0.6]), 1.0)
  return lifting.Estimate(
      depth, depth, albedo, hit[..., None] * 1.0,
      jnp.array([[1.0, -1.0, 0, 0]]), jnp.zeros((1, 6)),
      jnp.ones((1, side, side, 1)), None, albedo)


def test_objects_of_latents(generator, config, source):
  """map, synthesize and render of an untrained generator."""

  @jax.jit
  def make(key, variables, z):
    params = lifting.init(lifting.build(config.model), variables, key)
    joined = lifting.join(params, variables)
    ws = generator.map(joined, z, None, 0.5, None)
    untruncated = generator.map(joined, z, None, 0.5, 0)
    objects = generator.synthesize(joined, ws, 'const', None)
    camera = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (2, *x.shape)),
        cameras.orbit(10.0, 5.0, 1.7, 1.35))
    return ws, untruncated, objects, generator.render(
        joined, objects, ws, camera, 12, None)

  z = jax.random.normal(jax.random.key(1), (2, generator.z_dim))
  ws, untruncated, objects, seen = make(
      jax.random.key(0), source.variables, z)
  assert ws.shape == (2, generator.num_ws, 8)
  # The running mean of w is zero before a training.
  np.testing.assert_allclose(ws, untruncated / 2, atol=1e-6)
  assert objects.depth.shape == (2, 8, 8)
  assert seen.image.shape == (2, 12, 12, 3) and seen.depth.shape == (2, 12, 12)
  assert generator.image_size(12) == 12
  assert jnp.isfinite(seen.image).all()


@functools.cache
def _render(generator):
  return jax.jit(lambda objects, camera, size: generator.render(
      None, objects, None, camera, size), static_argnums=2)


def _at(azimuth, elevation=0.0, **change):
  camera = {**CAMERA, 'elevation': elevation, **change}
  return inference.camera_at(camera, jnp.array([azimuth]))


def test_a_ball_is_where_cameras_see_it(generator, ball):
  for azimuth, elevation in ((0.0, 0.0), (30.0, 0.0), (-20.0, 12.0)):
    seen = _render(generator)(ball, _at(azimuth, elevation), 32)
    opaque = np.asarray(seen.opacity[0] > 0.5)
    rows, columns = np.nonzero(opaque)
    # A part of the ball that only the turned camera sees is missing.
    assert abs(columns.mean() - 15.5) < (0.6 if azimuth == 0 else 3)
    assert abs(rows.mean() - 15.5) < (0.6 if elevation == 0 else 2)
    # Distances along the rays, in world units: the ball's radius is 1.7 / 4.
    rays = cameras.rays(_at(azimuth, elevation), 32, 32)
    points = (rays.origins + seen.depth[..., None] * rays.directions)[0]
    radius = np.linalg.norm(points[opaque], axis=-1)
    assert abs(np.median(radius) - 1.7 / 4) < 0.01
    np.testing.assert_allclose(
        np.asarray(seen.image)[0, ~opaque & (np.asarray(
            seen.opacity[0]) == 0)], 1.0, atol=1e-5)


def test_the_front_camera_sees_the_neutral_image(generator, ball, settings):
  seen = _render(generator)(ball, _at(0.0), 32)
  own = lifting.render(settings, ball.depth, ball.albedo, ball.view)
  np.testing.assert_allclose(seen.image, own.image, atol=1e-5)


def test_yaw_and_elevation_are_views_about_x_and_y(generator, ball, settings):
  for azimuth, elevation, axis, angle in ((30.0, 0.0, 1, 30),
                                          (0.0, 10.0, 0, 10)):
    seen = _render(generator)(ball, _at(azimuth, elevation), 32)
    view = ball.view.at[0, axis].set(angle / settings.rotation_range)
    own = lifting.render(settings, ball.depth, ball.albedo, view, ball.blend)
    error = np.abs(seen.image - own.image).max(-1)
    assert np.mean(error > 1e-2) < 0.01


def test_relighting_changes_the_shading_only(generator, ball, settings):
  lights = {'front': lifting.light_of(0.0, 1.0),
            'left': lifting.light_of(0.0, 1.0, x=1.0),
            'top': lifting.light_of(0.0, 1.0, y=1.0)}
  # Brightness of the middle of the ball: left and right, upper and lower.
  parts = {}
  for name, light in lights.items():
    relit = ball._replace(light=light[None])
    seen = _render(generator)(relit, _at(0.0), 32)
    image = np.asarray(seen.image[0]).mean(-1)
    parts[name] = [image[part].mean() for part in (
        np.s_[14:18, 11:14], np.s_[14:18, 18:21],
        np.s_[11:14, 14:18], np.s_[18:21, 14:18])]
  left, right, upper, lower = parts['front']
  assert abs(left - right) < 0.05 and abs(upper - lower) < 0.05
  assert parts['left'][0] > parts['left'][1] + 0.1
  assert parts['top'][2] > parts['top'][3] + 0.1
  shade = lifting.shade(
      lights['front'][None], lifting.normals_of(settings, ball.depth))
  np.testing.assert_allclose(shade[0, 15:17, 15:17, 0], 1.0, atol=0.05)


def test_mesh_is_the_part_before_the_border_depth(generator, ball):
  surface = generator.mesh(None, ball, 64)
  np.testing.assert_allclose(
      np.linalg.norm(surface.vertices, axis=-1), 1.7 / 4, atol=1e-3)
  assert surface.vertices[:, 2].min() > 0  # The half that faces +z.
  corners = surface.vertices[surface.faces]
  normals = np.cross(corners[:, 1] - corners[:, 0],
                     corners[:, 2] - corners[:, 0])
  assert (np.sum(normals * corners.mean(1), -1) > 0).all()
  outward = np.sum(surface.normals * surface.vertices, -1) / (1.7 / 4)
  assert np.median(outward) > 0.99
  np.testing.assert_allclose(surface.colors, [[0.8, 0.4, 0.2]] * len(
      surface.colors), atol=1e-5)
  colors = generator.color(None, ball, surface.vertices[:7])
  np.testing.assert_allclose(colors, surface.colors[:7], atol=1e-4)
  with pytest.raises(mesh.EmptyField, match='has no surface'):
    generator.mesh(None, ball._replace(depth=1.2 + 0 * ball.depth), 64)


def test_coverage_is_what_differs_from_white_with_its_holes(settings):
  image = np.ones((1, 12, 12, 3), np.float32)
  image[0, 3:6, 3:6] = 0.2
  image[0, 4, 4] = 1.0  # a white spot
  image[0, 8, 8, 0] = 0.92  # nearly white
  share = lifting.coverage(settings._replace(white=0.15), jnp.asarray(image))
  expected = np.zeros((12, 12))
  expected[3:6, 3:6] = 1
  np.testing.assert_allclose(share[0, ..., 0], expected, atol=1e-6)
  every = lifting.coverage(settings._replace(white=0.0), jnp.asarray(image))
  assert (every == 1).all()


def test_perceptual_loss_against_the_formula():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 3, 8, 8, 3)).astype(np.float32)
  mask = (rng.random((3, 8, 8, 1)) > 0.3).astype(np.float32)
  mean = lambda x, f: x.reshape(
      len(x), x.shape[1] // f, f, x.shape[2] // f, f, -1).mean((2, 4))
  features = lambda x: [x, x[:, ::2, ::2] ** 2]
  expected = []
  for scale in range(3):
    ours, theirs = (mean(x, 2**scale) for x in (a, b))
    for f, g in zip(features(ours), features(theirs)):
      unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (f, g)]
      weight = mean(mask, 8 // f.shape[1])
      expected.append(np.sum(
          np.sum((unit[0] - unit[1])**2, -1, keepdims=True) * weight)
          / weight.sum())
  np.testing.assert_allclose(
      lifting_losses.perceptual(features, a, b, mask), np.mean(expected),
      rtol=1e-5)


def test_other_losses_against_their_formulas():
  rng = np.random.default_rng(1)
  light, drawn_light = rng.normal(size=(2, 3, 4))
  view, drawn_view = rng.normal(size=(2, 3, 6))
  np.testing.assert_allclose(
      lifting_losses.parameters(light, view, drawn_light, drawn_view),
      np.mean((light - drawn_light)**2)
      + np.mean((view - drawn_view)[:, :3]**2), rtol=1e-5)
  faces = rng.normal(size=(2, 3, 5))
  counts = np.array([True, False, True])
  np.testing.assert_allclose(
      lifting_losses.identity(*faces, counts),
      np.sum((faces[0] - faces[1])[counts]**2) / 2, rtol=1e-5)
  assert lifting_losses.identity(*faces, np.zeros(3, bool)) == 0
  np.testing.assert_allclose(
      lifting_losses.style_prior(view, view[0], 0.25),
      np.mean((view - view[0])**2) / 4, rtol=1e-5)
  # Of objects that are alike the details have rank one.
  albedo, mask = np.tile(rng.normal(size=(1, 8, 8, 3)), (4, 1, 1, 1)), 1.0
  norm = lifting_losses.albedo_rank(
      albedo, mask, lambda x: 0 * x, 2)
  row = albedo[0].mean(-1).reshape(4, 2, 4, 2).mean((1, 3))
  np.testing.assert_allclose(norm, 2 * np.linalg.norm(row), rtol=1e-5)


def test_generators_from_files(config, source, tmp_path):
  stored = stylegan2_file.get_config('tiny')
  path, _ = assets.save(tmp_path / 'g.safetensors', source.variables, {
      'config': {**stored.to_dict(), 'resolution': 8, 'model': {
          **config.model.generator.to_dict(), 'path_weight': 0.0}}})
  loaded = generator2d.load(path)
  jax.tree.map(np.testing.assert_array_equal, loaded.variables,
               source.variables)
  assert loaded.config['resolution'] == 8 and loaded.config['z_dim'] == 6
  assert generator2d.build(loaded.config) == generator2d.build(
      config.model.generator)
  with pytest.raises(UserError, match='There is no file .*gone.pt'):
    generator2d.load(tmp_path / 'gone.pt')
  (tmp_path / 'g.zip').touch()
  with pytest.raises(UserError, match="kind of file '.zip'"):
    generator2d.load(tmp_path / 'g.zip')
  path, _ = assets.save(tmp_path / 'e.safetensors', {}, {
      'config': {'task': 'gan', 'networks': 'eg3d'}})
  with pytest.raises(UserError, match="is of the networks 'eg3d'"):
    generator2d.load(path)


def test_statistics_of_w(config, source):
  network = generator2d.build(config.model.generator)
  variables, mean, precision = jax.jit(
      lambda variables: generator2d.with_statistics(
          network, variables, 6, count=3000))(source.variables)
  z = jax.random.normal(jax.random.key(5), (3000, 6))
  w = jax.jit(functools.partial(generator2d.map_latents, network))(
      source.variables, z)[:, 0]
  np.testing.assert_allclose(mean, w.mean(0), atol=0.1)
  np.testing.assert_allclose(precision, 0.5 / w.std(0).mean()**2, rtol=0.1)
  np.testing.assert_array_equal(
      variables['buffers']['mapping']['w_avg'], mean)
