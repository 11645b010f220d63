"""pi-GAN's discriminators (2012.00926, supplement; official code).

Residual networks from any of several sizes of image down to one logit; a
training that raises the size adds blocks before those that it has. Two of the
three kinds have heads that estimate the latent and the pose of a fake, and give
their convolutions the coordinates of the pixels (CoordConv, 1807.03247).
Images are [N, H, W, C].
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError
from gen3d.models.initializers import fan_in_uniform, leaky_normal
from gen3d.ops import linear

# Outputs of the head of an encoder, after the logit.
LATENT, POSE = 256, 2


class Kind(NamedTuple):
  """What distinguishes pi-GAN's discriminators.

  Attributes:
    widths: of the largest level, and of each half as large; the last one is
      that of 2 x 2 pixels.
    coordinates: whether the 3 x 3 convolutions get the pixels' coordinates.
    strided: whether a block halves the size by the stride of its second
      convolution, instead of averages of 2 x 2 pixels at its end.
    encoder: whether the head has LATENT + POSE more outputs.
  """
  widths: tuple[int, ...]
  coordinates: bool
  strided: bool
  encoder: bool


# Up to 256 pixels: Cats, CelebA; up to 512: CARLA.
KINDS = {
    'strided': Kind((32, 64, 128, 256, *4 * (400,)), False, True, False),
    'ccs_encoder': Kind((32, 64, 128, 256, *4 * (400,)), True, True, True),
    'progressive_encoder': Kind(
        (16, 32, 64, 128, 256, *4 * (400,)), True, False, True),
}


class Judgement(NamedTuple):
  """Outputs for N images."""
  logit: Any   # [N]
  latent: Any  # [N, LATENT], or None
  pose: Any    # [N, POSE], pitch and yaw in radians, or None


class Conv(nn.Module):
  """A convolution with K x K taps and a bias.

  Attributes:
    width: channels of the output.
    taps: K; 3, or 1.
    stride: 1 or 2.
    coordinates: adds two channels to the input, from -1 at the first row to 1
      at the last, and the same for the columns.
    leaky: initial weights for a leaky ReLU, instead of PyTorch's default.
  """
  width: int
  taps: int = 3
  stride: int = 1
  coordinates: bool = False
  leaky: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    fan_in = (channels + 2 * self.coordinates) * self.taps ** 2
    kernel = self.param(
        'kernel', leaky_normal(fan_in) if self.leaky
        else fan_in_uniform(fan_in),
        (self.taps, self.taps, fan_in // self.taps ** 2, self.width))
    bias = self.param('bias', fan_in_uniform(fan_in),
                      (self.width,))
    y = self._correlate(x, kernel[:, :, :channels]) + bias
    if self.coordinates:
      # By linearity: the same map for all images, and no odd channels.
      y += self._correlate(coordinates(*x.shape[1:3]), kernel[:, :, channels:])
    return y

  def _correlate(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    if self.stride == 1:
      return linear.correlate(x, kernel)
    if self.taps == 1:
      return linear.correlate(x[:, ::2, ::2], kernel)
    # PyTorch's zeros at both ends, of which a stride of 2 meets the first.
    return linear.conv_stride2(
        jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0))), kernel)


class Block(nn.Module):
  """A residual block that halves the size.

  Attributes:
    width: channels of the output.
    kind: Kind.
  """
  width: int
  kind: Kind

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kind = self.kind
    stride = 2 if kind.strided else 1
    conv = lambda name, stride: Conv(
        self.width, 3, stride, kind.coordinates, leaky=kind.strided, name=name)
    y = _leaky(conv('conv_0', 1)(x))
    y = _leaky(conv('conv_1', stride)(y))
    if kind.strided or x.shape[-1] != self.width:
      # After the averages, with which a 1 x 1 convolution commutes.
      x = x if kind.strided else _average(x)
      x = Conv(self.width, 1, stride, name='skip')(x)
    else:
      x = _average(x)
    return (x + (y if kind.strided else _average(y))) / math.sqrt(2)


class Discriminator(nn.Module):
  """Discriminates images of any size from 4 to 2^len(widths) pixels.

  It has the parameters of all sizes, of which an image uses those from its own
  size down.

  Attributes:
    kind: Kind.
  """
  kind: Kind

  def setup(self) -> None:
    widths = self.kind.widths
    self.from_rgb = {size: Conv(width, 1, name=f'from_rgb_{size}')
                     for size, width in zip(self.sizes, widths, strict=True)}
    self.blocks = {size: Block(width, self.kind, name=f'block_{size}')
                   for size, width in zip(self.sizes, widths[1:])}
    self.head = Head(1 + (LATENT + POSE) * self.kind.encoder)

  @property
  def sizes(self) -> list[int]:
    """Pixels a side of all levels, from the largest one."""
    return [2 ** (i + 1) for i in reversed(range(len(self.kind.widths)))]

  def __call__(self, images: jax.Array, alpha: jax.Array | float = 1.0
               ) -> Judgement:
    """Judgement of images [N, S, S, 3] in [-1, 1].

    Args:
      images: of a size that the network has.
      alpha: from 0, where the features before the second block are those of
        the image at half the size, to 1, where they are the first block's.

    Raises:
      UserError: images have another size.
    """
    size = images.shape[1]
    self.check_size(size)
    if self.is_initializing():
      self._all_parameters()
    x = _leaky(self.from_rgb[size](images))
    for level in self.sizes[self.sizes.index(size):-1]:
      # At alpha 1 the features are only the first block's: no need for others.
      if level == size // 2 and not _is_one(alpha):
        half = _leaky(self.from_rgb[level](images[:, ::2, ::2]))
        x = alpha * x + (1 - alpha) * half
      x = self.blocks[level](x)
    outputs = self.head(x)
    if not self.kind.encoder:
      return Judgement(outputs[:, 0], None, None)
    return Judgement(outputs[:, 0], outputs[:, 1:-POSE], outputs[:, -POSE:])

  def check_size(self, size: int) -> None:
    """Raises UserError where images of this size have no level."""
    if size not in self.sizes[:-1]:
      raise UserError(
          f'The discriminator takes images of {self.sizes[-2::-1]} pixels, '
          f'not of {size}; change the stages or model.discriminator.')

  def _all_parameters(self) -> None:
    """Makes the parameters of all sizes, also of those not used."""
    for size, width in zip(self.sizes, self.kind.widths, strict=True):
      self.from_rgb[size](jnp.zeros((1, 2, 2, 3)))
      if size > 2:
        self.blocks[size](jnp.zeros((1, 2, 2, width)))


class Head(nn.Module):
  """A convolution of 2 x 2 pixels with as many taps: [N, 2, 2, C] to [N, F]."""
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fan_in = math.prod(x.shape[1:])
    kernel = self.param('kernel', fan_in_uniform(fan_in),
                        (*x.shape[1:], self.features))
    bias = self.param('bias', fan_in_uniform(fan_in),
                      (self.features,))
    return x.reshape(len(x), -1) @ kernel.reshape(fan_in, -1) + bias


def coordinates(height: int, width: int) -> jax.Array:
  """[1, H, W, 2]: -1 to 1 down the rows, and along the columns."""
  axes = [jnp.linspace(-1.0, 1.0, count) for count in (height, width)]
  return jnp.stack(jnp.meshgrid(*axes, indexing='ij'), axis=-1)[None]


def fade_in(step: Any, first_steps: Sequence[int], fade_steps: int
            ) -> jax.Array:
  """alpha of a step: 0 where a stage begins, 1 after `fade_steps`.

  Args:
    step: number of the step.
    first_steps: of the stages; increasing.
    fade_steps: of a fade.
  """
  starts = np.asarray(first_steps)
  begun = jnp.max(jnp.where(starts <= step, starts, starts[0]))
  return jnp.clip((step - begun) / fade_steps, 0.0, 1.0)


def _is_one(alpha: Any) -> bool:
  return isinstance(alpha, float) and alpha == 1


def _leaky(x):
  return nn.leaky_relu(x, 0.2)


def _average(x):
  """Means of 2 x 2 pixels."""
  count, height, width, channels = x.shape
  return jnp.mean(x.reshape(count, height // 2, 2, width // 2, 2, channels),
                  axis=(2, 4))
