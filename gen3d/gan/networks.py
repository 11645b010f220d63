"""The networks that compete: EG3D's, and StyleGAN2's in two dimensions.

The vocabulary is that of gan/step.py, which trains them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen3d.choices import UserError
from gen3d.gan import regularizers
from gen3d.models import eg3d as eg3d_model
from gen3d.models import stylegan2 as stylegan2_model
from gen3d.ops import images

# At which w_avg follows, in the official code of either.
MEAN_RATE = {'eg3d': 0.002, 'stylegan2': 0.005}


class GANNetworks(NamedTuple):
  """Two networks as functions of their variables {'params', 'buffers'}.

  Attributes:
    init: key -> {'generator': variables, 'discriminator': variables}.
    generate: (variables, latents, size) -> (fakes, w [N, D]); `size` is the
      resolution of rendering, w what the mapping network made of z.
    prepare_reals: (images [N, R, R, 3], size) -> reals.
    discriminate: (variables, fakes or reals, label) -> logits [N].
    regularize: (variables, latents, memory) -> (loss, memory), or None;
      `memory` is a number that is kept between steps.
    update_w_avg: (generator's variables, w [N, D]) -> variables with the mean of
      w brought forward; axis 'devices' is there.
    z_dim: of the latent.
  """
  init: Callable
  generate: Callable
  prepare_reals: Callable
  discriminate: Callable
  regularize: Any
  update_w_avg: Callable
  z_dim: int


class Latents(NamedTuple):
  """What one phase generates from."""
  key: Any    # of noise and of where rays are sampled, the same on all chips
  index: Any  # [N] numbers of the examples, with which it is folded
  z: Any      # [N, Z]
  mapping_camera: Any   # [N, L]
  label: Any  # [N, L]
  z_mix: Any = None     # [N, Z] of the later layers where styles are mixed
  mix_cutoff: Any = None  # [N] in [0, 1], where those begin: 1 is past the last


def new_generator(networks, key):
  """Variables of an untrained generator, without its opponent's."""
  return jax.jit(lambda key: networks.init(key)['generator'])(key)


def eg3d(config, resolution, label_width):
  """EG3D's generator and dual discriminator.

  Args:
    config: ConfigDict with `z_dim`, `synthesis`, `mapping`, `rendering`,
      `super_resolution`, `features`, `pose_conditioning`, `discriminator`, `density_weight`,
      `super_resolution_clamp` (0: none) and `super_resolution_half`.
    resolution: of the images.
    label_width: 25; EG3D needs cameras.

  Raises:
    UserError: the images have no cameras, or the super-resolution does not
      make images of this resolution.
  """
  if label_width != 25:
    raise UserError('EG3D learns from images with cameras, and these have '
                    'none; give a dataset.json with labels of 25 numbers.')
  generator = eg3d_generator(config)
  super_resolution = generator.super_resolution
  made = super_resolution.size * 2 ** sum(super_resolution.up)
  if made != resolution:
    raise UserError(f'The super-resolution makes images of {made} pixels, but '
                    f'the data have {resolution}; change model.super_resolution.')
  discriminator = stylegan2_model.Discriminator(
      resolution, labeled=True, **config.discriminator)
  apply = functools.partial(_apply, generator)

  def init(key):
    keys = jax.random.split(key)
    z, label = jnp.zeros((1, config.z_dim)), jnp.zeros((1, 25))
    draws = eg3d_model.draw(None, 1, 4, generator.rendering)
    return {'generator': generator.init(keys[0], z, label, label, 4, draws),
            'discriminator': discriminator.init(
                keys[1], jnp.zeros((1, resolution, resolution, 6)), label)}

  def planes_of(variables, latents):
    key_noise, key_rest = jax.random.split(latents.key)
    ws = mixed(functools.partial(apply, variables, method='map'), latents)
    planes = apply(variables, ws, latents.index, method='planes',
                   key=key_noise)
    return ws, planes, keys_of(key_rest, latents.index)

  def generate(variables, latents, size):
    ws, planes, keys = planes_of(variables, latents)
    draws = jax.tree.map(lambda x: x[:, 0], jax.vmap(
        lambda key: eg3d_model.draw(key, 1, size, generator.rendering))(keys))
    made = apply(variables, planes, ws, latents.label, size, draws,
                 method='render')
    return {'image': made.image, 'raw': made.image_raw}, ws[:, 0]

  def regularize(variables, latents, memory):
    _, planes, keys = planes_of(variables, latents)
    variation = regularizers.density_variation(
        lambda points: apply(variables, planes, points, method='query')[0],
        keys)
    return config.density_weight * variation, memory

  return GANNetworks(
      init=init, generate=generate,
      prepare_reals=lambda x, size: {'image': x, 'raw': images.resize(x, size)},
      discriminate=lambda variables, x, label: discriminator.apply(
          variables, eg3d_model.dual_image(x['image'], x['raw']), label),
      regularize=regularize if config.density_weight else None,
      update_w_avg=functools.partial(
          _follow, ('backbone', 'mapping'), MEAN_RATE['eg3d']),
      z_dim=config.z_dim)


def eg3d_generator(config):
  """The eg3d.Generator of a config's `model`."""
  return eg3d_model.Generator(
      dict(config.synthesis), dict(config.mapping),
      eg3d_model.RenderingConfig(**config.rendering),
      eg3d_model.SuperResolutionConfig(**config.super_resolution), config.features,
      config.pose_conditioning, super_resolution_clamp=config.super_resolution_clamp or None,
      super_resolution_half=config.super_resolution_half)


def stylegan2(config, resolution, label_width):
  """A plain StyleGAN2 on images, with labels or without.

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
  paint = lambda variables, ws, key, index: apply(
      variables, ws, index, key=key,
      method=lambda g, ws, index: g.synthesis(ws, index))
  to_ws = lambda variables, latents: mixed(functools.partial(
      apply, variables, method=lambda g, z, label: g.mapping(z, label)),
      latents)

  def init(key):
    keys = jax.random.split(key)
    label = jnp.zeros((1, label_width))
    return {'generator': generator.init(
                keys[0], jnp.zeros((1, config.z_dim)), label),
            'discriminator': discriminator.init(
                keys[1], jnp.zeros((1, resolution, resolution, 3)), label)}

  def generate(variables, latents, size):
    del size
    ws = to_ws(variables, latents)
    return {'image': paint(variables, ws, latents.key, latents.index)}, ws[:, 0]

  def regularize(variables, latents, memory):
    key_noise, key_rest = jax.random.split(latents.key)
    few = max(len(latents.z) // config.path_shrink, 1)
    ws, index = to_ws(variables, latents)[:few], latents.index[:few]
    penalty, memory = regularizers.path_length(
        lambda ws: paint(variables, ws, key_noise, index), ws,
        keys_of(key_rest, index), memory)
    return config.path_weight * penalty, memory

  return GANNetworks(
      init=init, generate=generate,
      prepare_reals=lambda x, size: {'image': x},
      discriminate=lambda variables, x, label: discriminator.apply(
          variables, x['image'], label),
      regularize=regularize if config.path_weight else None,
      update_w_avg=functools.partial(
          _follow, ('mapping',), MEAN_RATE['stylegan2']),
      z_dim=config.z_dim)


def mixed(to_ws, latents):
  """ws [N, L, D] of Latents, the later layers of another z (StyleGAN, 3.1).

  The first layer is always that of z itself.

  Args:
    to_ws: (z [N, Z], told [N, L]) -> ws.
    latents: Latents.
  """
  ws = to_ws(latents.z, latents.mapping_camera)
  if latents.z_mix is None:
    return ws
  count = ws.shape[1]
  first = 1 + jnp.floor(latents.mix_cutoff * (count - 1))
  later = jnp.arange(count) >= first[:, None]
  return jnp.where(
      later[..., None], to_ws(latents.z_mix, latents.mapping_camera), ws)


def keys_of(key, index):
  """Keys [N], one for each example by its number, on whichever chip."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def _apply(generator, variables, *args, method, key=None):
  rngs = {} if key is None else {'noise': key}
  return generator.apply(variables, *args, method=method, rngs=rngs)


def _follow(path, rate, variables, w):
  """Brings the buffer w_avg of the mapping network at `path` forward."""
  mean = jax.lax.pmean(jnp.mean(jax.lax.stop_gradient(w), axis=0), 'devices')

  def change(buffers, path):
    if not path:
      old = buffers['w_avg']
      return {**buffers, 'w_avg': old + rate * (mean - old)}
    first, *rest = path
    return {**buffers, first: change(buffers[first], rest)}

  return {**variables, 'buffers': change(variables['buffers'], path)}


BUILDERS = {'eg3d': eg3d, 'stylegan2': stylegan2}
