"""Feature extractors for metrics between sets of images."""

import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import assets
from gen3d.choices import check
from gen3d.models import clip_pair
from gen3d.models import inception as inception_model

# (function (shared, rows) -> results, number of rows at a time) -> a function
# of (shared, all rows), as engine.sharding.map_over_devices.
MapRows = Callable[[Callable[[Any, Any], Any], int],
                   Callable[[Any, np.ndarray], np.ndarray]]
_BATCH = 16  # images at a time


class Features(NamedTuple):
  """A feature extractor.

  Attributes:
    name: printed beside every number; a distance on other features than
      Inception's must not be called FID.
    embed: uint8 images [N, H, W, 3] -> features [N, D].
    digest: of the weights, in the names of stored statistics.
  """
  name: str
  embed: Callable[[np.ndarray], np.ndarray]
  digest: str = ''


def shapes_clip(path: str | os.PathLike = assets.CLIP) -> Features:
  """The image features of the shipped CLIP pair, 'shapes_clip'.

  It is trained on the shapes world only: distances are not comparable with
  those of the literature.

  Args:
    path: of the pair's weights.

  Raises:
    UserError: the weights are missing or damaged.
  """
  pair = clip_pair.load(path)
  return Features('shapes_clip', lambda images: pair.image_features(
      np.asarray(images) / np.float32(255)), _digest(path))


def inception(path: str | os.PathLike, resize: str = 'tf',
              layer: str = '2048',
              map_rows: MapRows | None = None) -> Features:
  """The features of FID and KID, 'inception_tf' or 'inception_pytorch_fid'.

  Args:
    path: of pt_inception-2015-12-05-6726825d.pth, see models/inception.py.
    resize: how images get 299 pixels a side, of inception.RESIZES; 'tf' is that
      of EG3D's numbers. Distances by one and the other are not comparable.
    layer: of inception.LAYERS; '2048' for FID and KID.
    map_rows: divides the images; None for one device.

  Raises:
    UserError: the file is not of this network, or there is no such resizing.
  """
  check('resizing for Inception', inception_model.RESIZES, resize)
  check('layer of Inception', inception_model.LAYERS, layer)
  embed = (map_rows or _on_one_device)(
      lambda params, images: inception_model.features(
          params, images, resize, (layer,))[layer], _BATCH)
  params = inception_model.load(path)
  name = f'inception_{resize}' + ('' if layer == '2048' else f'_{layer}')
  return Features(name, lambda images: embed(params, images), _digest(path))


def _on_one_device(function, rows):
  """`function` on `rows` images at a time, compiled once for each size."""
  compiled = jax.jit(function)

  def run(shared, images):
    results, size = [], min(rows, len(images))
    for start in range(0, len(images), size):
      part = images[start:start + size]
      # The last part is filled up, so that it needs no program of its own.
      filled = np.concatenate([part, part[-1:].repeat(size - len(part), 0)])
      results.append(np.asarray(
          compiled(shared, jnp.asarray(filled)))[:len(part)])
    return np.concatenate(results)

  return run


def _digest(path):
  """The start of the SHA-256 of a file."""
  with pathlib.Path(path).open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()[:16]
