"""The first U-Net of DeepFloyd IF: 64 x 64 pixels, conditioned on T5 states.

An open network after Imagen (Saharia et al., 2205.11487); its sizes M, L and
XL are values of one record. It is the U-Net of Stable Diffusion with other
layers: the time embedding scales and shifts, residual blocks change the
resolution, one attention has the keys and values of text and pixels, and the
text, pooled by attention, is added to the time embedding. It predicts the
noise and, in three more channels, the variance, which guidance does not use.
"""

import functools
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.choices import UserError
from gen3d.models import loading
from gen3d.models.conditional_unet import (
  Layers,
  UNet,
  UNetConfig,
  attend,
  group_norm,
  inputs,
  per_level,
  shared_config,
  upsample,
)
from gen3d.weights import hub

_TEXT_GROUPS = 32  # of the norm of the text states


class TextAndPixelAttention(nn.Module):
  """Self- and cross-attention with one softmax, plus x."""
  config: UNetConfig
  heads: int
  dtype: Any = jnp.float32
  flash: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, states: jax.Array,
               mask: jax.Array | None) -> jax.Array:
    """x [B, H, W, C], states [B, L, D], mask [B, L] or None -> like x."""
    b, height, width, c = x.shape
    dense = lambda name: nn.Dense(c, dtype=self.dtype, name=name)
    norm = lambda groups, name: group_norm(groups, 1e-5, self.dtype, name)
    text = norm(_TEXT_GROUPS, 'norm_cross')(states)
    pixels = norm(self.config.groups, 'group_norm')(x).reshape(
        b, height * width, c)
    join = lambda a, b: jnp.concatenate([a, b], axis=1)
    k = join(dense('add_k_proj')(text), dense('to_k')(pixels))
    v = join(dense('add_v_proj')(text), dense('to_v')(pixels))
    if mask is not None:
      mask = join(mask, jnp.ones((b, height * width), mask.dtype))
    # cuDNN's attention does not support masks of most lengths.
    out = attend(dense('to_q')(pixels), k, v, self.heads, mask,
                 self.flash and mask is None)
    return x + dense('to_out.0')(out).reshape(x.shape)


def pool_and_project(config: UNetConfig, states: jax.Array,
                     dtype: Any) -> tuple[jax.Array, jax.Array]:
  """Layers.text: projected states, and pooled ones for the time embedding.

  Args:
    config: of the U-Net.
    states: [B, L, text_width].
    dtype: of the computation.

  Returns:
    (states [B, L, D], addition to the time embedding [B, T]).
  """
  width = 4 * config.channels[0]
  norm = lambda name: nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=name)
  pooled = _AttentionPooling(config.pooling_heads, dtype,
                             name='add_embedding.pool')(
                                 norm('add_embedding.norm1')(states))
  pooled = norm('add_embedding.norm2')(nn.Dense(
      width, dtype=dtype, name='add_embedding.proj')(pooled))
  return nn.Dense(config.states, dtype=dtype,
                  name='encoder_hid_proj')(states), pooled


_gelu = functools.partial(jax.nn.gelu, approximate=False)

LAYERS = Layers(
    activation=_gelu, scale_shift=True, attention=TextAndPixelAttention,
    down=lambda residual, channels, dtype, name: residual(
        channels, name, lambda x: nn.avg_pool(x, (2, 2), (2, 2))),
    up=lambda residual, channels, dtype, name: residual(
        channels, name, upsample),
    text=pool_and_project)


def load_unet(path: str | os.PathLike, dtype: Any = jnp.float32,
              variant: str = '', **options: Any
              ) -> tuple[UNet, dict[str, Any]]:
  """The U-Net and its parameters from the folder `unet` of diffusers.

  Arguments, results and errors are those of stable_diffusion.load_unet. The
  first three channels of the prediction are the noise.
  """
  folder = hub.read(path, variant)
  network = UNet(unet_config(folder), LAYERS, dtype, **options)
  return network, loading.fill(network, inputs(network.config), folder.tensors,
                               dtype, where=folder.path)


def unet_config(folder: hub.Folder) -> UNetConfig:
  """Hyperparameters from the config.json of DeepFloyd IF's first U-Net.

  Raises:
    UserError: the config is for another network, such as IF's later stages.
  """
  config = shared_config(folder, 'SimpleCrossAttn', (
      'SimpleCrossAttnDownBlock2D', 'ResnetDownsampleBlock2D'), 'deepfloyd')
  # The defaults of diffusers, which are those of Stable Diffusion.
  json_config: dict[str, Any] = {
      'act_fn': 'silu', 'resnet_time_scale_shift': 'default',
      'addition_embed_type': None, 'cross_attention_norm': None,
      'encoder_hid_dim_type': 'text_proj', **folder.config}
  hub.expect(folder._replace(config=json_config), {
      'act_fn': ('gelu',), 'resnet_time_scale_shift': ('scale_shift',),
      'addition_embed_type': ('text',),
      'cross_attention_norm': ('group_norm',),
      # Older configs have encoder_hid_dim alone.
      'encoder_hid_dim_type': ('text_proj', None)})
  if not json_config.get('encoder_hid_dim'):
    raise UserError(f'{folder.path / "config.json"} has no encoder_hid_dim, '
                    'the width of the text states; use a checkpoint of '
                    'DeepFloyd IF.')
  head_dims = per_level(folder, 'attention_head_dim', 8, config.channels)
  hub.check_divisors(folder, 'block_out_channels and attention_head_dim',
                     head_dims, config.channels)
  states = json_config.get('cross_attention_dim', 1280)
  hub.check_divisors(folder, f'cross_attention_dim and {_TEXT_GROUPS} groups',
                     [_TEXT_GROUPS], [states])
  text_width = json_config['encoder_hid_dim']
  pooling_heads = json_config.get('addition_embed_type_num_heads', 64)
  hub.check_divisors(
      folder, 'encoder_hid_dim and addition_embed_type_num_heads',
      [pooling_heads], [text_width])
  return config._replace(
      heads=tuple(c // d for c, d in zip(config.channels, head_dims)),
      states=states, text_width=text_width, pooling_heads=pooling_heads)


class _AttentionPooling(nn.Module):
  """Attention with the mean of the states as the one query."""
  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, states: jax.Array) -> jax.Array:
    """States [B, L, D] -> [B, D]."""
    width = states.shape[-1]
    dense = lambda name: nn.Dense(width, dtype=self.dtype, name=name)
    position = self.param('positional_embedding', nn.initializers.normal(
        width ** -0.5), (1, width)).astype(self.dtype)
    query = jnp.mean(states, axis=1, keepdims=True) + position
    states = jnp.concatenate([query, states], axis=1)
    return attend(dense('q_proj')(query), dense('k_proj')(states),
                  dense('v_proj')(states), self.heads)[:, 0]
