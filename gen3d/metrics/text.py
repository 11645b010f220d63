"""Does a picture show what its text says: R-precision.

R-precision (Park et al., 2021; Dream Fields, 2112.01455; DreamFusion,
2209.14988) is the share of pictures for which a judge such as CLIP ranks the
true caption above all distractors.

Vocabulary. N pictures, M captions; truth[i] is the index of picture i's own
caption; K distractors a picture.
"""

from typing import NamedTuple

import numpy as np


class Rate(NamedTuple):
  """A share of n cases with its standard error, sqrt(p (1 - p) / n)."""
  rate: float
  error: float
  n: int


def rate(hits):
  """Rate of a bool array [N].

  Raises:
    ValueError: there are no cases.
  """
  hits = np.asarray(hits, bool)
  if not hits.size:
    raise ValueError('A rate needs at least one case.')
  p = float(hits.mean())
  return Rate(p, float(np.sqrt(p * (1 - p) / hits.size)), int(hits.size))


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
    ValueError: some picture has fewer than K allowed captions.
  """
  allowed = np.asarray(allowed, bool)
  fewest = int(allowed.sum(1).min())
  if fewest < count:
    raise ValueError(f'{count} distractors are wanted, but only {fewest} of '
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
