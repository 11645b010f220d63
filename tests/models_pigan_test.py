"""pi-GAN's generator against the official one, slow formulas and itself.

The official numbers are in the folder $GEN3D_REFERENCE, pigan_tiny.npz.
"""

import ast
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.models import pigan, pigan_official
from gen3d.models import pigan_render as rendering
from gen3d.ops import cameras, encodings, sampling, volume
from gen3d.weights import port


def assert_close(result, expected, name=''):
  """Within 1e-4 but for a few pixels.

  Arguments of the sine reach 100, so that float32 leaves five digits: the
  official images are themselves up to 1.1e-4 from those in float64.
  """
  error = np.abs(np.asarray(result) - expected)
  assert np.quantile(error, 0.98) < 1e-4, name
  assert np.max(error) < 5e-4, name


@pytest.fixture(scope='module')
def data(reference_data):
  return dict(reference_data('pigan_tiny'))


@pytest.fixture(scope='module')
def cfg(data):
  return ast.literal_eval(str(data['cfg']))


def styles_of(data, name, layers, suffixes=('frequencies', 'phase_shifts')):
  """ws [N, L, 2W] of the official arrays [N, L W]."""
  return np.concatenate([
      data[f'{name}.{x}'].reshape(-1, layers, data[f'{name}.{x}'].shape[1]
                                  // layers) for x in suffixes], axis=-1)


@pytest.fixture(scope='module')
def official(data, cfg):
  """(Generator, variables) with the official weights."""
  weights = {name.removeprefix('G.'): x for name, x in data.items()
             if name.startswith('G.')}
  layers = sum('siren.network' in name and 'weight' in name
               for name in weights)
  mapping = sum('mapping_network' in name and 'weight' in name
                for name in weights) - 1
  kinds = {c.siren: c.coordinate_scale
           for c in pigan_official.CURRICULA.values()}
  module = pigan.Generator(
      pigan.SirenConfig(cfg['hidden'], layers, kinds[cfg['net']]),
      pigan.MappingConfig(cfg['map_hidden'], mapping))
  like = jax.eval_shape(lambda: module.init(
      jax.random.key(0), jnp.zeros((1, cfg['z_dim']))))
  variables = port.to_flax(weights, pigan_official.sources(layers, mapping),
                           {'params': like['params']})
  return module, {**variables, 'buffers': {
      'w_avg': styles_of(data, 'avg', layers + 1)[0]}}


@pytest.fixture(scope='module')
def official_styles(data, official):
  module, variables = official
  return module.apply(variables, data['z'], method='map')


def test_mapping_network(data, official, official_styles):
  layers = official[0].siren_config.layers + 1
  np.testing.assert_allclose(official_styles, styles_of(
      data, 'map', layers, ('frequencies_raw', 'phase_shifts')), atol=1e-5)


def test_siren_layer_by_layer(data, official, official_styles):
  module, variables = official
  is_film = lambda module, name: isinstance(module, pigan.Film)
  (density, color), state = jax.jit(lambda points, directions, ws: module.apply(
      variables, points, directions, ws, method='field',
      capture_intermediates=is_film, mutable=['intermediates']))(
          data['siren.points'][:, :, None], data['siren.dirs'], official_styles)
  np.testing.assert_allclose(
      data['siren.points'] * module.siren_config.coordinate_scale,
      data['siren.coords_scaled'], rtol=1e-6)
  for name in (x for x in data if x.startswith('siren.h')):
    films = state['intermediates']['siren']
    film = films[f'film_{name.removeprefix("siren.h")}']['__call__'][0]
    assert_close(film[:, :, 0], data[name], name)
  result = np.concatenate([color[:, :, 0], density], axis=-1)
  assert_close(result, data['siren.rgb_sigma'])


def prior_of(options, fov):
  """CameraPrior of the official (distribution, deviations, means)."""
  distribution, *numbers = options
  return rendering.CameraPrior(
      'uniform' if distribution == 'mean' else distribution,
      *map(float, numbers), fov=fov)


def draw(data, prefix, number):
  """The official random numbers of a call, normal or uniform."""
  return data.get(f'{prefix}.draw{number}.randn',
                  data.get(f'{prefix}.draw{number}.rand'))


def test_cameras_of_all_distributions(data, cfg):
  names = {x.split('.')[1] for x in data if x.startswith('cam.')}
  assert {'gaussian', 'uniform', 'spherical_uniform', 'mean'} <= names
  for name in names:
    prefix = f'cam.{name}'
    prior = prior_of((name, *data[f'{prefix}.args_hstd_vstd_hmean_vmean']),
                     cfg['fov'])
    nothing = np.zeros_like(data[f'{prefix}.yaw_theta'])
    first, second = (
        nothing[:, 0] if draw(data, prefix, i) is None
        else draw(data, prefix, i)[:, 0] for i in (0, 1))
    poses = rendering.pose(prior, first, second)
    camera = rendering.camera_at(poses, prior)
    for result, key in ((poses[:, :1], 'pitch_phi'),
                        (poses[:, 1:], 'yaw_theta'),
                        (camera.c2w, 'cam2world'),
                        (camera.c2w[:, :3, 3], 'origin')):
      np.testing.assert_allclose(result, data[f'{prefix}.{key}'], atol=1e-5)


def test_rays_and_distances(data, cfg):
  camera = cameras.Camera(
      jnp.eye(4)[None], cameras.pinhole(jnp.array(
          [0.5 / np.tan(np.deg2rad(cfg['fov'] / 2))])))
  rays = rendering.image_rays(camera, cfg['img'], corner_pixels=True)
  np.testing.assert_allclose(
      rays.directions[0], data['ray.dirs_cam'], atol=1e-6)
  middle = rendering.Draws(jnp.full((1, 1, cfg['num_steps']), 0.5), None)
  np.testing.assert_allclose(
      rendering.first_distances(middle, cfg['near'], cfg['far'])[0, 0],
      data['ray.z_linspace'], atol=1e-6)


def test_integration_in_all_variants(data):
  distances = data['integ.z'][..., 0]
  raw = data['integ.rgb_sigma']
  variants = {name.rpartition('.')[0] for name in data
              if name.startswith('integ.') and '.last' in name}
  assert len(variants) == 8
  for name in variants:
    _, activation, last, white = name.split('.')
    settings = rendering.RenderingConfig(
        samples=distances.shape[-1], hierarchical=False, activation=activation,
        last_background=last == 'last1', white_background=white == 'white1')
    weights = rendering.ray_weights(
        rendering.ACTIVATIONS[activation](raw[..., 3]), distances)
    result = rendering.composite(rendering.Samples(
        distances, raw[..., 3], raw[..., :3]), weights, settings)
    np.testing.assert_allclose(result.colors, data[f'{name}.rgb'], atol=1e-5)
    np.testing.assert_allclose(
        result.depth, data[f'{name}.depth'][..., 0], atol=1e-5)
    if last == 'last0':
      np.testing.assert_allclose(
          weights, data[f'{name}.weights'][..., 0], atol=1e-5)
    if activation == 'relu':
      np.testing.assert_allclose(
          result.opacity, data['integ.relu.fill_weight.rgb'][..., 0], atol=1e-5)


def test_inverse_transform_sampling(data):
  fixed = np.linspace(0, 1, data['pdf.samples_det'].shape[-1])
  for quantiles, key in ((data['pdf.u'], 'samples'), (np.broadcast_to(
      fixed, data['pdf.samples_det'].shape), 'samples_det')):
    np.testing.assert_allclose(sampling.sample_pdf(
        data['pdf.bins'], data['pdf.weights'] + 1e-5, jnp.asarray(quantiles)),
        data[f'pdf.{key}'], atol=1e-5)


def official_draws(data, cfg, run, settings):
  """Draws; the official noise of an image is in the order along the ray."""
  prefix = run.partition('.psi')[0]
  of_rays = lambda x: x.reshape(len(data['z']), cfg['img'] ** 2, -1)
  depth, first = (of_rays(draw(data, prefix, i)) for i in (0, 3))
  if not settings.hierarchical:
    return rendering.Draws(depth, None, first, first)
  quantile, final = (of_rays(draw(data, prefix, i)) for i in (4, 5))
  if f'{run}.fine_z' in data:
    distances = np.concatenate([
        rendering.first_distances(
            rendering.Draws(depth, None), cfg['near'], cfg['far']),
        of_rays(data[f'{run}.fine_z'])], axis=-1)
    ranks = np.argsort(np.argsort(distances, axis=-1), axis=-1)
    final = np.take_along_axis(final, ranks, axis=-1)
  return rendering.Draws(depth, quantile, first, final)


def test_whole_images(data, cfg, official):
  runs = [name.removesuffix('.opts') for name in data if name.endswith('.opts')]
  assert len(runs) >= 6
  for run in runs:
    compare_images(data, cfg, official, run)


def compare_images(data, cfg, official, run):
  module, variables = official
  options = ast.literal_eval(str(data[f'{run}.opts']))
  psi = float(run.partition('.psi')[2] or 1)
  prior = prior_of([options[key] for key in (
      'sample_dist', 'h_stddev', 'v_stddev', 'h_mean', 'v_mean')], cfg['fov'])
  settings = rendering.RenderingConfig(
      cfg['num_steps'], cfg['near'], cfg['far'],
      options['hierarchical_sample'], options['clamp_mode'],
      options.get('white_back', False), options.get('last_back', False),
      options.get('lock_view_dependence', False))
  draws = official_draws(data, cfg, run, settings)
  poses = rendering.pose(prior, *(
      draw(data, run.partition('.psi')[0], i)[:, 0] for i in (1, 2)))
  if f'{run}.pitch_yaw' in data:
    np.testing.assert_allclose(poses, data[f'{run}.pitch_yaw'], atol=1e-5)

  @jax.jit
  def render(poses, draws):
    ws = module.apply(variables, data['z'], psi, method='map')
    return rendering.render(
        lambda *inputs: module.apply(variables, *inputs, ws, method='field'),
        rendering.camera_at(poses, prior), cfg['img'], draws, settings,
        noise=options['nerf_noise'])

  image, depth, _ = render(poses, draws)
  assert_close(np.moveaxis(image, -1, 1), data[f'{run}.image'], run)
  assert_close(depth.ravel(), data[f'{run}.depth'].ravel(), run)


def slow_weights(density, distances):
  """One ray, sample by sample in their order (official formula)."""
  weights, through = np.zeros(len(density)), 1.0
  order = np.argsort(distances, kind='stable')
  for place, i in enumerate(order):
    interval = (distances[order[place + 1]] - distances[i]
                if place + 1 < len(order) else 1e10)
    alpha = 1 - np.exp(-density[i] * interval)
    weights[i] = through * alpha
    through *= 1 - alpha
  return weights


def test_weights_of_samples_in_any_order():
  rng = np.random.default_rng(0)
  density = np.float32(np.maximum(rng.normal(size=(3, 9)), 0))
  distances = np.float32(rng.uniform(0.8, 1.2, (3, 9)))
  distances[1, 4] = distances[1, 2]  # An interval without length.
  result = jax.jit(rendering.ray_weights)(density, distances)
  for row in range(3):
    np.testing.assert_allclose(
        result[row], slow_weights(density[row], distances[row]), atol=1e-6)


def test_two_passes_equal_the_union_of_their_samples():
  """`render_rays` against the sort of ops.volume."""
  settings = rendering.RenderingConfig(5, activation='softplus')

  def interval_weights(density, distances):
    edges = jnp.concatenate([distances, distances[..., -1:] + 1e10], axis=-1)
    return volume.alpha_weights(jax.nn.softplus(density), edges)

  quadrature = volume.Quadrature(
      encodings.points_at, interval_weights, lambda weights: weights)

  @jax.jit
  def render_both(draws):
    camera = rendering.camera_at(
        jnp.array([[1.5, 1.4]]), rendering.CameraPrior())
    rays = rendering.image_rays(camera, 3, corner_pixels=True)
    distances = rendering.first_distances(draws, 0.88, 1.12)

    def field(points, directions):
      density = 200 * (0.05 - jnp.linalg.norm(points, axis=-1))
      return density, jax.nn.sigmoid(30 * points + directions[:, :, None])

    march = functools.partial(
        volume.march, lambda samples, _: field(samples.mean, rays.directions),
        quadrature=quadrature)
    passes = volume.union(*volume.coarse_to_fine(
        march, march, rays, distances,
        lambda distances, first: sampling.sample_pdf(
            volume.midpoints(distances), first.weights[..., 1:-1] + 2e-5,
            draws.quantile)), quadrature)
    slow = (sum(volume.composite(p.weights, p.values) for p in passes),
            jnp.sum(passes[0].interval_weights * passes[0].edges, axis=-1))
    result = rendering.render_rays(field, rays, distances, draws, settings)
    return result[:2], slow

  result, slow = render_both(jax.tree.map(
      lambda x: x[None], rendering.sample_draws(
          jax.random.key(0), 3, settings, noisy=False)))
  for a, b in zip(result, slow, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


SMALL = pigan.Generator(
    pigan.SirenConfig(8, 2, 4.0), pigan.MappingConfig(8, 1))


@pytest.fixture(scope='module')
def small():
  return jax.jit(SMALL.init)(jax.random.key(0), jnp.ones((2, 4)))


def test_chunks_change_neither_images_nor_gradients(small):
  settings = rendering.RenderingConfig(
      4, 1.3, 1.7, white_background=True, corner_pixels=False)
  draws = rendering.middle_draws(2, 3, settings)
  camera = rendering.camera_at(
      jnp.array([[1.5, 1.4], [1.7, 1.6]]), rendering.CameraPrior(radius=1.5))

  def loss(params, chunk):
    variables = {**small, 'params': params}
    ws = SMALL.apply(variables, jnp.array([[1.0] * 4, [-1.0] * 4]),
                     method='map')
    image = rendering.render(
        lambda *inputs: SMALL.apply(variables, *inputs, ws, method='field'),
        camera, 3, draws, settings._replace(chunk=chunk), 1.5).image
    return jnp.sum(image ** 2), image

  whole, chunked = jax.jit(lambda params: [
      jax.grad(loss, has_aux=True)(params, chunk) for chunk in (0, 5)])(
          small['params'])
  jax.tree.map(functools.partial(
      np.testing.assert_allclose, rtol=1e-3, atol=1e-4), whole, chunked)


def test_the_sampled_interval_moves_with_the_camera():
  """From twice the radius, the same points are sampled on the middle ray."""
  settings = rendering.RenderingConfig(
      4, 1.3, 1.7, hierarchical=False, corner_pixels=False)

  def sampled(position):
    seen = []

    def field(points, directions):
      seen.append(jnp.linalg.norm(points - position, axis=-1))
      return jnp.ones(points.shape[:-1]), jnp.ones_like(points)

    rendering.render(
        field, cameras.Camera(
            jnp.eye(4).at[:3, 3].set(position)[None],
            cameras.pinhole(jnp.ones(1))), 1,
        rendering.middle_draws(1, 1, settings), settings, 1.5)
    return seen[0][0, 0]

  np.testing.assert_allclose(
      jax.jit(sampled)(jnp.array([0.0, 0, 3])), np.linspace(2.8, 3.2, 4),
      atol=1e-5)


def test_published_number_of_parameters():
  module = pigan.Generator(pigan.SirenConfig(), pigan.MappingConfig())
  params = jax.eval_shape(lambda: module.init(
      jax.random.key(0), jnp.zeros((1, 256))))['params']
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert count(params['siren']) == 529_156
  assert count(params) == 1_910_788


def test_initial_weights():
  module = pigan.Generator(
      pigan.SirenConfig(64, 2), pigan.MappingConfig(128, 2))
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 64)))['params']
  bound = np.sqrt(6 / 64) / 25
  for name, most in (('film_0', 1 / 3), ('film_1', bound), ('density', bound),
                     ('color', bound), ('film_color', np.sqrt(6 / 67) / 25)):
    largest = np.max(np.abs(params['siren'][name]['kernel']))
    assert 0.9 * most < largest <= most, name
  for name, gain in (('dense_1', 1), ('dense_2', 0.25)):
    np.testing.assert_allclose(
        np.std(params['mapping'][name]['kernel']),
        gain * np.sqrt(2 / 1.04 / 128), rtol=0.02)


def test_truncation_of_all_or_the_first_styles(small):
  mean = np.arange(3 * 16, dtype=np.float32).reshape(3, 16)
  variables = {**small, 'buffers': {'w_avg': mean}}
  ws, half, first = jax.jit(lambda z: [
      SMALL.apply(variables, z, *arguments, method='map')
      for arguments in ((), (0.5,), (0.0, 1))])(jnp.ones((1, 4)))
  np.testing.assert_allclose(half, (ws + mean) / 2, rtol=1e-4)
  np.testing.assert_allclose(first[0, 0], mean[0], rtol=1e-5)
  # XLA may round two evaluations within one program differently.
  np.testing.assert_allclose(first[0, 1:], ws[0, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize('settings, said', [
    ({'activation': 'tanh'}, 'activation.*tanh'),
    ({'samples': 2}, 'has 2 samples.*rendering.samples'),
])
def test_impossible_renderings_are_user_errors(settings, said):
  settings = rendering.RenderingConfig(**settings)
  with pytest.raises(ValueError, match=said):
    jax.eval_shape(lambda: rendering.render_rays(
        lambda points, directions: (points[..., 0], points),
        cameras.Rays(*jnp.zeros((3, 1, 1, 3))),
        jnp.ones((1, 1, settings.samples)),
        rendering.middle_draws(1, 1, settings), settings))


def test_unknown_distributions_are_user_errors():
  with pytest.raises(ValueError, match='distribution of cameras.*hybrid'):
    rendering.pose(rendering.CameraPrior('hybrid'), jnp.zeros(1), jnp.zeros(1))
