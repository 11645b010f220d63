"""Dream Fields' scene: parity with its code, loops, and running values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dream_fields as configs
from gen3d.engine import loop, sharding
from gen3d.guidance import Guidance
from gen3d.models import fields
from gen3d.ops import cameras, encodings, schedules
from gen3d.scenes import dream_fields
from gen3d.tasks import text_to_3d

# A guidance toward red, for the task.
RED = Guidance(
    load=lambda prompt, negative: jnp.array([1.0, 0.0, 0.0]),
    init=lambda key, frozen: {}, condition=lambda frozen, camera: frozen,
    loss=lambda params, frozen, key, render, text, step: (
        jnp.mean((render.image - text)**2), {}))


@pytest.fixture(scope='module')
def reference(reference_data):
  return reference_data('dreamfields')


def reference_rays(reference, keep):
  """Rays in this project's convention: unit directions, Mip-NeRF's radii."""
  directions = reference['render.ray_d'][keep]
  length = np.linalg.norm(directions, axis=-1, keepdims=True)
  origin = reference['render.pose'][:3, 3] + reference['render.origin']
  return cameras.Rays(
      np.broadcast_to(origin, directions.shape), directions / length,
      2 * reference['render.ray_diff'][keep] / length), length


def reference_params(reference):
  """Parameters of a FourierMLP."""
  params = {}
  for key in reference.files:
    if key.startswith('mlp.'):
      _, layer, name = key.split('.')
      params.setdefault(layer, {})[name] = reference[key]
  return {'params': params}


def reference_field(reference, monkeypatch):
  """(field of two blocks with the stored weights, cube of half-width 1)."""
  monkeypatch.setattr(encodings, 'fourier_basis',
                      lambda *_: jnp.asarray(reference['render.feat_basis']))
  params = reference_params(reference)
  width = params['params']['Dense_0']['bias'].shape[0]
  hidden = params['params']['Dense_1']['bias'].shape[0]
  blocks = sum(name.startswith('LayerNorm') for name in params['params'])
  module = fields.FourierMLP(width=width, hidden=hidden, blocks=blocks)
  return dream_fields.inside(lambda *x: module.apply(params, *x), 1.0)


def test_frequencies_are_those_of_the_paper_s_code(reference):
  for partitionable, name in ((False, 'original'), (True, 'partitionable')):
    with jax.threefry_partitionable(partitionable):
      basis = encodings.fourier_basis(jax.random.PRNGKey(124124))
    np.testing.assert_array_equal(basis, reference[f'basis.threefry_{name}'])


def test_encoding_of_intervals(reference):
  keep = np.arange(0, len(reference['render.ray_d']), 20)
  rays, length = reference_rays(reference, keep)
  edges = reference['render.nojit.t'][keep] * length
  samples = encodings.middle_gaussians(rays, edges)
  encoded = encodings.fourier(
      samples, np.broadcast_to(rays.directions[:, None], samples.mean.shape),
      reference['render.feat_basis'])
  np.testing.assert_allclose(
      encoded, reference['render.nojit.encoding_sub20'], atol=1e-4)


@pytest.mark.parametrize('tag', ['train', 'nojit', 'white', 'nobox'])
def test_render_of_rays(reference, monkeypatch, tag):
  get = lambda name: reference[f'render.{tag}.{name}']
  field = reference_field(reference, monkeypatch)
  rays, length = reference_rays(reference, slice(None))
  count = reference['render.jitter_u'].shape[1] - 1
  near, far = (get(name)[:, None] * length for name in ('near', 'far'))
  if tag == 'nobox':
    edges = near + (far - near) * np.linspace(0, 1, count + 1)
  else:
    edges = dream_fields.ray_edges(None, rays, 1.0, count)
    np.testing.assert_allclose(edges[:, :1], near, atol=1e-5)
    # The least length is in units of the viewing axis there.
    np.testing.assert_allclose(edges[:, -1:], far, atol=2e-4)
  if tag == 'train':
    edges += reference['render.jitter_u'] * (far - near) / count
  pixels = jax.jit(lambda edges: dream_fields.shade(
      field, 0.01, (rays, edges)))(edges)
  np.testing.assert_allclose(pixels['opacity'], get('acc'), atol=1e-4)
  color = pixels['color']
  if tag in ('white', 'nobox'):  # over white, as test images
    color = color + 1 - pixels['opacity'][:, None]
  np.testing.assert_allclose(color, get('rgb'), atol=1e-4)
  np.testing.assert_allclose(dream_fields.center_of_density(
      pixels['density'], pixels['moment']), get('centre'), atol=1e-4)
  np.testing.assert_allclose(
      np.sum(pixels['density']), get('total_sigma'), rtol=1e-4)


def test_cameras(reference):
  for name in {key.split('.')[0] for key in reference.files
               if key.startswith('cam')}:
    theta, phi, radius, zoom = (
        float(x) for x in reference[f'{name}.theta_phi_radius_focalmult'])
    # The code's world has z up; theta turns the other way than azimuths do.
    camera = cameras.orbit(-theta, -phi, radius, zoom * dream_fields.FOCAL)
    np.testing.assert_allclose(
        cameras.Z_UP @ reference[f'{name}.pose'], camera.c2w, atol=1e-5)
    side = reference[f'{name}.ray_d'].shape[0]
    rays = cameras.rays(camera, side, side)
    directions = reference[f'{name}.ray_d'] @ cameras.Z_UP[:3, :3].T
    length = np.linalg.norm(directions, axis=-1, keepdims=True)
    np.testing.assert_allclose(rays.directions, directions / length, atol=1e-5)
    np.testing.assert_allclose(
        rays.radii, 2 * reference[f'{name}.ray_diff'] / length, atol=1e-6)
    np.testing.assert_allclose(
        dream_fields.target_scale(camera, 1.0), zoom**2 / 1.2
        / (radius / 4)**2, rtol=1e-5)


def test_target_and_transmittance(reference):
  targets = [schedules.exponential(step, 0.5, 0.1, 500)
             for step in reference['sched.steps']]
  np.testing.assert_allclose(targets, reference['sched.acc_target'], rtol=1e-5)
  rows = reference['trans.rows_accmean_step_accttarget_loss']
  maps = reference['trans.acc_maps']
  for row, (mean, step, target, loss) in enumerate(rows):
    opacity = maps[row // (len(rows) // len(maps))]
    np.testing.assert_allclose(opacity.mean(), mean, rtol=1e-5)
    own = 1.2 * schedules.exponential(step, 0.5, 0.1, 500)
    np.testing.assert_allclose(own, target, rtol=1e-5)
    np.testing.assert_allclose(
        0.5 * dream_fields.transmittance_loss(opacity, own), loss, rtol=1e-5)


def test_origin_is_a_moving_average(reference):
  running = {'origin': jnp.zeros(3)}
  for center, expected in zip(
      reference['ema.inputs'], reference['ema.values'], strict=True):
    running = dream_fields.track_origin(running, center, decay=0.999)
    np.testing.assert_allclose(running['origin'], expected, atol=1e-7)


def run(config, devices, steps):
  """The TrainState after `steps` on the first `devices`."""
  task = text_to_3d.make(config, RED)
  mesh = jax.make_mesh(
      (devices,), ('devices',), devices=jax.devices()[:devices])
  keys = jax.random.split(jax.random.key(config.seed), 3)  # as in the loop
  state = sharding.replicate(task.init(keys[0]), mesh)
  step = sharding.pmap(task.step, mesh)
  for _, batch in zip(range(steps), task.batches(0, 0)):
    state, metrics = step(
        state, sharding.to_devices(batch, mesh),
        sharding.replicate(keys[1], mesh))
  return sharding.unreplicate(state), jax.device_get(metrics)


def test_training_moves_the_origin_alike_on_one_and_two_devices(tmp_path):
  config = configs.tiny(3)
  config.scene.origin_decay = 0.5
  config.optimizer.eps = 0.1
  config.eval_every = 0
  alone, metrics = run(config, 1, steps=3)
  two, files = loop.run(text_to_3d.make(config, RED), config, tmp_path)
  assert set(alone.params['scene']) == {'field'}  # The origin is not trained.
  moved = np.asarray(alone.extra['origin'])
  assert np.all(moved != 0)
  np.testing.assert_allclose(two.extra['origin'], moved, rtol=1e-4)
  assert {'weighted_penalty/transmittance', 'opacity'} <= set(metrics)
  # A finished run is read with its origin.
  assert len(files) == 4
  _, params, _ = text_to_3d.load_run(tmp_path)
  np.testing.assert_array_equal(params['origin'], two.extra['origin'])
  assert set(params) == {'field', 'origin'}


def test_origin_moves_the_picture_and_the_mesh_together():
  config = configs.tiny().scene
  config.camera.elevation = (0.0, 0.0)
  scene = dream_fields.make(config)
  params = {**jax.jit(scene.init)(jax.random.key(0)), 'origin': jnp.zeros(3)}
  moved = {**params, 'origin': jnp.array([0.1, 0.0, 0.0])}
  meshes = [scene.mesh(p, 20, 0.1) for p in (params, moved)]
  np.testing.assert_allclose(
      meshes[1].vertices, meshes[0].vertices - [0.1, 0, 0], atol=1e-5)
  camera = cameras.orbit(0.0, 0.0, 1.6, 1.3)
  show = jax.jit(scene.show, static_argnums=(2, 3))
  columns = [np.asarray(show(p, camera, 24, ('color',), jnp.zeros(3))['color']
                        ).sum((0, 2)) for p in (params, moved)]
  at = [c @ np.arange(24) / c.sum() for c in columns]
  # 0.1 to the left, at a distance of 1.6: 1.3 * 24 * 0.1 / 1.6 pixels.
  np.testing.assert_allclose(at[1] - at[0], -1.95, atol=0.5)


def test_a_ray_beside_the_cube_is_empty():
  scene = dream_fields.make(configs.tiny().scene)
  params = {**jax.jit(scene.init)(jax.random.key(0)), 'origin': jnp.zeros(3)}
  view = jax.jit(scene.sample_view)(jax.random.key(1), 0)
  draw = jax.jit(scene.render)
  beside = view._replace(rays=view.rays._replace(
      origins=view.rays.origins + jnp.array([0.0, 9.0, 0.0])))
  for key in (None, jax.random.key(0)):
    render = draw(params, key, beside)
    np.testing.assert_array_equal(render.opacity, 0)
    np.testing.assert_array_equal(render.image, 0)
    np.testing.assert_array_equal(render.measured, 0)
    assert jnp.all(jnp.isfinite(render.depth))
