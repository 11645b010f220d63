"""R-precision: agreement of images with their captions.

R-precision (Park et al., 2021; Dream Fields, 2112.01455; DreamFusion,
2209.14988) is the fraction of images for which a retrieval model such as CLIP
ranks the true caption above all distractors.

Vocabulary. N images, M captions; truth[i] is the index of image i's own
caption; K distractors per image. A *pair* is a clip_pair.ClipPair: an image
and a text encoder with unit features of E dimensions. A *protocol* gives the
views from which a 3-D object is rendered. *Attributes* are integers [..., A]
(category, color, view, ...), -1 where one is unknown or not stated.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from gen3d.choices import UserError
from gen3d.models.clip_pair import ClipPair
from gen3d.ops import cameras

DISTRACTORS = 64  # per image, in `attribute_r_precision`

Array = TypeVar('Array', np.ndarray, jax.Array)


class Rate(NamedTuple):
  """A mean of n independent cases with its standard error."""
  rate: float
  error: float
  n: int


class Protocol(NamedTuple):
  """The V views from which an object is evaluated, in degrees.

  Attributes:
    azimuths: V numbers. Each view is retrieved on its own, and the object's
      result is the mean.
    elevation: of all views.
  """
  azimuths: tuple[float, ...]
  elevation: float


# One view, above all training views of Dream Fields; CLIP-Mesh uses it too.
DREAM_FIELDS = Protocol((30.0,), 45.0)
# "Averaged over azimuths" (DreamFusion, appendix). The paper does not list
# them; eight at elevation 30 are our choice.
DREAMFUSION = Protocol(tuple(45.0 * i for i in range(8)), 30.0)
PROTOCOLS = {'dream_fields': DREAM_FIELDS, 'dreamfusion': DREAMFUSION}


def viewpoints(protocol: Protocol, distance: float,
               focal: float) -> cameras.Camera:
  """cameras.Camera [V] of a protocol.

  Args:
    protocol: azimuths and elevation.
    distance: from the origin.
    focal: in image heights. Dream Fields has distance 4 and focal 1.389 for
      objects in [-1, 1]^3; scenes of another scale have their own.
  """
  return cameras.orbit(protocol.azimuths, protocol.elevation, distance, focal)


def rate(values: Sequence[float] | np.ndarray) -> Rate:
  """Mean and standard error of N numbers in [0, 1], or of N bools.

  The error is the standard deviation over sqrt(N): for bools with mean p,
  sqrt(p (1 - p) / N). Views of one object are not independent: pass their
  mean as a single case.

  Raises:
    UserError: there are no cases.
  """
  values = np.asarray(values, np.float64)
  if not values.size:
    raise UserError('A rate needs at least one case.')
  return Rate(float(values.mean()),
              float(values.std() / np.sqrt(values.size)), values.size)


def consistent(stated: Array, attributes: Array) -> Array:
  """Bool [...]: no attribute differs, of those that both sides have.

  Args:
    stated: int [..., A], attributes of captions.
    attributes: int [..., A], of images; broadcast against `stated`.
  """
  return ((stated == attributes) | (stated < 0) | (attributes < 0)).all(-1)


def attribute_r_precision(
    pair: ClipPair, images: np.ndarray, captions: Sequence[str],
    stated: np.ndarray, attributes: np.ndarray | None = None, *,
    seed: int = 0) -> dict[str, Rate]:
  """R-precision in a world where captions can be checked by attributes.

  A caption that is consistent with an image is never a distractor: another
  caption may describe the image as well as its own.

  Args:
    pair: the retrieval model.
    images: [N, H, W, 3] in [0, 1].
    captions: M >= N strings, the first N of them the images' own captions;
      the others are distractors only. Repetitions count once.
    stated: int [M, A], attributes of the captions.
    attributes: int [N, A], attributes of the images; None where only their
      captions are known.
    seed: of the choice of distractors.

  Returns:
    {'64': Rate among 64 captions that are inconsistent with the image,
     'all': Rate among all captions that are inconsistent with it}.

  Raises:
    UserError: fewer than 64 captions are inconsistent with some image.
  """
  first, index = deduplicate(captions)
  texts, stated = [captions[i] for i in first], np.asarray(stated)[first]
  truth = index[:len(images)]
  if attributes is None:
    attributes = stated[truth]
  # An image's own caption is consistent with it, so it is never allowed.
  allowed = ~consistent(stated[None], attributes[:, None])
  distractors = draw_distractors(seed, allowed, DISTRACTORS)
  features = pair.image_features(images), pair.text_features(texts)
  return {'64': r_precision(*features, truth, distractors),
          'all': r_precision(*features, truth, allowed=allowed)}


def retrieval_rates(pair: ClipPair, views: np.ndarray,
                    captions: Sequence[str],
                    truth: Sequence[int] | np.ndarray) -> np.ndarray:
  """Fraction of each object's views that retrieve the object's own caption.

  All other captions are distractors. R-precision is the `rate` of the result.

  Args:
    pair: the retrieval model.
    views: [N, V, H, W, 3], images as the pair takes them.
    captions: M different strings.
    truth: int [N], index of each object's caption.

  Returns:
    float [N].
  """
  count = views.shape[1]
  hit = hits(pair.image_features(views.reshape(-1, *views.shape[2:])),
             pair.text_features(captions), np.repeat(truth, count))
  return hit.reshape(-1, count).mean(1)


def deduplicate(
    captions: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
  """Unique captions in the order of their first occurrence.

  Args:
    captions: length N.

  Returns:
    (first int [M]: index of each unique caption's first occurrence,
     index int [N]: caption i equals captions[first[index[i]]]).
  """
  unique, first, index = {}, [], []
  for i, caption in enumerate(captions):
    if caption not in unique:
      unique[caption] = len(first)
      first.append(i)
    index.append(unique[caption])
  return np.array(first, int), np.array(index, int)


def draw_distractors(seed: int, allowed: np.ndarray,
                     count: int = DISTRACTORS) -> np.ndarray:
  """A fixed random set of distractors for every image.

  Args:
    seed: row i of the result depends on (seed, i, allowed[i]) only.
    allowed: bool [N, M], captions that may be distractors of image i; its own
      caption must not be among them.
    count: K.

  Returns:
    int [N, K], without repetition in a row.

  Raises:
    UserError: some image has fewer than K allowed captions.
  """
  allowed = np.asarray(allowed, bool)
  fewest = int(allowed.sum(1).min())
  if fewest < count:
    raise UserError(
        f'R-precision needs {count} distractors per image, but only {fewest} '
        'of the captions are inconsistent with one of the images; give more '
        'captions.')
  # A generator per row: more images do not change the first ones' distractors.
  return np.stack([
      np.random.default_rng((seed, i)).choice(
          np.flatnonzero(row), count, replace=False)
      for i, row in enumerate(allowed)])


def hits(image_features: np.ndarray, text_features: np.ndarray,
         truth: Sequence[int] | np.ndarray,
         distractors: np.ndarray | None = None,
         allowed: np.ndarray | None = None) -> np.ndarray:
  """Bool [N]: the true caption has the highest score of all candidates.

  Args:
    image_features: [N, E], unit.
    text_features: [M, E], unit.
    truth: int [N].
    distractors: int [N, K], or None for all other captions.
    allowed: bool [N, M] or None; without `distractors`, which of the other
      captions are candidates.
  """
  images, texts = np.asarray(image_features), np.asarray(text_features)
  truth = np.asarray(truth)
  scores = images @ texts.T
  rows = np.arange(len(images))
  own = scores[rows, truth]
  if distractors is None:
    others = scores if allowed is None else np.where(
        allowed, scores, -np.inf)
    others[rows, truth] = -np.inf
  else:
    others = np.take_along_axis(scores, np.asarray(distractors), axis=1)
  # Strictly: a caption with the same features as the true one is a miss.
  return own > others.max(1)


def r_precision(image_features: np.ndarray, text_features: np.ndarray,
                truth: Sequence[int] | np.ndarray,
                distractors: np.ndarray | None = None,
                allowed: np.ndarray | None = None) -> Rate:
  """R-precision as a Rate; arguments as of `hits`."""
  return rate(hits(image_features, text_features, truth, distractors,
                   allowed))
