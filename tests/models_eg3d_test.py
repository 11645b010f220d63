"""EG3D against loops, published sizes and, where available, the original.

Reference values of the official code are not part of this repository (their
license is non-commercial): give their folder as $GEN3D_REFERENCE.
"""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import eg3d as config_file
from gen3d.gan import build as gan_build
from gen3d.models import eg3d, nvidia, stylegan2
from gen3d.ops import cameras
from gen3d.weights import port

LABEL = cameras.to_label(cameras.orbit(
    jnp.array([0., 70.]), jnp.array([10., -5.]), 2.7, 4.2647))


def count(tree):
  return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


def small(**rendering):
  rendering = {'samples_coarse': 6, 'samples_fine': 6, 'chunk': 0, **rendering}
  return eg3d.Generator(
      {'resolution': 16, 'channel_base': 64, 'channel_max': 8},
      {'width': 16, 'layers': 1}, eg3d.RenderingConfig(**rendering),
      eg3d.SuperResolutionConfig(8, (8, 4), (False, True)), features=4)


def start(generator, resolution=8):
  """(variables, z, RayJitter) of two images."""
  z = jax.random.normal(jax.random.key(0), (2, 6))
  jitter = eg3d.ray_jitter(
      jax.random.key(1), 2, resolution, generator.rendering)
  variables = jax.jit(lambda: generator.init(
      jax.random.key(2), z, LABEL, LABEL, resolution, jitter))()
  return variables, z, jitter


def slow_render(field, origin, direction, near, far, coarse, fine, white):
  """One ray in two passes, in the order of the paper's supplement."""
  def softplus(x):
    return np.log1p(np.exp(x))

  def weights_of(t, sigma):
    weights, through = [], 1.0
    for i in range(len(t) - 1):
      density = softplus((sigma[i] + sigma[i + 1]) / 2 - 1)
      alpha = 1 - np.exp(-density * (t[i + 1] - t[i]))
      weights.append(through * alpha)
      through *= 1 - alpha
    return np.array(weights)

  steps = len(coarse)
  t = near + (far - near) * (np.arange(steps) + coarse) / (steps - 1)
  sigma, value = field(origin + t[:, None] * direction)
  w = weights_of(t, sigma)
  smooth = np.array([
      .5 * (max(w[max(i - 1, 0)], w[i]) + max(w[i], w[min(i + 1, len(w) - 1)]))
      + .01 for i in range(len(w))])
  density = smooth[1:-1] + 1e-5
  cdf = np.concatenate([[0], np.cumsum(density / density.sum())])
  edges = ((t[1:] + t[:-1]) / 2)[:-1]
  more = np.interp(fine, cdf, edges)
  sigma2, value2 = field(origin + more[:, None] * direction)
  order = np.argsort(np.concatenate([t, more]))
  t = np.concatenate([t, more])[order]
  sigma = np.concatenate([sigma, sigma2])[order]
  value = np.concatenate([value, value2])[order]
  w = weights_of(t, sigma)
  middle = (t[1:] + t[:-1]) / 2
  color = np.sum(w[:, None] * (value[1:] + value[:-1]) / 2, axis=0)
  return (2 * (color + white * (1 - w.sum())) - 1,
          np.sum(w * middle) / w.sum(), w.sum())


@pytest.mark.parametrize('white', [False, True])
def test_rendering_in_two_passes_agrees_with_a_loop(white):
  rng = np.random.default_rng(0)
  origins = rng.normal(size=(5, 3)).astype(np.float32)
  directions = rng.normal(size=(5, 3)).astype(np.float32)
  directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
  coarse, fine = rng.random((5, 8)), rng.random((5, 6))

  def at_points(points, xp):
    density = 3 * xp.sin(4 * points[..., 0]) + 2 * points[..., 1]
    return density, xp.stack([xp.cos(points[..., i]) for i in range(3)], -1)

  field = lambda samples, directions: at_points(samples.mean, jnp)

  ones = jnp.ones((5, 1))
  rendered = eg3d.render_rays(
      field, cameras.Rays(jnp.array(origins), jnp.array(directions), ones),
      ones, 3 * ones, eg3d.RayJitter(jnp.array(coarse), jnp.array(fine)),
      eg3d.RenderingConfig(8, 6, white_background=white))
  for i in range(5):
    expected = slow_render(
        functools.partial(at_points, xp=np), origins[i], directions[i], 1., 3.,
        coarse[i], fine[i], white)
    for x, y in zip(rendered[:3], expected, strict=True):
      np.testing.assert_allclose(x[i], y, atol=1e-4)


@pytest.mark.parametrize('samples, importance', [(1, 0), (3, 2), (2, 2)])
def test_too_few_samples_are_refused(samples, importance):
  with pytest.raises(ValueError, match=f'A ray has {samples} samples'):
    eg3d.render_rays(None, None, None, None, None,
                     eg3d.RenderingConfig(samples, importance))


def test_automatic_bounds_are_those_of_the_cube():
  rays = cameras.Rays(
      jnp.array([[0., 0., 3.], [.2, 0., 4.], [0., 5., 3.]]),
      jnp.array([[0., 0., -1.]] * 3), jnp.ones((3, 1)))
  near, far = eg3d.ray_bounds(
      rays, eg3d.RenderingConfig(ray_start='auto', box_warp=2.0))
  np.testing.assert_allclose(near[:, 0], [2, 3, 2], atol=1e-6)
  np.testing.assert_allclose(far[:, 0], [4, 5, 3], atol=1e-6)


@pytest.mark.parametrize('axes', ['xy_xz_yz', 'eg3d_legacy'])
def test_query_decodes_the_mean_of_three_planes(axes):
  generator = small()
  generator = generator.clone(
      rendering=generator.rendering._replace(axes=axes, box_warp=1.6))
  variables, _, _ = start(generator)
  rng = np.random.default_rng(0)
  size, count = 8, generator.features
  planes = rng.normal(size=(1, size, size, 3, count)).astype(np.float32)
  # At texels' centers: columns go with the first axis, rows with the second.
  place = rng.integers(size, size=(20, 3))
  x, y, z = place.T
  third = {'xy_xz_yz': planes[0, z, y, 2], 'eg3d_legacy': planes[0, x, z, 2]}
  features = (planes[0, y, x, 0] + planes[0, z, x, 1] + third[axes]) / 3
  decoder = jax.tree.map(np.asarray, variables['params']['decoder'])
  layer = lambda name, x: (x @ decoder[name]['weight'] / np.sqrt(x.shape[-1])
                           + decoder[name]['bias'])
  out = layer('net.2', np.log1p(np.exp(layer('net.0', features))))
  points = (2 * (place + 0.5) / size - 1) * 1.6 / 2
  density, values = generator.apply(
      variables, jnp.array(planes), jnp.float32(points[None]), method='query')
  np.testing.assert_allclose(density[0], out[:, 0], atol=1e-4)
  np.testing.assert_allclose(
      values[0], 1.002 / (1 + np.exp(-out[:, 1:])) - 0.001, atol=1e-4)


def test_chunks_do_not_change_images_and_gradients():
  whole, parts = small(), small(chunk=24)
  variables, z, jitter = start(whole)

  def loss(params, generator):
    generated = generator.apply(
        {**variables, 'params': params}, z, LABEL, LABEL, 8, jitter,
        noise='const')
    return jnp.mean(generated.image ** 2) + jnp.mean(generated.depth), generated

  for a, b in zip(*(
      jax.tree.leaves(jax.jit(functools.partial(jax.grad(
          loss, has_aux=True), generator=g))(variables['params']))
      for g in (whole, parts))):
    np.testing.assert_allclose(a, b, atol=2e-5 + 1e-3 * np.abs(a).max())


def test_pose_conditioning_of_zero_ignores_the_label():
  conditioned = small()
  unconditioned = conditioned.clone(pose_conditioning=0.0)
  variables, z, _ = start(conditioned)
  ws = lambda g, label: g.apply(variables, z, label, method='map')
  assert not np.allclose(
      ws(conditioned, LABEL), ws(conditioned, LABEL[::-1]))
  np.testing.assert_array_equal(
      ws(unconditioned, LABEL), ws(unconditioned, LABEL[::-1]))


def test_planes_are_channels_plane_by_plane():
  generator = small()
  variables, z, _ = start(generator)
  ws = generator.apply(variables, z, LABEL, method='map')
  painted = generator.apply(
      variables, ws, method=lambda g, ws: g.backbone.synthesis(ws, 'const'))
  planes = generator.apply(variables, ws, 'const', method='planes')
  assert planes.shape == (2, 16, 16, 3, 4)
  np.testing.assert_array_equal(planes[..., 2, 1], painted[..., 2 * 4 + 1])


@pytest.mark.parametrize('name, parameters', [
    ('8XDC', 1_649_578), ('8X', 574_954), ('4X', 574_954), ('2X', 574_954)])
def test_published_sizes_of_super_resolution(name, parameters):
  network = eg3d.SuperResolution(eg3d.SUPER_RESOLUTIONS[name])
  size = eg3d.SUPER_RESOLUTIONS[name].size
  out, shapes = jax.eval_shape(lambda: network.init_with_output(
      jax.random.key(0), jnp.zeros((1, size, size, 32)), jnp.zeros((1, 512))))
  assert count(shapes['params']) == parameters
  assert out.shape == (1, size * 2 ** sum(eg3d.SUPER_RESOLUTIONS[name].up)) + (
      size * 2 ** sum(eg3d.SUPER_RESOLUTIONS[name].up), 3)


def test_parameter_names_are_those_of_the_published_generator():
  generator = eg3d.Generator(
      {'resolution': 256}, {'layers': 2}, eg3d.RenderingConfig(),
      eg3d.SUPER_RESOLUTIONS['8XDC'])
  jitter = eg3d.ray_jitter(None, 1, 64, generator.rendering)
  label, z = jnp.zeros((1, 25)), jnp.zeros((1, 512))
  shapes = jax.eval_shape(lambda: generator.init(
      jax.random.key(0), z, label, label, 64, jitter))
  assert count(shapes['params']) == 30_662_136
  layer = ('weight', 'bias', 'noise_strength', 'noise_const', 'affine.weight',
           'affine.bias')
  rgb = ('weight', 'bias', 'affine.weight', 'affine.bias')
  names = {'backbone.synthesis.b4.const', 'backbone.mapping.w_avg'}
  for block in ['superresolution.block0', 'superresolution.block1'] + [
      f'backbone.synthesis.b{2 ** i}' for i in range(2, 9)]:
    names |= {f'{block}.conv1.{n}' for n in layer}
    names |= {f'{block}.torgb.{n}' for n in rgb}
    if not block.endswith('.b4'):
      names |= {f'{block}.conv0.{n}' for n in layer}
  names |= {f'{dense}.{n}' for n in ('weight', 'bias') for dense in (
      'backbone.mapping.embed', 'backbone.mapping.fc0', 'backbone.mapping.fc1',
      'decoder.net.0', 'decoder.net.2')}
  assert {n for n, _ in nvidia.sources(shapes).values()} == names


def test_generator_of_tri_grids_has_the_slices_of_its_planes():
  generator = small().clone(plane_depth=3)
  jitter = eg3d.ray_jitter(None, 2, 8, generator.rendering)
  z = jnp.zeros((2, 6))
  image, variables = jax.eval_shape(lambda: generator.init_with_output(
      jax.random.key(0), z, LABEL, LABEL, 8, jitter))
  assert image.image.shape == (2, 16, 16, 3)
  planes = jax.eval_shape(lambda variables: generator.apply(
      variables, jnp.zeros((2, 4, 16)), 'none', method='planes'), variables)
  assert planes.shape == (2, 16, 16, 9, 4)


def test_dual_image_is_the_image_and_the_resized_raw_image():
  image = jnp.ones((1, 16, 16, 3))
  dual = eg3d.dual_image(image, jnp.zeros((1, 4, 4, 3)))
  np.testing.assert_array_equal(dual[..., :3], image)
  np.testing.assert_array_equal(dual[..., 3:], 0)


@pytest.fixture(scope='module')
def reference():
  folder = pathlib.Path(os.environ.get('GEN3D_REFERENCE', ''))
  if not (folder / 'eg3d_tiny.npz').is_file():
    pytest.skip('set GEN3D_REFERENCE to the folder with eg3d_tiny.npz')
  return folder


@pytest.fixture(scope='module')
def golden(reference):
  return dict(np.load(reference / 'eg3d_tiny.npz'))


def ported(golden, letter, like):
  tensors = {name[2:]: value for name, value in golden.items()
             if name.startswith(f'{letter}.')}
  return port.to_flax(tensors, nvidia.sources(like), like,
                      ignored=nvidia.NOT_OURS)


def test_official_networks_have_the_names_that_we_write(reference):
  networks = gan_build.networks(config_file.get_config('ffhq512'))
  like = jax.eval_shape(networks.init, jax.random.key(0))
  for letter, name in (('G', 'generator'), ('D', 'discriminator')):
    zeros = jax.tree.map(lambda x: np.zeros(x.shape), like[name])
    ours = {name: list(x.shape)
             for name, x in nvidia.tensors(zeros).items()}
    lines = (reference / f'eg3d_{letter}_keys.txt').read_text().splitlines()
    theirs = {line.split()[1]: json.loads(line.split(maxsplit=2)[2])
              for line in lines if 'dataset_label_std' not in line}
    assert ours == theirs


def test_every_stage_agrees_with_the_official_code(golden):
  generator = eg3d.Generator(
      {'resolution': 256, 'channel_base': 1024, 'channel_max': 16},
      {'width': 512, 'layers': 2},
      eg3d.RenderingConfig(12, 12, axes='eg3d_legacy'),
      eg3d.SUPER_RESOLUTIONS['2X'], super_resolution_clamp=256)
  z, c = jnp.array(golden['z']), jnp.array(golden['c'])
  jitter = eg3d.RayJitter(
      jnp.array(golden['u.coarse_u'][..., 0]),
      jnp.array(golden['u.fine_u']).reshape(2, 256, 12))
  variables = ported(golden, 'G', jax.eval_shape(lambda: generator.init(
      jax.random.key(0), z, c, c, 16, jitter)))
  call = lambda method, *args: jax.jit(
      lambda variables, *args: generator.apply(
          variables, *args, method=method))(variables, *args)
  near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-4)
  first = lambda x: np.moveaxis(x, -1, 1)

  rays = cameras.rays(cameras.from_label(c), 16, 16)
  near(rays.origins.reshape(2, 256, 3), golden['ray_o'])
  near(rays.directions.reshape(2, 256, 3), golden['ray_d'])
  near(call('map', z, c), golden['ws_psi1'])
  ws = call('map', z, c, .7, 14)
  near(ws, golden['ws'])
  planes = generator.apply(variables, ws, 'const', method='planes')
  near(first(planes.reshape(2, 256, 256, 96))[:, :, ::16, ::16],
       golden['planes_sub16'])
  render = lambda method, *args: jax.jit(
      lambda variables, *args: generator.apply(
          variables, *args, c, 16, jitter, method=method))(variables, *args)
  values, depth, _ = render('features_at', planes)
  near(first(values), golden['feature_image'])
  near(depth, golden['image_depth'][:, 0])
  generated = render('render', planes, ws)
  near(first(generated.image_raw), golden['image_raw'])
  near(first(generated.image), golden['image'])
  density, color = call('query', planes, jnp.array(golden['pts']))
  near(density, golden['pts_sigma'][..., 0])
  near(color, golden['pts_rgb'])

  discriminator = stylegan2.Discriminator(
      128, labeled=True, channel_base=1024, channel_max=16, mbstd_group=2,
      clamp=256)
  pair = eg3d.dual_image(generated.image, generated.image_raw)
  variables = ported(golden, 'D', jax.eval_shape(
      lambda: discriminator.init(jax.random.key(0), pair, c)))
  near(discriminator.apply(variables, pair, c), golden['logits'][:, 0])
  back = nvidia.tensors(variables)
  theirs = {name[2:]: x for name, x in golden.items() if name[:2] == 'D.'}
  assert set(back) == set(theirs)
  for name, x in back.items():
    np.testing.assert_array_equal(x, theirs[name])
