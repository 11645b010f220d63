"""Sampling of rays against closed forms and histograms."""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import cameras, sampling


def _rays(origins, directions):
  directions = np.asarray(directions, np.float32)
  directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
  return cameras.Rays(jnp.asarray(origins, jnp.float32),
                      jnp.asarray(directions), jnp.ones((len(directions), 1)))


def _random_rays(count=200):
  rng = np.random.default_rng(0)
  return _rays(rng.normal(size=(count, 3)) * 1.5, rng.normal(size=(count, 3)))


def test_sphere_ends_are_on_the_sphere_or_at_the_camera():
  rays = _random_rays()
  near, far, hit = sampling.intersect_sphere(rays, 1.2)
  ends = [np.linalg.norm(rays.origins + t * rays.directions, axis=-1)
          for t in (near, far)]
  hit = np.asarray(hit)[:, 0]
  starts = np.asarray(near)[:, 0] > 0
  np.testing.assert_allclose(ends[1][hit], 1.2, atol=1e-4)
  np.testing.assert_allclose(ends[0][hit & starts], 1.2, atol=1e-4)
  assert np.all(ends[0][hit & ~starts] < 1.2)
  # Those that miss stay outside.
  t = np.linspace(0, 10, 500)[:, None, None]
  path = np.linalg.norm(rays.origins + t * rays.directions, axis=-1)
  assert np.all(path[:, ~hit].min(0) > 1.2 - 1e-3)
  assert 20 < hit.sum() < 180


def test_box_ends_against_a_fine_walk():
  rays = _random_rays()
  near, far, hit = (np.asarray(x)[:, 0]
                    for x in sampling.intersect_box(rays, 0.8))
  t = np.linspace(0, 10, 4001)
  path = rays.origins + t[:, None, None] * rays.directions
  inside = np.max(np.abs(path), axis=-1) <= 0.8
  lengths = inside.sum(0) * (t[1] - t[0])
  np.testing.assert_allclose(np.where(hit, far - near, 0), lengths, atol=6e-3)


def test_axis_parallel_ray_through_a_box():
  near, far, hit = sampling.intersect_box(
      _rays([[0.0, 0.0, 3.0]], [[0.0, 0.0, -1.0]]), 1.0)
  assert bool(hit[0, 0])
  np.testing.assert_allclose([near[0, 0], far[0, 0]], [2.0, 4.0], atol=1e-5)


def test_rays_that_miss_are_empty_and_finite():
  near, far, hit = sampling.intersect_sphere(
      _rays([[0.0, 5.0, 3.0]], [[0.0, 0.0, -1.0]]), 1.0)
  assert not bool(hit[0, 0])
  assert float(near[0, 0]) == float(far[0, 0]) > 0


def test_stratified_edges_increase_and_span():
  near, far = jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [2.5]])
  edges = sampling.stratified(jax.random.key(0), near, far, 16)
  assert edges.shape == (2, 17)
  assert np.all(np.diff(edges, axis=-1) >= 0)
  np.testing.assert_allclose(edges[:, [0, -1]],
                             jnp.concatenate([near, far], -1), atol=1e-6)
  np.testing.assert_allclose(
      sampling.stratified(None, near, far, 2)[0], [1.0, 2.0, 3.0])


def test_stratified_points_are_one_in_each_stratum():
  near, far = jnp.ones((3, 1)), jnp.full((3, 1), 4.0)
  uniform = jax.random.uniform(jax.random.key(0), (3, 5))
  strata = 0.75 * (jnp.arange(5) + uniform)
  np.testing.assert_allclose(
      sampling.stratified_points(uniform, near, far), 1 + strata, rtol=1e-6)


def test_stratified_points_in_disparity_are_even_in_inverse_distance():
  t = sampling.stratified_points(
      jnp.zeros((1, 5)), jnp.ones((1, 1)), jnp.full((1, 1), 4.), True)
  np.testing.assert_allclose(np.diff(1 / t[0]), -.75 / 4, rtol=1e-5)


def test_importance_samples_are_distributed_like_the_weights():
  edges = jnp.array([0.0, 1.0, 1.5, 3.0, 4.0])
  weights = jnp.array([0.1, 0.6, 0.0, 0.3])
  drawn = sampling.importance(jax.random.key(1), edges, weights, 20_000)
  assert np.all(np.diff(drawn) >= 0)
  counts, _ = np.histogram(drawn, edges)
  np.testing.assert_allclose(counts / 20_000, weights, atol=2e-3)
  within = np.asarray(drawn)[(drawn > 1.0) & (drawn < 1.5)]
  np.testing.assert_allclose(within.mean(), 1.25, atol=5e-3)


def test_importance_samples_of_zero_weights_are_uniform():
  drawn = sampling.importance(
      None, jnp.linspace(0.0, 1.0, 5), jnp.zeros(4), 8)
  np.testing.assert_allclose(drawn, (np.arange(8) + 0.5) / 8, atol=1e-5)


def test_blur_weights_is_equation_18_of_mip_nerf():
  w = np.array([0.0, 0.8, 0.0, 0.2])
  padded = np.array([0.0, *w, 0.2])
  expected = [0.5 * (max(padded[i], padded[i + 1])
                     + max(padded[i + 1], padded[i + 2])) + 0.01
              for i in range(4)]
  np.testing.assert_allclose(sampling.blur_weights(jnp.asarray(w)), expected,
                             rtol=1e-6)


def test_sort_union():
  np.testing.assert_array_equal(
      sampling.sort_union(jnp.array([0.0, 2.0]), jnp.array([1.0, 3.0])),
      [0.0, 1.0, 2.0, 3.0])
