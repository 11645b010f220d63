"""LResNet: the face embedding of LiftedGAN's identity loss (2011.13126).

A residual network of 18 layers, trained on CASIA-WebFace. The weights are not
part of this project: lresnet_casia.pth.tar of the official release, by path
(its ending must be .pth, .pt or .bin: rename it).

Modules have the official names. Batch normalizations are evaluated with the
statistics of the file, and there is no dropout: the network is frozen.
"""

import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError
from gen3d.models import frozen, loading
from gen3d.ops import cameras
from gen3d.weights import torch_files

SIDE = 128  # pixels; images of twice the side are averaged first


class LResNet(nn.Module):
  """Images [N, 128, 128, 3] in [-1, 1] -> unit vectors [N, features].

  Attributes:
    widths: channels of the four stages, of two blocks each.
    features: of the embedding.
  """
  widths: tuple[int, ...] = (64, 128, 256, 512)
  features: int = 512

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Embeds images of SIDE or 2 SIDE pixels.

    Raises:
      UserError: the images have another size.
    """
    if images.shape[1] == 2 * SIDE:
      images = nn.avg_pool(images, (2, 2), (2, 2))
    if images.shape[1] != SIDE:
      raise UserError(f'The face embedding takes images of {SIDE} or {2 * SIDE}'
                      f' pixels, not of {images.shape[1]}; set '
                      '--config.weights.identity=0.')
    x = frozen.Conv(self.widths[0], (4, 4), 2, 1, name='conv1')(images)
    x = frozen.PReLU(name='act_layer')(frozen.BatchNorm(name='bn1')(x))
    for stage, width in enumerate(self.widths, 1):
      for i in range(2):
        stride = 2 if stage > 1 and i == 0 else 1
        x = frozen.ResidualBlock(
            width, stride, 0, name=f'layer{stage}.{i}')(x)
    x = frozen.BatchNorm(name='bn4')(x)
    # PyTorch flattens with the channels first.
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    x = frozen.Dense(self.features, name='fc5')(x)
    return cameras.normalize(frozen.BatchNorm(name='bn5')(x), 1e-24)


def load(path: str | os.PathLike) -> tuple[LResNet, Any]:
  """(network, its parameters) of an official checkpoint.

  Raises:
    UserError: the file cannot be read, or does not fit.
  """
  tensors = torch_files.read(path, 'model_state_dict')
  try:
    # The official program saves it inside a wrapper for several devices.
    return from_torch({name.removeprefix('module.'): tensor
                       for name, tensor in tensors.items()})
  except UserError as error:
    raise type(error)(f'{path}: {error}') from None


def from_torch(tensors: Mapping[str, np.ndarray]) -> tuple[LResNet, Any]:
  """(network, its parameters) of a state_dict.

  Raises:
    port.PortingError: lists what is missing, unused or of another shape.
  """
  names = [f'layer{stage}.0.conv1.weight' for stage in (1, 2, 3, 4)]
  network = LResNet(tuple(len(tensors.get(name, ())) for name in names),
                    len(tensors.get('fc5.bias', ())))
  images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
  return network, loading.fill(network, (images,), tensors, jnp.float32,
                               ignored=frozen.COUNTERS)
