"""Camera and depth of one picture of the shapes world, by a small U-Net.

It takes the place of a face reconstructor (metrics/faces.py) where the objects
are those of the shapes world: the pose and the depth of a generator's pictures
are compared with what it estimates, and pictures without cameras get labels.
"""

import functools
import os
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d import assets
from gen3d.choices import UserError
from gen3d.ops import cameras

_BATCH = 64  # pictures at a time, which bounds the memory


class Estimate(NamedTuple):
  """What pictures [N, S, S, 3] show, as estimated.

  Attributes:
    direction: [N, 3], unit vector from the object to the camera.
    depth: [N, S, S], along the ray, less the camera's distance from the
      object's center; in world units.
    mask: [N, S, S], logit of the object.
  """
  direction: Any
  depth: Any
  mask: Any


class ViewEstimator(nn.Module):
  """Pictures [N, S, S, 3] in [0, 1] -> Estimate.

  Attributes:
    widths: channels at S, S / 2, S / 4, ... pixels.
    hidden: width of the layer before the direction.
  """
  widths: tuple[int, ...] = (24, 48, 96, 128)
  hidden: int = 128

  @nn.compact
  def __call__(self, pictures: jax.Array) -> Estimate:
    x, skips = 2 * pictures - 1, []
    for level, width in enumerate(self.widths):
      x = _block(x, width, 2 if level else 1)
      x = _block(x, width)
      skips.append(x)
    # The direction depends on where things are: a flat layer, not a mean.
    flat = nn.Conv(16, (1, 1), name='squeeze')(x)
    flat = nn.silu(nn.Dense(self.hidden, name='hidden')(
        flat.reshape(len(flat), -1)))
    direction = cameras.normalize(nn.Dense(3, name='direction')(flat))
    for width, skip in zip(self.widths[-2::-1], skips[-2::-1], strict=True):
      x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
      x = _block(jnp.concatenate([x, skip], axis=-1), width)
    x = nn.Conv(2, (3, 3), name='maps')(x)
    return Estimate(direction, x[..., 0], x[..., 1])


def _block(x, width, stride=1):
  """Convolution, group normalization, SiLU, within a compact module."""
  x = nn.Conv(width, (3, 3), (stride, stride), use_bias=False)(x)
  return nn.silu(nn.GroupNorm(8)(x))


class Estimator(NamedTuple):
  """A trained ViewEstimator.

  Attributes:
    model, params: the network.
    size: pixels a side of its pictures.
    distance, focal: of the cameras of its training, world units and image
      widths.
    categories: of the objects of its training.
    errors: {name: number} on true pictures, as measured after the training.
  """
  model: ViewEstimator
  params: Any
  size: int
  distance: float
  focal: float
  categories: tuple[str, ...]
  errors: dict[str, float]


def load(path: str | os.PathLike = assets.VIEW_ESTIMATOR) -> Estimator:
  """The Estimator of an asset, by default of the one that ships.

  Raises:
    UserError: the asset is missing, damaged or of another task.
  """
  params, record = assets.load(path, 'view_estimation')
  config = record['config']
  return Estimator(
      module(config['model']), params, config['size'],
      config['distance'], config['focal'], tuple(record['categories']),
      record['errors'])


def module(config: Any) -> ViewEstimator:
  """The ViewEstimator of a config's `model`."""
  return ViewEstimator(tuple(config['widths']), config['hidden'])


def estimate(estimator: Estimator, pictures: np.ndarray) -> Estimate:
  """The Estimate of pictures uint8 [N, S, S, 3], as NumPy arrays.

  Raises:
    UserError: the pictures do not have the size of the training.
  """
  side = estimator.size
  if pictures.shape[1:] != (side, side, 3):
    raise UserError(
        f'The pictures have {pictures.shape[2]} x {pictures.shape[1]} pixels, '
        f'but the view estimator is trained on {side} x {side}; resize them.')
  parts = [_apply(estimator.params, pictures[i:i + _BATCH],
                  model=estimator.model)
           for i in range(0, len(pictures), _BATCH)]
  return Estimate(*(np.concatenate(x) for x in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnames='model')
def _apply(params, pictures, *, model):
  return model.apply(params, pictures / 255.0)


def camera_of(estimator: Estimator, direction: np.ndarray) -> cameras.Camera:
  """Cameras [N] at `direction` [N, 3] that face the origin, without roll."""
  azimuth, elevation, _ = cameras.angles(jnp.asarray(direction))
  return cameras.orbit(
      azimuth, elevation, estimator.distance, estimator.focal)
