"""Attributes of captions and images of the shapes world, as integers.

Vocabulary. `attributes` is int32 [..., 4]: the category as an index into
captions.CATEGORIES, the main and the second color as indices into
captions.COLORS, and the view as an index into captions.VIEWS. It is -1 where a
caption does not state the attribute or an image does not show it.
metrics.text compares the attributes of captions with those of images.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from gen3d.data.shapes import captions
from gen3d.data.shapes import world as shapes_world
from gen3d.ops import cameras

# Of the four attributes, those that are white in a textureless image.
_IS_COLOR = np.array([False, True, True, False])


def parse(text: str) -> np.ndarray:
  """Attributes [4] that a caption states.

  Raises:
    captions.Unknown: the caption has no category of the shapes world.
  """
  # A caption states one view, in the words of captions.caption.
  views = [i for i, word in enumerate(captions.VIEWS)
           if f'{word} view' in text]
  return _as_integers(captions.parse(text), views[0] if views else -1)


def parse_all(texts: Iterable[str]) -> np.ndarray:
  """Attributes [N, 4] of N captions; raises as `parse`."""
  return np.stack([parse(text) for text in texts])


def of_views(camera: cameras.Camera,
             specs: Sequence[captions.Spec]) -> np.ndarray:
  """Attributes [N, 4] of N objects, each as its Camera [N] sees it."""
  words = shapes_world.view_words(camera)
  return np.stack([_as_integers(spec, captions.VIEWS.index(word))
                   for spec, word in zip(specs, words, strict=True)])


def visible(attributes: np.ndarray, textureless: np.ndarray) -> np.ndarray:
  """Attributes [N, 4] without the colors of textureless images, bool [N]."""
  hidden = np.asarray(textureless)[:, None] & _IS_COLOR
  return np.where(hidden, -1, attributes).astype(np.int32)


def _as_integers(spec, view):
  return np.array([*captions.indices(spec), view], np.int32)
