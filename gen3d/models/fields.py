"""Fields: density and color at every place.

A field is a volume.Field: (Gaussian samples [..., 3], unit view directions
[..., 3]) -> (density [...], values [..., C] in [0, 1]). Density is per unit of
length. `MipMLP` and `TriPlane` do not depend on the direction, for shading is
explicit in DreamFusion. The color of a `RadianceField` does; NeRF, Mip-NeRF,
hybrid voxels and hybrid tri-planes are such fields that differ in how a sample
is encoded.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.ops import encodings


def dreamfusion_bias(points: jax.Array, strength: float = 5.0,
                     width: float = 0.2) -> jax.Array:
  """DreamFusion's bias [...] of the raw density at points [..., 3].

  strength exp(-|x|^2 / (2 width^2)): training starts with a ball.
  """
  squared = jnp.sum(points**2, axis=-1)
  return strength * jnp.exp(-squared / (2 * width**2))


def magic3d_bias(points: jax.Array, strength: float = 10.0,
                 radius: float = 0.5) -> jax.Array:
  """Magic3D's (2211.10440) bias [...], strength (1 - |x| / radius).

  Unlike DreamFusion's it is negative outside of the ball.
  """
  # The norm's gradient at the origin would be NaN.
  distance = jnp.sqrt(jnp.sum(points**2, axis=-1) + 1e-8)
  return strength * (1 - distance / radius)


DENSITY_BIASES = {'dreamfusion': dreamfusion_bias, 'magic3d': magic3d_bias}


class MipMLP(nn.Module):
  """DreamFusion's MLP on Mip-NeRF's integrated encoding (its appendix).

  Residual blocks with swish and LayerNorm between them; density is exp of
  the raw one plus the bias, values are sigmoids.

  Attributes:
    density_bias: points [..., 3] -> [...], added to the raw density.
    degree: octaves of the encoding.
    width, blocks: of the residual network.
    channels: number of values.
  """
  density_bias: Callable
  degree: int = 8
  width: int = 128
  blocks: int = 5
  channels: int = 3

  @nn.compact
  def __call__(self, samples: encodings.Gaussian, directions: jax.Array
               ) -> tuple[jax.Array, jax.Array]:
    del directions
    x = encodings.integrated(samples, self.degree)
    x = nn.Dense(self.width)(x)
    for _ in range(self.blocks):
      # Normalization before each layer: the sum of the blocks is unnormalized.
      h = nn.Dense(self.width)(nn.swish(nn.LayerNorm()(x)))
      x = x + nn.Dense(self.width)(nn.swish(h))
    raw = nn.Dense(1 + self.channels)(nn.swish(nn.LayerNorm()(x)))
    density = _exp(raw[..., 0] + self.density_bias(samples.mean))
    return density, nn.sigmoid(raw[..., 1:])


class FourierMLP(nn.Module):
  """Dream Fields' MLP on random frequencies (2112.01455, section 4.1).

  Residual blocks of LayerNorm and two layers with swish between them; density
  is softplus of the raw one, values are sigmoids. Samples are
  encodings.RayGaussians.

  Attributes:
    frequencies, octaves, seed: of encodings.fourier_basis.
    width: of the residual stream.
    hidden: width within a block.
    blocks: how many.
    channels: number of values.
  """
  frequencies: int = 128
  octaves: float = 8.0
  seed: int = 124124
  width: int = 128
  hidden: int = 256
  blocks: int = 4
  channels: int = 3

  @nn.compact
  def __call__(self, samples: encodings.RayGaussian, directions: jax.Array
               ) -> tuple[jax.Array, jax.Array]:
    basis = encodings.fourier_basis(
        jax.random.PRNGKey(self.seed), self.frequencies, self.octaves)
    x = encodings.fourier(samples, directions, basis)
    x = nn.swish(nn.Dense(self.width)(x))
    for _ in range(self.blocks):
      h = nn.swish(nn.Dense(self.hidden)(nn.LayerNorm()(x)))
      x = x + nn.Dense(self.width)(h)
    x = nn.swish(nn.Dense(self.width)(x))
    raw = nn.Dense(self.channels + 1)(x)
    return nn.softplus(raw[..., -1]), nn.sigmoid(raw[..., :-1])


class TriPlane(nn.Module):
  """Three planes of features and one small MLP: the fast field on a CPU.

  Density is softplus of the scaled raw one plus the bias, values are sigmoids.

  Attributes:
    density_bias: points [..., 3] -> [...], added to the raw density.
    resolution, features: of the planes.
    width: of the MLP's hidden layer.
    channels: number of values.
    bound: half-width of the cube that the planes span.
    init_std: standard deviation of the planes' initial features.
    density_scale: factor of the raw density; a large one makes density binary
      early in training.
  """
  density_bias: Callable
  resolution: int = 64
  features: int = 16
  width: int = 64
  channels: int = 3
  bound: float = 1.0
  init_std: float = 0.1
  density_scale: float = 1.0

  @nn.compact
  def __call__(self, samples: encodings.Gaussian, directions: jax.Array
               ) -> tuple[jax.Array, jax.Array]:
    del directions
    planes = self.param(
        'planes', nn.initializers.normal(self.init_std),
        (3, self.resolution, self.resolution, self.features))
    x = encodings.triplanes(planes, samples.mean / self.bound)
    # Names, for learning rates of their own (configs/dreamfusion.py).
    x = nn.relu(nn.Dense(self.width, name='hidden')(x))
    raw = nn.Dense(1 + self.channels, name='out')(x)
    density = nn.softplus(
        self.density_scale * raw[..., 0] + self.density_bias(samples.mean))
    return density, nn.sigmoid(raw[..., 1:])


class RadianceField(nn.Module):
  """NeRF's network (2003.08934, figure 7) for any encoding of samples.

  An MLP on the encoded samples gives the density; a linear bottleneck of its
  last layer and the encoded direction go through one more, narrower layer that
  gives the color.

  Attributes:
    encode: Gaussian [..., 3] -> [..., D], a function or a Module.
    depth, width: of the MLP.
    skip: the layer after which the encoding is concatenated again; 0 for
      never.
    activation: raw density [...] -> density.
    view_degree, view_width: of the directions' encoding and layer.
    rgb_padding: how far colors reach beyond [0, 1], so that a finite input of
      the sigmoid gives 0 and 1 (Mip-NeRF's 0.001).
  """
  encode: Callable
  depth: int = 8
  width: int = 256
  skip: int = 5
  activation: Callable = nn.relu
  view_degree: int = 4
  view_width: int = 128
  rgb_padding: float = 0.0

  @nn.compact
  def __call__(self, samples: encodings.Gaussian, directions: jax.Array
               ) -> tuple[jax.Array, jax.Array]:
    # Glorot initialization as in the papers' code.
    dense = lambda width, name: nn.Dense(
        width, kernel_init=nn.initializers.glorot_uniform(), name=name)
    encoded = self.encode(samples)
    x = encoded
    for i in range(self.depth):
      x = nn.relu(dense(self.width, f'layer_{i}')(x))
      if i + 1 == self.skip:
        x = jnp.concatenate([x, encoded], axis=-1)
    # The density must not depend on the direction, which comes in only now.
    raw = dense(1, 'density')(x)[..., 0]
    encoded_directions = jnp.concatenate([directions, encodings.positional(
        directions, self.view_degree)], axis=-1)
    x = jnp.concatenate(
        [dense(self.width, 'bottleneck')(x), encoded_directions], -1)
    x = nn.relu(dense(self.view_width, 'view')(x))
    # The layer's name is that in checkpoints, and it seeds the initial weights.
    color = nn.sigmoid(dense(3, 'colour')(x))
    return (self.activation(raw),
            color * (1 + 2 * self.rgb_padding) - self.rgb_padding)


def shifted_softplus(raw: jax.Array) -> jax.Array:
  """softplus(raw - 1): a low density at initialization (Mip-NeRF, 3.2)."""
  return nn.softplus(raw - 1)


DENSITY_ACTIVATIONS = {'relu': nn.relu, 'softplus': shifted_softplus}


class Frequencies(nn.Module):
  """NeRF's encoding of points: the point itself and `degree` octaves."""
  degree: int = 10

  def __call__(self, samples: encodings.Gaussian) -> jax.Array:
    return jnp.concatenate([samples.mean, encodings.positional(
        samples.mean, self.degree)], axis=-1)


class IntegratedFrequencies(nn.Module):
  """Mip-NeRF's encoding of Gaussians, `degree` octaves."""
  degree: int = 16

  def __call__(self, samples: encodings.Gaussian) -> jax.Array:
    return encodings.integrated(samples, self.degree)


class PlaneFeatures(nn.Module):
  """The sum of three planes of features, and a few octaves of the point.

  EG3D's section 3.

  Attributes:
    resolution, features: of the planes.
    degree: octaves; 0 for none.
    bound: half-width of the cube that the planes span.
    init_std: standard deviation of the initial features.
  """
  resolution: int = 512
  features: int = 48
  degree: int = 4
  bound: float = 1.0
  init_std: float = 0.1

  @nn.compact
  def __call__(self, samples: encodings.Gaussian) -> jax.Array:
    planes = self.param(
        'planes', nn.initializers.normal(self.init_std),
        (3, self.resolution, self.resolution, self.features))
    return _append_octaves(
        encodings.triplanes(planes, samples.mean / self.bound), samples,
        self.degree)


class VoxelFeatures(nn.Module):
  """Features of a voxel grid, and a few octaves of the point.

  With `resolution` 128 and 18 `features` it has as many numbers as EG3D's
  planes: 128^3 18 = 3 512^2 48. Attributes are those of PlaneFeatures.
  """
  resolution: int = 128
  features: int = 18
  degree: int = 4
  bound: float = 1.0
  init_std: float = 0.1

  @nn.compact
  def __call__(self, samples: encodings.Gaussian) -> jax.Array:
    grid = self.param(
        'grid', nn.initializers.normal(self.init_std),
        (*3 * (self.resolution,), self.features))
    return _append_octaves(
        encodings.voxels(grid, samples.mean / self.bound), samples,
        self.degree)


ENCODERS = {'frequencies': Frequencies, 'integrated': IntegratedFrequencies,
            'planes': PlaneFeatures, 'voxels': VoxelFeatures}


class Background(nn.Module):
  """Color [..., 3] of the background in a direction [..., 3].

  Attributes:
    degree: octaves of the directions' encoding.
    width, layers: of the MLP.
  """
  degree: int = 4
  width: int = 64
  layers: int = 2

  @nn.compact
  def __call__(self, directions: jax.Array) -> jax.Array:
    x = encodings.positional(directions, self.degree)
    for _ in range(self.layers):
      x = nn.swish(nn.Dense(self.width)(x))  # smooth in the direction
    return nn.sigmoid(nn.Dense(3)(x))


def _append_octaves(features, samples, degree):
  """Features [..., C] and `degree` octaves of the samples' means."""
  return jnp.concatenate([features, encodings.positional(
      samples.mean, degree)], axis=-1) if degree else features


@jax.custom_jvp
def _exp(x):
  """exp, with value and slope bounded where the density would overflow."""
  # A bounded value alone would have slope zero: such densities could not
  # decrease again.
  return jnp.exp(jnp.minimum(x, 15.0))


@_exp.defjvp
def _exp_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  return _exp(x), dx * jnp.exp(jnp.clip(x, -15.0, 15.0))
