"""The first U-Net of DeepFloyd IF: parity with diffusers, names, config."""

import checkpoint_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.models import deepfloyd, loading
from gen3d.models import stable_diffusion as sd
from gen3d.weights import hub, port

SMALL = folders.SMALL['if']
TINY = sd.UNetConfig(side=8, in_channels=3, out_channels=6, channels=(16, 32),
                   blocks=(1, 1), attention=(False, True), heads=(1, 2),
                   states=32, groups=4, text_width=32, pooling_heads=2)


def problem(width, side=16, length=7):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return (draw(2, side, side + 8, 3), np.array([3, 981], np.float32),
          draw(2, length, width))


@pytest.mark.parity
def test_prediction_equals_that_of_diffusers(tmp_path):
  model = folders.save_unet(tmp_path, SMALL)
  predicted = folders.assert_predictions_near(
      model, *deepfloyd.load_unet(tmp_path),
      *problem(SMALL['encoder_hid_dim']))
  assert predicted.shape[-1] == 6


@pytest.mark.parity
def test_full_size_names_and_shapes_are_those_of_diffusers(tmp_path):
  model = folders.on_meta(lambda: folders.diffusers().UNet2DConditionModel(
      **folders.DEEPFLOYD_XL))
  model.save_config(tmp_path)
  config = deepfloyd.unet_config(hub.Folder(
      tmp_path, hub.read_config(tmp_path), {}))
  assert config.heads == (11, 22, 33, 44)
  like = {'params': loading.shapes(
      sd.UNet(config, deepfloyd.LAYERS), sd.inputs(config), jnp.float32)}
  ours = folders.expected_names(like, port.by_path(like))
  assert ours == folders.names_and_shapes(model)
  # The published weights are 8.6 GB at two bytes each.
  assert abs(2e-9 * sum(np.prod(s) for s in ours.values()) - 8.6) < .1


def test_every_parameter_has_a_gradient():
  x, t, states = problem(32, side=4)
  network = sd.UNet(TINY, deepfloyd.LAYERS, remat=True)
  params = folders.random_params(network, sd.inputs(TINY))
  gradient = jax.jit(jax.grad(lambda p: jnp.sum(
      network.apply(p, x, t, states) ** 2)))(params)
  for path, g in jax.tree_util.tree_flatten_with_path(gradient)[0]:
    # Softmax does not see what all keys have in common.
    if not ('k_proj' in str(path) and 'bias' in str(path)):
      assert np.abs(g).max() > 0, path


@pytest.mark.parametrize('changes, words', [
    ({'down_block_types': 4 * ['CrossAttnDownBlock2D']}, 'stable_diffusion'),
    ({'class_embed_type': 'timestep'}, 'class_embed_type'),  # stage II
    ({'act_fn': 'silu'}, 'act_fn'),
    ({'resnet_time_scale_shift': 'default'}, 'resnet_time_scale_shift'),
    ({'encoder_hid_dim': None}, 'encoder_hid_dim'),
    ({'cross_attention_dim': 40}, '32 does not divide 40'),
    ({'addition_embed_type_num_heads': 7}, '7 does not divide'),
])
def test_a_config_of_another_network_is_refused(tmp_path, changes, words):
  config = {'_class_name': 'UNet2DConditionModel', **SMALL, **changes}
  with pytest.raises(ValueError, match=words):
    deepfloyd.unet_config(hub.Folder(tmp_path, config, {}))


def test_hyperparameters_of_the_smaller_model(tmp_path):
  config = {'_class_name': 'UNet2DConditionModel', **folders.DEEPFLOYD_XL,
            'block_out_channels': [192, 384, 576, 768],
            'cross_attention_dim': 768}
  size = deepfloyd.unet_config(hub.Folder(tmp_path, config, {}))
  assert size.heads == (3, 6, 9, 12) and size.blocks == (3, 3, 3, 3)
  assert size.attention == (False, True, True, True)
  assert (size.text_width, size.states, size.pooling_heads) == (4096, 768, 64)
