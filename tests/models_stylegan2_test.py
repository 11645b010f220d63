"""StyleGAN2's layers against loops, its networks against published counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.models import nvidia, stylegan2, stylegan2_layers
from gen3d.weights import port

BINOMIAL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
OFFICIAL = {'resolution': 256, 'channel_base': 32_768, 'channel_max': 512}


def count(tree):
  return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


def correlate(x, kernel, pad):
  """[H, W, I] with [K, K, I, O], by loops."""
  x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
  size = kernel.shape[0]
  return np.array([[np.tensordot(x[i:i + size, j:j + size], kernel, 3)
                    for j in range(x.shape[1] - size + 1)]
                   for i in range(x.shape[0] - size + 1)])


@pytest.mark.parametrize('up', [False, True])
@pytest.mark.parametrize('demodulate', [False, True])
def test_modulated_conv_equals_a_kernel_for_every_example(up, demodulate):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
  weight = rng.normal(size=(3, 3, 3, 5)).astype(np.float32)
  style = rng.normal(size=(2, 3)).astype(np.float32)
  actual = stylegan2_layers.modulated_conv(
      jnp.array(x), jnp.array(weight), jnp.array(style), up=up,
      demodulate=demodulate)
  for i in range(2):
    kernel = weight * style[i][:, None]
    if demodulate:
      kernel /= np.sqrt(np.sum(kernel ** 2, axis=(0, 1, 2)) + 1e-8)
    if up:
      # Zeros between the pixels, the binomial, then a true convolution.
      wide = np.zeros((8, 8, 3))
      wide[::2, ::2] = x[i]
      wide = np.pad(wide, ((3, 2), (3, 2), (0, 0)))
      wide = np.stack([correlate(
          wide[..., [c]], 4 * BINOMIAL[..., None, None], 0)[..., 0]
          for c in range(3)], axis=-1)
      expected = correlate(wide, kernel[::-1, ::-1], 0)
    else:
      expected = correlate(x[i], kernel, 1)
    np.testing.assert_allclose(actual[i], expected, atol=2e-5)


@pytest.mark.parametrize('kernel', [1, 3])
def test_conv_with_stride_2_filters_first(kernel):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 8, 8, 2)).astype(np.float32)
  conv = stylegan2_layers.Conv(
      3, kernel, down=True, act='linear', use_bias=False)
  variables = conv.init(jax.random.key(0), x)
  weight = variables['params']['weight'] / np.sqrt(2 * kernel ** 2)
  smooth = np.stack([correlate(x[0][..., [c]], BINOMIAL[..., None, None],
                               kernel // 2 + 1)[..., 0]
                     for c in range(2)], axis=-1)
  expected = correlate(smooth, np.asarray(weight), 0)[::2, ::2]
  np.testing.assert_allclose(
      conv.apply(variables, x)[0], expected, atol=1e-5)


def test_gain_applies_to_the_clamp_too():
  x = jnp.array([-100., -1., 1., 100.])
  np.testing.assert_allclose(
      stylegan2_layers.activate(x, 'lrelu', .5, clamp=2.),
      [-1., -.1 * 2 ** .5, .5 * 2 ** .5, 1.], rtol=1e-6)


def test_minibatch_standard_deviation_of_strided_groups():
  x = np.random.default_rng(0).normal(size=(6, 2, 2, 3)).astype(np.float32)
  actual = stylegan2_layers.minibatch_deviation(jnp.array(x), 3)
  for i in range(6):
    group = x[[i % 2, i % 2 + 2, i % 2 + 4]]
    expected = np.sqrt(group.var(axis=0) + 1e-8).mean()
    np.testing.assert_allclose(actual[i, ..., 3], expected, rtol=1e-5)
  np.testing.assert_array_equal(actual[..., :3], x)
  with pytest.raises(ValueError, match='5 images on a device'):
    stylegan2_layers.minibatch_deviation(jnp.array(x[:5]), 4)


def test_truncation_of_the_first_layers_towards_w_avg():
  mapping = stylegan2.Mapping(8, 2, num_ws=4)
  z = jax.random.normal(jax.random.key(0), (3, 5))
  variables = mapping.init(jax.random.key(1), z, None)
  average = jnp.arange(8.)
  variables = {**variables, 'buffers': {'w_avg': average}}
  ws = mapping.apply(variables, z, None)
  assert ws.shape == (3, 4, 8)
  np.testing.assert_array_equal(ws[:, 0], ws[:, 3])
  truncated = mapping.apply(variables, z, None, .25, 2)
  np.testing.assert_allclose(
      truncated[:, 0], average + .25 * (ws[:, 0] - average), atol=1e-5)
  np.testing.assert_array_equal(truncated[:, 2:], ws[:, 2:])


def test_published_numbers_of_parameters():
  label, z = jnp.zeros((1, 25)), jnp.zeros((1, 512))
  generator = stylegan2.Generator(
      {**OFFICIAL, 'image_channels': 96}, {'layers': 2, 'labeled': True})
  shapes = jax.eval_shape(lambda: generator.init(
      jax.random.key(0), z, label))
  assert count(shapes['params']['synthesis']) == 28_207_533
  assert count(shapes['params']['mapping']) == 800_768
  discriminator = stylegan2.Discriminator(512, labeled=True)
  shapes = jax.eval_shape(lambda: discriminator.init(
      jax.random.key(0), jnp.zeros((4, 512, 512, 6)), label))
  assert count(shapes) == 31_359_744
  # 92 tensors, 31 of which are copies of the resampling filter.
  assert len(jax.tree.leaves(shapes)) == 92 - 31


def test_noise_is_random_const_or_none():
  synthesis = stylegan2.Synthesis(8, channel_base=32, channel_max=4)
  ws = jax.random.normal(jax.random.key(0), (2, 4, 6))
  variables = synthesis.init(jax.random.key(1), ws)
  loud = jax.tree_util.tree_map_with_path(
      lambda path, x: x + .5 if path[-1].key == 'noise_strength' else x,
      variables)
  draw = lambda key, noise: synthesis.apply(
      loud, ws, noise, rngs={'noise': jax.random.key(key)})
  assert draw(0, 'random').shape == (2, 8, 8, 3)
  assert not np.allclose(draw(0, 'random'), draw(1, 'random'))
  np.testing.assert_array_equal(draw(0, 'const'), draw(1, 'const'))
  assert not np.allclose(draw(0, 'const'), draw(0, 'none'))
  with pytest.raises(ValueError, match="Unknown noise 'nome'"):
    draw(0, 'nome')


def test_noise_of_an_image_is_that_of_its_index_and_differs_by_layer():
  synthesis = stylegan2.Synthesis(16, channel_base=32, channel_max=4)
  noises = lambda index: synthesis.apply(
      {}, jnp.asarray(index), len(index), method='_noises',
      rngs={'noise': jax.random.key(3)})
  of_batch, of_one = noises([4, 7, 9]), noises([7])
  assert [x.shape[1:] for x in of_one] == [
      (size, size, 1) for size in (4, 8, 8, 16, 16)]
  for several, alone in zip(of_batch, of_one):
    np.testing.assert_array_equal(several[1], alone[0])
    assert not np.array_equal(several[0], several[1])
  values = np.concatenate([x[0].ravel() for x in of_one])
  assert len(np.unique(values)) == len(values) == 16 + 2 * 64 + 2 * 256
  assert abs(values.mean()) < 0.2 and abs(values.std() - 1) < 0.1


def test_to_rgb_scales_its_style_and_does_not_demodulate():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 4, 4, 5)).astype(np.float32)
  w = rng.normal(size=(2, 3)).astype(np.float32)
  layer = stylegan2.ToRGB(2)
  variables = layer.init(jax.random.key(0), x, w)
  variables['params']['bias'] += jnp.array([0.3, -0.2])
  p = jax.tree.map(np.asarray, variables['params'])
  for i, actual in enumerate(layer.apply(variables, x, w)):
    style = w[i] @ p['affine']['weight'] / np.sqrt(3) + p['affine']['bias']
    expected = (x[i] * style / np.sqrt(5)) @ p['weight'][0, 0] + p['bias']
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize('slot, moved', [
    (0, {'b4/conv1', 'b4/torgb', 'b8/conv0', 'b8/conv1', 'b8/torgb'}),
    (1, {'b4/torgb', 'b8/conv0', 'b8/conv1', 'b8/torgb'}),
    (2, {'b8/conv1', 'b8/torgb'}), (3, {'b8/torgb'})])
def test_each_to_rgb_shares_its_w_with_the_next_blocks_first_layer(
    slot, moved):
  synthesis = stylegan2.Synthesis(8, channel_base=32, channel_max=4)
  ws = jax.random.normal(jax.random.key(1), (1, 4, 3))
  variables = synthesis.init(jax.random.key(0), ws, 'const')

  def layers(ws):
    _, captured = synthesis.apply(
        variables, ws, 'const', capture_intermediates=lambda module, _:
        isinstance(module, (stylegan2.SynthesisLayer, stylegan2.ToRGB)))
    return {f'{block}/{layer}': outputs['__call__'][0]
            for block, inside in captured['intermediates'].items()
            for layer, outputs in inside.items()}

  before, after = layers(ws), layers(ws.at[0, slot].add(1.0))
  assert {name for name in before
          if not np.array_equal(before[name], after[name])} == moved


def test_blocks_compute_in_half_precision_throughout():
  w, x = jnp.zeros((1, 3, 8)), jnp.zeros((1, 8, 8, 3), jnp.bfloat16)
  for block, inputs in (
      (stylegan2.DiscriminatorBlock(4, 8, True, 256.0, jnp.bfloat16), (x,)),
      (stylegan2.SynthesisBlock(4, 3, clamp=256.0, dtype=jnp.bfloat16),
       (x, jnp.zeros((1, 8, 8, 3)), w, ('const', 'const')))):
    variables = block.init(jax.random.key(0), *inputs)
    outputs, layers = block.apply(
        variables, *inputs, capture_intermediates=lambda m, _: isinstance(
            m, (stylegan2_layers.Conv, stylegan2.SynthesisLayer)))
    layers = jax.tree.leaves(layers)
    assert len(layers) > 1 and all(x.dtype == jnp.bfloat16 for x in layers)
    assert jax.tree.leaves(outputs)[0].dtype == jnp.bfloat16


def test_half_precision_is_close_to_full_precision():
  discriminator = lambda half: stylegan2.Discriminator(
      16, channel_base=128, channel_max=16, num_half_res=half)
  x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
  variables = discriminator(0).init(jax.random.key(1), x)
  full, half = (discriminator(n).apply(variables, x) for n in (0, 2))
  assert full.dtype == half.dtype == jnp.float32
  assert 0 < np.max(np.abs(full - half)) < .05


def test_official_names_round_trip():
  discriminator = stylegan2.Discriminator(
      8, labeled=True, channel_base=32, channel_max=4)
  x, label = jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 25))
  variables = discriminator.init(jax.random.key(0), x, label)
  sources = nvidia.sources(variables)
  tensors = port.to_torch(variables, sources)
  assert tensors['b8.fromrgb.weight'].shape == (4, 3, 1, 1)
  assert tensors['b4.conv.weight'].shape == (4, 5, 3, 3)
  # Flattened channels first: feature (c, h, w) is column c * 16 + h * 4 + w.
  np.testing.assert_array_equal(
      tensors['b4.fc.weight'][:, 2 * 16 + 3 * 4 + 1],
      variables['params']['b4']['fc']['weight'][(3 * 4 + 1) * 4 + 2])
  back = port.to_flax(tensors, sources, variables)
  jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_resolution_must_be_a_power_of_two():
  with pytest.raises(ValueError, match='resolution 48 is not a power of two'):
    stylegan2_layers.resolutions(48)
  assert stylegan2_layers.resolutions(16) == (4, 8, 16)
