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
