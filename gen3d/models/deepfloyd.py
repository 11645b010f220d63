"""The first U-Net of DeepFloyd IF: pixels of 64 x 64, told by T5.

An open network after Imagen (Saharia et al., 2205.11487); its sizes M, L and
XL are values of one record. It is Stable Diffusion's skeleton with other
parts: time scales and shifts, blocks halve and double on their own, the
attention has keys and values of the text beside those of the pixels, and the
text, pooled by attention, is added to the time embedding. It predicts the
noise and, in three more channels, the variance, which guidance has no use
for.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.choices import UserError
from gen3d.models.stable_diffusion import (
  Parts,
  UNet,
  UNetSize,
  attend,
  double,
  fill,
  group_norm,
  per_level,
  shared_size,
)
from gen3d.weights import hub


class TextAndPixelAttention(nn.Module):
  """Pixels attend to one another and to the text at once, plus x."""
  size: UNetSize
  heads: int
  dtype: Any = jnp.float32
  flash: bool = False

  @nn.compact
  def __call__(self, x, states, mask):
    """x [B, H, W, C], states [B, L, D], mask [B, L] or None -> like x."""
    b, height, width, c = x.shape
    dense = lambda name: nn.Dense(c, dtype=self.dtype, name=name)
    norm = lambda groups, name: group_norm(groups, 1e-5, self.dtype, name)
    text = norm(32, 'norm_cross')(states)
    pixels = norm(self.size.groups, 'group_norm')(x).reshape(
        b, height * width, c)
    beside = lambda a, b: jnp.concatenate([a, b], axis=1)
    k = beside(dense('add_k_proj')(text), dense('to_k')(pixels))
    v = beside(dense('add_v_proj')(text), dense('to_v')(pixels))
    if mask is not None:
      mask = beside(mask, jnp.ones((b, height * width), mask.dtype))
    # A mask is beyond cuDNN's attention at most lengths.
    out = attend(dense('to_q')(pixels), k, v, self.heads, mask,
                 self.flash and mask is None)
    return x + dense('to_out.0')(out).reshape(x.shape)


def pool_and_project(size, states, dtype):
  """Parts.text: states for the attention and what is added to the time."""
  width = 4 * size.channels[0]
  norm = lambda name: nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=name)
  pooled = _AttentionPooling(size.pooling_heads, dtype,
                             name='add_embedding.pool')(
                                 norm('add_embedding.norm1')(states))
  pooled = norm('add_embedding.norm2')(nn.Dense(
      width, dtype=dtype, name='add_embedding.proj')(pooled))
  return nn.Dense(size.states, dtype=dtype,
                  name='encoder_hid_proj')(states), pooled


_gelu = functools.partial(jax.nn.gelu, approximate=False)

PARTS = Parts(
    activation=_gelu, scale_shift=True, attention=TextAndPixelAttention,
    down=lambda residual, channels, dtype, name: residual(
        channels, name, lambda x: nn.avg_pool(x, (2, 2), (2, 2))),
    up=lambda residual, channels, dtype, name: residual(
        channels, name, double),
    text=pool_and_project)


def load_unet(path, dtype=jnp.float32, variant='', **options):
  """IF's first U-Net and its parameters out of diffusers' folder `unet`.

  Arguments, what is returned and errors are as those of
  stable_diffusion.load_unet. The first three channels of the prediction are
  the noise.
  """
  folder = hub.read(path, variant)
  network = UNet(unet_size(folder), PARTS, dtype, **options)
  return network, fill(network, folder, dtype)


def unet_size(folder):
  """UNetSize of DeepFloyd IF's config.json.

  Raises:
    UserError: the config is for another network, such as IF's later stages.
  """
  size = shared_size(folder, 'SimpleCrossAttn', (
      'SimpleCrossAttnDownBlock2D', 'ResnetDownsampleBlock2D'), 'deepfloyd')
  config = folder.config
  # Where diffusers' own default is for Stable Diffusion, say so.
  config = {'act_fn': 'silu', 'resnet_time_scale_shift': 'default',
            'addition_embed_type': None, 'cross_attention_norm': None,
            'encoder_hid_dim_type': 'text_proj', **config}
  hub.expect(folder._replace(config=config), {
      'act_fn': ('gelu',), 'resnet_time_scale_shift': ('scale_shift',),
      'addition_embed_type': ('text',),
      'cross_attention_norm': ('group_norm',),
      # Configs from before the key have only encoder_hid_dim.
      'encoder_hid_dim_type': ('text_proj', None)})
  if not config.get('encoder_hid_dim'):
    raise UserError(f'{folder.path / "config.json"} tells no '
                    'encoder_hid_dim, the width of the text\'s states.')
  head_dims = per_level(config.get('attention_head_dim', 8), size.channels)
  return size._replace(
      heads=tuple(c // d for c, d in zip(size.channels, head_dims)),
      states=config.get('cross_attention_dim', 1280),
      text_width=config['encoder_hid_dim'],
      pooling_heads=config.get('addition_embed_type_num_heads', 64))


class _AttentionPooling(nn.Module):
  """One query, from the states' mean, attends to itself and to the states."""
  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, states):
    width = states.shape[-1]
    dense = lambda name: nn.Dense(width, dtype=self.dtype, name=name)
    position = self.param('positional_embedding', nn.initializers.normal(
        width ** -0.5), (1, width)).astype(self.dtype)
    query = jnp.mean(states, axis=1, keepdims=True) + position
    states = jnp.concatenate([query, states], axis=1)
    return attend(dense('q_proj')(query), dense('k_proj')(states),
                  dense('v_proj')(states), self.heads)[:, 0]
