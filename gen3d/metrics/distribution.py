"""How far apart two sets of pictures are, by the features of a network."""

from typing import Any, NamedTuple

import numpy as np

from gen3d.choices import UserError


class Moments(NamedTuple):
  """Of N feature vectors."""
  mean: Any        # [D]
  covariance: Any  # [D, D]


def moments(features):
  """Moments of features [N, D]; N - 1 divides the covariance.

  Raises:
    UserError: fewer than two vectors, which have no covariance.
  """
  features = np.asarray(features, np.float64)
  if len(features) < 2:
    raise UserError(f'{len(features)} features have no covariance; give at '
                    'least 2 pictures.')
  return Moments(features.mean(0), np.atleast_2d(np.cov(features.T)))


def frechet(a, b):
  """Frechet distance between Gaussians of these Moments (1706.08500, eq. 6).

  It is FID where the features are Inception's, and only then to be called
  so. It is biased upwards by about D / N: compare at equal N.
  """
  # tr sqrt(A B) is the sum of the roots of the eigenvalues of A^1/2 B A^1/2,
  # which is symmetric.
  values, vectors = np.linalg.eigh(a.covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  mixed = np.linalg.eigvalsh(root @ b.covariance @ root)
  return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance)
               + np.trace(b.covariance)
               - 2 * np.sum(np.sqrt(np.maximum(mixed, 0))))
