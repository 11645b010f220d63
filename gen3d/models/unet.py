"""A text-conditioned diffusion U-Net, as in Imagen, at any size.

Vocabulary: B images of H x W x C pixels, L text tokens of D numbers. Blocks
are residual convolutions whose second normalization is scaled and shifted by
the time embedding and, where cameras are known, shifted by what each pixel's
ray says (R features, as CAT3D has them at the input: 2405.10314); at chosen
levels each is followed by attention in which
the pixels look at one another and, through keys and values put beside their
own, at the text.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class UNetShape(NamedTuple):
  """The numbers that make one U-Net.

  Attributes:
    channels: of each level, finest first; a level halves the one above it.
    blocks: residual blocks of each level on the way down (one more going up).
    attention: whether each level has attention.
    patch: pixels are gathered into squares of this side first.
    head_dim: channels of one attention head.
    time_width: of the time embedding and pooled text.
    out_channels: of the prediction.
    rays: whether it can be told each pixel's ray.
    sketch: whether it can be given a picture to begin from.
  """
  channels: tuple = (32, 64, 128)
  blocks: tuple = (1, 2, 2)
  attention: tuple = (False, False, True)
  patch: int = 2
  head_dim: int = 32
  time_width: int = 256
  out_channels: int = 3
  rays: bool = False
  sketch: bool = False


def space_to_depth(x, side):
  """[B, H, W, C] to [B, H/side, W/side, side^2 C]; see `depth_to_space`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // side, side, w // side, side, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(
      b, h // side, w // side, side * side * c)


def depth_to_space(x, side):
  """Inverse of `space_to_depth`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, side, side, c // side ** 2)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(
      b, h * side, w * side, c // side ** 2)


def time_features(t, width):
  """Sines and cosines [B, width] of t in [0, 1], cosines first."""
  frequencies = jnp.exp(
      -jnp.log(10_000.0) * jnp.arange(width // 2) / (width // 2))
  angles = 1000 * t[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def masked_mean(states, mask):
  """Mean [B, D] of the states [B, L, D] where mask [B, L] is one."""
  total = jnp.sum(states * mask[..., None], axis=1)
  return total / jnp.maximum(jnp.sum(mask, axis=1)[:, None], 1)


def _groups(channels):
  """At most 32 groups of at least 4 channels that divide them."""
  return max(g for g in range(1, 33)
             if channels % g == 0 and (channels // g >= 4 or g == 1))


class ResidualBlock(nn.Module):
  """norm-SiLU-conv, scaled and shifted by time, norm-SiLU-conv, plus x.

  Rays [B, H, W, R] shift each pixel by itself. Without biases: zeros, for
  rays of which nothing is known, change nothing, and from zeros a network that
  has learned without them goes on as it was.
  """
  channels: int

  @nn.compact
  def __call__(self, x, time, rays=None):
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
  """Pixels attend to one another and to the text (Imagen, appendix B)."""
  head_dim: int

  @nn.compact
  def __call__(self, x, states, mask):
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
    seen = jnp.concatenate([mask > 0, jnp.ones((b, h * w), bool)], axis=1)
    out = jax.nn.dot_product_attention(q, k, v, mask=seen[:, None, None])
    out = nn.Dense(c, kernel_init=nn.initializers.zeros, name='out')(
        out.reshape(b, h, w, c))
    return x + out


class UNet(nn.Module):
  """(x [B, H, W, C], t [B], states [B, L, D], mask [B, L]) -> [B, H, W, C].

  What the output means (noise, v) is the caller's business. H and W must be
  divisible by patch * 2^(levels - 1). A network with shape.rays takes them as
  [B, H, W, R] as well, one with shape.sketch a picture [B, H, W, out_channels];
  one of zeros, of which nothing is known, changes nothing.
  """
  shape: UNetShape

  @nn.compact
  def __call__(self, x, t, states, mask, rays=None, sketch=None):
    s = self.shape
    time = nn.Dense(s.time_width, name='time_in')(
        time_features(t, s.time_width))
    time = nn.Dense(s.time_width, name='time_out')(nn.silu(time))
    time += nn.Dense(s.time_width, name='pooled')(
        nn.LayerNorm(name='pooled_norm')(masked_mean(states, mask)))
    sides = [s.patch * 2 ** level for level in range(len(s.channels))]
    seen = [nn.avg_pool(rays, (side, side), (side, side)) if s.rays else None
            for side in sides]

    def block(h, level, name):
      h = ResidualBlock(s.channels[level], name=name)(h, time, seen[level])
      if s.attention[level]:
        h = Attention(s.head_dim, name=f'{name}_attention')(h, states, mask)
      return h

    h = nn.Conv(s.channels[0], (3, 3), name='input')(
        space_to_depth(x, s.patch))
    if s.sketch:
      sketch = space_to_depth(sketch, s.patch)
      h += nn.Conv(s.channels[0], (3, 3), use_bias=False, name='sketch',
                   kernel_init=nn.initializers.zeros)(sketch)
    skips = [h]
    for level, blocks in enumerate(s.blocks):
      if level:
        h = nn.Conv(s.channels[level], (3, 3), strides=(2, 2),
                    name=f'down_{level}')(h)
        skips.append(h)
      for i in range(blocks):
        h = block(h, level, f'encode_{level}_{i}')
        skips.append(h)
    h = block(h, len(s.channels) - 1, 'middle')
    for level in reversed(range(len(s.channels))):
      for i in range(s.blocks[level] + 1):
        h = block(jnp.concatenate([h, skips.pop()], axis=-1), level,
                  f'decode_{level}_{i}')
      if level:
        # A wider layer at the coarse level, then pixels out of channels: the
        # same map as upsampling and convolving, at a quarter of the cost.
        h = depth_to_space(nn.Dense(
            4 * s.channels[level - 1], name=f'up_{level}')(h), 2)
    h = nn.silu(nn.GroupNorm(_groups(h.shape[-1]), name='norm')(h))
    h = nn.Conv(s.patch ** 2 * s.out_channels, (3, 3), name='output',
                kernel_init=nn.initializers.zeros)(h)
    if s.sketch:
      # Where all is noise, the sketch is the answer.
      share = nn.Dense(1, kernel_init=nn.initializers.zeros,
                       name='sketch_share')(nn.silu(time))
      h += share[:, None, None] * sketch
    return depth_to_space(h, s.patch)
