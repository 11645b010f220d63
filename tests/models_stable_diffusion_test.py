"""The U-Net of Stable Diffusion: parity with diffusers, names, config."""

import json

import checkpoint_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d.models import loading
from gen3d.models import stable_diffusion as sd
from gen3d.weights import hub, port

TINY = sd.UNetConfig(side=8, in_channels=4, out_channels=4, channels=(8, 16),
                   blocks=(1, 1), attention=(True, False), heads=(2, 2),
                   states=12, groups=4)
PLAIN = {'_class_name': 'UNet2DConditionModel', 'layers_per_block': 2,
         'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
         'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
         'block_out_channels': [32, 64], 'attention_head_dim': [2, 4],
         'cross_attention_dim': 24}


def problem(width, seed=0, side=16, length=7):
  """x_t, steps and states; the image is not square."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return (draw(2, side, side + 8, 4), np.array([3, 981], np.float32),
          draw(2, length, width))


@pytest.mark.parity
@pytest.mark.parametrize('family', ['1.5', '2.1-base', '2.1'])
def test_prediction_equals_that_of_diffusers(tmp_path, family):
  config = folders.SMALL[family]
  model = folders.save_unet(tmp_path, config)
  folders.assert_predictions_near(
      model, *sd.load_unet(tmp_path),
      *problem(config['cross_attention_dim']))


@pytest.mark.parity
def test_shards_and_half_precision_are_read(tmp_path):
  config = folders.SMALL['1.5'] | {
      'block_out_channels': [32, 32], 'layers_per_block': 1,
      'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
      'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D']}
  model = folders.save_unet(tmp_path, config, max_shard_size='400KB')
  assert len(list(tmp_path.glob('*.safetensors'))) > 2
  network, params = sd.load_unet(tmp_path)
  inputs = problem(24, side=8)
  apply = lambda network, params: jax.jit(network.apply)(params, *inputs)
  whole = apply(network, params)

  model.half().save_pretrained(tmp_path / 'half', variant='fp16')
  assert (tmp_path / 'half'
          / 'diffusion_pytorch_model.fp16.safetensors').is_file()
  network, params = sd.load_unet(tmp_path / 'half')
  folders.assert_near(apply(network, params), whole, 1e-2)
  network, params = sd.load_unet(tmp_path / 'half', jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.bfloat16.dtype}
  folders.assert_near(apply(network, params), whole, 5e-2)


@pytest.mark.parity
@pytest.mark.parametrize('family, millions', [('1.5', 859.5),
                                              ('2.1-base', 865.9)])
def test_full_size_names_and_shapes_are_those_of_diffusers(
    tmp_path, family, millions):
  model = folders.on_meta(lambda: folders.diffusers().UNet2DConditionModel(
      **folders.STABLE_DIFFUSION[family]))
  model.save_config(tmp_path)
  config = sd.unet_config(hub.Folder(
      tmp_path, hub.read_config(tmp_path), {}))
  like = {'params': loading.shapes(
      sd.UNet(config, sd.LAYERS), sd.inputs(config), jnp.float32)}
  ours = folders.expected_names(like, port.by_path(like))
  assert ours == folders.names_and_shapes(model)
  count = sum(np.prod(shape) for shape in ours.values())
  np.testing.assert_allclose(count / 1e6, millions, atol=.1)


@pytest.fixture(scope='module')
def tiny():
  return folders.random_params(sd.UNet(TINY, sd.LAYERS), sd.inputs(TINY)), (
      problem(12, side=4))


def test_rematerialization_does_not_change_the_gradient(tiny):
  params, (x, t, states) = tiny
  def gradient(**options):
    network = sd.UNet(TINY, sd.LAYERS, **options)
    return jax.jit(jax.grad(
        lambda x: jnp.sum(network.apply(params, x, t, states) ** 2)))
  plain, again = gradient(), gradient(remat=True)
  folders.assert_near(again(x), plain(x))
  count = lambda f: str(jax.make_jaxpr(f)(x)).count('conv_general')
  assert count(again) > count(plain)


def test_bfloat16_stays_near_float32(tiny):
  params, inputs = tiny
  full, half = (jax.jit(sd.UNet(TINY, sd.LAYERS, dtype).apply)(params, *inputs)
                for dtype in (jnp.float32, jnp.bfloat16))
  assert half.dtype == jnp.float32
  error = np.abs(half - full).max() / np.abs(full).max()
  assert 1e-5 < error < 5e-2


def test_flash_attention_is_used_for_self_attention_only(tiny, monkeypatch):
  params, inputs = tiny
  calls = []
  attention = jax.nn.dot_product_attention
  def spy(q, k, v, mask=None, implementation=None):
    calls.append((q.shape[1] == k.shape[1], implementation))
    return attention(q, k, v, mask=mask)
  monkeypatch.setattr(jax.nn, 'dot_product_attention', spy)
  jax.eval_shape(sd.UNet(TINY, sd.LAYERS, flash=True).apply, params, *inputs)
  assert set(calls) == {(True, 'cudnn'), (False, None)}


def test_masked_states_are_ignored(tiny):
  params, (x, t, states) = tiny
  apply = jax.jit(sd.UNet(TINY, sd.LAYERS).apply)
  mask = np.ones((2, 7), np.float32)
  mask[0, 4:] = 0
  other = states.copy()
  other[0, 4:] += 1
  a, b = (apply(params, x, t, s, mask) for s in (states, other))
  np.testing.assert_allclose(a, b, atol=1e-6)
  unmasked = apply(params, x, t, other, np.ones_like(mask))
  assert np.abs(a - unmasked).max() > 1e-4


def test_inputs_of_another_shape_are_user_errors(tiny):
  params, (x, t, states) = tiny
  network = sd.UNet(TINY, sd.LAYERS)
  for image, words in ((x[..., :3], r'\[B, H, W, 4\]'),
                       (x[:, :3], 'divisible by 2')):
    with pytest.raises(ValueError, match=words):
      network.apply(params, image, t, states)
  with pytest.raises(ValueError, match='12 channels, not 11'):
    network.apply(params, x, t, states[..., :11])


def write_config(path, **changes):
  (path / 'config.json').write_text(json.dumps(PLAIN | changes))
  return hub.Folder(path, hub.read_config(path), {})


def test_hyperparameters_of_a_config(tmp_path):
  assert sd.unet_config(write_config(tmp_path)) == sd.UNetConfig(
      side=64, in_channels=4, out_channels=4, channels=(32, 64), blocks=(2, 2),
      attention=(True, False), heads=(2, 4), states=24)


@pytest.mark.parametrize('changes, words', [
    ({'_class_name': 'UNet3DConditionModel'}, 'UNet3DConditionModel'),
    ({'down_block_types': 2 * ['SimpleCrossAttnDownBlock2D']}, 'deepfloyd'),
    ({'down_block_types': []}, 'no type'),
    ({'up_block_types': 2 * ['CrossAttnUpBlock2D']}, 'up_block_types'),
    ({'addition_embed_type': 'text_time'}, 'addition_embed_type'),  # SD XL
    ({'class_embed_type': 'projection'}, 'class_embed_type'),
    ({'act_fn': 'mish'}, "'mish'"),
    ({'block_out_channels': [32]}, '2 block types for 1'),
])
def test_a_config_of_another_network_is_refused(tmp_path, changes, words):
  with pytest.raises(ValueError, match=words) as error:
    sd.unet_config(write_config(tmp_path, **changes))
  assert 'config.json' in str(error.value)


@pytest.mark.parity
def test_missing_unused_and_misshaped_tensors_are_listed(tmp_path):
  model = folders.save_unet(tmp_path, folders.SMALL['1.5'])
  from safetensors.torch import save_file
  tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
  gone, shape = 'mid_block.resnets.0.conv1.bias', 'conv_in.weight'
  del tensors[gone]
  tensors['surplus'] = tensors['conv_in.bias'].clone()
  tensors[shape] = tensors[shape][:, :3].contiguous()
  save_file(tensors, tmp_path / 'diffusion_pytorch_model.safetensors')
  with pytest.raises(port.PortingError) as error:
    sd.load_unet(tmp_path)
  for words in (f'{tmp_path}: The', f'1 missing: {gone}', '1 unused: surplus',
                f'1 mis-shaped: {shape} [32, 3, 3, 3]'):
    assert words in str(error.value)
