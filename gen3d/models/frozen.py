"""Layers of published networks that are evaluated, never trained.

Their parameters have the names of PyTorch's state_dict, so that
weights.port.by_path finds them. Convolutions are exact (float32): accelerators
would otherwise round their inputs, and features would differ by 1e-3.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

# A convolution [..., H, W, C] without bias, by name, features and window.
Conv = functools.partial(nn.Conv, use_bias=False,
                         precision=jax.lax.Precision.HIGHEST)
Dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
# Counters in a state_dict that no evaluation uses.
COUNTERS = ('*num_batches_tracked',)


class BatchNorm(nn.Module):
  """Batch normalization by the stored statistics."""
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., C] -> [..., C]."""
    parameter = lambda name, init: self.param(name, init, (x.shape[-1],))
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    weight, bias = parameter('weight', ones), parameter('bias', zeros)
    mean = parameter('running_mean', zeros)
    scale = weight / jnp.sqrt(parameter('running_var', ones) + self.eps)
    return x * scale + (bias - mean * scale)


class PReLU(nn.Module):
  """A rectifier with a learned slope for each channel."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., C] -> [..., C]."""
    slope = self.param('weight', nn.initializers.constant(0.25),
                       (x.shape[-1],))
    return jnp.where(x < 0, slope * x, x)


class ResidualBlock(nn.Module):
  """Norm, convolution, norm, PReLU, convolution, norm, plus a shortcut.

  Attributes:
    width: channels of the result.
    stride: of the second convolution.
    first: number in the name of the first of the three norms, 'bn0' or 'bn1'.
  """
  width: int
  stride: int
  first: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H / stride, W / stride, width]."""
    norms = [BatchNorm(name=f'bn{self.first + i}') for i in range(3)]
    y = Conv(self.width, (3, 3), padding=1, name='conv1')(norms[0](x))
    y = PReLU(name='prelu')(norms[1](y))
    y = norms[2](Conv(self.width, (3, 3), self.stride, 1, name='conv2')(y))
    if self.stride > 1 or x.shape[-1] != self.width:
      x = Conv(self.width, (1, 1), self.stride, 0, name='downsample.0')(x)
      x = BatchNorm(name='downsample.1')(x)
    return x + y
