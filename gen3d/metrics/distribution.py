"""Distances between two sets of images, on the features of a network.

FID (Heusel et al., 1706.08500) and KID (Binkowski et al., 1801.01401), where
the features are Inception's. Numbers are computed in float64 on the host: the
square roots in FID amplify the noise of float32.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from gen3d.choices import UserError, pick
from gen3d.metrics.features import Features

# What the covariance of N features is divided by: 'n-1' in pytorch-fid and
# torch-fidelity, 'n' in NVIDIA's code. It counts in comparisons of small sets.
DIVISORS = {'n-1': lambda n: n - 1, 'n': lambda n: n}
# The subsets of KID as torch-fidelity and NVIDIA's code draw them.
KID_SUBSETS, KID_SIZE, KID_SEED = 100, 1000, 2020


class Moments(NamedTuple):
  """Mean and covariance of N feature vectors."""
  mean: np.ndarray        # [D]
  covariance: np.ndarray  # [D, D]


class Sums(NamedTuple):
  """Sums over N feature vectors, to which more can be added."""
  count: int            # N
  total: np.ndarray     # [D] float64, of the vectors x
  products: np.ndarray  # [D, D] float64, of x x^T


class KernelDistance(NamedTuple):
  """KID: mean and standard deviation over subsets."""
  mean: float
  std: float
  each: np.ndarray  # [subsets]


def moments(features: np.ndarray, divisor: str = 'n-1') -> Moments:
  """Moments of features [N, D].

  Args:
    features: [N, D].
    divisor: of the covariance, one of DIVISORS.

  Raises:
    UserError: fewer than two vectors, which have no covariance, or numbers
      that are not finite.
  """
  features = _finite(features)
  divide = pick('covariance divisor', DIVISORS, divisor)
  _check_count(len(features))
  mean = features.mean(0)
  centered = features - mean
  return Moments(mean, centered.T @ centered / divide(len(features)))


def no_sums(width: int) -> Sums:
  """Sums over no vectors of this width."""
  return Sums(0, np.zeros(width), np.zeros((width, width)))


def add(sums: Sums, features: np.ndarray) -> Sums:
  """Sums with more features [n, D] added; the arrays of `sums` are reused.

  Raises:
    UserError: features are not finite.
  """
  features = _finite(features)
  np.add(sums.total, features.sum(0), out=sums.total)
  np.add(sums.products, features.T @ features, out=sums.products)
  return sums._replace(count=sums.count + len(features))


def moments_of(sums: Sums, divisor: str = 'n-1') -> Moments:
  """Moments of the vectors that were added, which need not be in memory.

  Args:
    sums: Sums.
    divisor: of the covariance, one of DIVISORS.

  Raises:
    UserError: fewer than two vectors, which have no covariance.
  """
  divide = pick('covariance divisor', DIVISORS, divisor)
  _check_count(sums.count)
  mean = sums.total / sums.count
  covariance = sums.products / sums.count - np.outer(mean, mean)
  return Moments(mean, covariance * (sums.count / divide(sums.count)))


def frechet(a: Moments, b: Moments) -> float:
  """Frechet distance between the Gaussians of two Moments (1706.08500, eq. 6).

  It is FID only where the features are those of Inception. The estimate is
  biased upwards by about D / N: compare at equal N. With fewer vectors than
  features `frechet_of_features` is exact, and this within 1e-7 of it.
  """
  # tr sqrt(A B) is the sum of the roots of the eigenvalues of A^1/2 B A^1/2,
  # which is symmetric: unlike the root of A B it is real in finite precision.
  values, vectors = np.linalg.eigh((a.covariance + a.covariance.T) / 2)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  product = root @ b.covariance @ root
  product = np.linalg.eigvalsh((product + product.T) / 2)
  return _distance(a.mean, b.mean, np.trace(a.covariance),
                   np.trace(b.covariance),
                   np.sum(np.sqrt(np.maximum(product, 0))))


def frechet_of_features(x: np.ndarray, y: np.ndarray,
                        divisor: str = 'n-1') -> float:
  """`frechet` of the Moments of features [N, D] and [M, D], without them.

  The trace of sqrt(A B) is the sum of the singular values of X Y^T, whose rows
  are centered features over the root of the divisor: exact also where N or M
  is less than D, and cheap then, since the matrix is N x M.
  """
  divide = pick('covariance divisor', DIVISORS, divisor)

  def centered(features):
    _check_count(len(features))
    features = _finite(features)
    mean = features.mean(0)
    return mean, (features - mean) / np.sqrt(divide(len(features)))

  (mean_x, x), (mean_y, y) = centered(x), centered(y)
  singular = np.linalg.svd(x @ y.T, compute_uv=False)
  return _distance(mean_x, mean_y, np.sum(x * x), np.sum(y * y),
                   np.sum(singular))


def kernel_distance(
    x: np.ndarray, y: np.ndarray, subsets: int = KID_SUBSETS,
    size: int = KID_SIZE, seed: int = KID_SEED,
    indices: tuple[np.ndarray, np.ndarray] | None = None) -> KernelDistance:
  """Squared maximum mean discrepancy of features, as KID takes it.

  With the kernel (x . y / D + 1)^3, unbiased within each pair of subsets (it
  may be negative), averaged over the pairs. It is KID only where the features
  are those of Inception. Papers print 100 or 1000 times the mean.

  Args:
    x, y: [N, D] and [M, D]; only the rows of one subset are read at a time, so
      that they may be files in memory maps.
    subsets: number of pairs of subsets.
    size: vectors in a subset, drawn without replacement.
    seed: of the subsets; they are then those of torch-fidelity.
    indices: (rows of x, rows of y), int [subsets, size] each, instead.

  Raises:
    UserError: there are fewer vectors than `size`.
  """
  pairs = (zip(*indices, strict=True) if indices is not None else
           subset_pairs(len(x), len(y), subsets, size, seed))
  each = np.array([_squared_mmd(
      np.asarray(x[i], np.float64), np.asarray(y[j], np.float64))
      for i, j in pairs])
  return KernelDistance(float(each.mean()), float(each.std()), each)


def subset_pairs(
    first: int, second: int, subsets: int = KID_SUBSETS, size: int = KID_SIZE,
    seed: int = KID_SEED) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the rows of two sets that a pair of subsets has, for KID.

  Args:
    first, second: number of vectors of the sets.
    subsets: number of pairs.
    size: rows in a subset, without repetition.
    seed: of the draws.

  Raises:
    UserError: a set has fewer vectors than `size`, or `size` is less than 2.
  """
  if not 2 <= size <= min(first, second):
    raise UserError(
        f'Subsets of {size} cannot be drawn from {first} and {second} images '
        'for KID; choose a size of at least 2 and at most the smaller of them.')
  random = np.random.RandomState(seed)
  for _ in range(subsets):
    yield (random.choice(first, size, replace=False),
           random.choice(second, size, replace=False))


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


def _check_count(count):
  if count < 2:
    raise UserError(f'{count} features have no covariance; give at '
                    'least 2 images.')


def _finite(features):
  """Features as float64; a UserError where they are not finite."""
  features = np.asarray(features, np.float64)
  if not np.isfinite(features).all():
    raise UserError('Features of images are not finite; the weights of their '
                    'network are damaged, get them again.')
  return features


def _distance(mean_a, mean_b, trace_a, trace_b, trace_root):
  """Equation 6 of FID; rounding must not make it negative."""
  return max(0.0, float(np.sum((mean_a - mean_b) ** 2) + trace_a + trace_b
                        - 2 * trace_root))


def _squared_mmd(x, y):
  """Unbiased squared MMD of two sets [m, D] of equal size (1801.01401)."""
  width, m = x.shape[1], len(x)
  kernel = lambda a, b: (a @ b.T / width + 1) ** 3
  within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
  return within / (m * (m - 1)) - 2 * kernel(x, y).mean()
