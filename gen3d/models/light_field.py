"""A text-conditioned light field: the color of a ray by one evaluation.

After light field networks (Sitzmann et al., 2106.02634): there is no integral
along a ray, and the network's weights depend on the scene. There a
hypernetwork makes them of a latent code; here each matrix is a mixture of a few
shared ones (experts), with coefficients that are linear in the text.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.ops import cameras

# Positions of the encoded points on a ray, in radii of the object from the
# point nearest to the origin.
OFFSETS = (-2 / 3, -1 / 3, 0.0, 1 / 3, 2 / 3)
OCTAVES = 3


class LightFieldShape(NamedTuple):
  """The hyperparameters of a light field.

  Attributes:
    width: of the hidden layers.
    layers: number of matrices, the output's included.
    experts: number of matrices that each layer mixes.
  """
  width: int = 128
  layers: int = 5
  experts: int = 16


def features(origins: jax.Array, directions: jax.Array,
             radius: float = 0.6) -> jax.Array:
  """Features [..., 108] of rays, independent of where a ray starts.

  The direction, and positional encodings of five points along the ray, so that
  a surface is close to one of them.

  Args:
    origins: [..., 3].
    directions: [..., 3] of length one.
    radius: of the object around the origin.
  """
  nearest = cameras.nearest_to_origin(origins, directions) / radius
  points = jnp.concatenate([nearest + s * directions for s in OFFSETS], -1)
  angles = jnp.pi * jnp.concatenate(
      [2.0 ** k * points for k in range(OCTAVES)], -1)
  return jnp.concatenate(
      [directions, points, jnp.sin(angles), jnp.cos(angles)], -1)


class LightField(nn.Module):
  """(features [B, ..., F] of rays, text [B, D]) -> [B, ..., outputs]."""
  shape: LightFieldShape
  outputs: int

  @nn.compact
  def __call__(self, rays: jax.Array, text: jax.Array) -> jax.Array:
    text = nn.LayerNorm(name='norm')(text)
    h = rays.reshape(rays.shape[0], -1, rays.shape[-1])
    for i in range(self.shape.layers):
      last = i == self.shape.layers - 1
      width = self.outputs if last else self.shape.width
      y = TextDense(width, self.shape.experts, last,
                     name=f'layer_{i}')(h, text)
      h = y if last else nn.silu(y) + (h if i else 0)
    return h.reshape(*rays.shape[:-1], self.outputs)


class TextDense(nn.Module):
  """A Dense of h [B, N, F] whose matrix and bias depend on a text [B, D]."""
  width: int
  experts: int
  zero_init: bool  # outputs zero at initialization

  @nn.compact
  def __call__(self, h: jax.Array, text: jax.Array) -> jax.Array:
    # A mixing coefficient has variance two: one of the text's linear map and
    # one of the bias.
    fan_in = 2 * self.experts * h.shape[-1]
    init = lambda scale: nn.initializers.normal(
        0 if self.zero_init else scale)
    experts = self.param('experts', init(fan_in ** -0.5),
                         (self.experts, h.shape[-1], self.width))
    mixture = nn.Dense(self.experts, name='mixture',
                       bias_init=nn.initializers.normal(1.0))(text)
    matrices = jnp.einsum('bk,kio->bio', mixture, experts)
    bias = nn.Dense(self.width, name='bias', kernel_init=init(
        text.shape[-1] ** -0.5))(text)
    return jnp.einsum('bni,bio->bno', h, matrices) + bias[:, None]
