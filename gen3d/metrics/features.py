"""Image features that distribution metrics compare."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gen3d.models import clip_pair


class Features(NamedTuple):
  """A network whose features of images are compared.

  Attributes:
    name: printed beside every number, for example 'shapes_clip'.
    embed: uint8 images [N, H, W, 3] -> features [N, D].
  """
  name: str
  embed: Callable[[np.ndarray], np.ndarray]


def shapes_clip() -> Features:
  """Features of the shipped CLIP pair, which is trained on the shapes world.

  Raises:
    UserError: the asset is missing or damaged.
  """
  pair = clip_pair.load()
  return Features(
      'shapes_clip', lambda images: pair.image_features(images / 255.0))
