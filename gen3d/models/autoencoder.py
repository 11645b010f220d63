"""The autoencoder of Stable Diffusion (Rombach et al., 2112.10752).

Vocabulary. An image of H x W pixels becomes a latent of H/f x W/f x Z, f =
2^(levels - 1). The encoder predicts mean and log variance of a normal
distribution for each number of the latent. *Scaled* latents, the input of the
U-Net, are a sample times a factor of the config, so that their variance is
about one. Submodules have the names of diffusers' files, by which
loading.fill finds their weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d import schemas
from gen3d.models import loading
from gen3d.models.conditional_unet import (
  ResidualBlock,
  attend,
  conv,
  group_norm,
  upsample,
)
from gen3d.weights import hub

EPSILON = 1e-6  # of the norms
LOG_VARIANCE = -30.0, 20.0  # bounds

_Residual = Callable[[int, str], nn.Module]  # (channels, name) -> block


class AutoencoderConfig(NamedTuple):
  """The hyperparameters of an autoencoder, from its config.json.

  Attributes:
    side: H and W of the training images.
    channels: of each level, finest first.
    blocks: residual blocks of each level of the encoder; the decoder has one
      more.
    latent: Z.
    groups: of the normalizations.
    scale: factor of scaled latents.
  """
  side: int
  channels: tuple[int, ...]
  blocks: int
  latent: int
  groups: int
  scale: float


class Autoencoder(nn.Module):
  """Images to latents and back.

  Attributes:
    config: hyperparameters.
    dtype: of the computation; outputs are float32.
    remat: the backward pass computes the blocks again, which saves memory.
  """
  config: AutoencoderConfig
  dtype: Any = jnp.float32
  remat: bool = False

  def setup(self) -> None:
    options = self.config, self.dtype, self.remat
    self.encoder, self.decoder = _Encoder(*options), _Decoder(*options)
    latent = self.config.latent
    self.quant_conv = nn.Conv(2 * latent, (1, 1), dtype=self.dtype)
    self.post_quant_conv = nn.Conv(latent, (1, 1), dtype=self.dtype)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Reconstructs images [B, H, W, 3] from the means of their latents."""
    return self.decode(self.config.scale * self.encode(images)[0])

  def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images [B, H, W, 3] in [-1, 1] -> mean and log variance of latents.

    Returns:
      Two arrays [B, H/f, W/f, Z], not scaled; see `scaled_draw`.
    """
    h = self.quant_conv(self.encoder(images.astype(self.dtype)))
    mean, log_variance = jnp.split(h.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Scaled latents [B, H/f, W/f, Z] -> images [B, H, W, 3], about [-1, 1].
    """
    h = (latents / self.config.scale).astype(self.dtype)
    return self.decoder(self.post_quant_conv(h)).astype(jnp.float32)


def scaled_draw(key: jax.Array, config: AutoencoderConfig, mean: jax.Array,
                log_variance: jax.Array) -> jax.Array:
  """A sample of scaled latents, differentiable in both moments.

  Args:
    key: of the sample.
    config: of the autoencoder.
    mean: [B, H/f, W/f, Z], of `Autoencoder.encode`.
    log_variance: like mean.

  Returns:
    [B, H/f, W/f, Z].
  """
  noise = jax.random.normal(key, mean.shape)
  return config.scale * (mean + jnp.exp(0.5 * log_variance) * noise)


def load(path: hub.Path | hub.Folder, dtype: Any = jnp.float32,
         variant: str = '', remat: bool = False
         ) -> tuple[Autoencoder, dict[str, Any]]:
  """An autoencoder and its parameters from the folder `vae` of diffusers.

  Args:
    path: folder with config.json and weights, or what hub.read gives of it.
    dtype: of the parameters and of the computation.
    variant: see hub.read.
    remat: see Autoencoder.

  Returns:
    (Autoencoder, {'params'}).

  Raises:
    UserError: a file is missing or broken, or belongs to another network.
  """
  folder = hub.read(path, variant)
  network = Autoencoder(autoencoder_config(folder), dtype, remat)
  return network, loading.fill(
      network, inputs(network.config),
      hub.renamed(folder.tensors, _current_name), dtype, where=folder.path)


def inputs(config: AutoencoderConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the inputs of an Autoencoder."""
  side = config.side
  return (jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),)


_VALUES = {
    'sample_size': schemas.whole(1, 8192),
    'block_out_channels': schemas.each(schemas.whole(1, 8192), 1, 8),
    'layers_per_block': schemas.whole(1, 16),
    'latent_channels': schemas.whole(1, 64),
    'norm_num_groups': schemas.whole(1, 1024),
    'scaling_factor': schemas.real(1e-6, 1e6)}


def autoencoder_config(folder: hub.Folder) -> AutoencoderConfig:
  """Hyperparameters from the config.json of an AutoencoderKL.

  Raises:
    UserError: the config is for another network.
  """
  hub.expect_class(folder, ('AutoencoderKL',), 'autoencoder')
  hub.check_values(folder, _VALUES)
  config = folder.config
  channels = tuple(config.get('block_out_channels', (64,)))
  groups = config.get('norm_num_groups', 32)
  hub.check_divisors(folder, 'block_out_channels and norm_num_groups',
                     [groups] * len(channels), channels)
  hub.expect(folder, {
      'down_block_types': (['DownEncoderBlock2D'] * len(channels),),
      'up_block_types': (['UpDecoderBlock2D'] * len(channels),),
      'act_fn': ('silu', 'swish'), 'in_channels': (3,), 'out_channels': (3,),
      'shift_factor': (None, 0), 'latents_mean': (None,),
      'latents_std': (None,), 'use_quant_conv': (True,),
      'use_post_quant_conv': (True,), 'mid_block_add_attention': (True,)})
  return AutoencoderConfig(
      side=config.get('sample_size', 32), channels=channels,
      blocks=config.get('layers_per_block', 1),
      latent=config.get('latent_channels', 4),
      groups=groups,
      scale=config.get('scaling_factor', 0.18215))


class _Encoder(nn.Module):
  config: AutoencoderConfig
  dtype: Any
  remat: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, 3] -> [B, H/f, W/f, 2 Z]."""
    config = self.config
    residual = _residual(config, self.dtype, self.remat)
    h = conv(config.channels[0], self.dtype, 'conv_in')(x)
    for level, channels in enumerate(config.channels):
      name = f'down_blocks.{level}'
      for i in range(config.blocks):
        h = residual(channels, f'{name}.resnets.{i}')(h)
      if level + 1 < len(config.channels):
        # Padding at the bottom and right only, as in the reference.
        h = conv(channels, self.dtype, f'{name}.downsamplers.0.conv', stride=2,
                 padding=((0, 1), (0, 1)))(h)
    h = _middle(residual, config, self.dtype, h)
    h = nn.silu(group_norm(config.groups, EPSILON, self.dtype,
                           'conv_norm_out')(h))
    return conv(2 * config.latent, self.dtype, 'conv_out')(h)


class _Decoder(nn.Module):
  config: AutoencoderConfig
  dtype: Any
  remat: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H/f, W/f, Z] -> [B, H, W, 3]."""
    config = self.config
    residual = _residual(config, self.dtype, self.remat)
    h = conv(config.channels[-1], self.dtype, 'conv_in')(x)
    h = _middle(residual, config, self.dtype, h)
    for level, channels in enumerate(reversed(config.channels)):
      name = f'up_blocks.{level}'
      for i in range(config.blocks + 1):
        h = residual(channels, f'{name}.resnets.{i}')(h)
      if level + 1 < len(config.channels):
        h = conv(channels, self.dtype, f'{name}.upsamplers.0.conv')(upsample(h))
    h = nn.silu(group_norm(config.groups, EPSILON, self.dtype,
                           'conv_norm_out')(h))
    return conv(3, self.dtype, 'conv_out')(h)


class _Attention(nn.Module):
  """Self-attention of the pixels with one head, plus x."""
  groups: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> the same shape."""
    b, height, width, c = x.shape
    dense = lambda name: nn.Dense(c, dtype=self.dtype, name=name)
    h = group_norm(self.groups, EPSILON, self.dtype, 'group_norm')(x)
    h = h.reshape(b, height * width, c)
    h = attend(dense('to_q')(h), dense('to_k')(h), dense('to_v')(h), heads=1)
    return x + dense('to_out.0')(h).reshape(x.shape)


def _residual(config: AutoencoderConfig, dtype: Any,
              remat: bool) -> _Residual:
  block = nn.remat(ResidualBlock) if remat else ResidualBlock
  return lambda channels, name: block(
      channels, config.groups, EPSILON, dtype=dtype, name=name)


def _middle(residual: _Residual, config: AutoencoderConfig, dtype: Any,
            h: jax.Array) -> jax.Array:
  h = residual(config.channels[-1], 'mid_block.resnets.0')(h)
  h = _Attention(config.groups, dtype, name='mid_block.attentions.0')(h)
  return residual(config.channels[-1], 'mid_block.resnets.1')(h)


def _current_name(name: str) -> str:
  """The name of a tensor in diffusers today.

  The published files have older names for the attention.
  """
  *above, module, leaf = name.split('.')
  new = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v',
         'proj_attn': 'to_out.0'}
  return '.'.join((*above, new.get(module, module), leaf))
