"""StyleGAN2's networks (Karras et al., 1912.04958; ADA, 2006.06676).

Vocabulary. N images of H x W x C; z [N, Z] is the latent, w [N, D] the output
of the mapping network, `ws` [N, L, D] one w for each of L layers. Weights are
initialized with N(0, 1) and scaled in use (equalized learning rate). Modules
and parameters have the official names, so that a parameter's path, joined by
dots, is its name in an official checkpoint.

Buffers, which are saved but not trained, are a collection of their own:
`apply({'params': ..., 'buffers': ...}, ...)`.

`noise` of the generator is 'random', 'const', 'none', or indices [N] of the
images, which is 'random' with the noise of an image depending only on its index
and on the random stream 'noise', not on the rest of the batch. A layer takes
'const', 'none' or its own noise [N, H, W, 1].
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import check
from gen3d.models import stylegan2_layers as layers
from gen3d.ops import images

NOISE = ('random', 'const', 'none')
Noise = str | jax.Array


class SynthesisLayer(nn.Module):
  """Modulated 3 x 3 convolution, noise, bias, leaky ReLU.

  Attributes:
    features: channels of the output.
    up: doubles the size.
    clamp: of the activation.
  """
  features: int
  up: bool = False
  clamp: Any = None

  @nn.compact
  def __call__(
      self, x: jax.Array, w: jax.Array, noise: Noise = 'const'
  ) -> jax.Array:
    style = layers.Dense(x.shape[-1], bias_init=1.0, name='affine')(w)
    # Without a factor for its size, which demodulation would cancel.
    weight = self.param('weight', nn.initializers.normal(1.0),
                        (3, 3, x.shape[-1], self.features))
    x = layers.modulated_conv(x, weight, style, up=self.up)
    strength = self.param('noise_strength', nn.initializers.zeros, ())
    size = x.shape[1:3]
    constant = self.variable(
        'buffers', 'noise_const',
        lambda: jax.random.normal(self.make_rng('params'), size))
    if not isinstance(noise, str):
      x += (strength * noise).astype(x.dtype)
    elif noise == 'const':
      x += (strength * constant.value)[:, :, None].astype(x.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return layers.activate(x + bias.astype(x.dtype), clamp=self.clamp)


class ToRGB(nn.Module):
  """A modulated 1 x 1 convolution to an image, without demodulation."""
  features: int
  clamp: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
    style = layers.Dense(x.shape[-1], bias_init=1.0, name='affine')(w)
    weight = self.param('weight', nn.initializers.normal(1.0),
                        (1, 1, x.shape[-1], self.features))
    # Here the factor of the equalized learning rate is part of the style.
    x = layers.modulated_conv(x, weight, style / np.sqrt(x.shape[-1]),
                       demodulate=False)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return layers.activate(x + bias.astype(x.dtype), 'linear', clamp=self.clamp)


class SynthesisBlock(nn.Module):
  """Two layers at one resolution, and their contribution to the image.

  `ws` has one w for each layer and one for ToRGB; the first layer of the next
  block has the same w as ToRGB.

  Attributes:
    features: channels of the layers.
    image_channels: of the image.
    up: doubles the size.
    constant: size of the learned input of the first block, which has one
      layer only; 0 for other blocks.
    clamp: of the activations.
    dtype: of the layers.
  """
  features: int
  image_channels: int
  up: bool = True
  constant: int = 0
  clamp: Any = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
      self, x: jax.Array | None, image: jax.Array | None, ws: jax.Array,
      noise: Sequence[Noise] = ('const', 'const')
  ) -> tuple[jax.Array, jax.Array]:
    *first, last = noise  # The first block has no conv0.
    layer = lambda name, up=False: SynthesisLayer(
        self.features, up, self.clamp, name=name)
    if x is None:
      # Channels first, as in official checkpoints.
      x = self.param('const', nn.initializers.normal(1.0),
                     (self.features, self.constant, self.constant))
      x = jnp.broadcast_to(
          x.transpose(1, 2, 0), (len(ws), *x.shape[1:], x.shape[0]))
    else:
      x = layer('conv0', self.up)(
          x.astype(self.dtype), ws[:, 0], first[0])
    # From the end: without conv0, there is one w fewer.
    x = layer('conv1')(x.astype(self.dtype), ws[:, -2], last)
    rgb = ToRGB(self.image_channels, self.clamp, name='torgb')(x, ws[:, -1])
    if image is None:
      return x, rgb.astype(jnp.float32)
    # Images are added in float32, whatever the precision of the layers.
    image = images.upsample2(image) if self.up else image
    return x, image + rgb.astype(jnp.float32)


class Synthesis(nn.Module):
  """ws [N, L, D] -> images [N, R, R, C], with skip connections.

  Attributes:
    resolution: R.
    image_channels: C.
    channel_base, channel_max: of `channels`.
    num_half_res: number of the highest resolutions computed in bfloat16.
    clamp: of all activations; 256 in official networks with half precision.
    widths: channels of each block, from 4 x 4 on, where they do not follow
      from channel_base and channel_max.
  """
  resolution: int
  image_channels: int = 3
  channel_base: int = 32_768
  channel_max: int = 512
  num_half_res: int = 0
  clamp: Any = None
  widths: tuple[int, ...] = ()

  @nn.compact
  def __call__(self, ws: jax.Array, noise: Noise = 'random') -> jax.Array:
    x: Any = None
    image: Any = None
    sizes = layers.resolutions(self.resolution)
    widths = self.widths or tuple(
        layers.channels(size, self.channel_base, self.channel_max)
        for size in sizes)
    noises = self._noises(noise, len(ws))
    for i, size in enumerate(sizes):
      block = SynthesisBlock(
          widths[i], self.image_channels, constant=4 if i == 0 else 0,
          clamp=self.clamp,
          dtype=layers.precision(i, len(sizes), self.num_half_res),
          name=f'b{size}')
      # The w of a block's ToRGB is also that of the next block's conv0.
      first = max(2 * i - 1, 0)
      x, image = block(x, image, ws[:, first:2 * i + 2],
                       noises[first:2 * i + 1])
    return image

  def _noises(self, noise: Noise, count: int) -> list[Noise]:
    """The noise of each layer, 'const', 'none' or [count, H, W, 1]."""
    sizes = layers.resolutions(self.resolution)
    sizes = [size for size in sizes for _ in range(1 + (size > sizes[0]))]
    if isinstance(noise, str):
      check('noise', NOISE, noise)
      if noise == 'random':
        noise = jnp.arange(count)
    if isinstance(noise, str) or self.is_initializing():
      # `init` has no stream 'noise', and every layer's strength is 0 there.
      return [noise if isinstance(noise, str) else 'none'] * len(sizes)
    # One key per image, so that its noise is the same on any device, and one
    # draw for all layers: fewer programs to compile.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        self.make_rng('noise'), noise)
    ends = np.cumsum([size**2 for size in sizes])
    drawn = jax.vmap(lambda key: jax.random.normal(key, (ends[-1],)))(keys)
    return [x.reshape(count, size, size, 1) for x, size in zip(
        jnp.split(drawn, ends[:-1], axis=1), sizes)]


class Mapping(nn.Module):
  """z [N, Z] and a label [N, C] -> w [N, D], or ws [N, num_ws, D].

  Attributes:
    width: D.
    layers: number of layers.
    labeled: there is a label.
    latent: there is a z.
    num_ws: L, or 0 for a single w. With it, the buffer `w_avg` is the running
      mean of w, for truncation.
    lr_mul: learning-rate multiplier of the layers.
  """
  width: int = 512
  layers: int = 8
  labeled: bool = False
  latent: bool = True
  num_ws: int = 0
  lr_mul: float = 0.01

  @nn.compact
  def __call__(
      self, z: jax.Array | None, label: jax.Array | None, psi: Any = 1.0,
      cutoff: Any = None
  ) -> jax.Array:
    inputs = []
    if self.latent:
      if z is None:
        raise ValueError('The mapping network needs a latent.')
      inputs.append(layers.normalize_second_moment(z))
    if self.labeled:
      if label is None:
        raise ValueError('The mapping network needs a label.')
      # The embedding has the full learning rate, unlike the layers below.
      inputs.append(layers.normalize_second_moment(
          layers.Dense(self.width, name='embed')(label)))
    x = jnp.concatenate(inputs, axis=-1)
    for i in range(self.layers):
      x = layers.Dense(self.width, 'lrelu', self.lr_mul, name=f'fc{i}')(x)
    if not self.num_ws:
      return x
    average = self.variable(
        'buffers', 'w_avg', jnp.zeros, (self.width,)).value
    ws = jnp.repeat(x[:, None], self.num_ws, axis=1)
    # Truncation (1812.04948, appendix B) in the first `cutoff` layers.
    truncated = average + psi * (ws - average)
    first = jnp.arange(self.num_ws) < (
        self.num_ws if cutoff is None else cutoff)
    # psi = 1 returns ws exactly, without rounding.
    return jnp.where(first[:, None] & (psi != 1), truncated, ws)


class Generator(nn.Module):
  """StyleGAN2: (z [N, Z], label [N, C]) -> images [N, R, R, channels].

  Attributes:
    synthesis_config, mapping_config: keywords of Synthesis and Mapping.
  """
  synthesis_config: Any
  mapping_config: Any

  def setup(self) -> None:
    self.synthesis = Synthesis(**self.synthesis_config)
    self.mapping = Mapping(**self.mapping_config, num_ws=self.num_ws)

  @property
  def num_ws(self) -> int:
    """L: one w for each layer, and one for the last ToRGB."""
    return 2 * len(layers.resolutions(self.synthesis_config['resolution']))

  def __call__(
      self, z: jax.Array, label: jax.Array, psi: Any = 1.0,
      cutoff: Any = None, noise: Noise = 'random'
  ) -> jax.Array:
    return self.synthesis(self.mapping(z, label, psi, cutoff), noise)


class DiscriminatorBlock(nn.Module):
  """A residual block that halves the size: two convolutions and a linear skip.

  Attributes:
    features, features_out: channels of the input and of the output.
    from_image: the input is an image, which a 1 x 1 convolution expands first.
    clamp: of the activations.
    dtype: of the layers.
  """
  features: int
  features_out: int
  from_image: bool = False
  clamp: Any = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(self.dtype)
    # A Python float: a NumPy scalar would promote bfloat16 to float32.
    gain = math.sqrt(0.5)
    if self.from_image:
      x = layers.Conv(self.features, 1, clamp=self.clamp, name='fromrgb')(x)
    y = layers.Conv(self.features_out, 1, down=True, act='linear',
                    use_bias=False, name='skip')(x, gain)
    x = layers.Conv(self.features, clamp=self.clamp, name='conv0')(x)
    x = layers.Conv(self.features_out, down=True, clamp=self.clamp,
                    name='conv1')(x, gain)
    return y + x


class Discriminator(nn.Module):
  """(images [N, R, R, C], label [N, K]) -> logits [N].

  With labels, a projection discriminator (1802.05637).

  Attributes:
    resolution: R.
    labeled: there is a label.
    channel_base, channel_max: of `channels`.
    mbstd_group: group size of the minibatch standard deviation.
    mapping_layers: of the label's mapping network.
    num_half_res, clamp: as in Synthesis.
  """
  resolution: int
  labeled: bool = False
  channel_base: int = 32_768
  channel_max: int = 512
  mbstd_group: int = 4
  mapping_layers: int = 8
  num_half_res: int = 0
  clamp: Any = None

  @nn.compact
  def __call__(
      self, x: jax.Array, label: jax.Array | None = None
  ) -> jax.Array:
    sizes = layers.resolutions(self.resolution)[::-1]
    width = lambda size: layers.channels(
        size, self.channel_base, self.channel_max)
    for i, size in enumerate(sizes[:-1]):
      x = DiscriminatorBlock(
          width(size), width(size // 2), from_image=i == 0, clamp=self.clamp,
          dtype=layers.precision(
              len(sizes) - 1 - i, len(sizes), self.num_half_res),
          name=f'b{size}')(x)
    # The official epilogue is in float32, whatever the blocks' precision.
    x = _Epilogue(width(4), self.mbstd_group, self.clamp, self.labeled,
                  name='b4')(x.astype(jnp.float32))
    if not self.labeled:
      return x[:, 0]
    embedding = Mapping(width(4), self.mapping_layers, labeled=True,
                        latent=False, name='mapping')(None, label)
    # Scaled so that the variance of the logits does not grow with the width.
    return jnp.sum(x * embedding, axis=-1) / np.sqrt(width(4))


class _Epilogue(nn.Module):
  """The last layers: minibatch standard deviation, convolution, dense."""
  features: int
  mbstd_group: int
  clamp: Any
  labeled: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = layers.minibatch_deviation(x, self.mbstd_group)
    x = layers.Conv(self.features, clamp=self.clamp, name='conv')(x)
    x = layers.Dense(self.features, 'lrelu', name='fc')(x.reshape(len(x), -1))
    return layers.Dense(self.features if self.labeled else 1, name='out')(x)
