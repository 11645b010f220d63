"""pi-GAN's discriminators against the official ones, and by themselves.

The official numbers are in the folder $GEN3D_REFERENCE, pigan_tiny.npz.
"""

import ast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.models import pigan_discriminators as discriminators
from gen3d.weights import port

TAGS = {'PED': 'progressive_encoder', 'CCSE': 'ccs_encoder', 'STR': 'strided'}
SMALL = discriminators.Kind((4, 5, 6, 6), True, True, True)


@pytest.fixture(scope='module')
def data(reference_data):
  return dict(reference_data('pigan_tiny'))


def official(data, tag):
  """(Discriminator, variables) of the levels that the file has."""
  convolution = lambda name: {'kernel': port.conv(data[f'{name}.weight']),
                              'bias': data[f'{name}.bias']}
  kind = discriminators.KINDS[TAGS[tag]]
  levels = sorted(int(name.split('.')[3]) for name in data
                  if name.startswith(f'D.{tag}.fromRGB.')
                  and name.endswith('bias'))
  module = discriminators.Discriminator(kind._replace(widths=tuple(
      len(data[f'D.{tag}.fromRGB.{i}.model.0.bias']) for i in levels)))
  inner = '.conv' if kind.coordinates else ''
  params = {'head': convolution(f'D.{tag}.final_layer')}
  for level, size in zip(levels, module.sizes, strict=True):
    params[f'from_rgb_{size}'] = convolution(f'D.{tag}.fromRGB.{level}.model.0')
    block = f'D.{tag}.layers.{level}'
    if size > 2:
      params[f'block_{size}'] = {
          'conv_0': convolution(f'{block}.network.0{inner}'),
          'conv_1': convolution(f'{block}.network.2{inner}')}
    if f'{block}.proj.weight' in data:
      params[f'block_{size}']['skip'] = convolution(f'{block}.proj')
  return module, {'params': params}


@pytest.mark.parametrize('tag', TAGS)
def test_outputs_fade_in_and_gradients(data, tag):
  module, variables = official(data, tag)
  images = np.moveaxis(data['D.in'], 1, -1)
  like = jax.eval_shape(lambda: module.init(jax.random.key(0), images))
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
      lambda x: x.shape, like)

  @jax.jit
  def discriminate(images, alpha):
    gradient = jax.grad(lambda x: jnp.sum(
        module.apply(variables, x, alpha).logit))(images)
    return (module.apply(variables, images, alpha),
            jnp.sum(gradient ** 2, axis=(1, 2, 3)))

  for alpha in ast.literal_eval(str(data['cfg']))['alphas']:
    result, squares = discriminate(images, alpha)
    name = f'D.{tag}.out.alpha{alpha}'
    np.testing.assert_allclose(
        result.logit, data[f'{name}.logit'][:, 0], atol=1e-4)
    if module.kind.encoder:
      np.testing.assert_allclose(
          result.latent, data[f'{name}.latent'], atol=1e-4)
      np.testing.assert_allclose(
          result.pose, data[f'{name}.position'], atol=1e-4)
    expected = data.get(f'D.{tag}.r1_norm2_per_sample.alpha{alpha}')
    if expected is not None:
      np.testing.assert_allclose(squares, expected, rtol=1e-4)


def test_coordinates(data):
  inputs, outputs = (np.moveaxis(data[f'coordconv.{x}'], 1, -1)
                     for x in ('in', 'out'))
  maps = discriminators.coordinates(*inputs.shape[1:3])
  np.testing.assert_allclose(
      np.concatenate([inputs, np.broadcast_to(
          maps, (*inputs.shape[:3], 2))], axis=-1), outputs, atol=1e-6)


@pytest.fixture(scope='module')
def small():
  module = discriminators.Discriminator(SMALL)
  return module, jax.jit(module.init)(
      jax.random.key(0), jnp.zeros((1, 4, 4, 3)))


def test_parameters_of_all_levels_exist_at_any_size(small):
  module, variables = small
  like = jax.eval_shape(lambda: module.init(
      jax.random.key(0), jnp.zeros((1, 16, 16, 3))))
  assert jax.tree.structure(variables) == jax.tree.structure(like)
  assert module.sizes == [16, 8, 4, 2]
  assert set(variables['params']) == {
      'head', *(f'from_rgb_{s}' for s in module.sizes),
      *(f'block_{s}' for s in module.sizes[:-1])}


def test_a_new_stage_begins_with_the_networks_of_the_last(small):
  """At alpha 0 only the skip of the first block is new, which is mixed out."""
  module, variables = small
  images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))

  @jax.jit
  def discriminate(alphas):
    of = lambda images, alpha=1.0: module.apply(variables, images, alpha).pose
    # `fixed` is without the branch that alpha = 1 removes.
    fixed = of(images), of(images[:, ::2, ::2])
    return fixed, [of(images, alpha) for alpha in alphas]

  (full, half), faded = discriminate(jnp.array([0.0, 0.5, 1.0]))
  np.testing.assert_allclose(faded[0], half, rtol=1e-4)
  assert not np.allclose(faded[1], full, rtol=1e-3)
  np.testing.assert_allclose(faded[2], full, rtol=1e-4)


def test_fade_in_of_stages():
  steps = jnp.array([0, 500, 1000, 9999, 10_000, 10_250, 20_000])
  alphas = jax.vmap(lambda step: discriminators.fade_in(
      step, (0, 10_000), 1000))(steps)
  np.testing.assert_allclose(alphas, [0, 0.5, 1, 1, 0, 0.25, 1])


def test_initial_weights():
  """Kaiming's in the 3 x 3 convolutions of strided blocks, else PyTorch's."""
  images = jnp.zeros((1, 4, 4, 3))
  for name, strided in (('ccs_encoder', True), ('progressive_encoder', False)):
    kind = discriminators.KINDS[name]._replace(widths=(32, 32))
    params = jax.jit(discriminators.Discriminator(kind).init)(
        jax.random.key(0), images)['params']
    kernel = params['block_4']['conv_0']['kernel']
    fan_in = 9 * 34
    deviation = np.sqrt(2 / 1.04 / fan_in if strided else 1 / fan_in / 3)
    np.testing.assert_allclose(np.std(kernel), deviation, rtol=0.03)
    assert np.max(np.abs(params['from_rgb_4']['kernel'])) < 3 ** -0.5


def test_images_without_a_level_are_user_errors(small):
  module, variables = small
  with pytest.raises(ValueError, match=r'\[4, 8, 16\] pixels, not of 32'):
    module.apply(variables, jnp.zeros((1, 32, 32, 3)))
