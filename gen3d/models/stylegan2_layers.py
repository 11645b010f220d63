"""StyleGAN2's layers (Karras et al., 1912.04958; ADA, 2006.06676).

Images are [N, H, W, C]. Weights are initialized with N(0, 1) and scaled in use
(equalized learning rate). Parameters have the official names.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError, check
from gen3d.ops import images, linear


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


def precision(index: int, count: int, num_half_res: int) -> Any:
  """bfloat16 for the highest `num_half_res` of `count` resolutions."""
  return jnp.bfloat16 if index >= count - num_half_res else jnp.float32
