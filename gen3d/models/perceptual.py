"""Perceptual distances: LPIPS (Zhang et al., 1801.03924) and plain features.

An embedding of images whose squared distance is the perceptual distance: the
feature maps of the five stages of a classifier, normalized to length one at
each pixel, times the square root of the weight that LPIPS learned for each
channel. With weights of one it is the plain distance of features, the baseline
of LPIPS.

Vocabulary. Images [..., H, W, 3] in [0, 1]; five maps [..., h, w, C], of
relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 in VGG16.

The weights are not part of this project; you supply two files:

* The classifier, trained on ImageNet: torchvision's vgg16-397923af.pth, which
  `torchvision.models.vgg16(weights='IMAGENET1K_V1')` downloads to the hub cache
  of PyTorch, or timm's vgg16.tv_in1k, model.safetensors. torchvision is under
  the BSD 3-clause license; ImageNet itself is for non-commercial research, and
  you must decide whether that applies to weights.
* The linear layers of LPIPS, 7 KB: weights/v0.1/vgg.pth in the Python package
  lpips, under the BSD 2-clause license. The literature reports v0.1; do not
  use v0.0, which was trained on images of another scale.

Then `load('vgg16-397923af.pth', 'vgg.pth')`. PyTorch is not needed, and nothing
in the files runs. One file with the state_dict of a complete
lpips.LPIPS(net='vgg') works as well; NVIDIA's vgg16.pt, a TorchScript program,
does not. Report the backbone with each number: papers on view synthesis mostly
use VGG16, the lpips package uses AlexNet by default.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gen3d.choices import UserError
from gen3d.models import loading
from gen3d.weights import port, torch_files

# Of ImageNet; LPIPS has the same numbers for images in [-1, 1].
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
PROJECTOR_SIDE = 256  # pixels, to which official projectors shrink images
# The head of the classifier, as torchvision and timm name it, and constants
# and second names in a complete LPIPS.
_IGNORED = ('classifier.*', 'pre_logits.*', 'head.*', 'scaling_layer.*',
            'lins.*')


class Conv(NamedTuple):
  """A convolution with a ReLU; `index` is that in torchvision's layers."""
  index: int
  features: int
  side: int = 3
  stride: int = 1
  padding: int = 1


class Stage(NamedTuple):
  """Convolutions after a max pooling of pool x pool pixels, stride 2."""
  pool: int  # 0: none
  convs: tuple[Conv, ...]


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A classifier up to the last of its features that are compared."""
  name: str
  stages: tuple[Stage, ...]


VGG16 = Backbone('vgg16', (
    Stage(0, (Conv(0, 64), Conv(2, 64))),
    Stage(2, (Conv(5, 128), Conv(7, 128))),
    Stage(2, (Conv(10, 256), Conv(12, 256), Conv(14, 256))),
    Stage(2, (Conv(17, 512), Conv(19, 512), Conv(21, 512))),
    Stage(2, (Conv(24, 512), Conv(26, 512), Conv(28, 512)))))


@struct.dataclass
class Perceptual:
  """A backbone with its weights: a pytree, an argument of a train step."""
  params: Any  # of LPIPS(backbone)
  backbone: Any = struct.field(pytree_node=False)  # Backbone


class Features(nn.Module):
  """The maps of the stages, after their last ReLU."""
  backbone: Backbone = VGG16

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
    """Images [..., H, W, 3] in [0, 1] -> five maps [..., h, w, C].

    Raises:
      UserError: the images are too small to reach the last stage.
    """
    x, maps = (images - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD), []
    for stage in self.backbone.stages:
      if stage.pool:
        x = nn.max_pool(x, (stage.pool,) * 2, (2, 2))
      for index, features, side, stride, padding in stage.convs:
        x = nn.relu(nn.Conv(features, (side, side), (stride, stride), padding,
                            name=f'{index}')(x))
      if 0 in x.shape[-3:]:
        raise UserError(
            f'Images of {images.shape[-3]} x {images.shape[-2]} pixels are '
            f'too small for {self.backbone.name}; enlarge them to 32 or more.')
      maps.append(x)
    return tuple(maps)


class LPIPS(nn.Module):
  """The embedding whose squared distance is LPIPS."""
  backbone: Backbone = VGG16

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
    """Images [..., H, W, 3] in [0, 1] -> five maps [..., h, w, C]."""
    embedding = []
    for i, x in enumerate(Features(self.backbone, name='features')(images)):
      h, w, features = x.shape[-3:]
      weights = self.param(f'lin{i}', nn.initializers.ones,
                           (1, 1, features, 1))[..., 0]
      squared = jnp.sum(x * x, axis=-1, keepdims=True)
      # The floor keeps the gradient finite where all features are zero.
      x = x / (jnp.sqrt(jnp.maximum(squared, 1e-20)) + 1e-10)
      embedding.append(x * jnp.sqrt(weights / (h * w)))
    return tuple(embedding)


def load(*paths: str | os.PathLike, backbone: Backbone = VGG16,
         learned: bool = True) -> Perceptual:
  """LPIPS from files that the user supplies (see the docstring of the module).

  Args:
    *paths: one file or several that together contain the convolutions of the
      classifier ('features.0.weight', or 'net.slice1.0.weight' as in a
      complete LPIPS) and the linear layers ('lin0.model.1.weight'); see
      torch_files.read.
    backbone: the classifier.
    learned: channels have the weights that LPIPS learned; otherwise weights of
      one, and the linear layers are not needed.

  Raises:
    UserError: a file cannot be read, or two contain the same tensor.
    port.PortingError: lists what is missing, unused, or of another shape; or
      a linear weight is negative, so that there is no distance.
  """
  tensors = {}
  for path in paths:
    more = {re.sub(r'^net\.slice\d\.', 'features.', name): tensor
            for name, tensor in torch_files.read(path).items()}
    duplicates = sorted(set(more) & set(tensors))
    if duplicates:
      raise UserError(f'{path} contains {duplicates[0]}, which a file before '
                      'it contains as well; give each tensor once.')
    tensors |= more
  try:
    return Perceptual(from_torch(tensors, backbone, learned), backbone)
  except port.PortingError as error:
    names = ' and '.join(map(str, paths))
    raise port.PortingError(
        f'For {backbone.name} from {names or "no file"}: {error}') from None


def from_torch(tensors: Mapping[str, np.ndarray], backbone: Backbone = VGG16,
               learned: bool = True) -> dict[str, Any]:
  """Parameters of LPIPS(backbone), without their collection 'params'.

  Args:
    tensors: {PyTorch name: array}.
    backbone: the classifier.
    learned: see `load`.

  Raises:
    port.PortingError: as `load`.
  """
  sources: port.Sources = {f'features/{conv.index}/{ours}': (
      f'features.{conv.index}.{theirs}', layout)
      for stage in backbone.stages for conv in stage.convs
      for ours, theirs, layout in (('kernel', 'weight', port.conv),
                                   ('bias', 'bias', port.keep))}
  linear = {f'lin{i}': f'lin{i}.model.1.weight'
            for i in range(len(backbone.stages))}
  sources |= {ours: (name, port.conv) for ours, name in linear.items()}
  if not learned:
    tensors = dict(tensors) | {
        name: np.ones((1, stage.convs[-1].features, 1, 1))
        for name, stage in zip(linear.values(), backbone.stages)}
  inputs = (jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),)
  params = loading.fill(LPIPS(backbone), inputs, tensors, jnp.float32, sources,
                        _IGNORED)['params']
  negative = [name for ours, name in linear.items() if jnp.any(
      params[ours] < 0)]
  if negative:
    raise port.PortingError(
        f'{negative[0]} has negative weights; those of LPIPS are not, use its '
        'file.')
  return params


def embed(network: Perceptual, images: np.ndarray | jax.Array,
          max_side: int | None = None) -> tuple[jax.Array, ...]:
  """Five maps [..., h, w, C] whose squared distance is the perceptual one.

  An image that is compared with many others (the target of an inversion) is
  embedded once. For each number of the images, the five maps of VGG16 have 41
  numbers, and all its layers, which a gradient needs, 90.

  Args:
    network: backbone and weights.
    images: [..., H, W, 3] in [0, 1].
    max_side: in pixels, to which larger images are shrunk first; None for no
      limit. Official projectors use PROJECTOR_SIDE.

  Raises:
    UserError: the images are too small to reach the last stage.
  """
  if max_side is not None:
    images = shrink(images, max_side)
  maps: Any = LPIPS(network.backbone).apply(
      {'params': network.params}, images)
  return maps


def distance(maps: Sequence[jax.Array],
             other: Sequence[jax.Array]) -> jax.Array:
  """Perceptual distances [...] of two outputs of `embed` (paper, eq. 1)."""
  return jnp.asarray(sum(jnp.sum(jnp.square(a - b), axis=(-3, -2, -1))
                         for a, b in zip(maps, other, strict=True)))


def shrink(images: np.ndarray | jax.Array,
           max_side: int) -> np.ndarray | jax.Array:
  """Images [..., H, W, C] with at most `max_side` pixels a side.

  Pixel i of n is the mean of those from floor(i H / n) to ceil((i + 1) H / n),
  as in the interpolation 'area' of PyTorch.
  """
  for axis in (images.ndim - 3, images.ndim - 2):
    size = images.shape[axis]
    if size > max_side:
      i, j = np.arange(max_side)[:, None], np.arange(size)
      first, last = i * size // max_side, -(-(i + 1) * size // max_side)
      inside = (j >= first) & (j < last)
      mean = inside / inside.sum(1, keepdims=True)
      images = jnp.moveaxis(jnp.tensordot(
          jnp.array(mean, images.dtype), images, (1, axis)), 0, axis)
  return images
