"""The Inception network of FID and KID, with the weights of its TF graph.

It is Inception v3 (Szegedy et al., 1512.00567) as TensorFlow published it on
2015-12-05. It differs from torchvision's: average pooling leaves the padding
out, the last block pools by maxima, there are 1008 classes.

The weights are not part of this project; you supply the file
pt_inception-2015-12-05-6726825d.pth of the releases of pytorch-fid
(github.com/mseitzer/pytorch-fid, fid_weights). PyTorch is not needed.

Vocabulary. The inputs of the network are [N, 299, 299, 3] in about [-1, 1]. A
layer is named by the number of its features, which are the means over the
pixels of a feature map: '64' and '192' after the two max poolings, '768' before
the auxiliary classifier, '2048' at the end (FID and KID). 'logits' are the
classes', 'logits_unbiased' those without bias.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError, check, pick
from gen3d.models import frozen, loading
from gen3d.weights import port, torch_files

SIDE = 299
CLASSES = 1008
LAYERS = ('64', '192', '768', '2048', 'logits', 'logits_unbiased')
_FILE = 'pt_inception-2015-12-05-6726825d.pth'


class Layer(NamedTuple):
  """A convolution with its norm and a ReLU."""
  name: str
  features: int
  window: tuple[int, int] = (1, 1)
  stride: int = 1  # with a stride of 2 there is no padding


class Block(NamedTuple):
  """Branches side by side, the last of which starts with a pooling 3 x 3.

  Layers follow each other in a branch; a tuple of layers at the end of a branch
  are again side by side.
  """
  branches: tuple[Any, ...]
  pool: str          # 'mean' or 'max'
  pool_features: int  # of the convolution after it; 0: none, and stride 2


def _block_a(pool_features):
  return Block((
      (Layer('branch1x1', 64),),
      (Layer('branch5x5_1', 48), Layer('branch5x5_2', 64, (5, 5))),
      (Layer('branch3x3dbl_1', 64), Layer('branch3x3dbl_2', 96, (3, 3)),
       Layer('branch3x3dbl_3', 96, (3, 3)))), 'mean', pool_features)


def _block_c(width):
  return Block((
      (Layer('branch1x1', 192),),
      (Layer('branch7x7_1', width), Layer('branch7x7_2', width, (1, 7)),
       Layer('branch7x7_3', 192, (7, 1))),
      (Layer('branch7x7dbl_1', width), Layer('branch7x7dbl_2', width, (7, 1)),
       Layer('branch7x7dbl_3', width, (1, 7)),
       Layer('branch7x7dbl_4', width, (7, 1)),
       Layer('branch7x7dbl_5', 192, (1, 7)))), 'mean', 192)


def _block_e(pool):
  return Block((
      (Layer('branch1x1', 320),),
      (Layer('branch3x3_1', 384), (Layer('branch3x3_2a', 384, (1, 3)),
                                   Layer('branch3x3_2b', 384, (3, 1)))),
      (Layer('branch3x3dbl_1', 448), Layer('branch3x3dbl_2', 384, (3, 3)),
       (Layer('branch3x3dbl_3a', 384, (1, 3)),
        Layer('branch3x3dbl_3b', 384, (3, 1))))), pool, 192)


_BLOCK_B = Block((
    (Layer('branch3x3', 384, (3, 3), 2),),
    (Layer('branch3x3dbl_1', 64), Layer('branch3x3dbl_2', 96, (3, 3)),
     Layer('branch3x3dbl_3', 96, (3, 3), 2))), 'max', 0)
_BLOCK_D = Block((
    (Layer('branch3x3_1', 192), Layer('branch3x3_2', 320, (3, 3), 2)),
    (Layer('branch7x7x3_1', 192), Layer('branch7x7x3_2', 192, (1, 7)),
     Layer('branch7x7x3_3', 192, (7, 1)),
     Layer('branch7x7x3_4', 192, (3, 3), 2))), 'max', 0)

# The network up to each of the layers '64', '192', '768' and '2048'. Layers of
# the stem have no padding but Conv2d_2b_3x3.
_STEM = {'64': ((Layer('Conv2d_1a_3x3', 32, (3, 3), 2), 'VALID'),
                (Layer('Conv2d_2a_3x3', 32, (3, 3)), 'VALID'),
                (Layer('Conv2d_2b_3x3', 64, (3, 3)), 'SAME')),
         '192': ((Layer('Conv2d_3b_1x1', 80), 'VALID'),
                 (Layer('Conv2d_4a_3x3', 192, (3, 3)), 'VALID'))}
_BLOCKS = {
    '768': {'Mixed_5b': _block_a(32), 'Mixed_5c': _block_a(64),
            'Mixed_5d': _block_a(64), 'Mixed_6a': _BLOCK_B,
            'Mixed_6b': _block_c(128), 'Mixed_6c': _block_c(160),
            'Mixed_6d': _block_c(160), 'Mixed_6e': _block_c(192)},
    '2048': {'Mixed_7a': _BLOCK_D, 'Mixed_7b': _block_e('mean'),
             'Mixed_7c': _block_e('max')}}


class _Convolution(nn.Module):
  """A Layer."""
  layer: Layer
  padding: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, h, w, features]."""
    _, features, window, stride = self.layer
    x = frozen.Conv(features, window, stride, self.padding, name='conv')(x)
    return nn.relu(frozen.BatchNorm(1e-3, name='bn')(x))


class _Mixed(nn.Module):
  """A Block."""
  block: Block

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> the branches' maps, concatenated."""
    results = []
    for branch in self.block.branches:
      *layers, last = branch
      y = x
      for layer in layers:
        y = _apply(layer, y)
      results += [_apply(layer, y) for layer in (
          (last,) if isinstance(last, Layer) else last)]
    pooled = _pool(x, self.block)
    if self.block.pool_features:
      pooled = _apply(Layer('branch_pool', self.block.pool_features), pooled)
    return jnp.concatenate([*results, pooled], axis=-1)


class Inception(nn.Module):
  """The network."""

  @nn.compact
  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    """Inputs [N, 299, 299, 3] -> {layer: [N, h, w, C], or logits [N, C]}."""
    maps = {}
    for name, stem in _STEM.items():
      for layer, padding in stem:
        x = _Convolution(layer, padding, name=layer.name)(x)
      maps[name] = x = nn.max_pool(x, (3, 3), (2, 2))
    for name, blocks in _BLOCKS.items():
      for block_name, block in blocks.items():
        x = _Mixed(block, name=block_name)(x)
      maps[name] = x
    fc = frozen.Dense(CLASSES, name='fc')
    maps['logits'] = fc(x.mean((1, 2)))
    maps['logits_unbiased'] = (
        maps['logits'] - fc.variables['params']['bias'])
    return maps


def load(path: str | os.PathLike) -> Any:
  """The parameters of Inception from the file that the user supplies.

  Raises:
    UserError: the file cannot be read.
    port.PortingError: lists what is missing, unused or of another shape.
  """
  try:
    return from_torch(torch_files.read(path))
  except port.PortingError as error:
    raise port.PortingError(
        f'{path} is not {_FILE}, the network of FID: {error}') from None


def from_torch(tensors: dict[str, np.ndarray]) -> Any:
  """{'params'} from tensors with PyTorch's names.

  Raises:
    port.PortingError: as `load`.
  """
  inputs = (jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32),)
  return loading.fill(Inception(), inputs, tensors, jnp.float32,
                      ignored=frozen.COUNTERS)


def features(params: Any, images: jax.Array, resize: str = 'tf',
             layers: Sequence[str] = ('2048',)) -> dict[str, jax.Array]:
  """{layer: features [N, D]} of images; to be compiled by the caller.

  Args:
    params: from `load`.
    images: uint8 [N, H, W, C] with 3 channels, or one of gray.
    resize: of RESIZES.
    layers: of LAYERS.

  Raises:
    UserError: there is no such resizing or layer, or the images are not bytes.
  """
  for layer in layers:
    check('layer of Inception', LAYERS, layer)
  maps: Any = Inception().apply(params, inputs_of(images, resize))
  return {layer: maps[layer] if maps[layer].ndim == 2 else
          maps[layer].mean((1, 2)) for layer in layers}


def inputs_of(images: jax.Array, resize: str) -> jax.Array:
  """Inputs [N, 299, 299, 3] of uint8 images [N, H, W, C]; see `features`."""
  if images.dtype != np.uint8 or images.ndim != 4 or (
      images.shape[-1] not in (1, 3)):
    raise UserError(
        'Inception takes images of bytes, uint8 [N, H, W, 3], as the protocol '
        f'quantizes them, not {images.dtype} {list(images.shape)}.')
  images = jnp.broadcast_to(images, (*images.shape[:-1], 3))
  return pick('resizing for Inception', RESIZES, resize)(
      jnp.float32(images))


def _resize_tf(images):
  # tf.image.resize_bilinear of TensorFlow 1 has the corners of the pixels at
  # whole numbers, and no antialiasing.
  resized = _bilinear(images, lambda i, scale: i * scale)
  return (resized - 128) / 128


def _resize_pytorch_fid(images):
  resized = _bilinear(images / 255, lambda i, scale: jnp.maximum(
      (i + 0.5) * scale - 0.5, 0))
  return 2 * resized - 1


# Name -> bytes [N, H, W, 3] as float32 -> inputs of the network. 'tf' is that
# of the graph itself, of NVIDIA's code and of torch-fidelity; they give
# different distances.
RESIZES: dict[str, Callable[[jax.Array], jax.Array]] = {
    'tf': _resize_tf, 'pytorch_fid': _resize_pytorch_fid}


def _bilinear(images, position):
  """Images at `position` (index, scale) along each axis, without antialiasing.

  An explicit gather: jax.image.resize has the centers of the pixels at half
  numbers only.
  """
  for axis in (1, 2):
    size = images.shape[axis]
    at = position(jnp.arange(SIDE, dtype=jnp.float32),
                  jnp.float32(size / SIDE))
    low = jnp.minimum(at.astype(jnp.int32), size - 1)
    share = (at - low).reshape(-1, *(1,) * (3 - axis))
    below, above = (jnp.take(images, i, axis, mode='clip')
                    for i in (low, jnp.minimum(low + 1, size - 1)))
    images = below + (above - below) * share
  return images


def _apply(layer, x):
  """A Layer within a block; with a stride it has no padding."""
  return _Convolution(
      layer, 'VALID' if layer.stride == 2 else 'SAME', name=layer.name)(x)


def _pool(x, block):
  if not block.pool_features:
    return nn.max_pool(x, (3, 3), (2, 2))
  if block.pool == 'max':
    return nn.max_pool(x, (3, 3), (1, 1), 'SAME')
  # The means are over the pixels of the image, without the padding.
  return nn.avg_pool(x, (3, 3), (1, 1), 'SAME', count_include_pad=False)
