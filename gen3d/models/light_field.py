"""A light field of words: what a ray sees of what a text says.

After light field networks (Sitzmann et al., 2106.02634): one evaluation a ray
and no integral along it, with weights that come from what is to be seen. There
a hypernetwork makes them of a latent code; here each matrix is a mixture of a
few shared ones, in the proportions that the text wants.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from gen3d.ops import cameras

# Where on a ray it is looked at, in radii of the object from the point that is
# nearest to the origin.
PLACES = (-2 / 3, -1 / 3, 0.0, 1 / 3, 2 / 3)
OCTAVES = 3


class LightFieldShape(NamedTuple):
  """The numbers that make one light field.

  Attributes:
    width: of the hidden layers.
    layers: of matrices, the last one included.
    experts: how many matrices each one is a mixture of.
  """
  width: int = 128
  layers: int = 5
  experts: int = 16


def features(origins, directions, radius=0.6):
  """What a light field is told of rays: [..., 108].

  The direction, and points along the ray, with sines and cosines, as a NeRF is
  told of points: so that a surface is near one of them.

  Args:
    origins, directions: [..., 3], the latter of length one.
    radius: of the object, about the origin.
  """
  nearest = cameras.nearest_to_origin(origins, directions) / radius
  points = jnp.concatenate([nearest + s * directions for s in PLACES], -1)
  angles = jnp.pi * jnp.concatenate(
      [2.0 ** k * points for k in range(OCTAVES)], -1)
  return jnp.concatenate(
      [directions, points, jnp.sin(angles), jnp.cos(angles)], -1)


class LightField(nn.Module):
  """(features [B, ..., F] of rays, text [B, D]) -> [B, ..., outputs]."""
  shape: LightFieldShape
  outputs: int

  @nn.compact
  def __call__(self, rays, text):
    text = nn.LayerNorm(name='norm')(text)
    h = rays.reshape(rays.shape[0], -1, rays.shape[-1])
    for i in range(self.shape.layers):
      last = i == self.shape.layers - 1
      width = self.outputs if last else self.shape.width
      y = _TextDense(width, self.shape.experts, last,
                     name=f'layer_{i}')(h, text)
      h = y if last else nn.silu(y) + (h if i else 0)
    return h.reshape(*rays.shape[:-1], self.outputs)


class _TextDense(nn.Module):
  """A Dense of h [B, N, F] whose matrix and bias a text [B, D] chooses."""
  width: int
  experts: int
  silent: bool  # at the start

  @nn.compact
  def __call__(self, h, text):
    # The proportions have a variance of two: of the text, and its own.
    fan_in = 2 * self.experts * h.shape[-1]
    init = lambda scale: nn.initializers.normal(0 if self.silent else scale)
    experts = self.param('experts', init(fan_in ** -0.5),
                         (self.experts, h.shape[-1], self.width))
    mixture = nn.Dense(self.experts, name='mixture',
                       bias_init=nn.initializers.normal(1.0))(text)
    matrices = jnp.einsum('bk,kio->bio', mixture, experts)
    bias = nn.Dense(self.width, name='bias', kernel_init=init(
        text.shape[-1] ** -0.5))(text)
    return jnp.einsum('bni,bio->bno', h, matrices) + bias[:, None]
