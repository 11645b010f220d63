"""Layers of GIRAFFE's networks, in forms that are fast on a CPU.

All have the initialization of PyTorch: weights and biases are uniform within
1 / sqrt(fan-in). Kernels are [K, K', I, O], images [N, H, W, C].
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.models.initializers import fan_in_uniform
from gen3d.ops import linear, trigonometry


class Linear(nn.Module):
  """x [..., I] to [..., width]."""
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fan_in = x.shape[-1]
    kernel = self.param('kernel', fan_in_uniform(fan_in), (fan_in, self.width))
    bias = self.param('bias', fan_in_uniform(fan_in), (self.width,))
    return linear.dense(x, kernel) + bias


class Conv(nn.Module):
  """A convolution of images [N, H, W, I].

  Attributes:
    width: channels of the result.
    size: K, taps along each axis.
    apply_kernel: (x, kernel) -> result, such as linear.correlate.
    bias: whether there is one.
  """
  width: int
  size: int = 3
  apply_kernel: Callable[[jax.Array, jax.Array], jax.Array] = linear.correlate
  bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.size, self.size, x.shape[-1], self.width)
    fan_in = self.size**2 * x.shape[-1]
    x = self.apply_kernel(
        x, self.param('kernel', fan_in_uniform(fan_in), shape))
    if not self.bias:
      return x
    return x + self.param('bias', fan_in_uniform(fan_in), (self.width,))


def upsampled_correlate(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`linear.correlate` of x repeated to twice its size, [N, 2H, 2W, O].

  Two of three taps fall on copies of one pixel, so that each of the four
  parities of the result is a correlation of x itself with 2 x 2 taps: 4
  products for a pixel and channel instead of 9.

  Args:
    x: [N, H, W, I].
    kernel: [3, 3, I, O].
  """
  count, height, width, _ = x.shape
  for axis in (0, 1):
    before, here, after = jnp.split(kernel, 3, axis)
    kernel = jnp.stack([jnp.concatenate([before, here + after], axis),
                        jnp.concatenate([before + here, after], axis)], axis=-1)
  rows, columns, fan_in, fan_out, *_ = kernel.shape
  kernel = kernel.transpose(0, 1, 2, 4, 5, 3).reshape(
      rows, columns, fan_in, 4 * fan_out)
  # Entry [i, j] is of the pixels i - 1, i and j - 1, j.
  y = linear.correlate(jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0))), kernel)
  y = y.reshape(count, height + 1, width + 1, 2, 2, fan_out)
  y = jnp.stack([y[:, :-1, :, 0], y[:, 1:, :, 1]], axis=2)
  y = jnp.stack([y[..., :-1, 0, :], y[..., 1:, 1, :]], axis=4)
  return y.reshape(count, 2 * height, 2 * width, fan_out)


def halving_correlate(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Correlation with 4 x 4 taps, stride 2 and a margin of 1, [N, H/2, W/2, O].

  As a matrix product of patches: where XLA differentiates a strided
  convolution twice, as R1 does, it takes twenty times longer on a CPU.

  Args:
    x: [N, H, W, I].
    kernel: [4, 4, I, O].
  """
  count, height, width, channels = x.shape
  cells = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(
      count, height // 2 + 1, 2, width // 2 + 1, 2, channels)
  cells = cells.swapaxes(2, 3).reshape(*cells.shape[:2], width // 2 + 1, -1)
  patches = jnp.concatenate(
      [cells[:, a:a + height // 2, b:b + width // 2]
       for a in (0, 1) for b in (0, 1)], axis=-1)
  # Taps in the order of the patches: cell, then pixel within the cell.
  kernel = kernel.reshape(2, 2, 2, 2, *kernel.shape[2:]).swapaxes(1, 2)
  return linear.dense(patches, kernel.reshape(16 * channels, -1))


def positional(x: jax.Array, degree: int) -> jax.Array:
  """encodings.positional of pi x, [..., D] -> [..., 2 D degree].

  Four times as fast on a CPU, where sines are half of the time of a small
  field. |x| is at most 8 for ten octaves.
  """
  octaves = 2.0 ** jnp.arange(degree)
  angle = (jnp.pi * x)[..., None, :] * octaves[:, None]
  return jnp.concatenate(trigonometry.sine_and_cosine(
      angle.reshape(*x.shape[:-1], -1)), axis=-1)
