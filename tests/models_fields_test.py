"""Fields: shapes, density biases and published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.models import fields
from gen3d.ops import encodings


def _samples(seed=0, count=6):
  mean = jax.random.normal(jax.random.key(seed), (2, count, 3)) * 0.4
  return encodings.Gaussian(mean, jnp.full_like(mean, 1e-3))


def test_density_biases():
  points = jnp.array([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.0, 0.5, 0.0]])
  np.testing.assert_allclose(
      fields.dreamfusion_bias(points),
      5 * np.exp(-np.array([0, 0.04, 0.25]) / 0.08), rtol=1e-5)
  np.testing.assert_allclose(
      fields.magic3d_bias(points), [10, 6, 0], atol=3e-3)
  gradient = jax.grad(lambda x: fields.magic3d_bias(x))(jnp.zeros(3))
  assert np.all(np.isfinite(gradient))


def test_fields_return_densities_and_colors_without_view_dependence():
  samples = _samples()
  for field in (fields.MipMLP(fields.dreamfusion_bias, width=16),
                fields.TriPlane(fields.magic3d_bias, resolution=8)):
    params = field.init(jax.random.key(0), samples, samples.mean)
    density, values = field.apply(params, samples, samples.mean)
    assert density.shape == (2, 6) and values.shape == (2, 6, 3)
    assert np.all(density >= 0) and np.all((values >= 0) & (values <= 1))
    turned, same = field.apply(params, samples, -samples.mean)
    np.testing.assert_array_equal(turned, density)
    np.testing.assert_array_equal(same, values)


def test_mip_mlp_depends_on_the_variance_and_the_triplane_does_not():
  samples = _samples()
  blurred = samples._replace(variance=samples.variance + 1.0)
  mip = fields.MipMLP(fields.dreamfusion_bias, width=16)
  params = mip.init(jax.random.key(0), samples, samples.mean)
  sharp, blunt = (mip.apply(params, s, s.mean)[1] for s in (samples, blurred))
  assert np.abs(sharp - blunt).max() > 1e-3
  plane = fields.TriPlane(fields.magic3d_bias, resolution=8)
  params = plane.init(jax.random.key(0), samples, samples.mean)
  np.testing.assert_array_equal(
      plane.apply(params, samples, samples.mean)[1],
      plane.apply(params, blurred, samples.mean)[1])


def test_mip_mlp_has_the_papers_size():
  samples = _samples()
  params = fields.MipMLP(fields.dreamfusion_bias).init(
      jax.random.key(0), samples, samples.mean)
  kernels = [x.shape for x in jax.tree.leaves(params) if x.ndim == 2]
  # 6 L inputs, five blocks of two 128-wide layers, density and albedo.
  assert sorted(kernels) == sorted(
      [(48, 128), *[(128, 128)] * 10, (128, 4)])


def test_density_bias_is_added_before_the_activation():
  samples = _samples()._replace(variance=jnp.zeros((2, 6, 3)))
  bias = lambda x: fields.dreamfusion_bias(x)
  zero = lambda x: jnp.zeros(x.shape[:-1])
  exp = [fields.MipMLP(b, width=8) for b in (bias, zero)]
  params = exp[0].init(jax.random.key(0), samples, samples.mean)
  with_bias, without = (
      f.apply(params, samples, samples.mean)[0] for f in exp)
  np.testing.assert_allclose(
      with_bias, without * np.exp(bias(samples.mean)), rtol=1e-4)
  soft = [fields.TriPlane(b, resolution=8) for b in (bias, zero)]
  params = soft[0].init(jax.random.key(0), samples, samples.mean)
  with_bias, without = (
      np.asarray(f.apply(params, samples, samples.mean)[0], np.float64)
      for f in soft)
  np.testing.assert_allclose(
      np.log(np.expm1(with_bias)),
      np.log(np.expm1(without)) + bias(samples.mean), atol=1e-3)


def test_density_scale_multiplies_the_raw_density_only():
  samples = _samples()
  one, five = (
      fields.TriPlane(fields.magic3d_bias, resolution=8, density_scale=scale)
      for scale in (1.0, 5.0))
  params = one.init(jax.random.key(0), samples, samples.mean)
  (soft, same), (hard, values) = (
      f.apply(params, samples, samples.mean) for f in (one, five))
  np.testing.assert_array_equal(same, values)
  bias = fields.magic3d_bias(samples.mean)
  raw = lambda density: np.log(np.expm1(np.asarray(density, np.float64))) - bias
  np.testing.assert_allclose(raw(hard), 5 * raw(soft), atol=2e-3)
  assert np.abs(raw(soft)).max() > 0.01


def test_exp_density_never_overflows():
  huge = fields.MipMLP(lambda x: jnp.full(x.shape[:-1], 200.0), width=8)
  samples = _samples()
  params = huge.init(jax.random.key(0), samples, samples.mean)
  total = lambda p: jnp.sum(huge.apply(p, samples, samples.mean)[0])
  value, gradient = jax.value_and_grad(total)(params)
  assert np.isfinite(value)
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


def test_background_depends_on_the_direction():
  module = fields.Background(width=8)
  directions = jnp.array([[0.0, 0, 1], [0, 0, -1]])
  params = module.init(jax.random.key(0), directions)
  colors = module.apply(params, directions)
  assert colors.shape == (2, 3)
  assert np.all((colors > 0) & (colors < 1))
  assert np.abs(colors[0] - colors[1]).max() > 1e-3


@pytest.mark.parametrize('encode, more, published', [
    (fields.Frequencies(), {}, 595_844),
    (fields.IntegratedFrequencies(), {}, 612_740),
    # 3 512^2 48 = 128^3 18 numbers, and 4 x 128 layers.
    (fields.PlaneFeatures(), {'depth': 4, 'width': 128, 'skip': 0}, None),
    (fields.VoxelFeatures(), {'depth': 4, 'width': 128, 'skip': 0}, None)])
def test_radiance_fields_have_the_published_sizes(encode, more, published):
  points = jnp.zeros((1, 3))
  params = jax.eval_shape(
      fields.RadianceField(encode, **more).init, jax.random.key(0),
      encodings.Gaussian(points, points), points)
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  if published:
    assert count(params) == published
  else:
    assert count(params['params']['encode']) == 37_748_736


def test_color_depends_on_the_direction_and_density_does_not():
  samples = _samples()
  field = fields.RadianceField(
      fields.Frequencies(4), depth=3, width=16, skip=2,
      activation=fields.shifted_softplus, view_width=8, rgb_padding=0.1)
  params = field.init(jax.random.key(0), samples, samples.mean)
  density, color = field.apply(params, samples, samples.mean)
  again, other = field.apply(params, samples, -samples.mean)
  np.testing.assert_array_equal(density, again)
  assert np.abs(color - other).max() > 1e-3
  assert np.all(density > 0)
  # The encoding is concatenated again after the second layer.
  assert params['params']['layer_2']['kernel'].shape == (16 + 27, 16)
  loud = jax.tree.map(lambda x: 1e3 * x, params)
  extremes = field.apply(loud, samples, samples.mean)[1]
  np.testing.assert_allclose(
      [extremes.min(), extremes.max()], [-0.1, 1.1], atol=1e-3)


def test_encodings_of_nerf_and_mip_nerf_agree_for_points():
  """With no variance both encodings span the same functions."""
  samples = _samples()._replace(variance=jnp.zeros((2, 6, 3)))
  plain = fields.Frequencies(8).apply({}, samples)
  integrated = fields.IntegratedFrequencies(8).apply({}, samples)
  np.testing.assert_array_equal(plain[..., :3], samples.mean)
  np.testing.assert_allclose(plain[..., 3:], integrated, atol=1e-6)
