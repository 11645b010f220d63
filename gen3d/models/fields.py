"""Fields: what is where in space.

A field is called with (Gaussian samples [..., 3], unit view directions
[..., 3]) and answers (density [...], values [..., C] in [0, 1]). The fields
here show the same from all directions: shading is explicit in DreamFusion.
Density is per unit of length.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.ops import encodings


def dreamfusion_blob(points, strength=5.0, width=0.2):
  """What DreamFusion adds to the raw density [...] at points [..., 3].

  strength exp(-|x|^2 / (2 width^2)): a ball of matter to begin with.
  """
  squared = jnp.sum(points**2, axis=-1)
  return strength * jnp.exp(-squared / (2 * width**2))


def magic3d_blob(points, strength=10.0, radius=0.5):
  """Magic3D's cone strength (1 - |x| / radius), negative outside."""
  # The norm's gradient at the origin would be NaN.
  distance = jnp.sqrt(jnp.sum(points**2, axis=-1) + 1e-8)
  return strength * (1 - distance / radius)


BLOBS = {'dreamfusion': dreamfusion_blob, 'magic3d': magic3d_blob}


class MipMLP(nn.Module):
  """DreamFusion's MLP on Mip-NeRF's integrated encoding (its appendix).

  Residual blocks with swish and LayerNorm between them; density is exp of
  the raw one plus the blob, values are sigmoids.
  """
  blob: Callable
  degree: int = 8
  width: int = 128
  blocks: int = 5
  channels: int = 3

  @nn.compact
  def __call__(self, samples, directions):
    del directions
    x = encodings.integrated(samples, self.degree)
    x = nn.Dense(self.width)(x)
    for _ in range(self.blocks):
      h = nn.Dense(self.width)(nn.swish(nn.LayerNorm()(x)))
      x = x + nn.Dense(self.width)(nn.swish(h))
    raw = nn.Dense(1 + self.channels)(nn.swish(nn.LayerNorm()(x)))
    density = _exp(raw[..., 0] + self.blob(samples.mean))
    return density, nn.sigmoid(raw[..., 1:])


class TriPlane(nn.Module):
  """Three planes of features and one small MLP: the fast field on a CPU.

  Density is softplus of the raw one plus the blob, values are sigmoids.
  `bound` is the half-width of the cube that the planes span.
  """
  blob: Callable
  resolution: int = 64
  features: int = 16
  width: int = 64
  channels: int = 3
  bound: float = 1.0
  spread: float = 0.1   # standard deviation of the planes' start

  @nn.compact
  def __call__(self, samples, directions):
    del directions
    planes = self.param(
        'planes', nn.initializers.normal(self.spread),
        (3, self.resolution, self.resolution, self.features))
    x = encodings.triplanes(planes, samples.mean / self.bound)
    x = nn.relu(nn.Dense(self.width)(x))
    raw = nn.Dense(1 + self.channels)(x)
    density = nn.softplus(raw[..., 0] + self.blob(samples.mean))
    return density, nn.sigmoid(raw[..., 1:])


class Background(nn.Module):
  """Colour [..., 3] of what is infinitely far in a direction [..., 3]."""
  degree: int = 4
  width: int = 64
  layers: int = 2

  @nn.compact
  def __call__(self, directions):
    x = encodings.positional(directions, self.degree)
    for _ in range(self.layers):
      x = nn.swish(nn.Dense(self.width)(x))
    return nn.sigmoid(nn.Dense(3)(x))


@jax.custom_jvp
def _exp(x):
  """exp, whose slope is kept finite where the density is absurd."""
  return jnp.exp(jnp.minimum(x, 15.0))


@_exp.defjvp
def _exp_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  return _exp(x), dx * jnp.exp(jnp.clip(x, -15.0, 15.0))
