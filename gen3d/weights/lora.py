"""LoRA: low-rank changes of a network's matrices (Hu et al., 2106.09685).

W + scale alpha / r B A, with A [r, in] and B [out, r]; alpha is r where a file
has none. Read are the names of diffusers (with or without PEFT) and of
kohya-ss, for the U-Net and the text encoder of Stable Diffusion. A file is
applied as a whole or refused by the name that does not fit.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from gen3d.choices import UserError

# What the two factors are called; the first is A.
_FACTORS = {'lora_A': 0, 'lora_B': 1, 'lora_down': 0, 'lora_up': 1,
            'lora.down': 0, 'lora.up': 1, 'lora_linear_layer.down': 0,
            'lora_linear_layer.up': 1}
_NAME = re.compile(r'(?P<target>.+?)(?P<kind>\.processor)?[._](?P<factor>'
                   r'lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|'
                   r'lora_linear_layer\.down|lora_linear_layer\.up)'
                   r'(\.default)?\.weight')
_ALPHA = re.compile(r'(?P<target>.+)\.alpha')
# Prefix of a name -> the part of a pipeline. Files of one network, as by
# save_attn_procs and PEFT, have the names within it.
_PARTS = {'unet.': 'unet', 'lora_unet_': 'unet', 'text_encoder.':
          'text_encoder', 'lora_te_': 'text_encoder'}
_WITHIN = {'down_blocks.': 'unet', 'mid_block.': 'unet', 'up_blocks.': 'unet',
           'text_model.': 'text_encoder'}


class Change(NamedTuple):
  """The change of one matrix: A, B and the factor of their product."""
  down: np.ndarray
  up: np.ndarray
  scale: float


def parse(setting: str) -> tuple[str, float]:
  """(path, scale) of PATH or PATH:SCALE.

  Raises:
    UserError: the path is missing, or the scale is not a finite number.
  """
  path, colon, scale = setting.rpartition(':')
  if not colon or scale.lower().endswith('.safetensors'):
    path, scale = setting, '1'
  try:
    number = float(scale)
  except ValueError:
    number = np.nan
  if not (path and np.isfinite(number)):
    raise UserError(f'The LoRA {setting!r} should be PATH or PATH:SCALE, such '
                    'as style.safetensors:0.8.')
  return path, number


def read(where: str, tensors: Mapping[str, np.ndarray], scale: float
         ) -> dict[str, dict[str, Change]]:
  """{part: {target: Change}} of a file; targets are as the file spells them.

  Args:
    where: the file, for messages.
    tensors: of the file.
    scale: factor of all changes.

  Raises:
    UserError: a tensor is of no known kind, a factor is missing, no matrix or
      not finite, or an alpha is no number.
  """
  factors: dict[str, dict[int, np.ndarray]] = {}
  alphas: dict[str, float] = {}
  for name, tensor in tensors.items():
    if match := _ALPHA.fullmatch(name):
      alphas[match['target']] = _alpha(f'{where}: {name[:80]}', tensor)
      continue
    match = _NAME.fullmatch(name)
    if not match:
      raise UserError(f'{where}: {name[:80]} is no factor of a LoRA for '
                      'Stable Diffusion (others, such as LoHa, DoRA and those '
                      'for norms, are not applied); use a plain LoRA.')
    index = _FACTORS[match['factor']]
    # Older diffusers: attn1.processor.to_q_lora.down.
    factors.setdefault(match['target'].replace('.processor.', '.'), {})[
        index] = np.asarray(tensor, np.float32)
  changes: dict[str, dict[str, Change]] = {}
  for target, pair in factors.items():
    part, inner = _place(target)
    if len(pair) < 2 or not part:
      raise UserError(f'{where}: {target[:80]} has only one of two factors, or '
                      'is not of a U-Net or a text encoder of Stable '
                      'Diffusion; use a LoRA for it.')
    if min(pair[0].ndim, pair[1].ndim) < 2 or not min(pair[0].size,
                                                      pair[1].size):
      raise UserError(f'{where}: {target[:80]} has factors of '
                      f'{list(pair[1].shape)} and {list(pair[0].shape)}, which '
                      'are no matrices; get it again.')
    if not (np.isfinite(pair[0]).all() and np.isfinite(pair[1]).all()):
      raise UserError(f'{where}: {target[:80]} has numbers that are not '
                      'finite; get it again.')
    rank = pair[0].shape[0]
    changes.setdefault(part, {})[inner] = Change(
        pair[0], pair[1], scale * alphas.get(target, rank) / rank)
  if not changes:
    raise UserError(f'{where} holds no LoRA.')
  return changes


def _place(target: str) -> tuple[str, str]:
  """(part of a pipeline, name in it) of a matrix; '' for an unknown part."""
  inner = target.removeprefix('base_model.model.')
  for prefix, part in _PARTS.items():
    if inner.startswith(prefix):
      return part, inner.removeprefix(prefix)
  return next((part for prefix, part in _WITHIN.items()
               if inner.startswith(prefix)), ''), inner


def _alpha(where: str, tensor: np.ndarray) -> float:
  """The number in a tensor of one number."""
  array = np.asarray(tensor)
  try:
    alpha = float(array.item())
  except (TypeError, ValueError):
    alpha = np.nan
  if not np.isfinite(alpha):
    raise UserError(f'{where} is no finite number; get it again.')
  return alpha


def apply(where: str, changes: Mapping[str, Change],
          readers: Mapping[str, Callable[[], np.ndarray]]
          ) -> dict[str, Callable[[], np.ndarray]]:
  """Readers of the changed tensors of one network.

  Args:
    where: the file of the changes, for messages.
    changes: {target: Change} of `read`.
    readers: {PyTorch's name: function that reads the tensor}.

  Raises:
    UserError: a change is of no tensor of the network, or has another shape.
  """
  # kohya-ss writes underscores for dots, which cannot be undone by themselves.
  names = {spell(name.removesuffix('.weight')): name for name in readers
           if name.endswith('.weight')
           for spell in (lambda n: n, lambda n: n.replace('.', '_'))}
  changed = dict(readers)
  for target, change in changes.items():
    # Older diffusers has no index after to_out.
    options = (target, f'{target}.0', f'text_model.{target}',
               re.sub(r'^text_model[._]', '', target))
    name = next((names[o] for o in options if o in names), None)
    if name is None:
      raise UserError(f'{where} changes {target[:80]}, which this network does '
                      'not have; it is a LoRA of another model.')
    changed[name] = functools.partial(
        _changed, f'{where}: {target}', readers[name], change)
  return changed


def _changed(where: str, read: Callable[[], np.ndarray],
             change: Change) -> np.ndarray:
  """The tensor plus the product of the factors."""
  tensor = read()
  down, up, scale = change
  rank = down.shape[0]
  if not (tensor.ndim >= 2 and up.ndim == down.ndim and (
      up.shape[0], up.shape[1], down[0].size) == (
          tensor.shape[0], rank, tensor[0].size)):
    raise UserError(
        f'{where} has factors of {list(up.shape)} and {list(down.shape)} for a '
        f'tensor of {list(tensor.shape)}; it is a LoRA of another model.')
  product = up.reshape(-1, rank) @ down.reshape(rank, -1)
  # In single precision: changes are often below the steps of a half.
  return tensor.astype(np.float32) + scale * product.reshape(tensor.shape)
