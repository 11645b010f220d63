"""The U-Net of Stable Diffusion 1.x and 2.x (Rombach et al., 2112.10752).

Vocabulary. B latents of H x W x C, L text states of D channels. A level of the
U-Net (models/conditional_unet.py) has residual blocks, to which the time
embedding is added; at most levels each is followed by a *transformer*:
self-attention of the pixels, cross-attention to the text and a gated MLP.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.models import loading
from gen3d.models.conditional_unet import (
  Layers,
  UNet,
  UNetConfig,
  attend,
  conv,
  group_norm,
  inputs,
  per_level,
  shared_config,
  upsample,
)
from gen3d.weights import hub

# Types of the levels of an encoder.
DOWN_TYPES = ('CrossAttnDownBlock2D', 'DownBlock2D')


class Transformer(nn.Module):
  """Self-attention, cross-attention to the text and MLP, plus x."""
  config: UNetConfig
  heads: int
  dtype: Any = jnp.float32
  flash: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, states: jax.Array,
               mask: jax.Array | None) -> jax.Array:
    """x [B, H, W, C], states [B, L, D], mask [B, L] or None -> like x."""
    b, height, width, c = x.shape

    def project(name: str) -> nn.Module:
      if self.config.linear:
        return nn.Dense(c, dtype=self.dtype, name=name)
      return conv(c, self.dtype, name, side=1)

    h = group_norm(self.config.groups, 1e-6, self.dtype, 'norm')(x)
    h = project('proj_in')(h).reshape(b, height * width, c)
    h = _TransformerBlock(self.heads, self.dtype, self.flash,
                          name='transformer_blocks.0')(h, states, mask)
    return x + project('proj_out')(h.reshape(x.shape))


def no_pooling(config: UNetConfig, states: jax.Array,
               dtype: Any) -> tuple[jax.Array, None]:
  """Layers.text of Stable Diffusion: the states unchanged."""
  del config, dtype
  return states, None


LAYERS = Layers(
    activation=nn.silu, scale_shift=False, attention=Transformer,
    down=lambda residual, channels, dtype, name: (
        lambda x: conv(channels, dtype, f'{name}.conv', stride=2)(x)),
    up=lambda residual, channels, dtype, name: (
        lambda x: conv(channels, dtype, f'{name}.conv')(upsample(x))),
    text=no_pooling)


def load_unet(path: hub.Path | hub.Folder, dtype: Any = jnp.float32,
              variant: str = '', **options: Any
              ) -> tuple[UNet, dict[str, Any]]:
  """A U-Net and its parameters from the folder `unet` of diffusers.

  Args:
    path: folder with config.json and weights, or what hub.read gives of it.
    dtype: of the parameters and of the computation.
    variant: see hub.read.
    **options: remat and flash of UNet.

  Returns:
    (UNet, {'params'}).

  Raises:
    UserError: a file is missing or broken, or belongs to another network.
  """
  folder = hub.read(path, variant)
  network = UNet(unet_config(folder), LAYERS, dtype, **options)
  return network, loading.fill(network, inputs(network.config), folder.tensors,
                               dtype, where=folder.path)


def unet_config(folder: hub.Folder) -> UNetConfig:
  """Hyperparameters from the config.json of Stable Diffusion's U-Net.

  Raises:
    UserError: the config is for another network.
  """
  return with_transformers(folder, shared_config(
      folder, 'CrossAttn', DOWN_TYPES, 'stable_diffusion'))


def with_transformers(folder: hub.Folder, config: UNetConfig) -> UNetConfig:
  """The hyperparameters with those of the transformers and the text.

  Args:
    folder: of a U-Net or a ControlNet.
    config: of conditional_unet.encoder_config.

  Raises:
    UserError: the config is for another network.
  """
  hub.expect(folder, {
      'act_fn': ('silu', 'swish'), 'resnet_time_scale_shift': ('default',),
      'addition_embed_type': (None,), 'encoder_hid_dim': (None,),
      'encoder_hid_dim_type': (None,), 'cross_attention_norm': (None,),
      'transformer_layers_per_block': (1, [1] * len(config.channels)),
      'use_linear_projection': (False, True)})
  json_config = folder.config
  # The name is wrong in diffusers: these are numbers of heads.
  heads = per_level(folder, 'attention_head_dim', 8, config.channels)
  hub.check_divisors(folder, 'block_out_channels and attention_head_dim',
                     heads, config.channels)
  return config._replace(
      heads=heads,
      states=json_config.get('cross_attention_dim', 1280),
      linear=json_config.get('use_linear_projection', False))


class _TransformerBlock(nn.Module):
  heads: int
  dtype: Any
  flash: bool

  @nn.compact
  def __call__(self, x: jax.Array, states: jax.Array,
               mask: jax.Array | None) -> jax.Array:
    """x [B, H W, C], states [B, L, D], mask [B, L] or None -> like x."""
    norm = lambda name: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)
    y = norm('norm1')(x)
    x = x + self._attention(y, y, None, self.flash, 'attn1')
    x = x + self._attention(norm('norm2')(x), states, mask, False, 'attn2')
    c = x.shape[-1]
    y, gate = jnp.split(nn.Dense(
        8 * c, dtype=self.dtype, name='ff.net.0.proj')(norm('norm3')(x)), 2, -1)
    return x + nn.Dense(c, dtype=self.dtype, name='ff.net.2')(
        y * jax.nn.gelu(gate, approximate=False))

  def _attention(self, x: jax.Array, states: jax.Array,
                 mask: jax.Array | None, flash: bool, name: str) -> jax.Array:
    project = lambda y, which: nn.Dense(
        x.shape[-1], use_bias=False, dtype=self.dtype,
        name=f'{name}.to_{which}')(y)
    y = attend(project(x, 'q'), project(states, 'k'), project(states, 'v'),
               self.heads, mask, flash)
    return nn.Dense(x.shape[-1], dtype=self.dtype, name=f'{name}.to_out.0')(y)
