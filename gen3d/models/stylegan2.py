"""StyleGAN2's layers and networks (Karras et al., 1912.04958; ADA, 2006.06676).

Vocabulary. N images of H x W x C; z [N, Z] is the latent, w [N, D] the output
of the mapping network, `ws` [N, L, D] one w for each of L layers. Weights are
initialized with N(0, 1) and scaled in use (equalized learning rate). Modules
and parameters have the official names, so that a parameter's path, joined by
dots, is its name in an official checkpoint.

Buffers, which are saved but not trained, are a collection of their own:
`apply({'params': ..., 'buffers': ...}, ...)`.

`noise` is 'random', 'const', 'none', or indices [N] of the images, which is
'random' with the noise of an image depending only on its index and on the
random stream 'noise', not on the rest of the batch.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError, check
from gen3d.ops import images, linear

NOISE = ('random', 'const', 'none')
Noise = str | jax.Array


def activate(
    x: jax.Array, act: str = 'lrelu', gain: float = 1.0,
    clamp: float | None = None
) -> jax.Array:
  """'lrelu' (slope 0.2, gain sqrt 2) or 'linear', times gain, then clamped.

  Args:
    x: array.
    act: 'lrelu' or 'linear'.
    gain: factor of the output, and of the clamp.
    clamp: largest absolute value before `gain`; None for none.
  """
  check('activation', ('lrelu', 'linear'), act)
  # sqrt 2 keeps the second moment, which the leaky ReLU nearly halves.
  if act == 'lrelu':
    x = nn.leaky_relu(x, 0.2) * math.sqrt(2)
  x = x * gain
  return x if clamp is None else jnp.clip(x, -clamp * gain, clamp * gain)


def normalize_second_moment(x: jax.Array) -> jax.Array:
  """Rows [..., D], scaled to a mean square of 1."""
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-8)


def channels(
    resolution: int, channel_base: int = 32_768, channel_max: int = 512
) -> int:
  """Number of channels of the networks at a resolution."""
  return min(channel_base // resolution, channel_max)


def resolutions(resolution: int) -> tuple[int, ...]:
  """(4, 8, ..., resolution).

  Raises:
    UserError: it is not a power of two of at least 4.
  """
  if resolution < 4 or resolution & (resolution - 1):
    raise UserError(f'The resolution {resolution} is not a power of two of at '
                    'least 4, which StyleGAN2 needs; resize the images.')
  return tuple(2 ** i for i in range(2, resolution.bit_length()))


class Dense(nn.Module):
  """A fully connected layer with equalized learning rate."""
  features: int
  act: str = 'linear'
  lr_mul: float = 1.0
  bias_init: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fan_in = x.shape[-1]
    # Divided by lr_mul, then multiplied by it in use: the same function, with
    # a learning rate that is effectively lower.
    weight = self.param('weight', nn.initializers.normal(1 / self.lr_mul),
                        (fan_in, self.features))
    bias = self.param('bias', nn.initializers.constant(self.bias_init),
                      (self.features,))
    x = linear.dense(x, weight, float(self.lr_mul / np.sqrt(fan_in)))
    return activate(x + (bias * self.lr_mul).astype(x.dtype), self.act)


class Conv(nn.Module):
  """A convolution with equalized learning rate, optionally with stride 2.

  Attributes:
    features: channels of the output.
    kernel: taps a side, 1 or 3.
    down: halves the size, after filtering with the binomial (1904.11486).
    act: as in `activate`.
    use_bias: adds a bias.
    clamp: as in `activate`.
  """
  features: int
  kernel: int = 3
  down: bool = False
  act: str = 'lrelu'
  use_bias: bool = True
  clamp: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, gain: float = 1.0) -> jax.Array:
    size, fan_in = self.kernel, x.shape[-1]
    weight = self.param('weight', nn.initializers.normal(1.0),
                        (size, size, fan_in, self.features))
    # Equalized learning rate: He's scale at run time.
    weight = (weight / np.sqrt(fan_in * size * size)).astype(x.dtype)
    if not self.down:
      x = linear.correlate(x, weight)
    elif size == 1:
      # A 1 x 1 convolution commutes with the filter, and costs a quarter after.
      x = linear.correlate(images.downsample2(x), weight)
    else:
      # The zeros at the edges are those of both: one of the filter and one of
      # the convolution, which then has no padding.
      x = images.filter2d(x, images.BINOMIAL, 2, 2)
      x = linear.conv_stride2(x, weight)
    if self.use_bias:
      x += self.param('bias', nn.initializers.zeros,
                      (self.features,)).astype(x.dtype)
    return activate(x, self.act, gain, self.clamp)


def modulated_conv(
    x: jax.Array, weight: jax.Array, style: jax.Array, *, up: bool = False,
    demodulate: bool = True
) -> jax.Array:
  """A convolution with input channels scaled by a style (1912.04958, eq. 1-3).

  The activations are scaled instead of the kernels, and demodulated after the
  convolution: equal by linearity, and all examples have one convolution.
  Grouped convolutions with a kernel for each example are many times slower on
  a CPU.

  Args:
    x: [N, H, W, I].
    weight: [K, K, I, O]; 3 x 3 where the size is doubled.
    style: [N, I].
    up: doubles the size.
    demodulate: rescales the outputs to unit variance.

  Returns:
    [N, H, W, O], or twice as high and wide.
  """
  y = x * style[:, None, None].astype(x.dtype)
  kernel = weight.astype(x.dtype)
  if up:
    # The convolution comes before the binomial, as in the official networks,
    # and is a true one: its taps are flipped, unlike those of a correlation.
    # The factor 2 an axis makes up for the zeros between pixels.
    y = linear.conv_transposed_stride2(y, kernel)
    y = images.filter2d(y, [2 * tap for tap in images.BINOMIAL], 1, 1)
  else:
    y = linear.correlate(y, kernel)
  if demodulate:
    # The norm of each output's modulated kernel, eq. 3.
    power = jnp.square(style) @ jnp.sum(jnp.square(weight), axis=(0, 1))
    y = y * jax.lax.rsqrt(power + 1e-8)[:, None, None].astype(x.dtype)
  return y


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
      self, x: jax.Array, w: jax.Array, noise: Noise = 'random'
  ) -> jax.Array:
    if isinstance(noise, str):
      check('noise', NOISE, noise)
      noise = jnp.arange(len(x)) if noise == 'random' else noise
    style = Dense(x.shape[-1], bias_init=1.0, name='affine')(w)
    # Without a factor for its size, which demodulation would cancel.
    weight = self.param('weight', nn.initializers.normal(1.0),
                        (3, 3, x.shape[-1], self.features))
    x = modulated_conv(x, weight, style, up=self.up)
    strength = self.param('noise_strength', nn.initializers.zeros, ())
    size = x.shape[1:3]
    constant = self.variable(
        'buffers', 'noise_const',
        lambda: jax.random.normal(self.make_rng('params'), size))
    if isinstance(noise, str):
      if noise == 'const':
        x += (strength * constant.value)[:, :, None].astype(x.dtype)
    elif not self.is_initializing():  # `init` has no stream 'noise'.
      # One key per image, so that its noise is the same on any device.
      keys = jax.vmap(jax.random.fold_in, (None, 0))(
          self.make_rng('noise'), noise)
      random = jax.vmap(lambda key: jax.random.normal(key, (*size, 1)))(keys)
      x += (strength * random).astype(x.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return activate(x + bias.astype(x.dtype), clamp=self.clamp)


class ToRGB(nn.Module):
  """A modulated 1 x 1 convolution to an image, without demodulation."""
  features: int
  clamp: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
    style = Dense(x.shape[-1], bias_init=1.0, name='affine')(w)
    weight = self.param('weight', nn.initializers.normal(1.0),
                        (1, 1, x.shape[-1], self.features))
    # Here the factor of the equalized learning rate is part of the style.
    x = modulated_conv(x, weight, style / np.sqrt(x.shape[-1]),
                       demodulate=False)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return activate(x + bias.astype(x.dtype), 'linear', clamp=self.clamp)


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
      noise: Noise = 'random'
  ) -> tuple[jax.Array, jax.Array]:
    layer = lambda name, up=False: SynthesisLayer(
        self.features, up, self.clamp, name=name)
    if x is None:
      # Channels first, as in official checkpoints.
      x = self.param('const', nn.initializers.normal(1.0),
                     (self.features, self.constant, self.constant))
      x = jnp.broadcast_to(
          x.transpose(1, 2, 0), (len(ws), *x.shape[1:], x.shape[0]))
    else:
      x = layer('conv0', self.up)(x.astype(self.dtype), ws[:, 0], noise)
    # From the end: the first block has no conv0, and so one w fewer.
    x = layer('conv1')(x.astype(self.dtype), ws[:, -2], noise)
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
  """
  resolution: int
  image_channels: int = 3
  channel_base: int = 32_768
  channel_max: int = 512
  num_half_res: int = 0
  clamp: Any = None

  @nn.compact
  def __call__(self, ws: jax.Array, noise: Noise = 'random') -> jax.Array:
    x: Any = None
    image: Any = None
    sizes = resolutions(self.resolution)
    for i, size in enumerate(sizes):
      block = SynthesisBlock(
          channels(size, self.channel_base, self.channel_max),
          self.image_channels, constant=4 if i == 0 else 0, clamp=self.clamp,
          dtype=_precision(i, len(sizes), self.num_half_res), name=f'b{size}')
      # The w of a block's ToRGB is also that of the next block's conv0.
      first = max(2 * i - 1, 0)
      x, image = block(x, image, ws[:, first:2 * i + 2], noise)
    return image


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
      inputs.append(normalize_second_moment(z))
    if self.labeled:
      if label is None:
        raise ValueError('The mapping network needs a label.')
      # The embedding has the full learning rate, unlike the layers below.
      inputs.append(normalize_second_moment(
          Dense(self.width, name='embed')(label)))
    x = jnp.concatenate(inputs, axis=-1)
    for i in range(self.layers):
      x = Dense(self.width, 'lrelu', self.lr_mul, name=f'fc{i}')(x)
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
    return 2 * len(resolutions(self.synthesis_config['resolution']))

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
      x = Conv(self.features, 1, clamp=self.clamp, name='fromrgb')(x)
    y = Conv(self.features_out, 1, down=True, act='linear', use_bias=False,
             name='skip')(x, gain)
    x = Conv(self.features, clamp=self.clamp, name='conv0')(x)
    x = Conv(self.features_out, down=True, clamp=self.clamp,
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
    sizes = resolutions(self.resolution)[::-1]
    width = lambda size: channels(size, self.channel_base, self.channel_max)
    for i, size in enumerate(sizes[:-1]):
      x = DiscriminatorBlock(
          width(size), width(size // 2), from_image=i == 0, clamp=self.clamp,
          dtype=_precision(len(sizes) - 1 - i, len(sizes), self.num_half_res),
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
    x = minibatch_deviation(x, self.mbstd_group)
    x = Conv(self.features, clamp=self.clamp, name='conv')(x)
    x = Dense(self.features, 'lrelu', name='fc')(x.reshape(len(x), -1))
    return Dense(self.features if self.labeled else 1, name='out')(x)


def minibatch_deviation(x: jax.Array, group: int) -> jax.Array:
  """Minibatch standard deviation (1710.10196) as an additional channel.

  Args:
    x: [N, H, W, C].
    group: images in a group; N where that is smaller. Groups are strided:
      image i is in one group with images i + N / group and so on.

  Returns:
    [N, H, W, C + 1].

  Raises:
    UserError: the batch cannot be divided into groups.
  """
  count = len(x)
  group = min(group, count)
  if count % group:
    raise UserError(f'{count} images on a device cannot be divided into groups '
                    f'of {group} for the minibatch standard deviation; '
                    'change the batch or the group.')
  # Group axis first: this makes the groups strided.
  groups = x.reshape(group, count // group, *x.shape[1:])
  deviation = jnp.sqrt(jnp.var(groups, axis=0) + 1e-8)
  statistic = jnp.tile(jnp.mean(deviation, axis=(1, 2, 3)), group)
  return jnp.concatenate([x, jnp.broadcast_to(
      statistic[:, None, None, None], (*x.shape[:-1], 1))], axis=-1)


def _precision(index, count, num_half_res):
  """bfloat16 for the highest `num_half_res` of `count` resolutions."""
  return jnp.bfloat16 if index >= count - num_half_res else jnp.float32
