"""The autoencoder of Stable Diffusion (Rombach et al., 2112.10752).

Vocabulary. An image of H x W pixels becomes a latent of H/f x W/f x Z, f =
2^(levels - 1): a normal distribution for each latent pixel, whose mean and
logarithm of variance the encoder tells. *Scaled* latents, which the U-Net
sees, are a draw times the config's factor, so that they vary by about one.
Submodules carry the names that they have in diffusers' files.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.models.stable_diffusion import (
  ResidualBlock,
  attend,
  conv,
  double,
  group_norm,
)
from gen3d.weights import hub

EPSILON = 1e-6
LOG_VARIANCE = -30.0, 20.0  # Bounds.


class AutoencoderSize(NamedTuple):
  """The numbers that make one autoencoder, as its config.json has them.

  Attributes:
    side: H and W that it was trained at.
    channels: of each level, finest first.
    blocks: residual blocks of each level of the encoder (one more in the
      decoder).
    latent: Z.
    groups: of the normalizations.
    scale: of the latents that the U-Net sees.
  """
  side: int
  channels: tuple
  blocks: int
  latent: int
  groups: int
  scale: float


class Autoencoder(nn.Module):
  """Images to latents and back.

  Attributes:
    size: AutoencoderSize.
    dtype: of the computation; what comes out is float32.
    remat: the backward pass computes the blocks again: less memory.
  """
  size: AutoencoderSize
  dtype: Any = jnp.float32
  remat: bool = False

  def setup(self):
    parts = self.size, self.dtype, self.remat
    self.encoder, self.decoder = _Encoder(*parts), _Decoder(*parts)
    self.quant_conv = nn.Conv(2 * self.size.latent, (1, 1), dtype=self.dtype)
    self.post_quant_conv = nn.Conv(self.size.latent, (1, 1), dtype=self.dtype)

  def __call__(self, images):
    """Images [B, H, W, 3] -> what comes back of their means."""
    return self.decode(self.size.scale * self.encode(images)[0])

  def encode(self, images):
    """Images [B, H, W, 3] in [-1, 1] -> mean and log variance of latents.

    Returns:
      Two arrays [B, H/f, W/f, Z], not scaled. `scaled_draw` makes of them
      what the U-Net sees.
    """
    h = self.quant_conv(self.encoder(images.astype(self.dtype)))
    mean, log_variance = jnp.split(h.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE)

  def decode(self, latents):
    """Scaled latents [B, H/f, W/f, Z] -> images [B, H, W, 3], about [-1, 1].
    """
    h = (latents / self.size.scale).astype(self.dtype)
    return self.decoder(self.post_quant_conv(h)).astype(jnp.float32)


def scaled_draw(key, size, mean, log_variance):
  """A draw of scaled latents, differentiable in both moments."""
  draw = jax.random.normal(key, mean.shape)
  return size.scale * (mean + jnp.exp(0.5 * log_variance) * draw)


def load(path, dtype=jnp.float32, variant='', remat=False):
  """An Autoencoder and its parameters out of diffusers' folder `vae`.

  Args:
    path: folder with config.json and safetensors.
    dtype: of the parameters and of the computation.
    variant: see pretrained.read.
    remat: see Autoencoder.

  Returns:
    (Autoencoder, {'params'}).

  Raises:
    UserError: the folder does not fit; says how.
  """
  folder = hub.read(path, variant)
  network = Autoencoder(autoencoder_size(folder), dtype, remat)
  return network, hub.fill(
      network, inputs(network.size), folder.tensors.renamed(_new_name), dtype)


def inputs(size):
  """Shapes of what an Autoencoder takes."""
  return (jax.ShapeDtypeStruct((1, size.side, size.side, 3), jnp.float32),)


def autoencoder_size(folder):
  """AutoencoderSize of a config.json.

  Raises:
    UserError: the config is for another network.
  """
  hub.expect_class(folder, ('AutoencoderKL',), 'autoencoder')
  config = folder.config
  channels = tuple(config.get('block_out_channels', (64,)))
  hub.expect(folder, {
      'down_block_types': (['DownEncoderBlock2D'] * len(channels),),
      'up_block_types': (['UpDecoderBlock2D'] * len(channels),),
      'act_fn': ('silu', 'swish'), 'in_channels': (3,), 'out_channels': (3,),
      'shift_factor': (None, 0), 'latents_mean': (None,),
      'latents_std': (None,), 'use_quant_conv': (True,),
      'use_post_quant_conv': (True,), 'mid_block_add_attention': (True,)})
  return AutoencoderSize(
      side=config.get('sample_size', 32), channels=channels,
      blocks=config.get('layers_per_block', 1),
      latent=config.get('latent_channels', 4),
      groups=config.get('norm_num_groups', 32),
      scale=config.get('scaling_factor', 0.18215))


class _Encoder(nn.Module):
  size: AutoencoderSize
  dtype: Any
  remat: bool

  @nn.compact
  def __call__(self, x):
    size = self.size
    residual = _residual(size, self.dtype, self.remat)
    h = conv(size.channels[0], self.dtype, 'conv_in')(x)
    for level, channels in enumerate(size.channels):
      name = f'down_blocks.{level}'
      for i in range(size.blocks):
        h = residual(channels, f'{name}.resnets.{i}')(h)
      if level + 1 < len(size.channels):
        # Zeros on the far sides only, as it was trained.
        h = conv(channels, self.dtype, f'{name}.downsamplers.0.conv', stride=2,
                 padding=((0, 1), (0, 1)))(h)
    h = _middle(residual, size, self.dtype, h)
    h = nn.silu(group_norm(size.groups, EPSILON, self.dtype,
                           'conv_norm_out')(h))
    return conv(2 * size.latent, self.dtype, 'conv_out')(h)


class _Decoder(nn.Module):
  size: AutoencoderSize
  dtype: Any
  remat: bool

  @nn.compact
  def __call__(self, x):
    size = self.size
    residual = _residual(size, self.dtype, self.remat)
    h = conv(size.channels[-1], self.dtype, 'conv_in')(x)
    h = _middle(residual, size, self.dtype, h)
    for level, channels in enumerate(reversed(size.channels)):
      name = f'up_blocks.{level}'
      for i in range(size.blocks + 1):
        h = residual(channels, f'{name}.resnets.{i}')(h)
      if level + 1 < len(size.channels):
        h = conv(channels, self.dtype, f'{name}.upsamplers.0.conv')(double(h))
    h = nn.silu(group_norm(size.groups, EPSILON, self.dtype,
                           'conv_norm_out')(h))
    return conv(3, self.dtype, 'conv_out')(h)


class _Attention(nn.Module):
  """Pixels attend to one another with one head, plus x."""
  groups: int
  dtype: Any

  @nn.compact
  def __call__(self, x):
    b, height, width, c = x.shape
    dense = lambda name: nn.Dense(c, dtype=self.dtype, name=name)
    h = group_norm(self.groups, EPSILON, self.dtype, 'group_norm')(x)
    h = h.reshape(b, height * width, c)
    h = attend(dense('to_q')(h), dense('to_k')(h), dense('to_v')(h), heads=1)
    return x + dense('to_out.0')(h).reshape(x.shape)


def _residual(size, dtype, remat):
  block = nn.remat(ResidualBlock) if remat else ResidualBlock
  return lambda channels, name: block(
      channels, size.groups, EPSILON, dtype=dtype, name=name)


def _middle(residual, size, dtype, h):
  h = residual(size.channels[-1], 'mid_block.resnets.0')(h)
  h = _Attention(size.groups, dtype, name='mid_block.attentions.0')(h)
  return residual(size.channels[-1], 'mid_block.resnets.1')(h)


def _new_name(name):
  """A tensor's name; the published files have the attention's old ones."""
  *above, module, leaf = name.split('.')
  new = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v',
         'proj_attn': 'to_out.0'}
  return '.'.join((*above, new.get(module, module), leaf))
