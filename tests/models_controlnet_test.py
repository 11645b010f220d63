"""ControlNet of Stable Diffusion: parity with diffusers, names, config."""

import json

import checkpoint_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.models import controlnet, loading
from gen3d.models import stable_diffusion as sd
from gen3d.weights import hub, port

# Two levels, and an image of four times the size of the latents.
UNET = folders.SMALL['1.5'] | {
    'block_out_channels': [32, 64], 'sample_size': 8,
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D']}
CONTROL = {key: value for key, value in UNET.items()
           if key not in ('up_block_types', 'sample_size')} | {
               'conditioning_embedding_out_channels': [4, 8, 12]}
CONFIG = CONTROL | {'_class_name': 'ControlNetModel'}


def problem(seed=0):
  """Image, x_t, steps and states; the image is not square."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return (rng.random((2, 32, 48, 3), np.float32), draw(2, 8, 12, 4),
          np.array([3, 981], np.float32), draw(2, 7, 24))


@pytest.mark.parity
def test_residuals_and_prediction_equal_those_of_diffusers(tmp_path):
  import torch
  unet = folders.save_unet(tmp_path / 'unet', UNET)
  control = folders.save_control(tmp_path / 'control', CONTROL)
  image, x, t, states = problem()
  with torch.no_grad():
    inputs = folders.to_torch(x), torch.tensor(t), torch.tensor(states)
    down, middle = control(*inputs, folders.to_torch(image),
                           return_dict=False)
    theirs = unet(*inputs, down_block_additional_residuals=down,
                  mid_block_additional_residual=middle).sample
    plain = unet(*inputs).sample

  network, params = controlnet.load(tmp_path / 'control')
  residuals = jax.jit(network.apply)(params, image, x, t, states)
  for ours, peer in zip(residuals, [*down, middle], strict=True):
    folders.assert_near(ours, folders.from_torch(peer))
  network, params = sd.load_unet(tmp_path / 'unet')
  ours = jax.jit(network.apply)(params, x, t, states, residuals=residuals)
  folders.assert_near(ours, folders.from_torch(theirs))
  assert (theirs - plain).abs().max() > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize('family', ['1.5', '2.1'])
def test_full_size_names_and_shapes_are_those_of_diffusers(tmp_path, family):
  published = folders.STABLE_DIFFUSION[family]
  model = folders.on_meta(lambda: folders.diffusers().ControlNetModel(**{
      key: value for key, value in published.items()
      if key != 'sample_size'}))
  model.save_config(tmp_path)
  network = controlnet.read(hub.Folder(
      tmp_path, hub.read_config(tmp_path), {}))
  like = {'params': loading.shapes(
      network, controlnet.network_inputs(network), jnp.float32)}
  assert folders.expected_names(like, port.by_path(like)) == (
      folders.names_and_shapes(model))
  assert network.factor == 8


def test_residuals_of_zero_leave_the_prediction_as_it_is():
  config = sd.UNetConfig(side=4, in_channels=4, out_channels=4,
                         channels=(8, 16), blocks=(1, 1),
                         attention=(True, False), heads=(2, 2), states=12,
                         groups=4)
  unet = sd.UNet(config, sd.LAYERS)
  params = folders.random_params(unet, sd.inputs(config))
  network = controlnet.ControlNet(config, (4, 8))
  inputs = controlnet.network_inputs(network)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(
      network.init_with_output, jax.random.key(0), *inputs)[0])
  _, x, t, states = (np.asarray(jax.random.normal(
      jax.random.key(i), like.shape)) for i, like in enumerate(inputs))
  apply = jax.jit(unet.apply)
  plain = apply(params, x, t, states)
  np.testing.assert_array_equal(
      apply(params, x, t, states, residuals=zeros), plain)
  moved = apply(params, x, t, states, residuals=[*zeros[:-1], zeros[-1] + 1])
  assert np.abs(moved - plain).max() > 1e-3
  with pytest.raises(ValueError, match=r'an image \[1, 8, 8, 3\]'):
    network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), *inputs[1:])


def read(path, **changes):
  (path / 'config.json').write_text(json.dumps(CONFIG | changes))
  return controlnet.read(hub.Folder(path, hub.read_config(path), {}))


@pytest.mark.parametrize('changes, words', [
    ({'_class_name': 'UNet2DConditionModel'}, 'UNet2DConditionModel'),
    ({'_class_name': 'ControlNetUnionModel'}, 'ControlNetUnionModel'),
    ({'conditioning_channels': 1}, 'conditioning_channels = 1'),
    ({'global_pool_conditions': True}, 'global_pool_conditions'),
    ({'addition_embed_type': 'text_time'}, 'addition_embed_type'),  # SD XL
    ({'transformer_layers_per_block': [1, 2]}, 'transformer_layers_per_block'),
    ({'down_block_types': ['DownBlock2D', 'CrossAttnDown']}, 'CrossAttnDown'),
])
def test_a_config_of_another_network_is_refused(tmp_path, changes, words):
  with pytest.raises(ValueError, match=words) as error:
    read(tmp_path, **changes)
  assert 'config.json' in str(error.value)


def test_a_control_net_of_another_unet_is_refused(tmp_path):
  network = read(tmp_path)
  assert network.embedding == (4, 8, 12)
  controlnet.check_fits(network, network.config._replace(side=96), tmp_path)
  for change, words in (({'states': 1024}, 'cross_attention_dim 24 .*1024'),
                        ({'channels': (32, 32)}, 'block_out_channels'),
                        ({'in_channels': 9}, 'in_channels 4 .*9')):
    with pytest.raises(ValueError, match=words):
      controlnet.check_fits(
          network, network.config._replace(**change), tmp_path)
