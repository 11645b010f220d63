"""Penalties and schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.ops import losses, schedules


def test_orientation_penalizes_normals_that_face_away():
  weights = jnp.array([0.5, 0.3])
  normals = jnp.array([[0.0, 0.0, 1.0], [0.0, 0.6, -0.8]])
  direction = jnp.array([0.0, 0.0, -1.0])
  np.testing.assert_allclose(
      losses.orientation(weights, normals, direction), 0.3 * 0.64, rtol=1e-6)
  to_weights = jax.grad(losses.orientation)(weights, normals, direction)
  np.testing.assert_array_equal(to_weights, 0)
  to_normals = jax.grad(losses.orientation, 1)(weights, normals, direction)
  assert np.abs(to_normals[1]).max() > 0


def test_sparsity_and_opacity_entropy():
  o = jnp.array([0.0, 0.3, 1.0])
  np.testing.assert_allclose(
      losses.sparsity(o), np.sqrt(np.array([0.01, 0.1, 1.01])), rtol=1e-6)
  p = 0.3
  np.testing.assert_allclose(
      losses.opacity_entropy(jnp.array(p)),
      -p * np.log(p) - (1 - p) * np.log(1 - p), rtol=1e-5)
  for f in (losses.sparsity, losses.opacity_entropy):
    assert np.all(np.isfinite(jax.vmap(jax.grad(f))(o)))
  _, half, opaque = losses.opacity_entropy(o)
  assert float(half) > 50 * float(opaque)


def test_depth_variance():
  edges = jnp.array([0.0, 1.0, 2.0, 3.0])
  weights = np.array([0.2, 0.1, 0.1])
  normalized = weights / weights.sum()
  middle = np.array([0.5, 1.5, 2.5])
  variance = np.sum(normalized * middle**2) - np.sum(normalized * middle)**2
  np.testing.assert_allclose(
      losses.depth_variance(jnp.asarray(weights), edges), 0.4 * variance,
      rtol=1e-5)
  gradient = jax.grad(losses.depth_variance)(jnp.zeros(3), edges)
  assert np.all(np.isfinite(gradient))


def test_normal_smoothness_against_a_loop():
  rng = np.random.default_rng(0)
  normals, total = rng.normal(size=(3, 4, 3)), rng.random((3, 4))
  expected = np.zeros((3, 4))
  for y in range(3):
    for x in range(4):
      for v, u in ((y + 1, x), (y, x + 1)):
        if v < 3 and u < 4:
          expected[y, x] += 0.5 * total[y, x] * total[v, u] * np.sum(
              (normals[y, x] - normals[v, u])**2)
  np.testing.assert_allclose(
      losses.normal_smoothness(jnp.asarray(normals), jnp.asarray(total)),
      expected, rtol=1e-5)


def test_piecewise():
  assert float(schedules.piecewise(7, 0.5)) == 0.5
  assert float(schedules.piecewise(7, (0.5,))) == 0.5
  assert float(schedules.piecewise(7, ((9, 0.5),))) == 0.5
  ramp = ((10, 1.0), (20, 3.0), (40, 2.0))
  for step, value in ((0, 1.0), (15, 2.0), (30, 2.5), (99, 2.0)):
    assert float(schedules.piecewise(jnp.int32(step), ramp)) == value
    assert float(schedules.piecewise(
        step, schedules.affine(ramp, -2.0, 1.0))) == 1 - 2 * value
  assert schedules.affine(3, -1, 1) == -2
  assert schedules.affine((3,), -1, 1) == ((0, -2),)


def test_total_variation_against_a_loop():
  grid = np.random.default_rng(0).normal(size=(2, 3, 4, 2))
  differences = {1: [], 2: []}
  for p in range(2):
    for i in range(3):
      for j in range(4):
        if i < 2:
          differences[1].append((grid[p, i + 1, j] - grid[p, i, j])**2)
        if j < 3:
          differences[2].append((grid[p, i, j + 1] - grid[p, i, j])**2)
  expected = (np.mean(differences[1]) + np.mean(differences[2])) / 2
  np.testing.assert_allclose(
      losses.total_variation(jnp.asarray(grid), (1, 2)), expected, rtol=1e-5)
