"""Random networks of diffusers and transformers, in folders as published.

Functions that save or build a model need PyTorch, diffusers and transformers;
those named `write_` do not. SMALL configs are published ones with fewer
channels.

PYTHONPATH=. python tests/checkpoint_folders.py FOLDER

writes a Stable Diffusion 1.5 of full size, 2 GB of noise: to measure speed and
memory without the published weights.
"""

import json
import pathlib
import sys

import numpy as np
import pytest

# Values of the published config.json files.
STABLE_DIFFUSION = {
    '1.5': {'attention_head_dim': 8, 'cross_attention_dim': 768,
            'sample_size': 64},
    '2.1-base': {'attention_head_dim': [5, 10, 20, 20],
                 'cross_attention_dim': 1024, 'sample_size': 64,
                 'use_linear_projection': True},
    '2.1': {'attention_head_dim': [5, 10, 20, 20],
            'cross_attention_dim': 1024, 'sample_size': 96,
            'use_linear_projection': True, 'upcast_attention': True}}
DEEPFLOYD_XL = {
    'sample_size': 64, 'in_channels': 3, 'out_channels': 6,
    'block_out_channels': [704, 1408, 2112, 2816], 'layers_per_block': 3,
    'attention_head_dim': 64, 'cross_attention_dim': 2816,
    'encoder_hid_dim': 4096, 'encoder_hid_dim_type': 'text_proj',
    'act_fn': 'gelu', 'resnet_time_scale_shift': 'scale_shift',
    'cross_attention_norm': 'group_norm', 'addition_embed_type': 'text',
    'addition_embed_type_num_heads': 64,
    'down_block_types': ['ResnetDownsampleBlock2D']
                        + 3 * ['SimpleCrossAttnDownBlock2D'],
    'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
    'up_block_types': 3 * ['SimpleCrossAttnUpBlock2D']
                      + ['ResnetUpsampleBlock2D']}
# Of the text encoder the vocabulary is not the published one, but that of
# `write_tokenizer`.
AUTOENCODER = {'block_out_channels': [128, 256, 512, 512],
               'layers_per_block': 2, 'sample_size': 512}
TEXT_ENCODER = {'hidden_size': 768, 'intermediate_size': 3072,
                'num_attention_heads': 12, 'num_hidden_layers': 12}
T5_XXL = {'vocab_size': 32128, 'num_layers': 24, 'd_model': 4096,
          'num_heads': 64, 'd_kv': 64, 'd_ff': 10240,
          'feed_forward_proj': 'gated-gelu'}
CLIP_L14 = {
    'projection_dim': 768,
    'text_config': {'hidden_size': 768, 'intermediate_size': 3072,
                    'num_attention_heads': 12, 'num_hidden_layers': 12,
                    'projection_dim': 768, 'eos_token_id': 2},
    'vision_config': {'hidden_size': 1024, 'intermediate_size': 4096,
                      'num_attention_heads': 16, 'num_hidden_layers': 24,
                      'patch_size': 14, 'projection_dim': 768}}
# All levels and kinds of blocks, but fewer of each: they take long to compile.
_FEW = {'layers_per_block': 1, 'sample_size': 16,
        'block_out_channels': [32, 64, 64, 64]}
SMALL = {
    '1.5': STABLE_DIFFUSION['1.5'] | _FEW | {
        'attention_head_dim': 4, 'cross_attention_dim': 24},
    '2.1-base': STABLE_DIFFUSION['2.1-base'] | _FEW | {
        'attention_head_dim': [1, 2, 4, 4], 'cross_attention_dim': 40},
    '2.1': STABLE_DIFFUSION['2.1'] | _FEW | {
        'attention_head_dim': [1, 2, 4, 4], 'cross_attention_dim': 40,
        'sample_size': 24},
    'if': DEEPFLOYD_XL | _FEW | {
        'block_out_channels': [32, 64, 96, 96],
        'attention_head_dim': 16, 'cross_attention_dim': 64,
        'encoder_hid_dim': 128, 'addition_embed_type_num_heads': 4}}

# Two levels of DeepFloyd IF.
SMALL_PIXEL_UNET = SMALL['if'] | {
    'block_out_channels': [32, 64], 'sample_size': 8,
    'down_block_types': ['ResnetDownsampleBlock2D',
                         'SimpleCrossAttnDownBlock2D'],
    'up_block_types': ['SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D']}


def diffusers():
  pytest.importorskip('torch', reason='PyTorch is a parity extra')
  return pytest.importorskip('diffusers', reason='it is a parity extra')


def jitter(model):
  """The model with noise on all parameters: norms of one hide a swap."""
  import torch
  torch.manual_seed(0)
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.05 * torch.randn_like(p))
  return model.eval()


def save_unet(path, config, **saving):
  """A UNet2DConditionModel of a config, saved in the folder `path`."""
  model = jitter(diffusers().UNet2DConditionModel(**config))
  model.save_pretrained(path, **saving)
  return model


def save_control(path, config, **saving):
  """A ControlNetModel of a config, saved in the folder `path`."""
  model = jitter(diffusers().ControlNetModel(**config))
  model.save_pretrained(path, **saving)
  return model


def save_autoencoder(path, **saving):
  """A small AutoencoderKL of three levels, saved in the folder `path`."""
  model = jitter(diffusers().AutoencoderKL(
      sample_size=32, block_out_channels=(32, 64, 64), layers_per_block=2,
      down_block_types=3 * ['DownEncoderBlock2D'],
      up_block_types=3 * ['UpDecoderBlock2D']))
  model.save_pretrained(path, **saving)
  return model


def save_small_deepfloyd(path):
  """A small DeepFloyd IF saved in a folder; {part: PyTorch network}."""
  unet = save_unet(path / 'unet', SMALL_PIXEL_UNET)
  import tokenizers
  import transformers
  words = ['<pad>', '</s>', '<unk>', 'a', 'dog', ',', 'front', 'side', 'back',
           'overhead', 'view']
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token='<unk>'))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  inner.post_processor = tokenizers.processors.TemplateProcessing(
      single='$A </s>', special_tokens=[('</s>', 1)])
  transformers.PreTrainedTokenizerFast(
      tokenizer_object=inner, pad_token='<pad>', eos_token='</s>',
      unk_token='<unk>').save_pretrained(path / 'tokenizer')
  text = jitter(transformers.T5EncoderModel(transformers.T5Config(
      vocab_size=len(words), num_layers=2, d_model=128, num_heads=4, d_kv=8,
      d_ff=64, feed_forward_proj='gated-gelu')))
  text.save_pretrained(path / 'text_encoder')
  return {'unet': unet, 'text': text}


def random_params(network, inputs):
  """Parameters of any tree, without the compilation of an `init`."""
  import jax

  from gen3d.models import loading
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    noise = rng.normal(size=leaf.shape).astype(np.float32)
    if len(leaf.shape) > 1:
      return noise * np.float32(np.prod(leaf.shape[:-1]) ** -.5)
    return .1 * noise + np.float32(path[-1].key == 'scale')
  return {'params': jax.tree_util.tree_map_with_path(
      draw, loading.shapes(network, inputs, np.float32))}


def random_tensors(dtype=np.float32):
  """{PyTorch's name: array} of a small network, one of each kind of layer."""
  rng = np.random.default_rng(0)
  shapes = {'tok.embed.weight': (5, 4), 'a.0.norm.weight': (4,),
            'a.0.norm.bias': (4,), 'a.0.proj.weight': (3, 4),
            'a.0.proj.bias': (3,), 'position': (3,),
            'out.weight': (2, 3, 1, 1), 'out.bias': (2,)}
  return {name: rng.normal(size=shape).astype(dtype)
          for name, shape in shapes.items()}


def write_network(path, tensors, name='model.safetensors'):
  """A folder of one network: config.json and a file of weights."""
  from safetensors import numpy as safetensors
  path.mkdir(exist_ok=True, parents=True)
  (path / 'config.json').write_text(json.dumps({'architectures': ['Net']}))
  safetensors.save_file(tensors, path / name)


def write_pipeline(path, unet, autoencoder, text_encoder):
  """A Stable Diffusion of random weights in half precision, without PyTorch.

  Args:
    path: folder.
    unet, autoencoder, text_encoder: of their config.json files, what differs
      from the defaults.
  """
  from gen3d.models import autoencoder as vaes
  from gen3d.models import clip, stable_diffusion
  from gen3d.weights import hub, port
  path = pathlib.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  ids = write_tokenizer(path / 'tokenizer', '<|endoftext|>')
  levels = len(autoencoder['block_out_channels'])
  of_vae = {'down_block_types': ['DownEncoderBlock2D'] * levels,
            'up_block_types': ['UpDecoderBlock2D'] * levels}
  down = ['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D']
  of_unet = {
      'down_block_types': down, 'up_block_types': [
          kind.replace('Down', 'Up') for kind in reversed(down)],
      'block_out_channels': [320, 640, 1280, 1280],
      'layers_per_block': 2, 'in_channels': 4, 'out_channels': 4}
  configs = {
      'unet': {'_class_name': 'UNet2DConditionModel', **of_unet, **unet},
      'vae': {'_class_name': 'AutoencoderKL', **of_vae, **autoencoder},
      'text_encoder': {'architectures': ['CLIPTextModel'], **text_encoder,
                       'vocab_size': len(ids), 'eos_token_id': len(ids) - 1}}
  folders = {part: hub.Folder(path / part, config, {})
             for part, config in configs.items()}
  config = {'unet': stable_diffusion.unet_config(folders['unet']),
            'vae': vaes.autoencoder_config(folders['vae']),
            'text_encoder': clip.text_config(folders['text_encoder'])}
  networks = {
      'unet': (stable_diffusion.UNet(config['unet'], stable_diffusion.LAYERS),
               stable_diffusion.inputs(config['unet'])),
      'vae': (vaes.Autoencoder(config['vae']), vaes.inputs(config['vae'])),
      'text_encoder': (clip.TextTower(config['text_encoder']),
                       clip.text_inputs(config['text_encoder']))}
  for part, (network, inputs) in networks.items():
    params = random_params(network, inputs)
    sources = port.by_path(params)
    if part == 'text_encoder':
      params, sources = params['params'], clip.text_sources(config[part])
    _write_half(path / part, configs[part], port.to_torch(params, sources))


def write_control(path, config):
  """A ControlNet of random weights in half precision, without PyTorch.

  Args:
    path: folder.
    config: of its config.json, what differs from the defaults.
  """
  from gen3d.models import controlnet
  from gen3d.weights import hub, port
  path = pathlib.Path(path)
  config = {'_class_name': 'ControlNetModel', **config}
  network = controlnet.read(hub.Folder(path, config, {}))
  params = random_params(network, controlnet.network_inputs(network))
  _write_half(path, config, port.to_torch(params, port.by_path(params)))


def write_small_stable_diffusion(path):
  """Teacher settings of a Stable Diffusion with a ControlNet, both random.

  Args:
    path: of the folder to write them into.
  """
  path = pathlib.Path(path)
  encoder = {'block_out_channels': [32, 64], 'cross_attention_dim': 24,
             'attention_head_dim': 4, 'layers_per_block': 1,
             'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D']}
  write_pipeline(
      path / 'sd', encoder | {
          'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
          'sample_size': 8},
      {'block_out_channels': [32, 64], 'layers_per_block': 1,
       'sample_size': 16},
      {'hidden_size': 24, 'intermediate_size': 96, 'num_hidden_layers': 2,
       'num_attention_heads': 3})
  write_control(path / 'control', encoder | {
      'conditioning_embedding_out_channels': [4, 8, 12]})
  return {'name': 'stable_diffusion', 'path': str(path / 'sd'),
          'control': str(path / 'control')}


def _write_half(path, config, tensors):
  """Writes config.json and tensors, in half precision, into a folder."""
  from safetensors import numpy as safetensors
  path.mkdir(exist_ok=True)
  (path / 'config.json').write_text(json.dumps(config))
  safetensors.save_file({name: np.ascontiguousarray(x, np.float16)
                         for name, x in tensors.items()},
                        path / 'model.safetensors')


def write_tokenizer(path, pad):
  """CLIP's format, as Stable Diffusion's folders have it; returns ids."""
  path.mkdir(exist_ok=True)
  letters = 'abcdefghijklmnopqrstuvwxyz'
  names = ['!', *letters, *(f'{c}</w>' for c in letters), 'do', 'dog</w>',
           '<|startoftext|>', '<|endoftext|>']
  ids = {name: i for i, name in enumerate(names)}
  (path / 'vocab.json').write_text(json.dumps(ids))
  (path / 'merges.txt').write_text('#version: 0.2\nd o\ndo g</w>\n')
  (path / 'tokenizer_config.json').write_text(json.dumps({
      'tokenizer_class': 'CLIPTokenizer', 'pad_token': pad,
      'bos_token': '<|startoftext|>', 'eos_token': '<|endoftext|>',
      'unk_token': '<|endoftext|>', 'model_max_length': 77}))
  return ids


def on_meta(make):
  """What `make()` builds, without memory for its weights."""
  import torch
  with torch.device('meta'):
    return make()


def names_and_shapes(model):
  """{name: shape} of a PyTorch model."""
  return {k: tuple(v.shape) for k, v in model.state_dict().items()}


def expected_names(like, sources):
  """{PyTorch name: PyTorch shape} that our tree is filled from."""
  import jax

  from gen3d.weights import port
  back = {port.keep: lambda s: s, port.linear: lambda s: s[::-1],
          port.conv: lambda s: (s[3], s[2], s[0], s[1])}
  result = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]:
    name, layout = sources['/'.join(k.key for k in path)]
    result[name] = back[layout](leaf.shape)
  return result


def assert_near(ours, theirs, limit=1e-4):
  """Largest difference relative to the largest value; no constants."""
  theirs = np.asarray(theirs)
  assert ours.shape == theirs.shape
  assert theirs.std() > 1e-2
  error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
  assert error < limit, error


def assert_predictions_near(model, network, params, x, t, states):
  """Asserts that a U-Net predicts as that of diffusers.

  Args:
    model: of diffusers.
    network, params: ours.
    x, t, states: inputs of two images; of the first, also with four states
      of seven that are valid.

  Returns:
    The predictions with all states.
  """
  import jax
  import torch
  apply = jax.jit(network.apply)
  outputs = []
  for valid in (7, 4):
    mask = (np.arange(7) < np.array([[valid], [7]])).astype(np.float32)
    with torch.no_grad():
      theirs = model(to_torch(x), torch.tensor(t), torch.tensor(states),
                     encoder_attention_mask=None
                     if valid == 7 else torch.tensor(mask)).sample
    outputs.append(from_torch(theirs))
    assert_near(apply(params, x, t, states, mask), outputs[-1])
  assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
  return outputs[0]


def to_torch(images):
  """[B, H, W, C] NumPy to [B, C, H, W] PyTorch."""
  import torch
  return torch.tensor(images).permute(0, 3, 1, 2)


def from_torch(images):
  """Inverse of `to_torch`."""
  return images.detach().permute(0, 2, 3, 1).numpy()


if __name__ == '__main__':
  write_pipeline(sys.argv[1], STABLE_DIFFUSION['1.5'], AUTOENCODER,
                 TEXT_ENCODER)
