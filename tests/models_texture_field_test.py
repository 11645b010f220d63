"""SceneTex's texture field: parity of its parts, attention by blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.models import texture_field
from gen3d.ops import multires


@pytest.fixture(scope='module')
def reference(reference_data):
  return reference_data('scenetex')


def _dense(reference, name):
  return {'kernel': reference[f'{name}.weight'].T,
          'bias': reference[f'{name}.bias']}


def _attention(reference):
  """The published attention: the values' map is that of the keys, too."""
  names = {'map_query': 'map_query', 'map_key': 'map_value',
           'map_value': 'map_value', 'map_output': 'map_outputs'}
  return {ours: {f'Dense_{layer}': _dense(
      reference, f'attn.{theirs}.net.{layer}') for layer in (0, 1)}
          for ours, theirs in names.items()}


def test_attention_with_values_for_keys_is_the_published_one(reference):
  hidden = reference['attn.map_query.net.0.weight'].shape[0]
  heads = reference['attn.map_query.net.1.weight'].shape[0] // hidden
  features = reference['attn.in.features']
  channels = features.shape[-1]
  apply = jax.jit(lambda params: texture_field.CrossAttention(
      hidden, heads, 7).apply(
          {'params': params}, features.reshape(-1, channels),
          reference['attn.in.instances'].reshape(-1).astype(int) - 1,
          reference['attn.in.anchors']))
  out = apply(_attention(reference))
  expected = reference['attn.out.float32'].reshape(-1, channels)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(out, expected, atol=1e-5 * scale)
  # The official half precision.
  np.testing.assert_allclose(
      out, reference['attn.out.official_half'].reshape(-1, channels),
      atol=2e-3 * scale)
  # Keys of their own, the default, change the result.
  own = apply(_attention(reference) | {'map_key': {
      f'Dense_{layer}': _dense(reference, f'attn.map_key.net.{layer}')
      for layer in (0, 1)}})
  assert np.abs(own - expected).max() > 1e-2 * scale


def test_the_last_layers_are_the_published_ones(reference):
  channels = reference['render.net.0.weight'].shape[1]
  field = texture_field.TextureField(
      multires.make_levels(1, 2, 2.0), channels,
      texture_field.CrossAttention(2, 1, 8),
      width=reference['render.net.0.weight'].shape[0])
  features = reference['attn.out.float32'].reshape(-1, channels)
  count = len(features)
  params = jax.jit(field.init)(
      jax.random.key(0), jnp.zeros((count, 2)), jnp.full(count, -1),
      jnp.zeros((1, 1, 2)))['params']
  layers = {name for name in params if name.startswith('layer_')}
  assert len(layers) == 4
  params |= {f'layer_{i}': _dense(reference, f'render.net.{i}')
             for i in range(4)}

  # A point without an instance keeps the grid's features: one after another.
  @jax.jit
  def color(row):
    grid = jnp.broadcast_to(row, params['grid_0'].shape)
    return field.apply({'params': params | {'grid_0': grid}},
                       jnp.full((1, 2), 0.5), jnp.array([-1]),
                       jnp.zeros((1, 1, 2)))[0]

  expected = reference['render.out'].reshape(-1, 3)
  for row, color_of_row in list(zip(features, expected))[:5]:
    np.testing.assert_allclose(color(row), color_of_row, atol=1e-4)


def _masked(queries, instances, keys, values):
  """Attention over all anchors, with a mask."""
  logits = jnp.einsum('nhd,iahd->nhia', queries, keys) / np.sqrt(
      queries.shape[-1])
  own = jnp.arange(len(keys)) == jnp.maximum(instances, 0)[:, None]
  logits = jnp.where(own[:, None, :, None], logits, -jnp.inf)
  weights = jax.nn.softmax(
      logits.reshape(*logits.shape[:2], -1), -1).reshape(logits.shape)
  read = jnp.einsum('nhia,iahd->nhd', weights, values)
  return jnp.where(instances[:, None, None] >= 0, read, 0.0)


@pytest.mark.parametrize('points, instances, block', [
    (50, 3, 8), (9, 4, 100)])
def test_blocks_equal_a_mask_with_gradients(points, instances, block):
  rng = np.random.default_rng(points)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  queries, keys, values = draw(points, 2, 3), *draw(2, instances, 4, 2, 3)
  of_point = jnp.asarray(rng.integers(-1, instances, points))
  cotangent = draw(points, 2, 3)

  @jax.jit
  def both():
    fast = lambda q, k, v: texture_field.attend(q, of_point, k, v, block)
    slow = lambda q, k, v: _masked(q, of_point, k, v)
    results = [jax.vjp(f, queries, keys, values) for f in (fast, slow)]
    return [(out, vjp(cotangent)) for out, vjp in results]

  for a, b in zip(*map(jax.tree.leaves, both())):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_points_of_an_instance_without_any_and_none_at_all():
  keys = jnp.ones((3, 2, 1, 2))
  values = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 2, 1, 2))
  attend = jax.jit(lambda instances: texture_field.attend(
      jnp.ones((4, 1, 2)), instances, keys, values, 2))
  np.testing.assert_allclose(
      attend(jnp.array([2, 2, -1, 0]))[:, 0, 0], [2, 2, 0, 0])
  assert not attend(jnp.full(4, -1)).any()
