"""The face reconstructor Deep3DFaceRecon (Deng et al., 1903.08527).

A ResNet-50 that estimates the coefficients of a face model and the pose of the
head from one image. The weights are not part of this project; you supply
epoch_20.pth of Deep3DFaceRecon_pytorch (sicxu). metrics/face_model.py makes a
face from the coefficients.

Images are RGB, [N, 224, 224, 3] in [0, 1], cropped as in its training.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.models import frozen, loading
from gen3d.weights import port, torch_files

SIDE = 224  # pixels
# Outputs of the last layers; the translation is of two.
WIDTHS = {'identity': 80, 'expression': 64, 'texture': 80, 'angles': 3,
          'light': 27, 'translation': 3}
_LAYERS = (80, 64, 80, 3, 27, 2, 1)


class Coefficients(NamedTuple):
  """The 257 outputs."""
  identity: Any     # [N, 80]
  expression: Any   # [N, 64]
  texture: Any      # [N, 80]
  angles: Any       # [N, 3] about x, y, z, radians
  light: Any        # [N, 27] spherical harmonics, 9 for each color
  translation: Any  # [N, 3]


class Spec(NamedTuple):
  """A ResNet: (width, number of blocks) of each stage, which are 4 x as wide.

  Each stage but the first halves the image.
  """
  stages: tuple[tuple[int, int], ...] = (
      (64, 3), (128, 4), (256, 6), (512, 3))


class Reconstructor(NamedTuple):
  """The network with its weights."""
  spec: Spec
  params: Any


class _Bottleneck(nn.Module):
  """Three convolutions, plus a shortcut."""
  width: int
  stride: int
  project: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H / stride, W / stride, 4 width]."""
    y = frozen.Conv(self.width, (1, 1), padding=0, name='conv1')(x)
    y = nn.relu(frozen.BatchNorm(name='bn1')(y))
    y = frozen.Conv(self.width, (3, 3), self.stride, 1, name='conv2')(y)
    y = nn.relu(frozen.BatchNorm(name='bn2')(y))
    y = frozen.Conv(4 * self.width, (1, 1), padding=0, name='conv3')(y)
    y = frozen.BatchNorm(name='bn3')(y)
    if self.project:
      x = frozen.Conv(4 * self.width, (1, 1), self.stride, 0,
                      name='downsample.0')(x)
      x = frozen.BatchNorm(name='downsample.1')(x)
    return nn.relu(x + y)


class Network(nn.Module):
  """The network."""
  spec: Spec = Spec()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Images [N, 224, 224, 3] in [0, 1] -> [N, 257]."""
    x = frozen.Conv(self.spec.stages[0][0], (7, 7), 2, 3,
                    name='backbone.conv1')(x)
    x = nn.relu(frozen.BatchNorm(name='backbone.bn1')(x))
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for stage, (width, count) in enumerate(self.spec.stages):
      for i in range(count):
        stride = 2 if i == 0 and stage else 1
        x = _Bottleneck(width, stride, i == 0,
                        name=f'backbone.layer{stage + 1}.{i}')(x)
    x = x.mean((1, 2), keepdims=True)
    return jnp.concatenate([
        frozen.Conv(width, (1, 1), use_bias=True,
                    name=f'final_layers.{i}')(x)[:, 0, 0]
        for i, width in enumerate(_LAYERS)], axis=-1)


def load(path: str | os.PathLike) -> Reconstructor:
  """The network from epoch_20.pth, the section 'net_recon' of it.

  Raises:
    UserError: the file cannot be read or has no such section.
    port.PortingError: lists what is missing, unused or of another shape.
  """
  try:
    return from_torch(torch_files.read(path, 'net_recon'))
  except port.PortingError as error:
    raise port.PortingError(
        f'{path} is no Deep3DFaceRecon (epoch_20.pth): {error}') from None


def from_torch(tensors: Mapping[str, np.ndarray]) -> Reconstructor:
  """The Reconstructor of tensors with PyTorch's names.

  Raises:
    port.PortingError: as `load`.
  """
  stages: dict[str, tuple[int, int]] = {}
  for name, tensor in sorted(tensors.items()):
    match = re.fullmatch(r'backbone\.layer(\d)\.\d+\.conv1\.weight', name)
    if match and tensor.ndim == 4:
      count = stages.get(match[1], (0, 0))[1]
      stages[match[1]] = tensor.shape[0], count + 1
  # The usual one if there are no stages: its names are then listed as missing.
  spec = Spec(tuple(stages.values())) if stages else Spec()
  inputs = (jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32),)
  return Reconstructor(spec, loading.fill(
      Network(spec), inputs, tensors, jnp.float32, ignored=frozen.COUNTERS))


def coefficients(network: Reconstructor, images: jax.Array) -> Coefficients:
  """Coefficients of faces; to be compiled by the caller.

  Args:
    network: from `load`; its `spec` is static.
    images: [N, 224, 224, 3] in [0, 1].
  """
  x: Any = Network(network.spec).apply(network.params, images)
  ends = np.cumsum(list(WIDTHS.values()))[:-1]
  return Coefficients(*jnp.split(x, ends, axis=-1))
