"""Does a picture show what its text says: R-precision.

R-precision (Park et al., 2021; Dream Fields, 2112.01455; DreamFusion,
2209.14988) is the share of pictures for which a judge such as CLIP ranks the
true caption above all distractors.

Vocabulary. N pictures, M captions; truth[i] is the index of picture i's own
caption; K distractors a picture. A *pair* is any record of two functions,
`image_features`: images [B, H, W, 3] -> [B, E], and `text_features`: list of
M captions -> [M, E], unit both, as CLIP has them. A *protocol* says from
where an object is seen.
"""

from typing import NamedTuple

import numpy as np

from gen3d.choices import UserError
from gen3d.ops import cameras


class Rate(NamedTuple):
  """A mean share of n cases with its standard error."""
  rate: float
  error: float
  n: int


class Protocol(NamedTuple):
  """The V views in which an object is judged, in degrees.

  Attributes:
    azimuths: V numbers; one retrieval each, of which the mean counts.
    elevation: of all of them.
  """
  azimuths: tuple
  elevation: float


# One view from higher than any in training; CLIP-Mesh has it, too.
DREAM_FIELDS = Protocol((30.0,), 45.0)
# "Averaged over azimuths" (DreamFusion, appendix); which, is our choice.
DREAMFUSION = Protocol(tuple(45.0 * i for i in range(8)), 30.0)
PROTOCOLS = {'dream_fields': DREAM_FIELDS, 'dreamfusion': DREAMFUSION}


def viewpoints(protocol, distance, focal):
  """cameras.Camera [V] of a protocol.

  Args:
    protocol: Protocol.
    distance: from the origin.
    focal: in image heights. Dream Fields has distance 4 and focal 1.389 for
      objects in [-1, 1]^3; scenes of another scale have their own.
  """
  return cameras.orbit(protocol.azimuths, protocol.elevation, distance, focal)


def rate(shares):
  """Rate of N shares in [0, 1], or of N bools.

  The error is the standard deviation over sqrt(N): for bools with mean p,
  sqrt(p (1 - p) / N). Views of one object are no independent cases: give
  their mean as one.

  Raises:
    UserError: there are no cases.
  """
  shares = np.asarray(shares, np.float64)
  if not shares.size:
    raise UserError('A rate needs at least one case.')
  return Rate(float(shares.mean()),
              float(shares.std() / np.sqrt(shares.size)), int(shares.size))


def retrieved(pair, views, captions, truth):
  """In what share of its views each object retrieves its own caption.

  All the other captions are distractors. R-precision is the `rate` of it.

  Args:
    pair: see above.
    views: [N, V, H, W, 3], as the pair takes images.
    captions: list of M different strings.
    truth: int [N], the objects' captions.

  Returns:
    float [N].
  """
  count = views.shape[1]
  found = hits(pair.image_features(views.reshape(-1, *views.shape[2:])),
               pair.text_features(captions), np.repeat(truth, count))
  return found.reshape(-1, count).mean(1)


def first_of_each(captions):
  """Gives equal captions one index.

  Args:
    captions: sequence of hashables, length N.

  Returns:
    (kept int [M]: where each different caption first stands,
     truth int [N]: caption i is captions[kept[truth[i]]]).
  """
  places, kept, truth = {}, [], []
  for i, caption in enumerate(captions):
    if caption not in places:
      places[caption] = len(kept)
      kept.append(i)
    truth.append(places[caption])
  return np.array(kept, int), np.array(truth, int)


def draw_distractors(seed, allowed, count=64):
  """A fixed set of other captions for every picture.

  Args:
    seed: int. Row i depends on (seed, i, allowed[i]) only.
    allowed: bool [N, M], captions that are not true of picture i; picture i's
      own caption must not be among them.
    count: K.

  Returns:
    int [N, K], without repetition in a row.

  Raises:
    UserError: some picture has fewer than K allowed captions.
  """
  allowed = np.asarray(allowed, bool)
  fewest = int(allowed.sum(1).min())
  if fewest < count:
    raise UserError(f'{count} distractors are wanted, but only {fewest} of '
                    'the captions are untrue of one of the pictures.')
  return np.stack([
      np.random.default_rng((seed, i)).choice(
          np.flatnonzero(row), count, replace=False)
      for i, row in enumerate(allowed)])


def hits(image_features, text_features, truth, distractors=None,
         allowed=None):
  """For which pictures the true caption scores above all the others.

  Args:
    image_features: [N, D], unit.
    text_features: [M, D], unit.
    truth: int [N].
    distractors: int [N, K], or None for all the other captions. A caption
      whose features equal the true one's is a tie, and a tie is a miss.
    allowed: bool [N, M] or None; without `distractors`, which of the other
      captions count.

  Returns:
    bool [N].
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
  return own > others.max(1)


def r_precision(image_features, text_features, truth, distractors=None,
                allowed=None):
  """R-precision, as a Rate; arguments as for `hits`."""
  return rate(hits(image_features, text_features, truth, distractors,
                   allowed))
