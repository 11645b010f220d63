"""Initializers of weights and biases, as PyTorch has them."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# (key, shape, dtype) -> array
Initializer = Callable[..., jax.Array]


def uniform(bound: float) -> Initializer:
  """Uniform in [-bound, bound]."""
  def initialize(key: jax.Array, shape: tuple[int, ...],
                 dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return initialize


def fan_in_uniform(fan_in: int) -> Initializer:
  """Uniform within 1 / sqrt(fan_in): of linear layers and convolutions."""
  return uniform(fan_in ** -0.5)


def leaky_normal(fan_in: int, gain: float = 1.0) -> Initializer:
  """Kaiming's normal one for a leaky ReLU of slope 0.2, times `gain`."""
  return nn.initializers.normal(gain * math.sqrt(2 / (1 + 0.2**2) / fan_in))
