"""StyleGAN2's networks (1912.04958) for the adversarial step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gen3d.gan import regularizers
from gen3d.gan.networks import (
    GANNetworks,
    apply_module,
    keys_of,
    mix_styles,
    update_w_avg,
)
from gen3d.models import stylegan2

# 1 - w_avg_beta of the official code: the rate of the running mean of w.
_W_AVG_RATE = 0.005


def networks(config: Any, resolution: int, label_width: int) -> GANNetworks:
  """StyleGAN2 on images, with labels or without.

  Args:
    config: ConfigDict with `z_dim`, `synthesis`, `mapping`,
      `discriminator`, `path_weight` and `path_shrink`.
    resolution: of the images.
    label_width: 0 for no labels.
  """
  labeled = label_width > 0
  generator = stylegan2.Generator(
      {'resolution': resolution, **config.synthesis},
      {'labeled': labeled, **config.mapping})
  discriminator = stylegan2.Discriminator(
      resolution, labeled=labeled, **config.discriminator)
  apply = functools.partial(apply_module, generator)
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
          update_w_avg, ('mapping',), _W_AVG_RATE),
      z_dim=config.z_dim)
