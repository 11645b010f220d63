"""GIRAFFE against the official code's numbers, and against obvious formulas.

The official numbers are in the folder $GEN3D_REFERENCE, giraffe_tiny.npz; its
`cfg` has the sizes and options, which differ in other sets.
"""

import ast
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.models import giraffe, giraffe_layers, giraffe_rendering
from gen3d.models import giraffe_scene as scene
from gen3d.ops import cameras, encodings, images, linear, volume
from gen3d.weights import port

TOLERANCE = 2e-4  # the encodings' rounding, see the facts of the parity data


@pytest.fixture(scope='module')
def data(reference_data):
  stored = reference_data('giraffe_tiny')
  return {name: stored[name] for name in stored.files}


@pytest.fixture(scope='module')
def cfg(data):
  return ast.literal_eval(str(data['cfg']))


def generator_of(cfg, composition='sum'):
  """giraffe.Generator of the `cfg` of the parity data."""
  decoder = {
      'octaves': cfg['L_pos'], 'view_octaves': cfg['L_view']}
  rendering = giraffe_rendering.Rendering(
      cfg['n_ray_samples'], *cfg['depth_range'], composition=composition)
  return giraffe.Generator(
      {**decoder, 'width': cfg['hidden_obj'], 'layers': cfg['n_blocks_obj'],
       'skips': tuple(cfg['skips_obj']), 'downscale': cfg['downscale_obj']},
      {**decoder, 'width': cfg['hidden_bg'], 'layers': cfg['n_blocks_bg'],
       'skips': tuple(cfg['skips_bg']), 'downscale': cfg['downscale_bg']},
      {'width': cfg['n_feat_nr'], 'min_width': cfg['min_feat'],
       'blocks': int(math.log2(cfg['img_size'])) - 4},
      cfg['rgb_out_dim'], rendering)


def filled(module, arguments, tensors, method=None):
  """Variables of a module, filled from tensors of official names."""
  like = jax.eval_shape(lambda: module.init(
      jax.random.key(0), *arguments, method=method))
  return port.to_flax(tensors, giraffe.sources(like), like,
                      ['*upsample_rgb.1.f'], jnp.asarray)


def part(data, prefix):
  return {name.removeprefix(prefix): x for name, x in data.items()
          if name.startswith(prefix)}


def rows(x, cfg):
  """Official pixels [N, x * r + y, ...] in our order, [N, y * r + x, ...].

  And the other way round.
  """
  side = cfg['res_vol']
  x = x.reshape(len(x), side, side, *x.shape[2:])
  return x.swapaxes(1, 2).reshape(len(x), side**2, *x.shape[3:])


def last(x):
  return np.moveaxis(x, 1, -1)


def prior_of(data, cfg):
  at = lambda name: tuple(data[f'bbox.cfg.{name}'].tolist())
  plane = (float(data['bbox.cfg.z_level_plane'])
           if data['bbox.cfg.object_on_plane'] else None)
  return scene.Prior(
      boxes=cfg['n_boxes'], scale_min=at('scale_range_min'),
      scale_max=at('scale_range_max'),
      translation_min=at('translation_range_min'),
      translation_max=at('translation_range_max'),
      rotation_range=at('rotation_range'), plane=plane,
      background_rotation_range=tuple(data['bg.rot_range'].tolist()),
      v_range=tuple(cfg['range_v']), fov=cfg['fov'],
      radius_range=tuple(cfg['range_radius']))


@pytest.fixture(scope='module')
def setup(data, cfg):
  """(generator, variables, codes, layout, camera) of the parity data."""
  codes = scene.Codes(*(data[f'z.{name}'] for name in (
      'shape_obj', 'app_obj', 'shape_bg', 'app_bg')))
  layout = scene.Layout(
      data['bbox.scale'], data['bbox.translation'], data['bbox.rotation'],
      np.ones(data['bbox.u_rot'].shape, bool), data['bg.rotation'])
  focal = 1 / (2 * data['cam.camera_mat'][:, 0, 0])
  camera = cameras.Camera(data['cam.world_mat'], cameras.pinhole(focal))
  generator = generator_of(cfg)
  variables = filled(generator, (codes, layout, camera, cfg['res_vol']),
                     part(data, 'G.'))
  return generator, variables, codes, layout, camera


def test_decoders(data, cfg, setup):
  generator, variables, codes, *_ = setup
  each = lambda x: x[:, :, None]  # points of one sample a ray

  def decode(variables, object_in, background_in):
    results = []
    for name, inputs in (('decoder', object_in),
                         ('background_generator', background_in)):
      module = getattr(generator.bind(variables), name)
      density, hidden = module(*inputs)
      results.append((module.to_features(
          hidden, jnp.ones(hidden.shape[:-1])), density))
    return results

  direction = data['dec.ray_d']
  results = jax.jit(decode)(
      variables,
      (each(data['dec.p']), direction, codes.shape[:, 0],
       codes.appearance[:, 0]),
      (each(data['bgdec.p']), direction, codes.background_shape,
       codes.background_appearance))
  for name, (features, density) in zip(('dec', 'bgdec'), results, strict=True):
    np.testing.assert_allclose(
        features[:, :, 0], data[f'{name}.feat'], atol=TOLERANCE)
    np.testing.assert_allclose(
        density[:, :, 0], data[f'{name}.sigma'], atol=TOLERANCE)


def test_encodings(data, cfg):
  """Ours have all sines first."""
  for name, points, octaves in (
      ('pe_p', data['dec.p'], cfg['L_pos']),
      ('pe_view', cameras.normalize(data['dec.ray_d']), cfg['L_view'])):
    ours = giraffe_layers.positional(points / cfg['downscale_obj'], octaves)
    ours = ours.reshape(*points.shape[:-1], 2, octaves, 3).swapaxes(-3, -2)
    np.testing.assert_allclose(
        ours.reshape(*points.shape[:-1], -1), data[f'dec.{name}'], atol=2e-6)


def test_encodings_equal_the_general_ones():
  x = jax.random.uniform(jax.random.key(0), (50, 3), minval=-7, maxval=7)
  np.testing.assert_allclose(
      giraffe_layers.positional(x, 10), encodings.positional(jnp.pi * x, 10),
      atol=1e-6)


def test_cameras(data, cfg):
  between = lambda name, low, high: low + data[name] * (high - low)
  camera = scene.camera_at(
      between('cam.v', *cfg['range_v']),
      between('cam.r', *cfg['range_radius']), cfg['fov'],
      between('cam.u', *data['cam.range_u']))
  np.testing.assert_allclose(camera.c2w, data['cam.world_mat'], atol=1e-6)
  np.testing.assert_allclose(
      0.5 / camera.intrinsics[:, 0, 0], data['cam.camera_mat'][:, 0, 0],
      rtol=1e-6)
  camera = scene.camera_at(data['sphere.v'], 1.0, 40.0, data['sphere.u'])
  np.testing.assert_allclose(
      camera.c2w[:, :3, 3], data['sphere.xyz'], atol=1e-6)
  # The official axes are not normalized one by one, see camera_at.
  sine = np.linalg.norm(data['sphere.xyz'][:, :2], axis=1)
  scale = np.stack([sine, sine, np.full_like(sine, max(sine))], -1) / max(sine)
  np.testing.assert_allclose(
      camera.c2w[:, :3, :3] * scale[:, None], data['sphere.look_at'], atol=1e-6)


def test_layouts(data, cfg):
  layout = scene.layout_of(
      prior_of(data, cfg), data['bbox.u_scale'], data['bbox.u_trans'],
      data['bbox.u_rot'], data['bg.u_rot'])
  for ours, name in ((layout.scale, 'bbox.scale'),
                     (layout.translation, 'bbox.translation'),
                     (layout.rotation, 'bbox.rotation'),
                     (layout.background, 'bg.rotation')):
    np.testing.assert_allclose(ours, data[name], atol=1e-6)
  if 'bbox.collision_pairwise_free_pad0.1' in data:
    np.testing.assert_array_equal(
        scene.boxes_apart(layout.scale, layout.translation, 0.1),
        data['bbox.collision_pairwise_free_pad0.1'])


def test_rays(data, cfg, setup):
  *_, layout, camera = setup
  rays = giraffe_rendering.rays_of(camera, cfg['res_vol'])
  official = {name: rows(data[f'ray.{name}'], cfg)
              for name in ('pixels_world', 'origin', 'dir')}
  np.testing.assert_allclose(rays.start, official['origin'], atol=1e-6)
  np.testing.assert_allclose(rays.end, official['pixels_world'], atol=1e-6)
  np.testing.assert_allclose(
      rays.end - rays.start, official['dir'], atol=1e-6)
  t = giraffe_rendering.depths(giraffe_rendering.Rendering(
      cfg['n_ray_samples'], *cfg['depth_range']))
  boxes = giraffe_rendering.rays_in_boxes(rays, layout)
  points = giraffe_rendering.points_at(boxes, t)
  # Every seventh sample, in the order of the official pixels.
  listed = lambda x: rows(x, cfg).reshape(len(x), -1, 3)[:, ::7]
  for i in range(cfg['n_boxes']):
    np.testing.assert_allclose(
        listed(points[:, i]), data[f'eval.obj{i}.points'], atol=1e-5)
    directions = jnp.broadcast_to(
        (boxes.end - boxes.start)[:, i, :, None], points[:, i].shape)
    np.testing.assert_allclose(
        listed(directions), data[f'eval.obj{i}.rays'], atol=1e-5)


def tags_of(data):
  return [tag for tag in ('eval', 'train', 'noback', 'onlyback', 'maxcomp')
          if f'{tag}.feat_map' in data]


def official_draws(data, cfg):
  """giraffe_rendering.Draws of the tag 'train'."""
  shape = data['train.draw0.rand'].shape
  noise = [rows(data[f'train.draw{i + 1}.randn'].reshape(shape), cfg)
           for i in range(cfg['n_boxes'] + 1)]
  return giraffe_rendering.Draws(
      rows(data['train.draw0.rand'], cfg), np.stack(noise, 2))


@pytest.fixture(scope='module')
def rendered(data, cfg, setup):
  """{tag: (images, Rendered, Entities' density, weights, ...)}, one program."""
  _, variables, codes, layout, camera = setup
  draws = official_draws(data, cfg)
  options = {
      'eval': ('sum', None, 'all'), 'train': ('sum', draws, 'all'),
      'noback': ('sum', None, 'objects'),
      'onlyback': ('sum', None, 'background'), 'maxcomp': ('max', None, 'all')}

  @functools.partial(jax.jit, static_argnums=0)
  def render(tag, variables, codes, layout, camera, draws):
    composition, _, which = options[tag]
    if cfg['max_composition']:
      composition = 'max'
    generator = generator_of(cfg, composition).bind(variables)
    rays = giraffe_rendering.rays_of(camera, cfg['res_vol'])
    t = giraffe_rendering.depths(generator.rendering, draws and draws.jitter)
    networks = generator.networks(codes)
    entities = giraffe_rendering.evaluate(networks, codes, layout, rays, t,
                              draws and draws.noise, which=which)
    total, shares = giraffe_rendering.compose(entities.density, composition)
    features = 0
    if which != 'background':
      objects = shares[:, :cfg['n_boxes']]
      features += networks.object_features(
          jnp.sum(objects[..., None] * entities.object_hidden, 1),
          jnp.sum(objects, 1))
    if which != 'objects':
      features += networks.background_features(
          shares[:, -1, ..., None] * entities.background_hidden, shares[:, -1])
    images = generator.render(
        codes, layout, camera, cfg['res_vol'], draws, which)
    return {
        't': t, 'density': entities.density, 'total': total,
        'weights': volume.alpha_weights(total, entities.edges),
        'features': features, 'feature_map': images.features,
        'image': generator.image(images.features),
        'opacities': (None if which == 'background'
                      else giraffe_rendering.opacities(entities))}

  return {tag: render(tag, variables, codes, layout, camera, options[tag][1])
          for tag in tags_of(data)}


@pytest.mark.parametrize(
    'tag', ['eval', 'train', 'noback', 'onlyback', 'maxcomp'])
def test_rendering(data, cfg, rendered, tag):
  if tag not in rendered:
    pytest.skip('not in this set')
  ours = rendered[tag]
  stage = lambda name: data[f'{tag}.{name}']
  close = functools.partial(np.testing.assert_allclose, atol=TOLERANCE)
  if f'{tag}.di' in data:
    close(rows(ours['t'], cfg), stage('di'), atol=1e-6)
  density = np.moveaxis(ours['density'], 1, 0)
  for i, official in enumerate(stage('sigma_sub4')):
    close(rows(density[i], cfg)[:, ::4], official)
  close(rows(ours['total'], cfg)[:, ::4], stage('sigma_sum_sub4'))
  close(rows(ours['weights'], cfg)[:, ::4], stage('w_sub4'))
  # Features are defined where there is density.
  composed = rows(ours['features'], cfg)[:, ::16, :, ::4]
  official = stage('feat_comp_sub8')
  dense = rows(ours['total'], cfg)[:, ::16, :, None] > 0
  close(np.where(dense, composed, 0), np.where(dense, official, 0))
  close(ours['feature_map'], last(stage('feat_map')))
  if f'{tag}.image' in data:
    close(ours['image'], last(stage('image')))


def test_opacities_of_objects(data, rendered):
  side = data['alpha_map'].shape[-1]
  ours = rendered['eval']['opacities']
  np.testing.assert_allclose(
      ours.reshape(*ours.shape[:2], side, side), data['alpha_map'],
      atol=TOLERANCE)


def test_neural_renderer(data, cfg, setup):
  generator, variables, *_ = setup
  features = last(data['nr.in'])
  params = variables['params']['neural_renderer']
  first = linear.correlate(features, params['conv_rgb_0']['kernel'])
  np.testing.assert_allclose(
      giraffe.upsample_rgb(first + params['conv_rgb_0']['bias']),
      last(data['nr.rgb0_up']), atol=1e-5)
  np.testing.assert_allclose(
      generator.apply(variables, features, method='image'),
      last(data['nr.out']), atol=1e-5)
  np.testing.assert_allclose(
      images.reflected_blur(last(data['nr.blur_in']), giraffe._BLUR_SIGMA, 1),
      last(data['nr.blur_out']), atol=1e-6)
  np.testing.assert_allclose(
      giraffe.upsample_rgb(last(data['nr.blur_in'])),
      last(data['nr.upblur_out']), atol=1e-6)


def test_discriminator_and_its_losses(data, cfg):
  module = giraffe.Discriminator(cfg['img_size'], cfg['D_n_feat'])
  x = last(data['D.in'])
  variables = filled(module, (x,), {
      name: x for name, x in part(data, 'D.').items() if 'weight' in name})

  @jax.jit
  def losses(variables, x):
    discriminate = functools.partial(module.apply, variables)
    logits = discriminate(x)
    each = jax.vmap(jax.grad(lambda image: discriminate(image[None])[0]))(x)
    squared = jnp.sum(each**2, axis=(1, 2, 3))
    return {'logits': logits[:, None], 'grad2_per_sample': squared,
            'r1_term_10x_mean': 10 * jnp.mean(squared),
            'bce_real': jnp.mean(jax.nn.softplus(-logits)),
            'bce_fake': jnp.mean(jax.nn.softplus(logits))}

  for name, value in losses(variables, x).items():
    np.testing.assert_allclose(value, data[f'D.{name}'], rtol=1e-4)


def test_convolutions_equal_those_of_repeated_and_of_strided_images():
  keys = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(keys[0], (2, 6, 8, 3))
  kernel = jax.random.normal(keys[1], (3, 3, 3, 5))
  np.testing.assert_allclose(
      giraffe_layers.upsampled_correlate(x, kernel),
      linear.correlate(x.repeat(2, 1).repeat(2, 2), kernel), atol=1e-4)
  kernel = jax.random.normal(keys[2], (4, 4, 3, 5))
  np.testing.assert_allclose(
      giraffe_layers.halving_correlate(x, kernel),
      jax.lax.conv_general_dilated(
          x, kernel, (2, 2), [(1, 1), (1, 1)],
          dimension_numbers=('NHWC', 'HWIO', 'NHWC')), atol=1e-4)


def test_color_of_a_feature_is_that_of_a_uniform_image():
  module = giraffe.NeuralRenderer(8, 4, 2)
  features = jnp.broadcast_to(
      jax.random.normal(jax.random.key(0), (2, 1, 1, 6)), (2, 8, 8, 6))

  @jax.jit
  def both(features):
    variables = module.init(jax.random.key(1), features)
    return (giraffe.uniform_color(variables['params'], features[:, 0, 0]),
            module.apply(variables, features)[:, 16, 16])

  np.testing.assert_allclose(*both(features), atol=1e-5)


@pytest.mark.parametrize('codes, features, options, count', [
    (256, 128, {}, 266_241), (256, 256, {}, 282_753),
    (128, 128, {'width': 64, 'layers': 4, 'skips': ()}, 47_041),
    (128, 256, {'width': 64, 'layers': 4, 'skips': ()}, 55_361)])
def test_decoders_have_the_official_numbers_of_parameters(
    codes, features, options, count):
  def every_layer(module):
    code = jnp.zeros((1, codes))
    density, hidden = module(
        jnp.zeros((1, 1, 1, 3)), jnp.ones((1, 1, 3)), code, code)
    return module.to_features(hidden, density)

  shapes = jax.eval_shape(lambda: giraffe.Decoder(features, **options).init(
      jax.random.key(0), method=every_layer))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == count
