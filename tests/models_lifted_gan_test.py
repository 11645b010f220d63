"""Parity with LiftedGAN: the official networks' numbers for random weights.

The data are in the folder $GEN3D_REFERENCE, lifted_tiny.npz. The official
rasterizer misses pixels whose centers are exactly on a shared edge; those are
left out where a view has some.
"""

import ast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.gan import generator2d, lifting, lifting_losses
from gen3d.models import lifted_gan, lresnet, stylegan2_rosinality
from gen3d.ops import cameras, depth_mesh, images
from gen3d.weights import port


@pytest.fixture(scope='module')
def data(reference_data):
  stored = reference_data('lifted_tiny')
  # All at once: an NpzFile reads an array anew at each access.
  return {name: stored[name] for name in stored.files}


@pytest.fixture(scope='module')
def config(data):
  return ast.literal_eval(str(data['cfg']))


@pytest.fixture(scope='module')
def settings(config):
  rendering = config['renderer_params']
  return lifting.Settings(
      fov=rendering['fov'], center_depth=rendering['rot_center_depth'],
      min_depth=config['min_depth'], max_depth=config['max_depth'],
      border_depth=config['border_depth'],
      rotation_range=config['xyz_rotation_range'],
      xy_range=config['xy_translation_range'],
      z_range=config['z_translation_range'],
      blur_radius=config['blur_params']['size'],
      blur_sigma=config['blur_params']['sigma'],
      clamp_border=config['clamp_border'],
      delight=config['generator_texture'],
      clip_contours=config['clip_render_grad'])


@pytest.fixture(scope='module')
def generator(data):
  return stylegan2_rosinality.from_torch(_part(data, 'g_ema'))


@pytest.fixture(scope='module')
def lifted(data, generator, settings):
  width = lambda name: len(data[name])
  return lifting.Lifting(
      generator.network,
      lifted_gan.Decompose(width('netSD.model_light.mlp.0.bias')),
      lifted_gan.Compose(width('netSC.model.mlp.0.bias')),
      lifted_gan.Depth(width('netD.inject.weight'), width('netD.mlp.0.bias')),
      lifted_gan.Warp(
          generator.network.synthesis_config['resolution'],
          data['netT.network.21.weight'].shape[1], width('netT.mlp.0.bias')),
      settings)


@pytest.fixture(scope='module')
def params(data, lifted, generator):
  like = jax.eval_shape(lambda: lifting.init(
      lifted, generator.variables, jax.random.key(0)))
  return lifted_gan.from_torch(data, like)


@pytest.fixture(scope='module')
def estimated(data, lifted, params, generator):
  """All stages before the rasterizer, by one program."""

  @jax.jit
  def stages(params, variables, z, mean, light, view):
    w = generator2d.map_latents(generator.network, variables, z)[:, 0]
    made = lifting.estimate(lifted, params, variables, w)
    image, features = lifting.synthesize(lifted, variables, w)
    _, neutral = lifting.synthesize(lifted, variables, made.style)
    run = lambda *args: lifting.apply(lifted, params, *args)
    buffers = variables['buffers']
    moved = {**variables, 'buffers': {
        **buffers, 'mapping': {**buffers['mapping'], 'w_avg': mean}}}
    return {
        'w': w, 'made': made, 'image': image, 'features': features,
        'truncated': generator2d.map_latents(
            generator.network, moved, z, 0.7)[:, 0],
        'decomposed': run('decompose', w),
        'composed': run('compose', w, light, view),
        'depth': run('depth', made.style, neutral),
        'logits': run('warp', made.style),
        'normals': lifting.normals_of(lifted.settings, made.depth)}

  return stages(params, generator.variables, data['z'], data['w_mu'][0],
                data['SC.light'], data['SC.view'])


@pytest.fixture(scope='module')
def scene(data):
  """Depth, albedo, light, view and blend of the rendered examples."""
  return (data['render.in_depth'], _last(data['render.in_albedo']),
          data['render.in_light'], data['render.view_normalised'],
          _last(data['render.in_trans_map']))


def _part(data, name):
  """The state_dict of one network."""
  return {key.removeprefix(f'{name}.'): value for key, value in data.items()
          if key.startswith(f'{name}.')}


def _last(x):
  """[N, C, H, W] with the channels last."""
  return np.moveaxis(x, 1, -1)


def _assert_seen(image, expected, holes=0):
  """Compares images [..., H, W, C], but for a number of pixels."""
  error = np.abs(np.asarray(image) - expected).max(-1)
  assert np.sum(error > 1e-3) <= holes


def test_styles_and_images_of_the_frozen_generator(data, estimated):
  np.testing.assert_allclose(estimated['w'], data['w'], atol=1e-5)
  np.testing.assert_allclose(
      estimated['truncated'], data['w_trunc0.7'], atol=1e-5)
  np.testing.assert_allclose(estimated['image'][:, ::3, ::3],
                             _last(data['gen_im_sub3']), atol=1e-4)
  np.testing.assert_allclose(estimated['features'][:, ::16, ::16],
                             _last(data['gen_feat_sub16']), atol=1e-4)


def test_decompose_and_compose(data, estimated):
  for ours, name in zip(estimated['decomposed'], ('style', 'light', 'view')):
    np.testing.assert_allclose(ours, data[f'SD.{name}'], atol=1e-5)
  np.testing.assert_allclose(estimated['composed'], data['SC.out'], atol=1e-5)


def test_estimation(data, estimated):
  made = estimated['made']
  np.testing.assert_allclose(
      made.style, data['est.neutral_style'], atol=1e-5)
  np.testing.assert_allclose(
      estimated['depth'], data['est.depth_raw'], atol=2e-4)
  for ours, name in ((made.image, 'albedo_raw'), (made.albedo, 'albedo_delit'),
                     (estimated['logits'][..., None], 'trans_logit'),
                     (made.blend, 'trans_map')):
    np.testing.assert_allclose(
        ours[:, ::3, ::3], _last(data[f'est.{name}_sub3']), atol=3e-4)
  np.testing.assert_allclose(
      made.depth[:, ::3, ::3], data['est.depth_sub3'], atol=1e-5)
  np.testing.assert_allclose(estimated['normals'][:, ::3, ::3],
                             data['normal.delit_depth_sub3'], atol=2e-3)


def test_grid_of_vertices_and_its_warp(data, settings, scene):
  depth, _, light, view, blend = scene
  size = depth.shape[-1]
  focal = depth_mesh.focal_of(settings.fov)
  points = depth_mesh.points(depth, focal)
  np.testing.assert_allclose(points, data['grid3d.canon'], atol=1e-6)
  rotation, shift = lifting.rigid(settings, view)
  np.testing.assert_allclose(rotation, data['render.rot'], atol=1e-6)
  np.testing.assert_allclose(shift, data['render.trans'][:, 0], atol=1e-6)
  warped = depth_mesh.transform(
      points, rotation, shift, settings.center_depth)
  np.testing.assert_allclose(warped, data['grid3d.warped'], atol=1e-6)
  np.testing.assert_allclose(
      blend * warped + (1 - blend) * points, data['render.verts'], atol=1e-6)
  np.testing.assert_allclose(
      2 * focal * warped[..., :2] / warped[..., 2:], data['grid2d.warped'],
      atol=2e-5)
  np.testing.assert_allclose(
      focal * (size - 1), data['K'][0, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(
      lifting.normals_of(settings, depth), data['render.normal'], atol=1e-4)
  # All faces of a small grid; the second corner is one row below the first.
  faces = data['faces_first_last'][0]
  columns = faces[0, 1]
  np.testing.assert_array_equal(
      depth_mesh.faces((faces.max() + 1) // columns, columns), faces)
  np.testing.assert_allclose(
      np.stack([light[:, :1] / 2 + 0.5, light[:, 1:2] / 2 + 0.5]),
      np.stack([data['light.a'], data['light.b']]), atol=1e-6)


def test_shading(data, settings, scene):
  depth, albedo, light, _, _ = scene
  normals = lifting.normals_of(settings, depth)
  np.testing.assert_allclose(
      lifting.shade(light, normals), _last(data['render.shading']), atol=1e-5)
  np.testing.assert_allclose(
      lifting.lit(settings, albedo, depth, light),
      _last(data['render.canon_im']), atol=1e-4)
  neutral = jnp.tile(lifting.light_of(0.0, 0.8), (len(light), 1))
  np.testing.assert_allclose(
      2 * lifting.shade(neutral, normals)[..., 0] - 1,
      data['neutral_shading'][..., 0], atol=1e-5)


def test_rendered_views(data, settings, scene):
  depth, albedo, light, view, blend = scene

  @jax.jit
  def views(depth, albedo):
    image = lifting.lit(settings, albedo, depth, light)
    flat = lifting.lit(settings, albedo[:, :, ::-1], depth[:, :, ::-1], light)
    render = lambda *args: lifting.render(settings, *args)
    return (render(depth, image, view, blend),
            render(depth[:, :, ::-1], flat, view, blend),
            render(depth, albedo, view).image,
            render(depth, lifting.normals_of(settings, depth), view).image,
            lifting.render(settings._replace(perspective=True), depth, image,
                           view, blend).image)

  own, flipped, unlit, normals, perspective = views(depth, albedo)
  _assert_seen(own.image, _last(data['render.image']))
  np.testing.assert_allclose(own.depth, data['render.depth'], atol=2e-4)
  np.testing.assert_array_equal(own.mask, _last(data['render.mask']))
  _assert_seen(flipped.image, _last(data['render_flip.image']))
  np.testing.assert_array_equal(
      flipped.mask, _last(data['render_flip.mask']))
  _assert_seen(unlit, _last(data['render_nolight_nomask.image']))
  _assert_seen(normals, _last(data['recon_normal']))
  _assert_seen(perspective, _last(data['render_pc.image']))


def test_turned_and_unmoved_views(data, settings, scene):
  depth, albedo, _, view, _ = scene
  side = depth.shape[-1]
  focal = depth_mesh.focal_of(settings.fov)

  @jax.jit
  def turned(angle):
    points = depth_mesh.transform(
        depth_mesh.points(depth[:1], focal),
        depth_mesh.rotation(jnp.stack([0 * angle, angle, 0 * angle])[None]),
        jnp.zeros((1, 3)), settings.center_depth)
    seen = depth_mesh.render(points, _last(data['render.canon_im'])[:1],
                             cameras.pinhole(focal), side,
                             2 * settings.max_depth)
    return jnp.clip(jnp.where(seen.hit[..., None], seen.image, 1.0), -1, 1)

  # Centers on shared edges: the middle row, for the identity also the middle
  # column and the anti-diagonal.
  for i, angle in enumerate(data['render_yaw.angles']):
    holes = side if angle else 2 * side + 1
    _assert_seen(turned(jnp.float32(angle)),
                 _last(data['render_yaw.images'][:, i]), holes)
  unmoved = jax.jit(lambda depth: lifting.render(
      settings, depth, albedo[:1], 0 * view[:1]).image)
  for name, flat in (('', depth[:1]), ('_depth1', np.ones_like(depth[:1]))):
    _assert_seen(unmoved(flat), _last(data[f'render_identity{name}.image']),
                 3 * side)


def test_gradients_to_depth_and_albedo(data, settings, scene):
  depth, albedo, light, view, blend = scene

  @jax.jit
  def slopes(depth, albedo):
    return jax.grad(lambda depth, albedo: jnp.sum(
        lifting.render(settings, depth, lifting.lit(
            settings, albedo, depth, light), view, blend).image
        * _last(data['grad.cotangent'])), (0, 1))(depth, albedo)

  to_depth, to_albedo = slopes(depth, albedo)
  np.testing.assert_allclose(
      to_albedo, _last(data['grad.albedo']), atol=1e-3)
  # But for a few pixels on slivers, whose gradients are nearly undetermined.
  error = np.abs(to_depth - data['grad.depth'])
  assert np.mean(error > 2e-3 * (1 + np.abs(data['grad.depth']))) < 2e-3


def test_contours_blur_laplacian_and_photometric_loss(data, settings):
  clip = jax.vjp(depth_mesh.clip_contours, data['contour.grad_in'])[1]
  np.testing.assert_array_equal(
      clip(data['contour.grad_in'])[0], data['contour.grad_out'])
  np.testing.assert_allclose(
      lifting.blur(settings, _last(data['blur.in'])),
      _last(data['blur.out']), atol=1e-5)
  np.testing.assert_allclose(
      depth_mesh.laplacian(data['blur.in']), data['laplacian.out'], atol=1e-5)
  for mask, name in ((_last(data['loss.photo_mask']), 'photo'),
                     (None, 'photo_nomask')):
    np.testing.assert_allclose(lifting_losses.photometric(
        _last(data['render.image']), _last(data['render.in_gen_im']), mask),
        data[f'loss.{name}'], rtol=1e-5)


def test_checkpoints_that_do_not_fit_are_refused(data, params):
  lacking = {k: v for k, v in data.items() if k != 'netT.mlp.0.bias'}
  with pytest.raises(port.PortingError, match='1 missing: netT.mlp.0.bias'):
    lifted_gan.from_torch(lacking, params)
  part = _part(data, 'g_ema')
  del part['noises.noise_3']
  with pytest.raises(port.PortingError, match='1 missing: noises.noise_3'):
    stylegan2_rosinality.from_torch(part)
  with pytest.raises(ValueError, match="no StyleGAN2 in rosinality's layout"):
    stylegan2_rosinality.from_torch(_part(data, 'netD'))


def test_face_embedding_takes_two_sizes():
  network = lresnet.LResNet((4, 4, 4, 8), 6)
  x = np.random.default_rng(0).normal(size=(2, 256, 256, 3)).astype(np.float32)
  small = x.reshape(2, 128, 2, 128, 2, 3).mean((2, 4))

  @jax.jit
  def embed(x, small):
    params = network.init(jax.random.key(0), small)
    return network.apply(params, x), network.apply(params, small)

  of_large, of_small = embed(x, small)
  np.testing.assert_allclose(of_large, of_small, atol=1e-5)
  np.testing.assert_allclose(
      np.linalg.norm(of_small, axis=1), 1.0, rtol=1e-5)
  with pytest.raises(ValueError, match='takes images of 128 or 256 pixels'):
    network.init(jax.random.key(0), x[:, :64, :64])


def test_blur_kernel_is_the_official_one(data):
  radius = (len(data['blur.kernel']) - 1) // 2
  impulse = np.zeros((4 * radius + 1, 4 * radius + 1, 1), np.float32)
  impulse[2 * radius, 2 * radius] = 1
  # Of the size 2 radius + 1 around the impulse, whatever lies beyond.
  config = ast.literal_eval(str(data['cfg']))
  kernel = images.gaussian_blur(
      impulse, config['blur_params']['sigma'] * 2**0.5, radius)
  inner = slice(radius, -radius)
  np.testing.assert_allclose(
      kernel[inner, inner, 0], data['blur.kernel'], atol=1e-6)
