"""EG3D (2112.07945): networks for the adversarial step, and a Generator3D.

The representation of an object is the tri-planes [N, R, R, 3, F]. No other
module uses the methods of models.eg3d.Generator.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.choices import UserError
from gen3d.gan import Generated, Generator3D, noise_buffers, regularizers
from gen3d.gan.networks import (
    GANNetworks,
    Latents,
    apply_module,
    compiled_parts,
    keys_of,
    mix_styles,
    update_w_avg,
)
from gen3d.models import eg3d, nvidia, stylegan2
from gen3d.ops import cameras, images, losses, mesh

# 1 - w_avg_beta of the official code: the rate of the running mean of w.
_W_AVG_RATE = 0.002

# Rays a side of the images whose opacities are regularized: few are enough.
_OPACITY_RAYS = 16

# Of the official visualizer: faces from a narrow range of yaw through a long
# lens, cars (the networks with a white background) from all around.
_FACES = {'focal': 4.2647, 'yaw_range': 20.0}
_CARS = {'focal': 1.7074, 'yaw_range': None}
_RADIUS = 2.7  # of the camera's sphere, where the pickle has none


def networks(config: Any, resolution: int, label_width: int) -> GANNetworks:
  """EG3D's generator and dual discriminator.

  Args:
    config: ConfigDict with `z_dim`, `synthesis`, `mapping`, `rendering`,
      `super_resolution`, `features`, `pose_conditioning`, `discriminator`,
      `density_weight`, `super_resolution_clamp` (0: none),
      `super_resolution_half` and, optionally, `plane_depth` and
      `opacity_weight`, of the entropy of the rays' opacities.
    resolution: of the images.
    label_width: 25; EG3D needs cameras.

  Raises:
    UserError: the images have no cameras, or the super-resolution does not
      make images of this resolution.
  """
  generator = module(config)
  _check(generator, resolution, label_width)
  discriminator = stylegan2.Discriminator(
      resolution, labeled=True, **config.discriminator)
  rendering = generator.rendering
  apply = functools.partial(apply_module, generator)

  def planes_of(variables, latents):
    # Keys of the synthesis noise, and of samples along rays or in the volume.
    key_noise, key_rest = jax.random.split(latents.key)
    ws = mix_styles(functools.partial(apply, variables, method='map'), latents)
    first = latents.index[::len(latents.label) // len(ws)]
    planes = apply(variables, ws, first, method='planes', key=key_noise)
    return ws, planes, first, key_rest

  def jitter_of(key, index, size):
    # A key for each example, whose samples then do not depend on the others.
    return jax.vmap(lambda key: jax.tree.map(
        lambda x: x[0], eg3d.ray_jitter(key, 1, size, rendering)))(
            keys_of(key, index))

  def generate(variables, latents, render_size):
    ws, planes, _, key = planes_of(variables, latents)
    # Views of one object share its planes.
    each_view = lambda x: jnp.repeat(x, len(latents.label) // len(ws), axis=0)
    jitter = jitter_of(key, latents.index, render_size)
    generated = apply(variables, each_view(planes), each_view(ws),
                      latents.label, render_size, jitter, method='render')
    fakes = {'image': generated.image, 'image_raw': generated.image_raw}
    # The first layer is never mixed: its w is that of z, for the running mean.
    return fakes, ws[:, 0]

  def discriminate(variables, x, label) -> Any:
    return discriminator.apply(
        variables, eg3d.dual_image(x['image'], x['image_raw']), label)

  return GANNetworks(
      init=functools.partial(
          _init, generator, discriminator, config.z_dim, resolution),
      generate=generate,
      # Dual discrimination: the raw image of a real one is itself, reduced.
      prepare_reals=lambda x, render_size: {
          'image': x, 'image_raw': images.resize(x, render_size)},
      discriminate=discriminate,
      regularize=_regularizer(config, apply, planes_of, jitter_of),
      update_w_avg=functools.partial(
          update_w_avg, ('backbone', 'mapping'), _W_AVG_RATE),
      z_dim=config.z_dim, is_3d=True,
      samples_per_ray=(rendering.samples_coarse, rendering.samples_fine),
      parts=functools.partial(
          _parts, generator, generate, discriminate, config.z_dim))


def _regularizer(config, apply, planes_of, jitter_of) -> Callable | None:
  """GANNetworks.regularize of EG3D; None where both weights are zero."""
  opacity_weight = config.get('opacity_weight', 0.0)
  if not config.density_weight and not opacity_weight:
    return None

  def regularize(variables, latents, pl_mean):
    _, planes, first, key = planes_of(variables, latents)
    variation = regularizers.density_variation(
        lambda points: apply(variables, planes, points, method='query')[0],
        keys_of(key, first))
    penalty = config.density_weight * variation
    if opacity_weight:
      views = len(latents.label) // len(first)
      jitter = jitter_of(jax.random.fold_in(key, 1), first, _OPACITY_RAYS)
      _, _, opacity = apply(variables, planes, latents.label[::views],
                            _OPACITY_RAYS, jitter, method='features_at')
      penalty += opacity_weight * jnp.mean(losses.opacity_entropy(opacity))
    return penalty, pl_mean

  return regularize


def _init(generator, discriminator, z_dim, resolution, key):
  """GANNetworks.init of EG3D."""
  keys = jax.random.split(key)
  z, label = jnp.zeros((1, z_dim)), jnp.zeros((1, 25))
  # The parameters do not depend on the resolution of rendering: 4 is cheap.
  jitter = eg3d.ray_jitter(None, 1, 4, generator.rendering)
  return {'generator': generator.init(keys[0], z, label, label, 4, jitter),
          'discriminator': discriminator.init(
              keys[1], jnp.zeros((1, resolution, resolution, 6)), label)}


def _check(generator, resolution, label_width):
  """Raises UserError where EG3D's generator does not fit the images."""
  if label_width != 25:
    raise UserError('EG3D learns from images with cameras, and these have '
                    'none; give a dataset.json with labels of 25 numbers.')
  super_resolution = generator.super_resolution
  generated = super_resolution.size * 2 ** sum(super_resolution.up)
  if generated != resolution:
    raise UserError(
        f'The super-resolution makes images of {generated} pixels, but the '
        f'data have {resolution}; change model.super_resolution.')


def module(config: Any) -> eg3d.Generator:
  """The eg3d.Generator of a config's `model`."""
  return eg3d.Generator(
      dict(config.synthesis), dict(config.mapping),
      eg3d.RenderingConfig(**config.rendering),
      eg3d.SuperResolutionConfig(**config.super_resolution),
      config.features, config.pose_conditioning,
      super_resolution_clamp=config.super_resolution_clamp or None,
      super_resolution_half=config.super_resolution_half,
      plane_depth=config.get('plane_depth', 1))


def _parts(
    generator, generate, discriminate, z_dim, params, batch_size, render_size
) -> dict[str, Callable]:
  """{name: function without arguments}: parts of EG3D's step, compiled.

  Args:
    generator: eg3d.Generator.
    generate, discriminate: of GANNetworks.
    z_dim: of the latents.
    params: of a TrainState, on one device.
    batch_size, render_size: sizes of the inputs.
  """
  rendering = generator.rendering
  # Any camera from which the whole object is seen: costs do not depend on it.
  distance = (1.5 * rendering.box_warp if rendering.ray_start == 'auto'
              else (rendering.ray_start + rendering.ray_end) / 2)
  label = jnp.tile(cameras.to_label(
      cameras.orbit(20.0, 10.0, distance, 1.35)), (batch_size, 1))
  latents = Latents(
      jax.random.key(1), jnp.arange(batch_size),
      jnp.ones((batch_size, z_dim)), label, label)
  jitter = eg3d.ray_jitter(
      jax.random.key(2), batch_size, render_size, rendering)
  resolution = generator.synthesis_config['resolution']
  planes = jnp.zeros(
      (batch_size, resolution, resolution, 3 * generator.plane_depth,
       generator.features))

  def generate_images(variables, latents):
    return generate(variables, latents, render_size)[0]

  def render(variables, planes, jitter):
    return generator.apply(variables, planes, label, render_size, jitter,
                           method='features_at')[0]

  def render_gradient(variables, planes, jitter):
    return jax.grad(lambda planes: jnp.sum(
        render(variables, planes, jitter) ** 2))(planes)

  fakes = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(
      generate_images, params['generator'], latents))
  parts = {
      'generator forward': (generate_images, params['generator'], latents),
      'rendering forward': (render, params['generator'], planes, jitter),
      'rendering forward and backward': (
          render_gradient, params['generator'], planes, jitter),
      'discriminator forward': (
          discriminate, params['discriminator'], fakes, label)}
  return compiled_parts(parts)


def make(
    module: eg3d.Generator, z_dim: int, front: cameras.Camera,
    sample_camera: Callable[[jax.Array], cameras.Camera],
    inset: float = 0.0) -> Generator3D:
  """The Generator3D of an EG3D network, ours or an official one.

  Args:
    module: the network.
    z_dim: size of the latent.
    front: camera conditioning of the mapping network where none is given.
    sample_camera: key -> Camera of the training data's distribution.
    inset: distance by which the surface of a mesh is moved inwards.
  """
  field = _compiled_field(module)
  return Generator3D(
      map=functools.partial(_map, module, front),
      synthesize=functools.partial(_synthesize, module),
      render=functools.partial(_render, module),
      mesh=functools.partial(_mesh, field, module, inset),
      color=lambda *args: field(*args)[1],
      sample_camera=sample_camera,
      z_dim=z_dim,
      num_ws=module.bind({}).backbone.num_ws,
      bound=module.rendering.box_warp / 2,
      image_size=functools.partial(_image_size, module.super_resolution),
      background='white' if module.rendering.white_background else 'black',
      noise_buffers=_backbone_noise)


def generator(
    config: Any, front: cameras.Camera,
    sample_camera: Callable[[jax.Array], cameras.Camera]) -> Generator3D:
  """`make` of the ConfigDict `model` of a config such as configs/eg3d.py."""
  return make(module(config), config.z_dim, front, sample_camera,
              config.get('mesh_inset', 0.0))


def official_camera(loaded: nvidia.Loaded) -> dict:
  """The typical camera (see inference.Trained) of an official network.

  Args:
    loaded: by nvidia.load, with an `orbit`.
  """
  cars = loaded.network.rendering.white_background
  return {'elevation': 0.0, **(_CARS if cars else _FACES),
          'distance': loaded.orbit.get('radius') or _RADIUS,
          'pivot': tuple(loaded.orbit.get('pivot') or (0, 0, 0))}


def _map(module, front, variables, z, camera=None, psi=1.0, cutoff=None):
  if camera is None:
    camera = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (len(z), *x.shape)), front)
  return module.apply(
      variables, z, cameras.to_label(camera), psi, cutoff, method='map')


def _synthesize(module, variables, ws, noise='const', key=None):
  rngs = {} if key is None else {'noise': key}
  return module.apply(variables, ws, noise, method='planes', rngs=rngs)


def _render(module, variables, planes, ws, camera, size, key=None):
  jitter = eg3d.ray_jitter(key, len(ws), size, module.rendering)
  return Generated(*module.apply(
      variables, planes, ws, cameras.to_label(camera), size, jitter,
      method='render'))


def _compiled_field(module):
  """(variables, planes, points [N, 3]) -> (density [N], colors [N, 3])."""

  @jax.jit
  def field(variables, planes, points):
    density, values = module.apply(
        variables, planes, points[None], method='query')
    # The density activation of the renderer, see models.eg3d.
    return nn.softplus(density[0] - 1), jnp.clip(values[0, :, :3], 0, 1)

  return field


def _mesh(field, module, inset, variables, planes, resolution):
  return mesh.extract(functools.partial(field, variables, planes),
                      module.rendering.box_warp / 2, resolution, inset=inset)


def _image_size(super_resolution, size):
  size = (super_resolution.size if super_resolution.shrink
          else max(super_resolution.size, size))
  return size * 2 ** sum(super_resolution.up)


def _backbone_noise(variables):
  """Without the buffers of the super-resolution, which adds no noise."""
  return {path: x for path, x in noise_buffers(variables).items()
          if '/backbone/' in path}
