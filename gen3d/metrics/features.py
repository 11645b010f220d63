"""Feature extractors for metrics between sets of images."""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gen3d import assets
from gen3d.models import clip_pair


class Features(NamedTuple):
  """A feature extractor.

  Attributes:
    name: printed beside every number; a distance on other features than
      Inception's must not be called FID.
    embed: uint8 images [N, H, W, 3] -> features [N, D].
  """
  name: str
  embed: Callable[[np.ndarray], np.ndarray]


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
      np.asarray(images) / np.float32(255)))
