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
