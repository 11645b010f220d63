"""A text-conditioned diffusion U-Net, as in Imagen, at any size.

Notation: B images of H x W x C pixels, L text tokens of D channels. Blocks are
residual convolutions whose second normalization is scaled and shifted by the
time embedding and, with camera conditioning, shifted per pixel by a linear map
of the R features of its ray (CAT3D, 2405.10314, has them at the input). At
chosen levels each block is followed by one attention layer that is self- and
cross-attention at once: keys and values of the text are concatenated to those
of the pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class UNetShape(NamedTuple):
  """The hyperparameters of a U-Net.

  Attributes:
    channels: of each level, finest first; each level halves the resolution.
    blocks: residual blocks of each level of the encoder; the decoder has one
      more.
    attention: whether each level has attention.
    patch: side of the squares of pixels that are gathered into channels first.
    head_dim: channels of one attention head.
    time_width: of the time embedding and pooled text.
    out_channels: of the prediction.
    rays: whether the features of each pixel's ray are an input.
    prior_image: whether a first estimate of the image is an input.
  """
  channels: tuple[int, ...] = (32, 64, 128)
  blocks: tuple[int, ...] = (1, 2, 2)
  attention: tuple[bool, ...] = (False, False, True)
  patch: int = 2
  head_dim: int = 32
  time_width: int = 256
  out_channels: int = 3
  rays: bool = False
  prior_image: bool = False


def space_to_depth(x: jax.Array, side: int) -> jax.Array:
  """[B, H, W, C] to [B, H/side, W/side, side^2 C]; see `depth_to_space`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // side, side, w // side, side, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(
      b, h // side, w // side, side * side * c)


def depth_to_space(x: jax.Array, side: int) -> jax.Array:
  """Inverse of `space_to_depth`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, side, side, c // side ** 2)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(
      b, h * side, w * side, c // side ** 2)


def time_features(t: jax.Array, width: int) -> jax.Array:
  """Sines and cosines [B, width] of t in [0, 1], cosines first."""
  frequencies = jnp.exp(
      -jnp.log(10_000.0) * jnp.arange(width // 2) / (width // 2))
  angles = 1000 * t[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def masked_mean(states: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean [B, D] of the states [B, L, D] where mask [B, L] is one."""
  total = jnp.sum(states * mask[..., None], axis=1)
  return total / jnp.maximum(jnp.sum(mask, axis=1)[:, None], 1)


def _groups(channels: int) -> int:
  """At most 32 groups of at least 4 channels that divide them."""
  return max(g for g in range(1, 33)
             if channels % g == 0 and (channels // g >= 4 or g == 1))


class ResidualBlock(nn.Module):
  """norm-SiLU-conv, scaled and shifted by time, norm-SiLU-conv, plus x.

  Ray features [B, H, W, R] shift each pixel. Their map has no bias and starts
  at zero: features of zeros (an unknown camera) have no effect, and a network
  that was trained without rays keeps its output when they are added.
  """
  channels: int

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array,
               rays: jax.Array | None = None) -> jax.Array:
    norm = lambda name: nn.GroupNorm(_groups(x.shape[-1]), name=name)
    h = nn.Conv(self.channels, (3, 3), name='conv_in')(
        nn.silu(norm('norm_in')(x)))
    scale, shift = jnp.split(nn.Dense(
        2 * self.channels, kernel_init=nn.initializers.zeros,
        name='time')(nn.silu(time))[:, None, None], 2, axis=-1)
    if rays is not None:
      shift += nn.Dense(self.channels, use_bias=False, name='rays',
                        kernel_init=nn.initializers.zeros)(rays)
    h = nn.GroupNorm(_groups(self.channels), name='norm_out')(h)
    h = nn.Conv(self.channels, (3, 3), kernel_init=nn.initializers.zeros,
                name='conv_out')(nn.silu(h * (1 + scale) + shift))
    if x.shape[-1] != self.channels:
      x = nn.Dense(self.channels, name='skip')(x)
    return x + h


class Attention(nn.Module):
  """Self- and cross-attention in one layer (Imagen, appendix B)."""
  head_dim: int

  @nn.compact
  def __call__(self, x: jax.Array, states: jax.Array,
               mask: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    heads = max(c // self.head_dim, 1)
    split = lambda y: y.reshape(b, -1, heads, y.shape[-1] // heads)
    pixels = nn.GroupNorm(_groups(c), name='norm')(x).reshape(b, h * w, c)
    q, k, v = jnp.split(nn.Dense(3 * c, use_bias=False, name='qkv')(pixels),
                        3, axis=-1)
    text = nn.LayerNorm(name='text_norm')(states)
    tk, tv = jnp.split(
        nn.Dense(2 * c, use_bias=False, name='text_kv')(text), 2, axis=-1)
    q, k, v = split(q), split(jnp.concatenate([tk, k], 1)), split(
        jnp.concatenate([tv, v], 1))
    valid = jnp.concatenate([mask > 0, jnp.ones((b, h * w), bool)], axis=1)
    out = jax.nn.dot_product_attention(q, k, v, mask=valid[:, None, None])
    out = nn.Dense(c, kernel_init=nn.initializers.zeros, name='out')(
        out.reshape(b, h, w, c))
    return x + out


class UNet(nn.Module):
  """(x [B, H, W, C], t [B], states [B, L, D], mask [B, L]) -> [B, H, W, C].

  The caller decides what the output is trained to be (noise, v). H and W must
  be divisible by patch * 2^(levels - 1). With shape.rays there are also ray
  features [B, H, W, R], with shape.prior_image an image [B, H, W,
  out_channels]; zeros (an unknown camera) have no effect.

  `residuals` are the outputs of a ControlNet, added to the encoder's outputs
  where the decoder reads them; None for none.
  """
  shape: UNetShape

  @nn.compact
  def __call__(self, x: jax.Array, t: jax.Array, states: jax.Array,
               mask: jax.Array, rays: jax.Array | None = None,
               prior_image: jax.Array | None = None,
               residuals: Sequence[jax.Array] | None = None) -> jax.Array:
    s = self.shape
    time, block = _time_and_block(s, t, states, mask, rays)
    h, prior = _input(s, x, prior_image)
    skips = _encode(s, block, h)
    h = block(skips[-1], len(s.channels) - 1, 'middle')
    if residuals is not None:
      *skips, h = (a + b for a, b in zip((*skips, h), residuals, strict=True))
    # Decoder.
    for level in reversed(range(len(s.channels))):
      for i in range(s.blocks[level] + 1):
        h = block(jnp.concatenate([h, skips.pop()], axis=-1), level,
                  f'decode_{level}_{i}')
      if level:
        # A wider layer at the coarse level and depth-to-space: as expressive
        # as upsampling and a 1 x 1 convolution, at a quarter of the cost.
        h = depth_to_space(nn.Dense(
            4 * s.channels[level - 1], name=f'up_{level}')(h), 2)
    h = nn.silu(nn.GroupNorm(_groups(h.shape[-1]), name='norm')(h))
    h = nn.Conv(s.patch ** 2 * s.out_channels, (3, 3), name='output',
                kernel_init=nn.initializers.zeros)(h)
    if prior is not None:
      # At large noise levels the prior image is the best prediction of x.
      weight = nn.Dense(1, kernel_init=nn.initializers.zeros,
                        name='sketch_share')(nn.silu(time))
      h += weight[:, None, None] * prior
    return depth_to_space(h, s.patch)


class ControlNet(nn.Module):
  """Residuals of a UNet from a map of each view (ControlNet, 2302.05543).

  Its encoder begins as a copy of the UNet's (`copy_parameters`) and takes the
  map beside the UNet's inputs. The layers of its outputs begin at zero and
  have no bias; a map of zeros stands for no condition and has no effect.

  Attributes:
    shape: of the UNet.
    blocks: residual blocks of each level, at most those of the UNet's encoder.
  """
  shape: UNetShape
  blocks: tuple[int, ...]

  @nn.compact
  def __call__(self, control: jax.Array, x: jax.Array, t: jax.Array,
               states: jax.Array, mask: jax.Array,
               rays: jax.Array | None = None,
               prior_image: jax.Array | None = None) -> list[jax.Array]:
    """One residual for each output of the UNet's encoder and its middle.

    Args:
      control: [B, H, W, K], the map.
      x, t, states, mask, rays, prior_image: the inputs of the UNet.

    Returns:
      List of [B, h, w, C].
    """
    s = self.shape
    _, block = _time_and_block(s, t, states, mask, rays)
    h, _ = _input(s, x, prior_image)
    hint = nn.Conv(s.channels[0], (3, 3), name='hint_in')(
        space_to_depth(control, s.patch))
    h += nn.Conv(s.channels[0], (3, 3), name='hint_out')(nn.silu(hint))
    encoded = _encode(s._replace(blocks=self.blocks), block, h)

    # The UNet's outputs, and where there are more of them than here, the last
    # one of the level again.
    known = jnp.any(control != 0, axis=(1, 2, 3))[:, None, None, None]
    outputs, taken = [], 0
    last = len(s.channels) - 1
    for level, blocks in enumerate(s.blocks):
      ours = encoded[taken:taken + self.blocks[level] + 1]
      taken += len(ours)
      extra = blocks - self.blocks[level] + (level == last)
      for i, h in enumerate([*ours, *ours[-1:] * extra]):
        outputs.append(known * nn.Dense(
            h.shape[-1], use_bias=False, kernel_init=nn.initializers.zeros,
            name=f'residual_{level}_{i}')(h))
    return outputs


def copy_parameters(control: Any, unet: Any) -> Any:
  """Parameters of a ControlNet, with a UNet's layers where it has the same."""
  return {'params': control['params'] | {
      name: layer for name, layer in unet['params'].items()
      if name in control['params']}}


# The parts of the UNet that a ControlNet has as well. Submodules belong to the
# module whose __call__ calls these functions.


def _time_and_block(s, t, states, mask, rays):
  """(embedding [B, T] of time and text, function of a block)."""
  time = nn.Dense(s.time_width, name='time_in')(
      time_features(t, s.time_width))
  time = nn.Dense(s.time_width, name='time_out')(nn.silu(time))
  time += nn.Dense(s.time_width, name='pooled')(
      nn.LayerNorm(name='pooled_norm')(masked_mean(states, mask)))
  sides = [s.patch * 2 ** level for level in range(len(s.channels))]
  rays_of = [nn.avg_pool(rays, (side, side), (side, side))
             if s.rays else None for side in sides]

  def block(h, level, name):
    h = ResidualBlock(s.channels[level], name=name)(
        h, time, rays_of[level])
    if s.attention[level]:
      h = Attention(s.head_dim, name=f'{name}_attention')(h, states, mask)
    return h

  return time, block


def _input(s, x, prior_image):
  """(first features, prior image by patches or None)."""
  h = nn.Conv(s.channels[0], (3, 3), name='input')(space_to_depth(x, s.patch))
  # The parameters of the prior image are named 'sketch' and 'sketch_share'
  # in the shipped weights.
  prior = None
  if s.prior_image:
    if prior_image is None:
      raise ValueError('The U-Net needs a prior image.')
    prior = space_to_depth(prior_image, s.patch)
    h += nn.Conv(s.channels[0], (3, 3), use_bias=False, name='sketch',
                 kernel_init=nn.initializers.zeros)(prior)
  return h, prior


def _encode(s, block, h):
  """The outputs of the encoder: h, then of each layer, finest level first."""
  outputs = [h]
  for level, blocks in enumerate(s.blocks):
    if level:
      h = nn.Conv(s.channels[level], (3, 3), strides=(2, 2),
                  name=f'down_{level}')(h)
      outputs.append(h)
    for i in range(blocks):
      h = block(h, level, f'encode_{level}_{i}')
      outputs.append(h)
  return outputs
