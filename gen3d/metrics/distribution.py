"""Distances between two sets of images, on the features of a network."""

import functools
from collections.abc import Callable
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


def distance_to_real(
    load_features: Callable[[], Features], load_real: Callable[[], np.ndarray]
) -> Callable[[np.ndarray], dict[str, float]]:
  """Distances to real images, which are read and embedded at the first call.

  Args:
    load_features: () -> Features. Distances by different features must not be
      compared; only those of the Inception network are the literature's FID.
    load_real: () -> uint8 [2N, H, W, 3].

  Returns:
    uint8 images [N, H, W, 3] -> {'frechet_NAME/generated': distance to the
    first half, 'frechet_NAME/real_halves': distance of the two halves}, where
    NAME is that of the features. The latter is the least to be expected.
  """
  @functools.cache
  def reference():
    features = load_features()
    real = features.embed(load_real())
    half = len(real) // 2
    return (features, moments(real[:half]),
            moments(real[half:]))

  def distances(images):
    features, first, second = reference()
    generated = moments(features.embed(images))
    name = f'frechet_{features.name}'
    return {f'{name}/generated': frechet(generated, first),
            f'{name}/real_halves': frechet(second, first)}

  return distances
