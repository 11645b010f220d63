"""The U-Net: shapes, inverses, inputs that have an effect or none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from gen3d.models import unet

SHAPE = unet.UNetShape(channels=(8, 16), blocks=(1, 1),
                       attention=(False, True), head_dim=8, time_width=16)


@pytest.fixture(scope='module')
def network():
  module = unet.UNet(SHAPE)
  key_x, key_s, key_p, key_r = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(key_x, (2, 16, 16, 3))
  states = jax.random.normal(key_s, (2, 5, 12))
  mask = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1.]])
  t = jnp.array([.2, .7])
  fresh = jax.jit(module.init)(key_p, x, t, states, mask)
  # Random weights everywhere: a fresh network ends in zeros.
  leaves, tree = jax.tree.flatten(fresh)
  keys = jax.random.split(key_r, len(leaves))
  params = jax.tree.unflatten(tree, [
      leaf + .2 * jax.random.normal(k, leaf.shape)
      for k, leaf in zip(keys, leaves)])
  return jax.jit(module.apply), params, fresh, (x, t, states, mask)


def test_space_to_depth_equals_a_loop():
  x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  y = np.asarray(unet.space_to_depth(jnp.asarray(x), 2))
  for b, i, j, di, dj, c in np.ndindex(2, 2, 3, 2, 2, 3):
    assert y[b, i, j, (di * 2 + dj) * 3 + c] == x[b, 2 * i + di, 2 * j + dj, c]
  np.testing.assert_array_equal(unet.depth_to_space(jnp.asarray(y), 2), x)


def test_output_of_a_fresh_network_is_zero(network):
  apply, _, fresh, inputs = network
  assert jnp.abs(apply(fresh, *inputs)).max() == 0


def test_output_depends_on_image_time_and_text(network):
  apply, params, _, (x, t, states, mask) = network
  out = apply(params, x, t, states, mask)
  assert out.shape == x.shape
  changed = [apply(params, x + .1, t, states, mask),
             apply(params, x, t + .1, states, mask),
             apply(params, x, t, states[..., ::-1], mask)]
  for other in changed:
    assert jnp.abs(other - out).max() > 1e-3


def test_rays_change_their_pixels_and_zeros_have_no_effect(network):
  apply, params, _, inputs = network
  with_rays = unet.UNet(SHAPE._replace(rays=True))
  rays = jax.random.normal(jax.random.key(5), (2, 16, 16, 4))
  fresh = jax.jit(with_rays.init)(jax.random.key(6), *inputs, rays)
  flat = traverse_util.flatten_dict
  # The added layers are initialized with zeros: the output is unchanged.
  grown = traverse_util.unflatten_dict({**flat(fresh), **flat(params)})
  plain = apply(params, *inputs)
  out = jax.jit(with_rays.apply)
  np.testing.assert_allclose(out(grown, *inputs, rays), plain, atol=1e-5)
  paths = [path for path, _ in jax.tree.leaves_with_path(grown)
           if path[-2].key == 'rays']
  assert len(paths) == 7  # one a block
  learned = jax.tree.map_with_path(
      lambda path, x: x + .3 if path[-2].key == 'rays' else x, grown)
  np.testing.assert_allclose(
      out(learned, *inputs, jnp.zeros_like(rays)), plain, atol=1e-5)
  moved = jnp.abs(out(learned, *inputs, rays.at[:, 8:].set(0)) - plain)
  assert moved[:, :4].mean() > 2 * moved[:, 12:].mean() > 0


def test_prior_image_changes_the_output_and_zeros_have_no_effect(network):
  apply, params, _, inputs = network
  with_prior = unet.UNet(SHAPE._replace(prior_image=True))
  image = jax.random.normal(jax.random.key(5), (2, 16, 16, 3))
  fresh = jax.jit(with_prior.init)(jax.random.key(6), *inputs, None, image)
  flat = traverse_util.flatten_dict
  grown = traverse_util.unflatten_dict({**flat(fresh), **flat(params)})
  plain = apply(params, *inputs)
  out = jax.jit(with_prior.apply)
  # The added layers are initialized with zeros: the output is unchanged.
  np.testing.assert_allclose(out(grown, *inputs, None, image), plain,
                             atol=1e-5)
  learn = lambda name: jax.tree.map_with_path(
      lambda path, x: x + .3 if path[-2].key == name else x, grown)
  zeros = jnp.zeros_like(image)
  for name in ('sketch', 'sketch_share'):
    np.testing.assert_allclose(
        out(learn(name), *inputs, None, zeros), plain, atol=1e-5)
  # It is added to the output with one weight per example.
  added = out(learn('sketch_share'), *inputs, None, image) - plain
  weight = added / image
  for i in range(2):
    np.testing.assert_allclose(weight[i], weight[i].mean(), rtol=2e-2)
  assert abs(weight[0].mean() - weight[1].mean()) > 1e-2
  moved = out(learn('sketch'), *inputs, None, image) - plain
  assert jnp.abs(moved).max() > 1e-2


def test_output_is_independent_of_padding_and_other_examples(network):
  apply, params, _, (x, t, states, mask) = network
  out = apply(params, x, t, states, mask)
  padded = states.at[0, 3:].set(99.0)
  np.testing.assert_allclose(
      apply(params, x, t, padded, mask)[0], out[0], atol=1e-4)
  other = apply(params, x.at[1].set(0.), t, states.at[1].set(0.), mask)
  np.testing.assert_allclose(other[0], out[0], atol=1e-4)


def test_masked_mean_equals_the_mean_of_unmasked_states():
  states = jnp.arange(12.).reshape(1, 4, 3)
  mask = jnp.array([[1, 0, 1, 0.]])
  np.testing.assert_allclose(
      unet.masked_mean(states, mask)[0], (states[0, 0] + states[0, 2]) / 2)
  assert jnp.isfinite(unet.masked_mean(states, 0 * mask)).all()


def test_a_fresh_control_net_is_a_copy_without_effect(network):
  apply, params, _, inputs = network
  shape = SHAPE._replace(blocks=(1, 1))
  control = unet.ControlNet(shape, (1, 0))
  key_map, key_init, key_noise = jax.random.split(jax.random.key(7), 3)
  maps = jax.random.uniform(key_map, (2, 16, 16, 1)).at[1].set(0.0)
  fresh = unet.copy_parameters(
      jax.jit(control.init)(key_init, maps, *inputs), params)
  np.testing.assert_array_equal(
      fresh['params']['encode_0_0']['conv_in']['kernel'],
      params['params']['encode_0_0']['conv_in']['kernel'])
  assert 'decode_0_0' not in fresh['params']
  residuals = jax.jit(control.apply)
  plain = apply(params, *inputs)
  call = jax.jit(unet.UNet(SHAPE).apply)
  with_control = lambda r: call(params, *inputs, residuals=r)
  # Of the input, of each block and downsampling, and of the middle.
  zeros = residuals(fresh, maps, *inputs)
  assert [r.shape[1:] for r in zeros] == [
      (8, 8, 8), (8, 8, 8), (4, 4, 16), (4, 4, 16), (4, 4, 16)]
  np.testing.assert_allclose(with_control(zeros), plain, atol=1e-5)

  # A trained one has an effect, but none for a map of zeros.
  leaves, tree = jax.tree.flatten(fresh)
  trained = jax.tree.unflatten(tree, [
      x + .2 * jax.random.normal(jax.random.fold_in(key_noise, i), x.shape)
      for i, x in enumerate(leaves)])
  out = with_control(residuals(trained, maps, *inputs))
  assert jnp.abs(out - plain)[0].max() > 1e-2
  np.testing.assert_allclose(out[1], plain[1], atol=1e-5)
  other = with_control(residuals(trained, maps[:, ::-1], *inputs))
  assert jnp.abs(other - out)[0].max() > 1e-3
