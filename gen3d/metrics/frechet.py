"""Frechet distances of generated images to the halves of a real set."""

import functools
from collections.abc import Callable

import numpy as np

from gen3d.metrics import distribution
from gen3d.metrics.features import Features


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
    return (features, distribution.moments(real[:half]),
            distribution.moments(real[half:]))

  def distances(images):
    features, first, second = reference()
    generated = distribution.moments(features.embed(images))
    name = f'frechet_{features.name}'
    return {f'{name}/generated': distribution.frechet(generated, first),
            f'{name}/real_halves': distribution.frechet(second, first)}

  return distances
