"""Encodings against Monte Carlo, NumPy loops and finite differences."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.ops import cameras, encodings


def _ray(seed=0):
  direction = np.random.default_rng(seed).normal(size=3)
  direction /= np.linalg.norm(direction)
  return cameras.Rays(jnp.array([0.1, -0.2, 0.3]),
                      jnp.asarray(direction, jnp.float32), jnp.array([0.2]))


def _inside_frustum(ray, start, end, count, seed=1):
  """Points drawn evenly from a piece of a ray's cone."""
  rng = np.random.default_rng(seed)
  # Volume grows with the cube of the distance.
  t = (start**3 + rng.random(count) * (end**3 - start**3)) ** (1 / 3)
  r = float(ray.radii[0]) * t * np.sqrt(rng.random(count))
  angle = 2 * np.pi * rng.random(count)
  d = np.asarray(ray.directions, np.float64)
  u = np.cross(d, [0.0, 0.0, 1.0])
  u /= np.linalg.norm(u)
  v = np.cross(d, u)
  return (np.asarray(ray.origins) + t[:, None] * d
          + (r * np.cos(angle))[:, None] * u
          + (r * np.sin(angle))[:, None] * v)


def test_conical_frustums_have_the_moments_of_their_points():
  ray = _ray()
  edges = jnp.array([0.0, 0.5, 1.0, 1.8])
  gaussian = encodings.conical_frustums(ray, edges)
  for i in range(3):
    points = _inside_frustum(
        ray, float(edges[i]), float(edges[i + 1]), 400_000)
    np.testing.assert_allclose(gaussian.mean[i], points.mean(0), atol=2e-3)
    np.testing.assert_allclose(
        gaussian.variance[i], points.var(0), rtol=2e-2)


def test_integrated_is_the_expected_encoding():
  rng = np.random.default_rng(0)
  mean = rng.normal(size=3)
  variance = np.array([0.02, 0.3, 0.001])
  points = mean + np.sqrt(variance) * rng.normal(size=(400_000, 3))
  degree = 4
  expected = encodings.positional(
      jnp.asarray(points, jnp.float32), degree).mean(0)
  got = encodings.integrated(
      encodings.Gaussian(jnp.asarray(mean), jnp.asarray(variance)), degree)
  assert got.shape == (6 * degree,)
  np.testing.assert_allclose(got, expected, atol=5e-3)


def test_integrated_of_a_point_is_positional():
  x = jnp.array([[0.3, -0.7, 1.1]])
  point = encodings.Gaussian(x, jnp.zeros_like(x))
  np.testing.assert_allclose(encodings.integrated(point, 8),
                             encodings.positional(x, 8), atol=1e-6)
  np.testing.assert_allclose(
      encodings.positional(x, 3)[0, 9:], np.cos(np.outer([1, 2, 4], x).ravel()),
      atol=1e-6)


def _loop(planes, points, reduce, outside):
  """Bilinear lookup as one would write it by hand."""
  resolution, channels = planes.shape[1], planes.shape[3]
  result = np.zeros((len(points), channels))
  for n, point in enumerate(points):
    features = []
    for plane, (column, row) in zip(planes, ((0, 1), (0, 2), (1, 2)),
                                    strict=True):
      total = np.zeros(channels)
      x = (point[column] + 1) / 2 * resolution - 0.5
      y = (point[row] + 1) / 2 * resolution - 0.5
      if outside == 'clamp':
        x, y = np.clip((x, y), 0, resolution - 1)
      for i in range(resolution):
        for j in range(resolution):
          total += plane[j, i] * max(0, 1 - abs(x - i)) * max(
              0, 1 - abs(y - j))
      features.append(total)
    result[n] = sum(features) / {'sum': 1, 'mean': 3}[reduce]
  return result


@pytest.mark.parametrize('outside', ['clamp', 'zero'])
@pytest.mark.parametrize('reduce', ['sum', 'mean'])
def test_triplanes_agree_with_a_loop(reduce, outside):
  rng = np.random.default_rng(3)
  planes = rng.normal(size=(3, 5, 5, 2)).astype(np.float32)
  points = rng.uniform(-1.5, 1.5, size=(40, 3)).astype(np.float32)
  points[:3] = [[-1, 1, 0], [1, 1, 1], [0.2, -0.2, 0.6]]
  got = encodings.triplanes(jnp.asarray(planes), jnp.asarray(points),
                            reduce=reduce, outside=outside)
  np.testing.assert_allclose(
      got, _loop(planes, points, reduce, outside), atol=2e-5)


@pytest.mark.parametrize('outside', ['clamp', 'zero'])
def test_slices_of_planes_agree_with_a_loop(outside):
  """Tri-grids: each plane has slices along the axis that it does not have."""
  rng = np.random.default_rng(3)
  size, depth, count = 4, 3, 2
  planes = rng.normal(size=(count, size, size, 3 * depth, 2))
  points = rng.uniform(-1.5, 1.5, size=(count, 20, 3))
  points[0, :2] = [[1, 1, 1], [-1, 0, 1 / 3]]
  expected = np.zeros((count, 20, 2))
  hat = lambda x, i: np.maximum(0, 1 - np.abs(x - i))
  for n, point in np.ndindex(count, 20):
    for plane, (column, row) in enumerate(((0, 1), (0, 2), (1, 2))):
      normal = 3 - column - row
      x, y, z = ((points[n, point, axis] + 1) / 2 * cells - .5
                 for axis, cells in ((column, size), (row, size),
                                     (normal, depth)))
      if outside == 'clamp':
        x, y = np.clip((x, y), 0, size - 1)
        z = np.clip(z, 0, depth - 1)
      for j, i, k in np.ndindex(size, size, depth):
        expected[n, point] += (planes[n, j, i, plane * depth + k]
                               * hat(x, i) * hat(y, j) * hat(z, k)) / 3
  got = encodings.triplanes(
      jnp.asarray(planes, jnp.float32), jnp.asarray(points, jnp.float32),
      reduce='mean', outside=outside, depth=depth)
  np.testing.assert_allclose(got, expected, atol=2e-5)


def _gradients(lookup, table, points, stride):
  """Slopes in the table and the points, every `stride`th.

  Returns:
    (those of automatic differentiation, finite differences).
  """
  cotangent = jnp.asarray(
      np.random.default_rng(8).normal(size=(2, 2)), jnp.float32)
  loss = lambda *inputs: jnp.sum(cotangent * lookup(*inputs))
  inputs = table, points
  automatic, differences = [], []
  for argument, value in enumerate(inputs):
    gradient = np.asarray(jax.grad(loss, argument)(*inputs)).ravel()
    for i in range(0, gradient.size, stride):
      step = 1e-2 * jnp.zeros(value.size).at[i].set(1).reshape(value.shape)
      sides = [loss(*(x + s * step if j == argument else x
                      for j, x in enumerate(inputs))) for s in (1, -1)]
      automatic.append(gradient[i])
      differences.append((sides[0] - sides[1]) / 2e-2)
  return automatic, differences


@pytest.mark.parametrize('outside', ['clamp', 'zero'])
@pytest.mark.parametrize('reduce', ['sum', 'mean'])
def test_triplanes_gradients_against_finite_differences(reduce, outside):
  rng = np.random.default_rng(4)
  planes = jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32)
  # Away from texel centers, where the slope jumps.
  points = jnp.asarray([[0.1, -0.35, 0.6], [-0.6, 0.4, 0.13]], jnp.float32)
  lookup = partial(encodings.triplanes, reduce=reduce, outside=outside)
  np.testing.assert_allclose(
      *_gradients(lookup, planes, points, 3), atol=2e-3)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_derivatives_of_interpolation_are_those_of_plain_indexing(
    backend, monkeypatch):
  """First and second ones, of several grids, by both ways to scatter."""
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  rng = np.random.default_rng(9)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  planes, points = normal(2, 3, 5, 5, 4), normal(2, 30, 3) / 2

  def plain(planes, points):
    def one(plane, xy):
      hats = [jnp.maximum(0, 1 - jnp.abs(
          (x[:, None] + 1) * 2.5 - 0.5 - jnp.arange(5.0))) for x in xy.T]
      return jnp.einsum('nx,ny,yxc->nc', *hats, plane)
    return sum(one(plane, points[:, jnp.array(axes)]) for plane, axes in zip(
        planes, encodings.AXES['xy_xz_yz']))

  def derivatives(lookup):
    values = lambda planes, points: jnp.sum(jnp.sin(lookup(planes, points)))
    slopes = lambda *inputs: jnp.sum(jnp.cos(jax.grad(values, 1)(*inputs)))
    return [jax.jit(jax.grad(f, (0, 1)))(planes, points)
            for f in (values, slopes)]

  lookup = partial(encodings.triplanes, outside='zero')
  wanted = derivatives(jax.vmap(plain))
  same = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
  jax.tree.map(same, derivatives(jax.vmap(lookup)), wanted)
  # The layout of a generator, with small blocks of points and of cells.
  monkeypatch.setattr(encodings, 'CPU_POINTS', 7)
  monkeypatch.setattr(encodings, 'CPU_FLOATS', 8)
  generated = lambda planes, points: lookup(
      jnp.moveaxis(planes, 1, 3), points)
  jax.tree.map(same, derivatives(generated), wanted)


def test_features_of_nan_points_are_nan():
  points = jnp.array([[jnp.nan, 0.1, 0.2], [0.3, 0.1, 0.2]])
  ones = jnp.ones((4, 4, 4, 2))
  for features in (encodings.voxels(ones, points),
                   encodings.triplanes(ones[:3], points),
                   encodings.triplanes(ones[:3], points, outside='zero')):
    assert np.isnan(features[0]).all() and np.isfinite(features[1]).all()


def test_one_texel_is_refused():
  with pytest.raises(ValueError, match='resolution of 2 or more'):
    encodings.triplanes(jnp.zeros((3, 1, 1, 2)), jnp.zeros((4, 3)))


def test_unknown_reduction_is_refused():
  with pytest.raises(ValueError, match="'median'.*'sum'"):
    encodings.triplanes(jnp.zeros((3, 2, 2, 1)), jnp.zeros((1, 3)),
                        reduce='median')


def test_voxels_agree_with_a_loop():
  rng = np.random.default_rng(5)
  grid = rng.normal(size=(4, 4, 4, 2)).astype(np.float32)
  points = rng.uniform(-1.5, 1.5, size=(30, 3)).astype(np.float32)
  expected = np.zeros((30, 2))
  for n, point in enumerate(points):
    place = np.clip((point + 1) / 2 * 4 - 0.5, 0, 3)
    for z, y, x in itertools.product(range(4), repeat=3):
      expected[n] += grid[z, y, x] * np.prod(
          np.maximum(0, 1 - np.abs(place - (x, y, z))))
  np.testing.assert_allclose(
      encodings.voxels(jnp.asarray(grid), jnp.asarray(points)), expected,
      atol=2e-5)


def test_voxels_gradients_against_finite_differences():
  rng = np.random.default_rng(6)
  grid = jnp.asarray(rng.normal(size=(3, 3, 3, 2)), jnp.float32)
  points = jnp.asarray([[0.1, -0.35, 0.5], [-0.5, 0.4, 0.13]], jnp.float32)
  np.testing.assert_allclose(
      *_gradients(encodings.voxels, grid, points, 2), atol=2e-3)


def test_contraction_agrees_with_its_jacobian():
  rng = np.random.default_rng(7)
  mean = np.concatenate([rng.normal(size=(20, 3)) * 3,
                         rng.uniform(-0.5, 0.5, size=(5, 3))])
  variance = rng.uniform(0.1, 2.0, size=mean.shape)
  squeezed = encodings.contract(encodings.Gaussian(
      jnp.asarray(mean, jnp.float32), jnp.asarray(variance, jnp.float32)))

  def point(x):
    norm = jnp.sqrt(jnp.sum(x**2))
    return jnp.where(norm > 1, (2 - 1 / norm) * x / norm, x)

  for i, x in enumerate(jnp.asarray(mean, jnp.float32)):
    np.testing.assert_allclose(squeezed.mean[i], point(x), rtol=1e-5)
    jacobian = np.asarray(jax.jacfwd(point)(x))
    np.testing.assert_allclose(
        squeezed.variance[i],
        np.diag(jacobian @ np.diag(variance[i]) @ jacobian.T), rtol=1e-4)
  assert np.linalg.norm(squeezed.mean, axis=-1).max() < 2
