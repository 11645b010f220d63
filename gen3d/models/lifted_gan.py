"""LiftedGAN's networks: style, light, view, depth and warp of a 2-D GAN.

Shi et al., Lifting 2D StyleGAN for 3D-aware face generation, 2011.13126. The
2-D generator is frozen; these networks take its w.

Vocabulary. w [N, D] is a style; a light is four and a view six numbers in
[-1, 1], whose meaning is in gan/lifting.py. Modules have the official names, so
that a parameter's path, joined by dots, is its name in a checkpoint.

NETWORKS gives the official names of the four networks. Group normalization has
groups of four channels. Weights are initialized as PyTorch does.
"""

import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError
from gen3d.models.initializers import fan_in_uniform
from gen3d.ops import linear
from gen3d.weights import port, torch_files

LIGHT, VIEW = 4, 6
_GROUP = 4  # channels that are normalized together
# Our name -> name in an official checkpoint.
NETWORKS = {'decompose': 'netSD', 'compose': 'netSC', 'depth': 'netD',
            'warp': 'netT'}


class Decompose(nn.Module):
  """The network D: w [N, D] -> (style [N, D], light [N, 4], view [N, 6]).

  Nothing uses the style, as in the official program; its weights are in the
  checkpoints.

  Attributes:
    width: of the hidden layers.
    layers: number of layers.
  """
  width: int = 512
  layers: int = 4

  @nn.compact
  def __call__(self, w: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    mlp = lambda features, name, normalize=False: _MLP(
        features, self.width, self.layers, normalize, name=name)
    return (mlp(w.shape[-1], 'model_style', True)(w),
            jnp.tanh(mlp(LIGHT, 'model_light')(w)),
            jnp.tanh(mlp(VIEW, 'model_view')(w)))


class Compose(nn.Module):
  """The network C: (w [N, D], light [N, 4], view [N, 6]) -> w' [N, D].

  Attributes:
    width: of the hidden layers.
    residual: adds w, so that a new network keeps the object; not in the paper,
      whose training is long enough to learn it.
  """
  width: int = 512
  residual: bool = False

  @nn.compact
  def __call__(
      self, w: jax.Array, light: jax.Array, view: jax.Array) -> jax.Array:
    mlp = lambda name, scaled: _MLP(
        w.shape[-1], self.width, normalize=True, scaled=scaled, name=name)
    embedding = (mlp('embed_style', True)(w) + mlp('embed_light', True)(light)
                 + mlp('embed_view', True)(view))
    change = mlp('model', False)(embedding)
    return w + change if self.residual else change


class Depth(nn.Module):
  """(w [N, D], features of the 2-D generator [N, R, R, C]) -> [N, R, R].

  Attributes:
    width: channels at the highest resolution.
    hidden: width of the layers on w.
  """
  width: int = 16
  hidden: int = 512

  @nn.compact
  def __call__(self, w: jax.Array, features: jax.Array) -> jax.Array:
    doublings = _doublings(features.shape[1])
    channels = self.width * 2**doublings
    conv = lambda x, features, side, name: _Conv(
        features, side, name=name)(x)
    name = lambda i: f'network.{i}'
    x = _hidden(w, self.hidden)[:, None, None]
    x = nn.relu(_ConvTransposed(channels, name=name(0))(x))
    x = nn.relu(conv(x, channels, 3, name(2)))
    for i in range(4, 4 + 6 * doublings, 6):
      channels //= 2
      x = _ConvTransposed(channels, name=name(i))(x)
      x = nn.relu(_norm(name(i + 1))(x))
      x = conv(x, channels, 3, name(i + 3))
      x = nn.relu(_norm(name(i + 4))(x))
    x = _nearest2(x) + conv(features, channels, 1, 'inject')
    for i, side in ((0, 3), (3, 5)):
      x = conv(x, channels, side, f'head.{i}')
      x = nn.relu(_norm(f'head.{i + 1}')(x))
    return _Conv(1, 5, use_bias=True, name='head.6')(x)[..., 0]


class Warp(nn.Module):
  """The transformation network: w [N, D] -> logits [N, R, R].

  Of how much each pixel moves with the object.

  Attributes:
    resolution: R.
    width: channels at the highest resolution.
    hidden: width of the layers on w.
  """
  resolution: int = 256
  width: int = 16
  hidden: int = 16

  @nn.compact
  def __call__(self, w: jax.Array) -> jax.Array:
    doublings = _doublings(self.resolution)
    channels = self.width * 2**doublings
    name = lambda i: f'network.{i}'
    x = _hidden(w, self.hidden)[:, None, None]
    x = nn.relu(_ConvTransposed(channels, name=name(0))(x))
    for i in range(2, 2 + 3 * doublings, 3):
      channels //= 2
      x = _ConvTransposed(channels, name=name(i))(x)
      x = nn.relu(_norm(name(i + 1))(x))
    last = 3 + 3 * doublings
    x = _Conv(self.width, 3, name=name(last))(_nearest2(x))
    x = nn.relu(_norm(name(last + 1))(x))
    return _Conv(1, 5, name=name(last + 3))(x)[..., 0]


def load(path: str | os.PathLike, like: Any) -> Any:
  """Parameters of the networks from the file of an official checkpoint.

  Args:
    path: of checkpoint_010.pth or another one of the official training.
    like: as in `from_torch`.

  Raises:
    UserError: the file cannot be read, or is no such checkpoint.
    port.PortingError: weights are missing, unused or of another shape.
  """
  tensors = {f'{network}.{name}': tensor for network in NETWORKS.values()
             for name, tensor in torch_files.read(path, network).items()}
  try:
    return from_torch(tensors, like)
  except port.PortingError as error:
    raise port.PortingError(f'{path}: {error}') from None


def from_torch(tensors: Mapping[str, np.ndarray], like: Any) -> Any:
  """Parameters of the networks from an official checkpoint.

  Args:
    tensors: {'netD.mlp.0.weight': array}; names of no network are ignored.
    like: {our name of a network: its parameters}, as arrays or shapes.

  Raises:
    port.PortingError: lists what is missing, unused or of another shape.
  """
  ours = {NETWORKS[name]: params for name, params in like.items()}
  transposed = {
      name: TRANSPOSED for name, tensor in tensors.items()
      if '.network.' in name and tensor.ndim == 4 and tensor.shape[-1] == 4}
  loaded = port.to_flax(
      {name: tensor for name, tensor in tensors.items()
       if name.split('.')[0] in ours}, port.by_path(
           {'params': ours}, transposed), {'params': ours},
      array=jnp.asarray)['params']
  return {name: loaded[NETWORKS[name]] for name in like}


class _Transposed:
  """Layout of a transposed convolution: [in, out, h, w] -> [h, w, in, out]."""

  def __call__(self, tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(2, 3, 0, 1)

  inverse = __call__


TRANSPOSED = _Transposed()


class _MLP(nn.Module):
  """Dense layers with leaky ReLUs between them.

  Attributes:
    features: of the output.
    width: of the hidden layers.
    layers: number of layers.
    normalize: group normalization of the hidden layers.
    scaled: scale and shift of each output, for group-normalized inputs.
  """
  features: int
  width: int
  layers: int = 4
  normalize: bool = False
  scaled: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    # The official list of layers counts the activations, too.
    stride = 3 if self.normalize else 2
    for i in range(self.layers - 1):
      x = _dense(x, self.width, f'mlp.{stride * i}')
      if self.normalize:
        x = _norm(f'mlp.{stride * i + 1}')(x)
      x = nn.leaky_relu(x, 0.2)
    last = stride * (self.layers - 1)
    x = _dense(x, self.features, f'mlp.{last}')
    return _ScaleShift(name=f'mlp.{last + 1}')(x) if self.scaled else x


class _ScaleShift(nn.Module):
  """A scale and a shift for each of the features [N, C]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (1, x.shape[-1])
    return (x * self.param('scale', nn.initializers.ones, shape)
            + self.param('bias', nn.initializers.zeros, shape))


class _Conv(nn.Module):
  """A convolution of the same size, with zeros beyond the edges."""
  features: int
  side: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fan_in = x.shape[-1] * self.side**2
    x = linear.correlate(x, self.param(
        'kernel', fan_in_uniform(fan_in),
        (self.side, self.side, x.shape[-1], self.features)))
    if self.use_bias:
      x += self.param('bias', fan_in_uniform(fan_in), (self.features,))
    return x


class _ConvTransposed(nn.Module):
  """A transposed convolution, 4 x 4 taps: from 1 pixel to 4 x 4, or doubling.

  Of one pixel it gives all taps; of an image, twice the size, with one row and
  column cropped at each edge (stride 2, padding 1).
  """
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    # PyTorch's fan-in of a transposed convolution is that of its outputs.
    kernel = self.param('kernel', fan_in_uniform(16 * self.features),
                        (4, 4, x.shape[-1], self.features))
    if x.shape[1] == 1:
      return jnp.einsum('ni,hwio->nhwo', x[:, 0, 0], kernel)
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Each parity of rows and columns has two taps a side; no zeros are
    # inserted, and the gradient is that of ops/linear.correlate.
    parity = lambda a, b: linear.correlate(
        padded[:, a:, b:], kernel[3 - a::-2, 3 - b::-2])[:, :height, :width]
    y = jnp.stack([jnp.stack([parity(a, b) for b in (0, 1)], axis=3)
                   for a in (0, 1)], axis=2)
    return y.reshape(len(x), 2 * height, 2 * width, -1)


def _hidden(x, width, layers=4):
  """Dense layers with a leaky ReLU after each."""
  for i in range(layers):
    x = nn.leaky_relu(_dense(x, width, f'mlp.{2 * i}'), 0.2)
  return x


def _dense(x, features, name):
  init = fan_in_uniform(x.shape[-1])
  return nn.Dense(features, kernel_init=init, bias_init=init, name=name)(x)


def _norm(name):
  return nn.GroupNorm(num_groups=None, group_size=_GROUP, epsilon=1e-5,
                      use_fast_variance=False, name=name)


def _nearest2(x):
  """Images of twice the size, each pixel repeated."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _doublings(resolution: int) -> int:
  """Number of transposed convolutions from 4 pixels to half the resolution."""
  if resolution < 8 or resolution & (resolution - 1):
    raise UserError(f'The resolution {resolution} of the generator is not a '
                    'power of two of at least 8; take another generator.')
  return resolution.bit_length() - 4
