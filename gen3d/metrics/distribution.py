"""Distances between two sets of images, on the features of a network."""

from typing import NamedTuple

import numpy as np

from gen3d.choices import UserError
from gen3d.metrics.features import Features


class Moments(NamedTuple):
  """Mean and covariance of N feature vectors."""
  mean: np.ndarray        # [D]
  covariance: np.ndarray  # [D, D]


def moments(features: np.ndarray) -> Moments:
  """Moments of features [N, D]; the covariance is divided by N - 1.

  Raises:
    UserError: fewer than two vectors, which have no covariance.
  """
  features = np.asarray(features, np.float64)
  if len(features) < 2:
    raise UserError(f'{len(features)} features have no covariance; give at '
                    'least 2 images.')
  return Moments(features.mean(0), np.atleast_2d(np.cov(features.T)))


def frechet(a: Moments, b: Moments) -> float:
  """Frechet distance between the Gaussians of two Moments (1706.08500, eq. 6).

  It is FID only where the features are those of Inception. The estimate is
  biased upwards by about D / N: compare at equal N.
  """
  # tr sqrt(A B) is the sum of the roots of the eigenvalues of A^1/2 B A^1/2,
  # which is symmetric.
  values, vectors = np.linalg.eigh(a.covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  product = np.linalg.eigvalsh(root @ b.covariance @ root)
  return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance)
               + np.trace(b.covariance)
               - 2 * np.sum(np.sqrt(np.maximum(product, 0))))


def frechet_distance(features: Features, generated: np.ndarray,
                     real: np.ndarray) -> float:
  """`frechet` of two sets of images, uint8 [N, H, W, 3] each.

  Where one set is compared several times, take `frechet` of its `moments`.
  """
  return frechet(moments(features.embed(generated)),
                 moments(features.embed(real)))
