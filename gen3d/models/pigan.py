"""pi-GAN's generator (Chan et al., 2012.00926): a SIREN steered by a latent.

Vocabulary. A mapping network turns the latent z into a *style* for each layer
of the SIREN, ws [N, L, 2W]: W raw frequencies, then W phase shifts. A FiLM
layer is sin((15 f + 30) (x W + b) + p), with frequencies f and phases p. The L
layers are those that lead to the density, and one more for the color, which
also depends on the direction of view. The density is raw, before the
activation of models/pigan_render.py; colors are in [0, 1].

The official code has no license; nothing here is taken from it.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen3d.models.initializers import fan_in_uniform, leaky_normal, uniform
from gen3d.ops import trigonometry

# (15 f + 30), so that the outputs of a new mapping network, which are near 0,
# give a SIREN with the frequency 30 of Sitzmann et al. (2006.09661).
FREQUENCY_SCALE, FREQUENCY_SHIFT = 15.0, 30.0


class SirenConfig(NamedTuple):
  """Sizes of a SIREN.

  Attributes:
    width: W, of its layers.
    layers: FiLM layers before the density; L - 1.
    coordinate_scale: factor of the world's coordinates. 2 / 0.24 in the
      official networks of faces (SPATIALSIRENBASELINE), 1 in that of cars
      (TALLSIREN).
  """
  width: int = 256
  layers: int = 8
  coordinate_scale: float = 1.0


class MappingConfig(NamedTuple):
  """Sizes of a mapping network: `layers` hidden layers of `width`."""
  width: int = 256
  layers: int = 3


class Mapping(nn.Module):
  """z [N, Z] to styles [N, L, 2W].

  Attributes:
    width, layers: of the hidden layers.
    siren: SirenConfig.
  """
  width: int
  layers: int
  siren: SirenConfig

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    styles = self.siren.layers + 1
    widths = [self.width] * self.layers + [2 * styles * self.siren.width]
    for i, width in enumerate(widths):
      fan_in = z.shape[-1]
      last = i == self.layers
      # Small at first: all objects begin with nearly the same frequencies.
      z = nn.Dense(
          width, name=f'dense_{i}', precision='highest',
          kernel_init=leaky_normal(fan_in, 0.25 if last else 1.0),
          bias_init=fan_in_uniform(fan_in))(z)
      if not last:
        z = nn.leaky_relu(z, 0.2)
    # All frequencies come before all phase shifts.
    halves = z.reshape(len(z), 2, styles, self.siren.width)
    return jnp.concatenate([halves[:, 0], halves[:, 1]], axis=-1)


class Film(nn.Module):
  """A FiLM layer: sin((15 f + 30) (x W + b) + p).

  Attributes:
    width: W, of the output.
    bound: of the uniform initial weights.
    side_width: of the side input, which comes before x in the official weights.
  """
  width: int
  bound: float
  side_width: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, style: jax.Array,
               side: jax.Array | None = None) -> jax.Array:
    """[N, M, S, I] and a style [N, 2W] to [N, M, S, W].

    `side` [N, M, side_width] is a further input, constant along S.
    """
    fan_in = x.shape[-1] + self.side_width
    kernel = self.param('kernel', uniform(self.bound), (fan_in, self.width))
    bias = self.param('bias', fan_in_uniform(fan_in), (self.width,))
    frequency, phase = jnp.split(style, 2, axis=-1)
    frequency = FREQUENCY_SCALE * frequency + FREQUENCY_SHIFT
    # Frequencies scale the weights of each object instead of the samples, of
    # which there are many more: the products of an object's samples with one
    # matrix are then the argument of the sine but for a constant, and the
    # gradient for the frequencies is that of a small matrix.
    kernel = kernel * frequency[:, None]
    shift = (bias * frequency + phase)[:, None]
    if side is not None:
      before, kernel = jnp.split(kernel, [self.side_width], axis=1)
      shift = shift + _matmul(side, before)
    rows = x.reshape(len(x), -1, x.shape[-1])
    y = _matmul(rows, kernel).reshape(*x.shape[:-1], self.width)
    return trigonometry.sine(y + shift[:, :, None])


class Siren(nn.Module):
  """Density [N, M, S] and color [N, M, S, 3] of points on rays.

  Attributes:
    config: SirenConfig.
  """
  config: SirenConfig

  @nn.compact
  def __call__(self, points: jax.Array, directions: jax.Array, ws: jax.Array
               ) -> tuple[jax.Array, jax.Array]:
    """Of points [N, M, S, 3], S on each ray, and directions [N, M, 3]."""
    width = self.config.width
    bound = math.sqrt(6 / width) / 25
    x = points * self.config.coordinate_scale
    for i in range(self.config.layers):
      # 1 / fan_in for the first layer (2006.09661).
      x = Film(width, 1 / 3 if i == 0 else bound, name=f'film_{i}')(
          x, ws[:, i])
    head = lambda features, name: nn.Dense(
        features, name=name, precision='highest',
        kernel_init=uniform(bound), bias_init=fan_in_uniform(width))
    density = head(1, 'density')(x)[..., 0]
    x = Film(width, math.sqrt(6 / (width + 3)) / 25, 3, name='film_color')(
        x, ws[:, -1], directions)
    return density, nn.sigmoid(head(3, 'color')(x))


class Generator(nn.Module):
  """Mapping network and SIREN, with the mean style for the truncation.

  Attributes:
    siren_config: SirenConfig.
    mapping_config: MappingConfig.
  """
  siren_config: SirenConfig
  mapping_config: MappingConfig

  def setup(self) -> None:
    self.mapping = Mapping(
        *self.mapping_config, self.siren_config)
    self.siren = Siren(self.siren_config)
    self.w_avg = self.variable('buffers', 'w_avg', jnp.zeros, (
        self.siren_config.layers + 1, 2 * self.siren_config.width))

  def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Density and color at the origin; makes all variables."""
    points = jnp.zeros((len(z), 1, 1, 3))
    return self.field(points, points[:, :, 0], self.map(z))

  def map(self, z: jax.Array, psi: float = 1.0, cutoff: int | None = None
          ) -> jax.Array:
    """Styles ws [N, L, 2W] of z [N, Z], truncated.

    The first `cutoff` layers (None: all) are moved to psi times their distance
    from the mean.
    """
    ws = self.mapping(z)
    truncated = self.w_avg.value + psi * (ws - self.w_avg.value)
    if cutoff is None:
      return truncated
    return jnp.where((jnp.arange(ws.shape[1]) < cutoff)[:, None], truncated, ws)

  def field(self, points: jax.Array, directions: jax.Array, ws: jax.Array
            ) -> tuple[jax.Array, jax.Array]:
    """As Siren."""
    return self.siren(points, directions, ws)


def _matmul(x, kernel):
  """[N, M, I] times [N, I, O].

  In float32 everywhere: arguments of the sine reach 100, of which the reduced
  precision of accelerators leaves no phase.
  """
  return jnp.einsum('nmi,nio->nmo', x, kernel, precision='highest')
