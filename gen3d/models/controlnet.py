"""ControlNet of Stable Diffusion (Zhang et al., 2302.05543).

It is the ControlNetModel of diffusers: a copy of the encoder of a U-Net
(models/conditional_unet.py), whose input is the sum of the latents' and an
image's features. The image may be a depth map. Submodules have the names of
diffusers' files, by which loading.fill finds their weights.
"""

import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.choices import UserError
from gen3d.models import loading
from gen3d.models import stable_diffusion as sd
from gen3d.models.conditional_unet import (
  VALUES,
  Layers,
  UNetConfig,
  check_inputs,
  conv,
  encoder_config,
  inputs,
  make_blocks,
)
from gen3d.weights import hub

CHANNELS = 3  # of the image


class ControlNet(nn.Module):
  """(image, inputs of a UNet) -> residuals of the UNet.

  Attributes:
    config: hyperparameters of the U-Net's encoder.
    embedding: channels of the levels of the image's encoder, finest first;
      each halves the resolution of the one before.
    layers: of the U-Net's family.
    dtype, remat, flash: see conditional_unet.UNet.
  """
  config: UNetConfig
  embedding: tuple[int, ...]
  layers: Layers = sd.LAYERS
  dtype: Any = jnp.float32
  remat: bool = False
  flash: bool = False

  @nn.compact
  def __call__(self, image: jax.Array, x: jax.Array, t: jax.Array,
               states: jax.Array, mask: jax.Array | None = None
               ) -> list[jax.Array]:
    """Residuals [B, h, w, c] of the encoder's outputs and of its middle.

    Args:
      image: [B, f H, f W, 3] in [0, 1], f = `factor`.
      x, t, states, mask: see conditional_unet.UNet.

    Raises:
      UserError: the shape of the image, the latents or the text is that of
        another network.
    """
    check_inputs(self.config, x, states)
    f = self.factor
    expected = x.shape[0], f * x.shape[1], f * x.shape[2], CHANNELS
    if image.shape != expected:
      raise UserError(f'The ControlNet takes an image {list(expected)}, not '
                      f'{list(image.shape)}; resize the image.')
    _, _, encode = make_blocks(self, t, states, mask)
    h = conv(self.config.channels[0], self.dtype, 'conv_in')(
        x.astype(self.dtype)) + self._embed_image(image.astype(self.dtype))
    *outputs, middle = encode(h)
    project = lambda h, name: conv(h.shape[-1], self.dtype, name, side=1)(h)
    return [*(project(h, f'controlnet_down_blocks.{i}')
              for i, h in enumerate(outputs)),
            project(middle, 'controlnet_mid_block')]

  @property
  def factor(self) -> int:
    """Pixels of the image's side for each of the latents'."""
    return 2 ** (len(self.embedding) - 1)

  def _embed_image(self, h: jax.Array) -> jax.Array:
    """Features [B, H, W, C] of images [B, f H, f W, 3]."""
    name = 'controlnet_cond_embedding'
    h = nn.silu(conv(self.embedding[0], self.dtype, f'{name}.conv_in')(h))
    for i, channels in enumerate(self.embedding[1:]):
      h = nn.silu(conv(h.shape[-1], self.dtype, f'{name}.blocks.{2 * i}')(h))
      h = nn.silu(conv(channels, self.dtype, f'{name}.blocks.{2 * i + 1}',
                       stride=2)(h))
    return conv(self.config.channels[0], self.dtype, f'{name}.conv_out')(h)


def read(folder: hub.Folder, dtype: Any = jnp.float32, **options: Any
         ) -> ControlNet:
  """The ControlNet of a folder's config.json, without its parameters.

  Args:
    folder: of the network.
    dtype: of the computation.
    **options: remat and flash of ControlNet.

  Raises:
    UserError: the config is for another network.
  """
  hub.expect_class(folder, ('ControlNetModel',), 'controlnet')
  hub.check_values(folder, VALUES)
  config = sd.with_transformers(folder, encoder_config(
      folder, 'CrossAttn', sd.DOWN_TYPES, 'controlnet',
      {'conditioning_channels': (CHANNELS,),
       # The channels of a depth map are equal, in either order.
       'controlnet_conditioning_channel_order': ('rgb', 'bgr'),
       'global_pool_conditions': (False,)}))
  embedding = folder.config.get(
      'conditioning_embedding_out_channels') or (16, 32, 96, 256)
  return ControlNet(config, tuple(embedding), dtype=dtype, **options)


def load(path: str | os.PathLike, dtype: Any = jnp.float32,
         variant: str = '', **options: Any
         ) -> tuple[ControlNet, dict[str, Any]]:
  """A ControlNet and its parameters from a folder of diffusers.

  Args:
    path: folder with config.json and weights.
    dtype: of the parameters and of the computation.
    variant: see hub.read.
    **options: remat and flash of ControlNet.

  Returns:
    (ControlNet, {'params'}).

  Raises:
    UserError: a file is missing or broken, or belongs to another network.
  """
  folder = hub.read(path, variant)
  network = read(folder, dtype, **options)
  return network, loading.fill(
      network, network_inputs(network), folder.tensors, dtype,
      where=folder.path)


def network_inputs(network: ControlNet) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the inputs of a ControlNet."""
  latents, *others = inputs(network.config)
  side = network.factor * network.config.side
  image = jax.ShapeDtypeStruct((1, side, side, CHANNELS), jnp.float32)
  return (image, latents, *others)


def check_fits(network: ControlNet, unet: UNetConfig, path: Any) -> None:
  """Checks that a ControlNet is for U-Nets of a config.

  Args:
    network: ControlNet.
    unet: of the U-Net.
    path: of the ControlNet, for the error message.

  Raises:
    UserError: its residuals or its text states are those of another U-Net.
  """
  what = {'states': 'cross_attention_dim', 'channels': 'block_out_channels',
          'blocks': 'layers_per_block', 'in_channels': 'in_channels'}
  differ = [f'{key} {getattr(network.config, name)} (U-Net: '
            f'{getattr(unet, name)})' for name, key in what.items()
            if getattr(network.config, name) != getattr(unet, name)]
  if differ:
    raise UserError(
        f'The ControlNet in {path} is for another U-Net: {", ".join(differ)}; '
        'use one that was trained for this Stable Diffusion.')
