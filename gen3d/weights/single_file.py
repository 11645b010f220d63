"""Stable Diffusion in one file, in the layout of its authors' own code.

Such a file (.safetensors, or .ckpt of PyTorch Lightning) has the tensors of
the U-Net, the autoencoder and the text encoder under the names of the
latent-diffusion repository. `parts` gives them the names and shapes of the
folders of diffusers and transformers, and derives the configs of the networks
from the shapes. What shapes do not tell is that of the published models:

  1.x     8 heads in the U-Net, 64 x 64 latents, noise prediction
  2.x     heads of 64 channels in the U-Net
  both    heads of 64 channels in the text encoder, scaling factor 0.18215
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gen3d.choices import UserError

SUFFIXES = ('.safetensors', '.ckpt')
_UNET, _VAE = 'model.diffusion_model.', 'first_stage_model.'
_CLIP = 'cond_stage_model.transformer.'
_OPEN_CLIP = 'cond_stage_model.model.'
_XL = 'conditioner.'
_HEAD = 64  # channels of a head, where the shapes leave it open


class Stored(NamedTuple):
  """One tensor of a file that is not read yet."""
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


class Part(NamedTuple):
  """One network.

  Attributes:
    config: content of its config.json.
    readers: {name in diffusers or transformers: function that reads a tensor}.
  """
  config: dict[str, Any]
  readers: dict[str, Callable[[], np.ndarray]]


def parts(where: str, stored: Mapping[str, Stored]) -> dict[str, Part]:
  """The networks of a file: 'unet', 'vae' and 'text_encoder'.

  Args:
    where: the file, for messages.
    stored: {name in the file: Stored}.

  Raises:
    UserError: the file is of another model, or has only some of the networks.
  """
  def below(prefix):
    return {name.removeprefix(prefix): tensor
            for name, tensor in stored.items() if name.startswith(prefix)}

  if any(name.startswith(_XL) for name in stored):
    raise UserError(f'{where} is a Stable Diffusion XL, of which the text '
                    'encoders are not read; give a Stable Diffusion 1.x or '
                    '2.x.')
  if any('lora' in name for name in stored):
    raise UserError(f'{where} is a LoRA, which changes a model; give the '
                    'model as the path and this file as '
                    '--config.teacher.lora=FILE:SCALE (of gen3d sample: '
                    '--lora=FILE:SCALE).')
  missing = [what for what, prefixes in (
      ('U-Net (model.diffusion_model)', (_UNET,)),
      ('autoencoder (first_stage_model)', (_VAE,)),
      ('text encoder (cond_stage_model)', (_CLIP, _OPEN_CLIP)))
      if not any(name.startswith(prefixes) for name in stored)]
  if missing:
    raise UserError(f'{where} is no whole Stable Diffusion 1.x or 2.x in one '
                    f'file: it has no {" and no ".join(missing)}; give a file '
                    'with all, or the folder of a pipeline of diffusers.')
  try:
    clip = below(_CLIP)
    return {'unet': _unet(below(_UNET)), 'vae': _vae(below(_VAE)),
            'text_encoder': _clip(clip) if clip else _open_clip(
                below(_OPEN_CLIP))}
  except (LookupError, ValueError) as error:
    raise UserError(f'{where} is cut off, or of another model than Stable '
                    f'Diffusion 1.x or 2.x: it has no tensor {error}.'
                    ) from error


def is_second(config: Mapping[str, Any]) -> bool:
  """True for the U-Net of a Stable Diffusion 2.x, by its config."""
  return bool(config['use_linear_projection'])


# Renamed layers of a residual block and of the autoencoder's attention.
_RESIDUAL = {'in_layers.0': 'norm1', 'in_layers.2': 'conv1',
             'emb_layers.1': 'time_emb_proj', 'out_layers.0': 'norm2',
             'out_layers.3': 'conv2', 'skip_connection': 'conv_shortcut'}
_ATTENTION = {'norm': 'group_norm', 'q': 'to_q', 'k': 'to_k', 'v': 'to_v',
              'proj_out': 'to_out.0'}
_UNET_ENDS = {'time_embed.0': 'time_embedding.linear_1',
              'time_embed.2': 'time_embedding.linear_2',
              'input_blocks.0.0': 'conv_in', 'out.0': 'conv_norm_out',
              'out.2': 'conv_out', 'middle_block.0': 'mid_block.resnets.0',
              'middle_block.1': 'mid_block.attentions.0',
              'middle_block.2': 'mid_block.resnets.1'}


def _unet(stored: Mapping[str, Stored]) -> Part:
  """The U-Net; a level is some residual blocks, then a change of size."""
  modules, levels = dict(_UNET_ENDS), [[]]
  for index in range(1, max(_numbers(stored, 'input_blocks')) + 1):
    block, target = f'input_blocks.{index}', f'down_blocks.{len(levels) - 1}'
    if f'{block}.0.op.weight' in stored:
      modules[f'{block}.0.op'] = f'{target}.downsamplers.0.conv'
      levels.append([])
      continue
    count = len(levels[-1])
    modules[f'{block}.0'] = f'{target}.resnets.{count}'
    modules[f'{block}.1'] = f'{target}.attentions.{count}'
    levels[-1].append((stored[f'{block}.0.in_layers.2.weight'].shape[0],
                       f'{block}.1.norm.weight' in stored))
  channels, attention = zip(*(level[-1] for level in levels))
  blocks = len(levels[0])
  for k in _numbers(stored, 'output_blocks'):
    up, i = divmod(k, blocks + 1)
    block, target = f'output_blocks.{k}', f'up_blocks.{up}'
    modules[f'{block}.0'] = f'{target}.resnets.{i}'
    modules[f'{block}.1'] = f'{target}.attentions.{i}'
    for j in (1, 2):
      modules[f'{block}.{j}.conv'] = f'{target}.upsamplers.0.conv'
  states = _shape(stored, 'attn2.to_k.weight')[1]
  linear = len(_shape(stored, '1.proj_in.weight')) == 2
  names = lambda kind, other: [
      f'CrossAttn{kind}Block2D' if a else f'{kind}Block2D' for a in other]
  return Part({
      '_class_name': 'UNet2DConditionModel',
      'in_channels': stored['input_blocks.0.0.weight'].shape[1],
      'out_channels': stored['out.2.weight'].shape[0],
      'block_out_channels': list(channels), 'layers_per_block': blocks,
      'down_block_types': names('Down', attention),
      'up_block_types': names('Up', attention[::-1]),
      'attention_head_dim': [max(1, c // _HEAD) for c in channels]
                            if linear else 8,
      'cross_attention_dim': states, 'use_linear_projection': linear,
      'sample_size': 64, 'act_fn': 'silu',
  }, {_moved(name, modules, _RESIDUAL): x.read for name, x in stored.items()})


def _vae(stored: Mapping[str, Stored]) -> Part:
  """The autoencoder, whose decoder counts its levels from the finest."""
  levels = max(_numbers(stored, 'encoder.down')) + 1
  channels = [stored[f'encoder.down.{i}.block.0.conv1.weight'].shape[0]
              for i in range(levels)]
  modules = {}
  for side, kind, resize in (('encoder', 'down', 'downsample'),
                             ('decoder', 'up', 'upsample')):
    for i in range(levels):
      at = i if kind == 'down' else levels - 1 - i
      target = f'{side}.{kind}_blocks.{at}'
      for j in _numbers(stored, f'{side}.{kind}.{i}.block'):
        modules[f'{side}.{kind}.{i}.block.{j}'] = f'{target}.resnets.{j}'
      modules[f'{side}.{kind}.{i}.{resize}'] = f'{target}.{resize}rs.0'
    for j in (1, 2):
      modules[f'{side}.mid.block_{j}'] = f'{side}.mid_block.resnets.{j - 1}'
    modules[f'{side}.mid.attn_1'] = f'{side}.mid_block.attentions.0'
    modules[f'{side}.norm_out'] = f'{side}.conv_norm_out'
  readers = {}
  for name, tensor in stored.items():
    if '.attn_1.' in name:
      new = _moved(name, modules, _ATTENTION)
      # Maps of pixels are convolutions there.
      readers[new] = (functools.partial(_without_sides, tensor.read)
                      if len(tensor.shape) == 4 else tensor.read)
    else:
      new = _moved(name, modules, {'nin_shortcut': 'conv_shortcut'})
      readers[new] = tensor.read
  return Part({
      '_class_name': 'AutoencoderKL', 'block_out_channels': channels,
      'down_block_types': ['DownEncoderBlock2D'] * levels,
      'up_block_types': ['UpDecoderBlock2D'] * levels,
      'layers_per_block': max(_numbers(stored, 'encoder.down.0.block')) + 1,
      'latent_channels': stored['decoder.conv_in.weight'].shape[1],
      'sample_size': 512, 'scaling_factor': 0.18215, 'act_fn': 'silu'}, readers)


def _without_sides(read: Callable[[], np.ndarray]) -> np.ndarray:
  return read()[:, :, 0, 0]


def _clip(stored: Mapping[str, Stored]) -> Part:
  """OpenAI's text encoder of 1.x, whose names are those of transformers."""
  prefix = 'text_model.'
  stored = {prefix + name.removeprefix(prefix): x
            for name, x in stored.items()}
  layers = max(_numbers(stored, f'{prefix}encoder.layers')) + 1
  return Part(_text_config(
      stored[f'{prefix}embeddings.token_embedding.weight'],
      stored[f'{prefix}embeddings.position_embedding.weight'],
      stored[f'{prefix}encoder.layers.0.mlp.fc1.weight'], layers,
      'quick_gelu'), {name: x.read for name, x in stored.items()})


_OPEN_CLIP_ENDS = {
    'positional_embedding': 'embeddings.position_embedding.weight',
    'token_embedding.weight': 'embeddings.token_embedding.weight',
    'ln_final.weight': 'final_layer_norm.weight',
    'ln_final.bias': 'final_layer_norm.bias'}
_OPEN_CLIP_LAYERS = {
    'ln_1': 'layer_norm1', 'ln_2': 'layer_norm2', 'mlp.c_fc': 'mlp.fc1',
    'mlp.c_proj': 'mlp.fc2', 'attn.out_proj': 'self_attn.out_proj'}


def _open_clip(stored: Mapping[str, Stored]) -> Part:
  """OpenCLIP's text encoder of 2.x, without the last layer.

  Stable Diffusion 2 was trained with the states before that layer.
  """
  prefix, blocks = 'text_model.', 'transformer.resblocks'
  layers = max(_numbers(stored, blocks))
  readers = {prefix + new: stored[old].read
             for old, new in _OPEN_CLIP_ENDS.items()}
  for i in range(layers):
    target = f'{prefix}encoder.layers.{i}'
    for leaf in ('weight', 'bias'):
      for old, new in _OPEN_CLIP_LAYERS.items():
        readers[f'{target}.{new}.{leaf}'] = stored[
            f'{blocks}.{i}.{old}.{leaf}'].read
      # One matrix of queries, keys and values.
      whole = stored[f'{blocks}.{i}.attn.in_proj_{leaf}'].read
      for third, name in enumerate('qkv'):
        readers[f'{target}.self_attn.{name}_proj.{leaf}'] = functools.partial(
            _third, whole, third)
  return Part(_text_config(
      stored['token_embedding.weight'], stored['positional_embedding'],
      stored[f'{blocks}.0.mlp.c_fc.weight'], layers, 'gelu'), readers)


def _third(read: Callable[[], np.ndarray], index: int) -> np.ndarray:
  return np.split(read(), 3)[index]


def _text_config(tokens: Stored, positions: Stored, inner: Stored, layers: int,
                 activation: str) -> dict[str, Any]:
  """Content of config.json of a CLIPTextModel."""
  vocab, width = tokens.shape
  return {'architectures': ['CLIPTextModel'], 'vocab_size': vocab,
          'hidden_size': width, 'intermediate_size': inner.shape[0],
          'num_hidden_layers': layers, 'hidden_act': activation,
          'num_attention_heads': max(1, width // _HEAD),
          'max_position_embeddings': positions.shape[0],
          'eos_token_id': vocab - 1}


def _numbers(names: Iterable[str], prefix: str) -> list[int]:
  """Sorted numbers N of the names that begin with `prefix`.N.

  Raises:
    LookupError: there are none.
  """
  found = sorted({int(match[1]) for name in names if (
      match := re.match(rf'{re.escape(prefix)}\.(\d+)\.', name))})
  if not found:
    raise LookupError(prefix)
  return found


def _shape(stored: Mapping[str, Stored], ending: str) -> tuple[int, ...]:
  """The shape of the first tensor with such an end of its name.

  Raises:
    LookupError: there is none.
  """
  for name, tensor in stored.items():
    if name.endswith(ending):
      return tensor.shape
  raise LookupError(ending)


def _moved(name: str, modules: Mapping[str, str],
           layers: Mapping[str, str]) -> str:
  """The name of a tensor after the moves of modules and of their layers."""
  path = name.split('.')
  for count in range(len(path), 0, -1):
    above, below = '.'.join(path[:count]), '.'.join(path[count:])
    if above in modules:
      for old, new in layers.items():
        if below.startswith(f'{old}.'):
          below = new + below.removeprefix(old)
          break
      return f'{modules[above]}.{below}'
  return name
