"""The networks of a GAN as functions: EG3D's, and those of StyleGAN2.

They share the training step, gan/step.py, and its terms.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.choices import UserError, pick
from gen3d.gan import regularizers
from gen3d.models import eg3d as eg3d_model
from gen3d.models import stylegan2 as stylegan2_model
from gen3d.ops import cameras, images

# 1 - w_avg_beta of the official code: the rate of the running mean of w.
W_AVG_RATE = {'eg3d': 0.002, 'stylegan2': 0.005}

Variables = Any  # {'params', 'buffers'} of a Flax module
ImageDict = dict[str, jax.Array]  # fakes or reals, {name: [N, H, W, 3]}


class Latents(NamedTuple):
  """Random inputs of a generator for N examples."""
  key: Any     # for noise and ray sampling, the same on all devices
  index: Any   # [N], of the examples in the batch; folded into the key
  z: Any       # [N, Z]
  mapping_camera: Any  # [N, L], label of the mapping network
  label: Any   # [N, L], of the view that is rendered
  z_mix: Any = None       # [N, Z], of the later layers if styles are mixed
  mix_cutoff: Any = None  # [N], first such layer as a part of all; 1: none


class GANNetworks(NamedTuple):
  """A generator and a discriminator as functions of their Variables.

  Attributes:
    init: key -> {'generator': Variables, 'discriminator': Variables}.
    generate: (variables, latents, render_size) -> (fakes, w [N, D]), w from
      the mapping network. `render_size` is the resolution of the neural
      rendering, without meaning in 2-D.
    prepare_reals: (images [N, R, R, 3], render_size) -> reals.
    discriminate: (variables, fakes or reals, label) -> logits [N].
    regularize: (variables, latents, pl_mean) -> (loss, pl_mean), or None.
      `pl_mean` is the running mean of path lengths.
    update_w_avg: (generator's variables, w [N, D]) -> variables with the
      running mean of w updated; within the mapped axis 'devices'.
    z_dim: Z.
    is_3d: whether the generator makes objects, which have several views.
    samples_per_ray: (coarse, fine) of the neural rendering, or None.
    parts: (params, batch size, render_size) -> {name: function without
      arguments}, parts of a step for the benchmark; or None.
  """
  init: Callable[[jax.Array], dict[str, Variables]]
  generate: Callable[[Variables, Latents, int], tuple[ImageDict, jax.Array]]
  prepare_reals: Callable[[jax.Array, int], ImageDict]
  discriminate: Callable[[Variables, ImageDict, jax.Array], jax.Array]
  regularize: Callable[
      [Variables, Latents, jax.Array], tuple[jax.Array, jax.Array]] | None
  update_w_avg: Callable[[Variables, jax.Array], Variables]
  z_dim: int
  is_3d: bool = False
  samples_per_ray: tuple[int, int] | None = None
  parts: Callable[[Any, int, int], dict[str, Callable]] | None = None


def build(config: Any, label_width: int = 25) -> GANNetworks:
  """The GANNetworks of a config.

  Args:
    config: ConfigDict with `networks`, `model` and `resolution`.
    label_width: of the images' labels; 25 for cameras, 0 for none.

  Raises:
    UserError: there are no such networks, or they do not fit the images.
  """
  builder = pick('kind of networks', BUILDERS, config.networks)
  return builder(config.model, config.resolution, label_width)


def new_generator(networks: GANNetworks, key: jax.Array) -> Variables:
  """Variables of an untrained generator, without those of a discriminator."""
  return jax.jit(lambda key: networks.init(key)['generator'])(key)


def eg3d(config: Any, resolution: int, label_width: int) -> GANNetworks:
  """EG3D's generator and dual discriminator.

  Args:
    config: ConfigDict with `z_dim`, `synthesis`, `mapping`, `rendering`,
      `super_resolution`, `features`, `pose_conditioning`, `discriminator`,
      `density_weight`, `super_resolution_clamp` (0: none) and
      `super_resolution_half`.
    resolution: of the images.
    label_width: 25; EG3D needs cameras.

  Raises:
    UserError: the images have no cameras, or the super-resolution does not
      make images of this resolution.
  """
  generator = eg3d_generator(config)
  _check_eg3d(generator, resolution, label_width)
  discriminator = stylegan2_model.Discriminator(
      resolution, labeled=True, **config.discriminator)
  rendering, apply = generator.rendering, functools.partial(_apply, generator)

  def planes_of(variables, latents):
    # Keys of the synthesis noise, and of samples along rays or in the volume.
    key_noise, key_rest = jax.random.split(latents.key)
    ws = mix_styles(functools.partial(apply, variables, method='map'), latents)
    planes = apply(variables, ws, latents.index, method='planes',
                   key=key_noise)
    return ws, planes, keys_of(key_rest, latents.index)

  def generate(variables, latents, render_size):
    ws, planes, keys = planes_of(variables, latents)
    # A key for each example, so that its ray samples do not depend on the rest
    # of the batch; without the axis of size 1.
    jitter_of = lambda key: eg3d_model.ray_jitter(
        key, 1, render_size, rendering)
    jitter = jax.tree.map(lambda x: x[:, 0], jax.vmap(jitter_of)(keys))
    generated = apply(variables, planes, ws, latents.label, render_size, jitter,
                      method='render')
    fakes = {'image': generated.image, 'image_raw': generated.image_raw}
    # The first layer is never mixed: its w is that of z, for the running mean.
    return fakes, ws[:, 0]

  def regularize(variables, latents, pl_mean):
    _, planes, keys = planes_of(variables, latents)
    variation = regularizers.density_variation(
        lambda points: apply(variables, planes, points, method='query')[0],
        keys)
    return config.density_weight * variation, pl_mean

  def discriminate(variables, x, label) -> Any:
    return discriminator.apply(
        variables, eg3d_model.dual_image(x['image'], x['image_raw']), label)

  return GANNetworks(
      init=functools.partial(
          _init_eg3d, generator, discriminator, config.z_dim, resolution),
      generate=generate,
      # Dual discrimination: the raw image of a real one is itself, reduced.
      prepare_reals=lambda x, render_size: {
          'image': x, 'image_raw': images.resize(x, render_size)},
      discriminate=discriminate,
      regularize=regularize if config.density_weight else None,
      update_w_avg=functools.partial(
          _update_w_avg, ('backbone', 'mapping'), W_AVG_RATE['eg3d']),
      z_dim=config.z_dim, is_3d=True,
      samples_per_ray=(rendering.samples_coarse, rendering.samples_fine),
      parts=functools.partial(
          _eg3d_parts, generator, generate, discriminate, config.z_dim))


def _init_eg3d(generator, discriminator, z_dim, resolution, key):
  """GANNetworks.init of EG3D."""
  keys = jax.random.split(key)
  z, label = jnp.zeros((1, z_dim)), jnp.zeros((1, 25))
  # The parameters do not depend on the resolution of rendering: 4 is cheap.
  jitter = eg3d_model.ray_jitter(None, 1, 4, generator.rendering)
  return {'generator': generator.init(keys[0], z, label, label, 4, jitter),
          'discriminator': discriminator.init(
              keys[1], jnp.zeros((1, resolution, resolution, 6)), label)}


def _check_eg3d(generator, resolution, label_width):
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


def eg3d_generator(config: Any) -> eg3d_model.Generator:
  """The eg3d.Generator of a config's `model`."""
  return eg3d_model.Generator(
      dict(config.synthesis), dict(config.mapping),
      eg3d_model.RenderingConfig(**config.rendering),
      eg3d_model.SuperResolutionConfig(**config.super_resolution),
      config.features, config.pose_conditioning,
      super_resolution_clamp=config.super_resolution_clamp or None,
      super_resolution_half=config.super_resolution_half)


def _eg3d_parts(
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
  jitter = eg3d_model.ray_jitter(
      jax.random.key(2), batch_size, render_size, rendering)
  resolution = generator.synthesis_config['resolution']
  planes = jnp.zeros(
      (batch_size, resolution, resolution, 3, generator.features))

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
  # The inputs are arguments: XLA would fold a function of constants.
  return {name: functools.partial(jax.jit(part), *arguments)
          for name, (part, *arguments) in parts.items()}


def stylegan2(config: Any, resolution: int, label_width: int) -> GANNetworks:
  """StyleGAN2 on images, with labels or without.

  Args:
    config: ConfigDict with `z_dim`, `synthesis`, `mapping`,
      `discriminator`, `path_weight` and `path_shrink`.
    resolution: of the images.
    label_width: 0 for no labels.
  """
  labeled = label_width > 0
  generator = stylegan2_model.Generator(
      {'resolution': resolution, **config.synthesis},
      {'labeled': labeled, **config.mapping})
  discriminator = stylegan2_model.Discriminator(
      resolution, labeled=labeled, **config.discriminator)
  apply = functools.partial(_apply, generator)
  synthesize = lambda variables, ws, key, index: apply(
      variables, ws, index, key=key,
      method=lambda g, ws, index: g.synthesis(ws, index))
  map_latents = lambda variables, latents: mix_styles(functools.partial(
      apply, variables, method=lambda g, z, label: g.mapping(z, label)),
      latents)

  def init(key):
    keys = jax.random.split(key)
    label = jnp.zeros((1, label_width))
    return {'generator': generator.init(
                keys[0], jnp.zeros((1, config.z_dim)), label),
            'discriminator': discriminator.init(
                keys[1], jnp.zeros((1, resolution, resolution, 3)), label)}

  def generate(variables, latents, render_size):
    del render_size  # There is no neural rendering.
    ws = map_latents(variables, latents)
    image = synthesize(variables, ws, latents.key, latents.index)
    return {'image': image}, ws[:, 0]

  def regularize(variables, latents, pl_mean):
    key_noise, key_rest = jax.random.split(latents.key)
    # The penalty needs as much memory again; a part of the batch is enough.
    count = max(len(latents.z) // config.path_shrink, 1)
    ws, index = map_latents(variables, latents)[:count], latents.index[:count]
    penalty, pl_mean = regularizers.path_length(
        lambda ws: synthesize(variables, ws, key_noise, index), ws,
        keys_of(key_rest, index), pl_mean)
    return config.path_weight * penalty, pl_mean

  def discriminate(variables, x, label) -> Any:
    return discriminator.apply(variables, x['image'], label)

  return GANNetworks(
      init=init, generate=generate,
      prepare_reals=lambda x, render_size: {'image': x},
      discriminate=discriminate,
      regularize=regularize if config.path_weight else None,
      update_w_avg=functools.partial(
          _update_w_avg, ('mapping',), W_AVG_RATE['stylegan2']),
      z_dim=config.z_dim)


def mix_styles(
    mapping: Callable[[jax.Array, jax.Array], jax.Array], latents: Latents
) -> jax.Array:
  """ws [N, L, D] with the later layers from another z (StyleGAN, 3.1).

  The first layer always has the style of z itself.

  Args:
    mapping: (z [N, Z], label [N, C]) -> ws.
    latents: Latents.
  """
  ws = mapping(latents.z, latents.mapping_camera)
  if latents.z_mix is None:
    return ws
  num_ws = ws.shape[1]
  # Layers from `first` to the end: a cutoff in [0, 1) gives 1 to L - 1, and 1
  # gives L, which is past the last layer.
  first = 1 + jnp.floor(latents.mix_cutoff * (num_ws - 1))
  later = jnp.arange(num_ws) >= first[:, None]
  return jnp.where(
      later[..., None], mapping(latents.z_mix, latents.mapping_camera), ws)


def keys_of(key: jax.Array, index: jax.Array) -> jax.Array:
  """Keys [N] of the examples by their index, the same on any device."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def _apply(generator, variables, *args, method, key=None):
  rngs = {} if key is None else {'noise': key}
  return generator.apply(variables, *args, method=method, rngs=rngs)


def _update_w_avg(path, rate, variables, w):
  """Updates the buffer w_avg of the mapping network at `path`."""
  # The mean over the whole batch, of which each device has a part.
  mean = jax.lax.pmean(jnp.mean(jax.lax.stop_gradient(w), axis=0), 'devices')

  # Flax's variables are nested dictionaries; those on the path are copied.
  def update(buffers, path):
    if not path:
      old = buffers['w_avg']
      return {**buffers, 'w_avg': old + rate * (mean - old)}
    first, *rest = path
    return {**buffers, first: update(buffers[first], rest)}

  return {**variables, 'buffers': update(variables['buffers'], path)}


BUILDERS = {'eg3d': eg3d, 'stylegan2': stylegan2}
