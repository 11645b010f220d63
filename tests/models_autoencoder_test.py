"""The autoencoder: parity with diffusers, gradients, config."""

import json

import checkpoint_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gen3d.models import autoencoder, loading
from gen3d.weights import hub, port

TINY = autoencoder.AutoencoderConfig(
    side=8, channels=(8, 16), blocks=1, latent=4, groups=4, scale=.18215)


def pictures(side=16):
  # Not square: a swap of the axes would show.
  return np.random.default_rng(0).uniform(
      -1, 1, (2, side, side + 8, 3)).astype(np.float32)


@pytest.mark.parity
def test_encoder_and_decoder_equal_those_of_diffusers(tmp_path):
  import torch
  model = folders.save_autoencoder(tmp_path)
  network, params = autoencoder.load(tmp_path)
  images = pictures()
  with torch.no_grad():
    drawn = model.encode(folders.to_torch(images)).latent_dist
    back = model.decode(drawn.mean).sample
  mean, log_variance = jax.jit(
      lambda p, x: network.apply(p, x, method='encode'))(params, images)
  folders.assert_near(mean, folders.from_torch(drawn.mean))
  folders.assert_near(log_variance, folders.from_torch(drawn.logvar))
  scaled = model.config.scaling_factor * folders.from_torch(drawn.mean)
  ours = jax.jit(lambda p, z: network.apply(p, z, method='decode'))(
      params, scaled)
  folders.assert_near(ours, folders.from_torch(back))


@pytest.mark.parity
def test_full_size_names_and_shapes_are_those_of_diffusers(tmp_path):
  model = folders.on_meta(lambda: folders.diffusers().AutoencoderKL(
      block_out_channels=(128, 256, 512, 512), layers_per_block=2,
      down_block_types=4 * ['DownEncoderBlock2D'], sample_size=512,
      up_block_types=4 * ['UpDecoderBlock2D']))
  model.save_config(tmp_path)
  config = autoencoder.autoencoder_config(hub.Folder(
      tmp_path, hub.read_config(tmp_path), {}))
  like = {'params': loading.shapes(autoencoder.Autoencoder(config),
                                   autoencoder.inputs(config), jnp.float32)}
  assert folders.expected_names(like, port.by_path(like)) == (
      folders.names_and_shapes(model))


@pytest.mark.parity
def test_the_old_names_of_the_attention_are_read(tmp_path):
  folders.save_autoencoder(tmp_path)
  file = tmp_path / 'diffusion_pytorch_model.safetensors'
  tensors = safetensors.numpy.load_file(file)
  _, new = autoencoder.load(tmp_path)
  old = {}
  for name, tensor in tensors.items():
    for a, b in (('to_q', 'query'), ('to_k', 'key'), ('to_v', 'value'),
                 ('to_out.0', 'proj_attn')):
      name = name.replace(f'.{a}.', f'.{b}.')
    old[name] = tensor
  assert set(old) != set(tensors)
  safetensors.numpy.save_file(old, file)
  jax.tree.map(np.testing.assert_array_equal, new,
               autoencoder.load(tmp_path)[1])


@pytest.fixture(scope='module')
def tiny():
  network = autoencoder.Autoencoder(TINY)
  return network, folders.random_params(network, autoencoder.inputs(TINY))


def test_a_sample_has_the_predicted_moments():
  mean, log_variance = jnp.full((20_000, 1), .7), jnp.full((20_000, 1), -2.)
  draw = autoencoder.scaled_draw(jax.random.key(0), TINY, mean, log_variance)
  np.testing.assert_allclose(draw.mean(), .18215 * .7, atol=2e-3)
  np.testing.assert_allclose(draw.std(), .18215 * np.exp(-1), rtol=2e-2)


def test_image_gradients_do_not_depend_on_remat(tiny):
  _, params = tiny
  def gradient(remat):
    network = autoencoder.Autoencoder(TINY, remat=remat)
    def loss(x):
      moments = network.apply(params, x, method='encode')
      return jnp.sum(autoencoder.scaled_draw(
          jax.random.key(1), TINY, *moments) ** 2)
    return jax.jit(jax.grad(loss))(pictures(8))
  plain = gradient(False)
  assert np.isfinite(plain).all() and (np.abs(plain) > 0).mean() > .99
  np.testing.assert_allclose(plain, gradient(True), rtol=1e-3, atol=1e-6)


def test_the_log_variance_is_bounded(tiny):
  network, params = tiny
  big = {'params': params['params'] | {'quant_conv': jax.tree.map(
      lambda x: 1e4 * x, params['params']['quant_conv'])}}
  _, log_variance = jax.jit(
      lambda p, x: network.apply(p, x, method='encode'))(big, pictures(8))
  assert (log_variance.min(), log_variance.max()) == (-30, 20)


def test_the_config_is_checked(tmp_path):
  config = {
      '_class_name': 'AutoencoderKL', 'block_out_channels': [8, 16],
      'down_block_types': 2 * ['DownEncoderBlock2D'], 'sample_size': 8,
      'up_block_types': 2 * ['UpDecoderBlock2D'], 'norm_num_groups': 4}
  read = lambda **changes: autoencoder.autoencoder_config(
      hub.Folder(tmp_path, config | changes, {}))
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert read() == TINY
  assert read(scaling_factor=.13).scale == .13
  for changes, words in (({'_class_name': 'VQModel'}, 'VQModel'),
                         ({'shift_factor': .1}, 'shift_factor'),
                         ({'use_quant_conv': False}, 'use_quant_conv'),
                         ({'up_block_types': ['AttnUp']}, 'up_block_types')):
    with pytest.raises(ValueError, match=words):
      read(**changes)
