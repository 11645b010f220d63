"""Writes a Stable Diffusion as one file, in the names of its authors' code.

Nothing of gen3d is used.
"""

import numpy as np
from safetensors import numpy as safetensors


def write(file, folder):
  """Writes the pipeline in a folder, of two blocks a level, as one file."""
  safetensors.save_file(
      {name: np.ascontiguousarray(x) for name, x in original(folder).items()},
      file)


def original_unet(name, blocks=2, levels=4):
  """The name of a tensor of the U-Net in the authors' code."""
  for new, old in (('time_embedding.linear_1', 'time_embed.0'),
                   ('time_embedding.linear_2', 'time_embed.2'),
                   ('conv_norm_out', 'out.0'), ('conv_out', 'out.2'),
                   ('conv_in', 'input_blocks.0.0')):
    if name.startswith(f'{new}.'):
      return name.replace(new, old, 1)
  words = name.split('.')
  for new, old in (('norm1', 'in_layers.0'), ('conv1', 'in_layers.2'),
                   ('time_emb_proj', 'emb_layers.1'), ('norm2', 'out_layers.0'),
                   ('conv2', 'out_layers.3'),
                   ('conv_shortcut', 'skip_connection')):
    if 'resnets' in words and words[-2] == new:
      words[-2] = old
  if words[0] == 'mid_block':
    index = {'resnets.0': 0, 'attentions.0': 1, 'resnets.1': 2}
    return '.'.join([f'middle_block.{index[".".join(words[1:3])]}',
                     *words[3:]])
  level, kind, i = int(words[1]), words[2], int(words[3])
  if words[0] == 'down_blocks':
    at = 1 + level * (blocks + 1) + (blocks if 'samplers' in kind else i)
    rest = ['0', 'op', *words[5:]] if 'samplers' in kind else [
        '0' if kind == 'resnets' else '1', *words[4:]]
    return '.'.join(['input_blocks', str(at), *rest])
  at = level * (blocks + 1) + (blocks if 'samplers' in kind else i)
  # The coarsest level has no attention before its upsampling.
  rest = (['1' if level == 0 else '2', 'conv', *words[5:]]
          if 'samplers' in kind else
          ['0' if kind == 'resnets' else '1', *words[4:]])
  return '.'.join(['output_blocks', str(at), *rest])


def original_vae(name, levels=3):
  """The name of a tensor of the autoencoder in the authors' code."""
  words = name.split('.')
  if words[0] not in ('encoder', 'decoder'):
    return name
  if words[1] == 'mid_block':
    where = ('attn_1' if words[2] == 'attentions'
             else f'block_{int(words[3]) + 1}')
    leaf = {'group_norm': 'norm', 'to_q': 'q', 'to_k': 'k', 'to_v': 'v',
            'to_out': 'proj_out'}.get(words[4], words[4])
    rest = [leaf, words[-1]] if words[2] == 'attentions' else words[4:]
    return '.'.join([words[0], 'mid', where, *rest])
  if words[1] in ('down_blocks', 'up_blocks'):
    kind = words[1].removesuffix('_blocks')
    level = int(words[2]) if kind == 'down' else levels - 1 - int(words[2])
    rest = (['block', *words[4:]] if words[3] == 'resnets'
            else [f'{kind}sample', *words[5:]])
    name = '.'.join([words[0], kind, str(level), *rest])
    return name.replace('conv_shortcut', 'nin_shortcut')
  return name.replace('conv_norm_out', 'norm_out')


def original_text(tensors, second):
  """The tensors of the text encoder in the authors' code."""
  if not second:
    return {f'cond_stage_model.transformer.{name}': x
            for name, x in tensors.items()}
  result, whole = {}, {}
  for name, x in tensors.items():
    short = name.removeprefix('text_model.')
    for new, old in (('embeddings.position_embedding.weight',
                      'positional_embedding'),
                     ('embeddings.token_embedding', 'token_embedding'),
                     ('final_layer_norm', 'ln_final'),
                     ('encoder.layers', 'transformer.resblocks'),
                     ('layer_norm1', 'ln_1'), ('layer_norm2', 'ln_2'),
                     ('mlp.fc1', 'mlp.c_fc'), ('mlp.fc2', 'mlp.c_proj'),
                     ('self_attn', 'attn')):
      short = short.replace(new, old)
    for third in 'qkv':
      if f'.{third}_proj.' in short:
        whole.setdefault(short.replace(f'{third}_proj.', 'in_proj_'), {})[
            third] = x
        break
    else:
      result[short] = x
  result |= {name: np.concatenate([thirds[t] for t in 'qkv'])
             for name, thirds in whole.items()}
  # One more layer, which is not used, and what else such files have.
  last = {name.replace('resblocks.1.', 'resblocks.2.'): x + 1
          for name, x in result.items() if 'resblocks.1.' in name}
  result |= last | {'text_projection': np.ones((4, 4), np.float16)}
  return {f'cond_stage_model.model.{name}': x for name, x in result.items()}


def original(folder):
  """All tensors of a folder under the names of the authors' code."""
  read = lambda part: safetensors.load_file(folder / part / 'model.safetensors')
  stored = {f'model.diffusion_model.{original_unet(name)}': x
            for name, x in read('unet').items()}
  second = 'use_linear_projection' in (
      folder / 'unet' / 'config.json').read_text()
  for name, x in read('vae').items():
    old = f'first_stage_model.{original_vae(name)}'
    stored[old] = x[:, :, None, None] if (
        '.attn_1.' in old and x.ndim == 2) else x
  stored |= original_text(read('text_encoder'), second)
  return stored | {'model_ema.decay': np.float32([0.5]),
                   'betas': np.ones(4, np.float32)}
