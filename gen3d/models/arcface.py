"""Embeddings of faces: IR-SE50 of TreB1eN and iresnet of insightface.

Networks of ArcFace (Deng et al., 1801.07698), whose cosine tells whether two
images show one person. The weights are not part of this project; you supply one
file, a state_dict:

* model_ir_se50.pth of InsightFace_Pytorch (TreB1eN), IR-SE50; its other depths
  and IR without SE as well.
* backbone.pth of insightface's arcface_torch, iresnet of any depth, such as
  glint360k_cosface_r100. Its pretrained models are for non-commercial research.

The architecture is read from the names and shapes of the tensors. Images are
RGB, [N, S, S, 3] in [-1, 1], with the side S of the training, 112; see
metrics/faces.py for their alignment.
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

_OUTPUT = {'ir_se': 'output_layer.3.weight', 'ir': 'output_layer.3.weight',
           'iresnet': 'fc.weight'}


class Spec(NamedTuple):
  """An architecture.

  Attributes:
    kind: 'ir_se', 'ir' or 'iresnet'.
    stages: (width, number of blocks) of each stage; the first block of each
      halves the image.
    features: of the embedding.
    side: of the last feature map, in pixels.
  """
  kind: str
  stages: tuple[tuple[int, int], ...]
  features: int = 512
  side: int = 7

  @property
  def image_side(self) -> int:
    """Pixels a side of the images."""
    return self.side * 2 ** len(self.stages)


IR_SE50 = Spec('ir_se', ((64, 3), (128, 4), (256, 14), (512, 3)))
IRESNET50 = Spec('iresnet', ((64, 3), (128, 4), (256, 14), (512, 3)))
IRESNET100 = Spec('iresnet', ((64, 3), (128, 13), (256, 30), (512, 3)))


class ArcFace(NamedTuple):
  """A network with its weights."""
  spec: Spec
  params: Any


class _IRBlock(nn.Module):
  """Norm, convolution, PReLU, convolution, norm (and SE), plus a shortcut."""
  width: int
  stride: int
  squeeze: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H / stride, W / stride, width]."""
    y = frozen.BatchNorm(name='res_layer.0')(x)
    y = frozen.Conv(self.width, (3, 3), padding=1, name='res_layer.1')(y)
    y = frozen.PReLU(name='res_layer.2')(y)
    y = frozen.Conv(self.width, (3, 3), self.stride, 1, name='res_layer.3')(y)
    y = frozen.BatchNorm(name='res_layer.4')(y)
    if self.squeeze:
      gate = y.mean((1, 2), keepdims=True)
      gate = nn.relu(frozen.Conv(
          self.width // 16, (1, 1), name='res_layer.5.fc1')(gate))
      y = y * nn.sigmoid(frozen.Conv(
          self.width, (1, 1), name='res_layer.5.fc2')(gate))
    if x.shape[-1] == self.width:
      return y + x[:, ::self.stride, ::self.stride]
    x = frozen.Conv(self.width, (1, 1), self.stride, 0,
                    name='shortcut_layer.0')(x)
    return y + frozen.BatchNorm(name='shortcut_layer.1')(x)


class Network(nn.Module):
  """A network up to the embedding, which has any length."""
  spec: Spec

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Images [N, S, S, 3] in [-1, 1] -> [N, features]."""
    iresnet = self.spec.kind == 'iresnet'
    stem = (('conv1', 'bn1', 'prelu') if iresnet else
            ('input_layer.0', 'input_layer.1', 'input_layer.2'))
    head = (('bn2', 'fc', 'features') if iresnet else
            ('output_layer.0', 'output_layer.3', 'output_layer.4'))
    x = frozen.Conv(self.spec.stages[0][0], (3, 3), padding=1,
                    name=stem[0])(x)
    x = frozen.PReLU(name=stem[2])(frozen.BatchNorm(name=stem[1])(x))
    number, squeeze = 0, self.spec.kind == 'ir_se'
    for stage, (width, count) in enumerate(self.spec.stages):
      for i in range(count):
        stride = 2 if i == 0 else 1
        block = (
            frozen.ResidualBlock(
                width, stride, 1, name=f'layer{stage + 1}.{i}')
            if iresnet else
            _IRBlock(width, stride, squeeze, name=f'body.{number}'))
        x = block(x)
        number += 1
    x = frozen.BatchNorm(name=head[0])(x)
    # PyTorch flattens with the channels first.
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    x = frozen.Dense(self.spec.features, name=head[1])(x)
    return frozen.BatchNorm(name=head[2])(x)


def load(path: str | os.PathLike) -> ArcFace:
  """A network from the file that the user supplies.

  Raises:
    UserError: the file cannot be read.
    port.PortingError: it is of no such network; lists what is missing, unused
      or of another shape.
  """
  try:
    return from_torch(torch_files.read(path))
  except port.PortingError as error:
    raise port.PortingError(f'{path}: {error}') from None


def from_torch(tensors: Mapping[str, np.ndarray]) -> ArcFace:
  """The ArcFace of tensors with PyTorch's names.

  Raises:
    port.PortingError: as `load`.
  """
  spec = spec_of(tensors)
  side = spec.image_side
  inputs = (jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),)
  return ArcFace(spec, loading.fill(
      Network(spec), inputs, tensors, jnp.float32, ignored=frozen.COUNTERS))


def spec_of(tensors: Mapping[str, np.ndarray]) -> Spec:
  """The architecture that names and shapes of tensors belong to.

  Raises:
    port.PortingError: they belong to none.
  """
  convolutions = [('iresnet', r'layer(\d+)\.(\d+)\.conv1\.weight'),
                  ('ir', r'(body)\.(\d+)\.res_layer\.1\.weight')]
  for kind, pattern in convolutions:
    found = sorted((match[1], int(match[2]), tensors[name].shape)
                   for name in tensors if (match := re.fullmatch(
                       pattern, name)) and tensors[name].ndim == 4)
    head = tensors.get(_OUTPUT[kind])
    if not found or head is None or head.ndim != 2:
      continue
    stages: dict[Any, list[int]] = {}
    for stage, _, shape in found:
      # Blocks of IR are numbered through; their stages differ in width.
      key = (stage if kind == 'iresnet' else '', shape[0])
      stages[key] = [shape[0], stages.get(key, [0, 0])[1] + 1]
    widths = tuple((width, count) for width, count in stages.values())
    side = max(1, round((head.shape[1] / max(1, widths[-1][0])) ** 0.5))
    if kind == 'ir' and any('res_layer.5.' in name for name in tensors):
      kind = 'ir_se'
    return Spec(kind, widths, head.shape[0], side)
  raise port.PortingError(
      'these are the tensors of no IR-SE50 (body.0.res_layer.1.weight) and of '
      'no iresnet (layer1.0.conv1.weight); give model_ir_se50.pth, or '
      'backbone.pth of arcface_torch.')


def embed(network: ArcFace, images: jax.Array) -> jax.Array:
  """Embeddings [N, features] of length one; to be compiled by the caller.

  Args:
    network: from `load`; its `spec` is static.
    images: [N, S, S, 3] in [-1, 1], see Spec.image_side.
  """
  x: Any = Network(network.spec).apply(network.params, images)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
