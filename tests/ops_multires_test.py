"""Multi-resolution grids: parity with tiny-cuda-nn's formulas, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.ops import multires


@pytest.fixture(scope='module')
def reference(reference_data):
  return reference_data('scenetex')


def _levels(reference, name):
  count, _, base, _, log2 = map(
      int, reference[f'grid.{name}.L_F_base_max_log2'])
  growth = float(reference[f'grid.{name}.per_level_scale_f64'])
  return multires.make_levels(count, base, growth, log2)


@pytest.mark.parametrize('name', ['official', 'tiny_dense', 'tiny_hash'])
def test_resolutions_are_the_published_ones(reference, name):
  levels = _levels(reference, name)
  np.testing.assert_array_equal(
      [level.side for level in levels], reference[f'grid.{name}.resolutions'])
  rounded = [level.entries or -(-level.side ** 2 // 8) * 8 for level in levels]
  np.testing.assert_array_equal(rounded, reference[f'grid.{name}.entries'])


@pytest.mark.parametrize('name', ['tiny_dense', 'tiny_hash'])
def test_features_are_those_of_the_reference(reference, name):
  levels = _levels(reference, name)
  tables = [multires.from_flat(
      jnp.asarray(reference[f'grid.{name}.table{index}']), level)
            for index, level in enumerate(levels)]
  features = jax.jit(lambda uv: multires.lookup(tables, levels, uv))(
      reference[f'grid.{name}.uv'])
  np.testing.assert_allclose(
      features, reference[f'grid.{name}.features'], atol=1e-5)


@pytest.mark.parametrize('log2', [24, 4])
def test_gradients_are_those_of_a_slow_lookup(log2):
  levels = multires.make_levels(3, 2, 2.0, log2)
  assert bool(levels[-1].entries) == (log2 == 4)
  rng = np.random.default_rng(0)
  tables = [jnp.asarray(rng.normal(size=level.shape(2)), jnp.float32)
            for level in levels]
  uv = jnp.asarray(rng.random((5, 2)), jnp.float32)
  uv = uv.at[0].set(jnp.array([1.0, 0.0]))
  cotangent = rng.normal(size=(5, 6))

  @jax.jit
  def slow(tables):
    rows = []
    for point in np.asarray(uv):
      features = []
      for table, level in zip(tables, levels):
        x, y = point * level.scale + 0.5
        column, row = int(x), int(y)
        total = 0.0
        for i in (0, 1):
          for j in (0, 1):
            weight = abs(1 - i - (y - row)) * abs(1 - j - (x - column))
            r, c = row + i, column + j
            total += weight * (
                table[(c ^ (r * 2654435761 % 2 ** 32)) % level.entries]
                if level.entries else table[r, c])
        features.append(total)
      rows.append(jnp.concatenate(features))
    return jnp.stack(rows)

  fast = lambda tables: multires.lookup(tables, levels, uv)
  np.testing.assert_allclose(jax.jit(fast)(tables), slow(tables), atol=1e-5)
  gradients = [
      jax.jit(jax.grad(lambda t, f=f: jnp.sum(f(t) * cotangent)))(tables)
      for f in (fast, slow)]
  for a, b in zip(*gradients):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_growth_ends_at_the_finest_resolution():
  growth = multires.growth_to(16, 256, 5)
  assert multires.make_levels(5, 16, growth)[-1].side == 256
