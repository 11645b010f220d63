"""Frechet distances against closed forms."""

import numpy as np
import pytest
import scipy.linalg

from gen3d.metrics import distribution


def test_the_distance_of_gaussians_in_closed_form():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 4, 4))
  one = distribution.Moments(rng.normal(size=4), a @ a.T)
  other = distribution.Moments(rng.normal(size=4), b @ b.T)
  mixed = scipy.linalg.sqrtm(one.covariance @ other.covariance).real
  expected = np.sum((one.mean - other.mean) ** 2) + np.trace(
      one.covariance + other.covariance - 2 * mixed)
  np.testing.assert_allclose(distribution.frechet(one, other), expected)
  np.testing.assert_allclose(
      distribution.frechet(one, other), distribution.frechet(other, one))
  np.testing.assert_allclose(distribution.frechet(one, one), 0, atol=1e-9)


def test_a_covariance_of_rank_one():
  flat = np.outer(np.arange(9.0), [1.0, 2.0])
  far = distribution.frechet(
      distribution.moments(flat), distribution.moments(flat + [3.0, 4.0]))
  np.testing.assert_allclose(far, 25.0, atol=1e-6)


def test_moments_equal_those_of_numpy_and_need_two_vectors():
  x = np.random.default_rng(1).normal(size=(50, 3))
  actual = distribution.moments(x)
  np.testing.assert_allclose(actual.covariance, np.cov(x, rowvar=False))
  with pytest.raises(ValueError, match='at least 2'):
    distribution.moments(x[:1])


def vectors(n, d, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


@pytest.mark.parametrize('kind', ['full', 'deficient'])
@pytest.mark.parametrize('code, divisor', [
    ('pytorch_fid', 'n-1'), ('torch_fidelity', 'n-1'), ('nvidia', 'n')])
def test_distances_equal_those_of_official_codes(
    reference_data, kind, code, divisor):
  data = reference_data('inception_fid')
  x, y = data[f'fid.{kind}.x'], data[f'fid.{kind}.y']
  one, other = (distribution.moments(a, divisor) for a in (x, y))
  expected = float(data[f'fid.{kind}.{code}_f64'])
  for actual in (distribution.frechet(one, other),
                 distribution.frechet_of_features(x, y, divisor)):
    np.testing.assert_allclose(
        actual, expected, rtol=1e-12 if kind == 'full' else 1e-7)
  if code == 'nvidia':
    np.testing.assert_allclose(
        one.mean, data[f'fid.{kind}.nvidia_mean1'], atol=1e-6)
    np.testing.assert_allclose(
        np.diag(one.covariance), data[f'fid.{kind}.nvidia_cov1_diag'],
        rtol=1e-5)


def test_kernel_distances_equal_those_of_official_codes(reference_data):
  data = reference_data('inception_fid')
  x, y = data['fid.full.x'], data['fid.full.y']
  given = data['kid.tf.idx1'], data['kid.tf.idx2']
  subsets, size = given[0].shape
  for kernel in (
      distribution.kernel_distance(x, y, indices=given),
      # These subsets are drawn from torch-fidelity's own seed.
      distribution.kernel_distance(x, y, subsets, size)):
    np.testing.assert_allclose(
        kernel.mean, data['kid.tf.mean_f64'], rtol=1e-6)
    np.testing.assert_allclose(kernel.std, data['kid.tf.std_f64'], rtol=1e-5)
    np.testing.assert_allclose(
        kernel.each, data['kid.tf.per_subset_f64'], rtol=1e-5)
  given = data['kid.nv.idx_real_x'], data['kid.nv.idx_gen_y']
  np.testing.assert_allclose(
      distribution.kernel_distance(x, y, indices=given).mean,
      data['kid.nv.value_f64'], rtol=1e-6)


def test_the_exact_form_needs_no_more_vectors_than_features():
  x, y = vectors(9, 30), vectors(12, 30, seed=1)
  for divisor in ('n', 'n-1'):
    expected = distribution.frechet(
        *(distribution.moments(a, divisor) for a in (x, y)))
    np.testing.assert_allclose(
        distribution.frechet_of_features(x, y, divisor), expected, rtol=1e-6)
  np.testing.assert_allclose(
      distribution.frechet_of_features(x, x), 0, atol=1e-9)


@pytest.mark.parametrize('divisor', ['n', 'n-1'])
def test_moments_of_a_stream_are_those_of_all_vectors(divisor):
  x = np.float32(vectors(50, 4) + 100)
  sums = distribution.no_sums(4)
  for part in np.split(x, [1, 20, 20, 41]):
    sums = distribution.add(sums, part)
  streamed = distribution.moments_of(sums, divisor)
  whole = distribution.moments(x, divisor)
  assert sums.count == 50
  np.testing.assert_allclose(streamed.mean, whole.mean)
  np.testing.assert_allclose(streamed.covariance, whole.covariance, rtol=1e-8)
  np.testing.assert_allclose(whole.covariance, np.cov(
      x.astype(float), rowvar=False, bias=divisor == 'n'))


def slow_kernel_distance(x, y):
  kernel = lambda a, b: (sum(p * q for p, q in zip(a, b)) / len(a) + 1) ** 3
  m, pairs = len(x), [(i, j) for i in range(len(x)) for j in range(len(x))]
  return sum(((kernel(x[i], x[j]) + kernel(y[i], y[j])) / (m * (m - 1))
              if i != j else 0) - 2 * kernel(x[i], y[j]) / m ** 2
             for i, j in pairs)


def test_kernel_distance_equals_its_sums():
  x, y = vectors(7, 3), vectors(6, 3, seed=1)
  rows = list(distribution.subset_pairs(7, 6, subsets=3, size=5, seed=4))
  assert all(len(set(i)) == len(set(j)) == 5 for i, j in rows)
  kernel = distribution.kernel_distance(x, y, subsets=3, size=5, seed=4)
  expected = [slow_kernel_distance(x[i], y[j]) for i, j in rows]
  np.testing.assert_allclose(kernel.each, expected)
  np.testing.assert_allclose(
      (kernel.mean, kernel.std), (np.mean(expected), np.std(expected)))


def test_too_few_vectors_and_unknown_divisors_are_user_errors():
  x = vectors(5, 2)
  for call in (lambda: distribution.frechet_of_features(x[:1], x),
               lambda: distribution.moments_of(
                   distribution.add(distribution.no_sums(2), x[:1]))):
    with pytest.raises(ValueError, match='at least 2'):
      call()
  with pytest.raises(ValueError, match=r"divisor 'N'.*'n-1'"):
    distribution.moments(x, 'N')
  x[2, 1] = np.nan
  for call in (lambda: distribution.moments(x),
               lambda: distribution.frechet_of_features(x, x),
               lambda: distribution.add(distribution.no_sums(2), x)):
    with pytest.raises(ValueError, match='not finite; the weights'):
      call()
  for size in (1, 6):
    with pytest.raises(ValueError, match=f'Subsets of {size} .* 7 and 5'):
      distribution.kernel_distance(vectors(7, 2), x, size=size)
