"""Perceptual distances: LPIPS (Zhang et al., 1801.03924) and plain features.

An image is embedded so that the squared distance of two embeddings is the
perceptual distance of the images: the maps of a classifier's five stages,
each pixel's features scaled to length one, times the root of what LPIPS has
learned that a feature weighs. With weights of one it is the plain distance of
features, LPIPS' own baseline.

Vocabulary. Images [..., H, W, 3] in [0, 1]; five maps [..., h, w, C], of
relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 in VGG16.

The weights are not part of this project; you supply two files:

* The classifier's, trained on ImageNet: torchvision's vgg16-397923af.pth (for
  ALEXNET alexnet-owt-7be5be79.pth), which torchvision downloads on
  `torchvision.models.vgg16(weights='IMAGENET1K_V1')` and keeps in PyTorch's
  hub cache, or timm's vgg16.tv_in1k, model.safetensors. torchvision is under
  the BSD 3-clause license; ImageNet itself is for non-commercial research, and
  whether that reaches a network's weights is for you to judge.
* LPIPS' linear layers, 7 KB: weights/v0.1/vgg.pth (or alex.pth) in the Python
  package lpips, under the BSD 2-clause license. v0.1 is what the literature
  reports; do not take v0.0, which was trained on images of another scale.

So `load('vgg16-397923af.pth', 'vgg.pth')`; no PyTorch is needed, and nothing
in the files runs. One file that holds the state_dict of a whole
lpips.LPIPS(net='vgg') does as well; NVIDIA's vgg16.pt, a TorchScript program,
does not. Say which backbone a number is of: papers on view synthesis mostly
mean VGG16, the lpips package means AlexNet unless told otherwise.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gen3d.choices import UserError
from gen3d.weights import port, torch_files

# Of ImageNet. LPIPS' scaling layer, for images in [-1, 1], says the same.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
PROJECTOR_SIDE = 256  # official projectors shrink what they compare to it
# What may be left over: the classifier's head, as torchvision and timm name
# it, and constants and second names in a whole LPIPS.
_IGNORED = ('classifier.*', 'pre_logits.*', 'head.*', 'scaling_layer.*',
            'lins.*')


class Conv(NamedTuple):
  """A convolution with a ReLU; `index` is its place in torchvision's list."""
  index: int
  features: int
  side: int = 3
  stride: int = 1
  padding: int = 1


class Stage(NamedTuple):
  """Convolutions after a maximum over pool x pool pixels, each 2nd kept."""
  pool: int  # 0: none
  convs: tuple


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A classifier as far as its features are looked at."""
  name: str
  stages: tuple


VGG16 = Backbone('vgg16', (
    Stage(0, (Conv(0, 64), Conv(2, 64))),
    Stage(2, (Conv(5, 128), Conv(7, 128))),
    Stage(2, (Conv(10, 256), Conv(12, 256), Conv(14, 256))),
    Stage(2, (Conv(17, 512), Conv(19, 512), Conv(21, 512))),
    Stage(2, (Conv(24, 512), Conv(26, 512), Conv(28, 512)))))
# The second of its kind (Krizhevsky, 1404.5997), which torchvision has.
ALEXNET = Backbone('alexnet', (
    Stage(0, (Conv(0, 64, 11, 4, 2),)),
    Stage(3, (Conv(3, 192, 5, 1, 2),)),
    Stage(3, (Conv(6, 384),)),
    Stage(0, (Conv(8, 256),)),
    Stage(0, (Conv(10, 256),))))


@struct.dataclass
class Perceptual:
  """A network with its weights: a pytree, to be an argument of a step.

  Attributes:
    params: of LPIPS(backbone).
    backbone: Backbone.
  """
  params: Any
  backbone: Any = struct.field(pytree_node=False)


class Features(nn.Module):
  """The stages' maps, after their last ReLU."""
  backbone: Any = VGG16

  @nn.compact
  def __call__(self, images):
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
  """The embedding in which LPIPS is a squared distance."""
  backbone: Any = VGG16

  @nn.compact
  def __call__(self, images):
    """Images [..., H, W, 3] in [0, 1] -> five maps [..., h, w, C]."""
    embedding = []
    for i, x in enumerate(Features(self.backbone, name='features')(images)):
      h, w, features = x.shape[-3:]
      weights = self.param(f'lin{i}', nn.initializers.ones,
                           (1, 1, features, 1))[..., 0]
      squared = jnp.sum(x * x, axis=-1, keepdims=True)
      # The floor keeps the gradient finite where no feature answers.
      x = x / (jnp.sqrt(jnp.maximum(squared, 1e-20)) + 1e-10)
      embedding.append(x * jnp.sqrt(weights / (h * w)))
    return tuple(embedding)


def load(*paths, backbone=VGG16, learned=True):
  """A Perceptual from weights that the user supplies (see the top).

  Args:
    *paths: one file or several that together hold the classifier's
      convolutions ('features.0.weight', or 'net.slice1.0.weight' as in a whole
      LPIPS) and the linear layers ('lin0.model.1.weight'); see
      weight_files.read.
    backbone: VGG16 or ALEXNET.
    learned: whether features weigh what LPIPS learned; otherwise one each,
      and the linear layers are not needed.

  Raises:
    UserError: a file cannot be read, or two hold the same tensor.
    porting.PortingError: lists what is missing, unused, or of another shape;
      or a linear weight is negative, which no distance has.
  """
  tensors = {}
  for path in paths:
    found = {re.sub(r'^net\.slice\d\.', 'features.', name): tensor
             for name, tensor in torch_files.read(path).items()}
    twice = sorted(set(found) & set(tensors))
    if twice:
      raise UserError(f'{path} holds {twice[0]}, which a file before it holds '
                      'as well; give each tensor once.')
    tensors |= found
  try:
    return Perceptual(from_torch(tensors, backbone, learned), backbone)
  except port.PortingError as error:
    names = ' and '.join(map(str, paths))
    raise port.PortingError(
        f'For {backbone.name} from {names or "no file"}: {error}') from None


def from_torch(tensors, backbone=VGG16, learned=True):
  """Parameters of LPIPS(backbone) from {PyTorch name: NumPy array}.

  Raises:
    porting.PortingError: as `load`.
  """
  like = jax.eval_shape(LPIPS(backbone).init, jax.random.key(0),
                        jnp.zeros((1, 64, 64, 3)))['params']
  sources = {f'features/{conv.index}/{ours}': (
      f'features.{conv.index}.{theirs}', layout)
      for stage in backbone.stages for conv in stage.convs
      for ours, theirs, layout in (('kernel', 'weight', port.conv),
                                   ('bias', 'bias', port.keep))}
  linear = {f'lin{i}': f'lin{i}.model.1.weight'
            for i in range(len(backbone.stages))}
  sources |= {ours: (name, port.conv) for ours, name in linear.items()}
  if not learned:
    tensors = dict(tensors) | {
        name: np.ones((1, like[ours].shape[2], 1, 1))
        for ours, name in linear.items()}
  params = port.to_flax(tensors, sources, like, _IGNORED)
  negative = [name for ours, name in linear.items() if jnp.any(
      params[ours] < 0)]
  if negative:
    raise port.PortingError(
        f'{negative[0]} has negative weights, which are none of LPIPS\'s.')
  return params


def embed(network, images, most=None):
  """Five maps [..., h, w, C] whose squared distances are perceptual ones.

  What is compared with many images (the target of an inversion) is embedded
  once. For each number of the images, VGG16's five maps hold 41, and all its
  layers, which a gradient needs, 90.

  Args:
    network: Perceptual.
    images: [..., H, W, 3] in [0, 1].
    most: None, or pixels a side to which larger images are shrunk before, by
      the mean over areas; official projectors take PROJECTOR_SIDE.

  Raises:
    UserError: the images are too small to reach the last stage.
  """
  if most is not None:
    images = shrink(images, most)
  return LPIPS(network.backbone).apply({'params': network.params}, images)


def distance(one, other):
  """Perceptual distances [...] of what `embed` gave (1801.03924, eq. 1)."""
  return sum(jnp.sum(jnp.square(a - b), axis=(-3, -2, -1))
             for a, b in zip(one, other, strict=True))


def shrink(images, most):
  """Images [..., H, W, C] with at most `most` pixels a side.

  Pixel i of n is the mean of those from floor(i H / n) to ceil((i + 1) H / n),
  PyTorch's interpolation 'area'.
  """
  for axis in (images.ndim - 3, images.ndim - 2):
    size = images.shape[axis]
    if size > most:
      i, j = np.arange(most)[:, None], np.arange(size)
      inside = (j >= i * size // most) & (j < -(-(i + 1) * size // most))
      mean = inside / inside.sum(1, keepdims=True)
      images = jnp.moveaxis(jnp.tensordot(
          jnp.array(mean, images.dtype), images, (1, axis)), 0, axis)
  return images
