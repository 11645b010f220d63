"""Fields: what is where in space.

A field is called with (Gaussian samples [..., 3], unit view directions
[..., 3]) and answers (density [...], values [..., C] in [0, 1]). Density is
per unit of length. `MipMLP` and `TriPlane` show the same from all directions:
shading is explicit in DreamFusion. A `RadianceField` shows light as it leaves
in a direction; NeRF, Mip-NeRF, hybrid voxels and hybrid tri-planes are such
fields that differ in how a sample is encoded.
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
  gain: float = 1.0     # of the raw density: how soon it is all or nothing

  @nn.compact
  def __call__(self, samples, directions):
    del directions
    planes = self.param(
        'planes', nn.initializers.normal(self.spread),
        (3, self.resolution, self.resolution, self.features))
    x = encodings.triplanes(planes, samples.mean / self.bound)
    x = nn.relu(nn.Dense(self.width, name='hidden')(x))
    raw = nn.Dense(1 + self.channels, name='out')(x)
    density = nn.softplus(
        self.gain * raw[..., 0] + self.blob(samples.mean))
    return density, nn.sigmoid(raw[..., 1:])


class RadianceField(nn.Module):
  """Encoded samples -> MLP -> density; with the direction -> color.

  NeRF's network (2003.08934, figure 7) for any encoding: the density comes
  off the last layer; a linear bottleneck meets the encoded direction in one
  more, narrower layer.

  Attributes:
    encode: Gaussian [..., 3] -> [..., D], a function or a Module.
    depth, width: of the MLP.
    skip: the layer after which the encoding is put in again; 0 for never.
    activation: raw density [...] -> density.
    view_degree, view_width: of the directions' encoding and layer.
    padding: how far beyond [0, 1] colors reach, so that neither end is
      infinitely far (Mip-NeRF's 0.001).
  """
  encode: Callable
  depth: int = 8
  width: int = 256
  skip: int = 5
  activation: Callable = nn.relu
  view_degree: int = 4
  view_width: int = 128
  padding: float = 0.0

  @nn.compact
  def __call__(self, samples, directions):
    dense = lambda width, name: nn.Dense(
        width, kernel_init=nn.initializers.glorot_uniform(), name=name)
    encoded = self.encode(samples)
    x = encoded
    for i in range(self.depth):
      x = nn.relu(dense(self.width, f'layer_{i}')(x))
      if i + 1 == self.skip:
        x = jnp.concatenate([x, encoded], axis=-1)
    raw = dense(1, 'density')(x)[..., 0]
    towards = jnp.concatenate([directions, encodings.positional(
        directions, self.view_degree)], axis=-1)
    x = jnp.concatenate([dense(self.width, 'bottleneck')(x), towards], -1)
    x = nn.relu(dense(self.view_width, 'view')(x))
    color = nn.sigmoid(dense(3, 'color')(x))
    return (self.activation(raw),
            color * (1 + 2 * self.padding) - self.padding)


def shifted_softplus(raw):
  """softplus(raw - 1), which begins with little matter (Mip-NeRF, 3.2)."""
  return nn.softplus(raw - 1)


DENSITIES = {'relu': nn.relu, 'softplus': shifted_softplus}


class Frequencies(nn.Module):
  """NeRF's encoding of points: the point itself and its octaves."""
  degree: int = 10

  def __call__(self, samples):
    return jnp.concatenate([samples.mean, encodings.positional(
        samples.mean, self.degree)], axis=-1)


class IntegratedFrequencies(nn.Module):
  """Mip-NeRF's encoding of Gaussians."""
  degree: int = 16

  def __call__(self, samples):
    return encodings.integrated(samples, self.degree)


class PlaneFeatures(nn.Module):
  """Three planes of features, summed, beside a few octaves of the point.

  EG3D's section 3: `resolution` 512 with 48 `features` there. `bound` is the
  half-width of the cube that they span.
  """
  resolution: int = 512
  features: int = 48
  degree: int = 4
  bound: float = 1.0
  spread: float = 0.1  # standard deviation of the features' start

  @nn.compact
  def __call__(self, samples):
    planes = self.param(
        'planes', nn.initializers.normal(self.spread),
        (3, self.resolution, self.resolution, self.features))
    return _beside_octaves(
        encodings.triplanes(planes, samples.mean / self.bound), samples,
        self.degree)


class VoxelFeatures(nn.Module):
  """A cube of features, beside a few octaves of the point.

  With `resolution` 128 and 18 `features` it has as many numbers as EG3D's
  planes: 128^3 18 = 3 512^2 48.
  """
  resolution: int = 128
  features: int = 18
  degree: int = 4
  bound: float = 1.0
  spread: float = 0.1

  @nn.compact
  def __call__(self, samples):
    grid = self.param(
        'grid', nn.initializers.normal(self.spread),
        (*3 * (self.resolution,), self.features))
    return _beside_octaves(
        encodings.voxels(grid, samples.mean / self.bound), samples,
        self.degree)


ENCODERS = {'frequencies': Frequencies, 'integrated': IntegratedFrequencies,
            'planes': PlaneFeatures, 'voxels': VoxelFeatures}


class Background(nn.Module):
  """Color [..., 3] of what is infinitely far in a direction [..., 3]."""
  degree: int = 4
  width: int = 64
  layers: int = 2

  @nn.compact
  def __call__(self, directions):
    x = encodings.positional(directions, self.degree)
    for _ in range(self.layers):
      x = nn.swish(nn.Dense(self.width)(x))
    return nn.sigmoid(nn.Dense(3)(x))


def _beside_octaves(features, samples, degree):
  return jnp.concatenate([features, encodings.positional(
      samples.mean, degree)], axis=-1) if degree else features


@jax.custom_jvp
def _exp(x):
  """exp, whose slope is kept finite where the density is absurd."""
  return jnp.exp(jnp.minimum(x, 15.0))


@_exp.defjvp
def _exp_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  return _exp(x), dx * jnp.exp(jnp.clip(x, -15.0, 15.0))
