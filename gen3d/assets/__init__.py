"""Weights and the tokenizer that ship with the package, and their format.

Weights are one safetensors file with a json beside it: how they were trained,
and the SHA-256 of the tensors.
"""

import functools
import hashlib
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers

from gen3d import files, legacy
from gen3d.choices import UserError

FOLDER = pathlib.Path(__file__).parent
TEXT_TO_IMAGE = FOLDER / 'text_to_image_shapes.safetensors'
CLIP = FOLDER / 'clip_shapes.safetensors'
CAPTION_LENGTH = 24  # tokens, with the end token


def save(path, tree, record, dtype='float32'):
  """Writes weights that ship: one safetensors file and a json beside it.

  Args:
    path: where to, ending in .safetensors.
    tree: nested dict of arrays; tensors are named 'a/b/c'.
    record: dict for the json: how the weights came to be. Their sha256 and
      number are added.
    dtype: 'float32' or 'float16', of the floating tensors on disk.

  Returns:
    The two paths.
  """
  path = pathlib.Path(path)
  tensors = {name: _stored(x, dtype) for name, x in _flatten(tree).items()}
  content = safetensors.numpy.save(tensors)
  record = {**record, 'dtype': dtype,
            'parameters': int(sum(x.size for x in tensors.values())),
            'sha256': hashlib.sha256(content).hexdigest()}
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_suffix('.json')
  files.write_bytes(path, content)
  text = json.dumps(record, indent=2, default=float) + '\n'
  files.write_bytes(beside, text.encode())
  return path, beside


def load(path):
  """Reads what `save` wrote; returns (nested dict of arrays, record).

  Floating tensors come as float32, the record's config with tuples.

  Raises:
    UserError: where the file is missing or not what its json says.
  """
  path = pathlib.Path(path)
  beside = path.with_suffix('.json')
  for file in (path, beside):
    if not file.is_file():
      raise UserError(f'The weights file {file} is missing; get it again.')
  content = path.read_bytes()
  try:
    record = files.to_tuples(json.loads(beside.read_text()))
    wanted = record['sha256']
    if 'config' in record:
      record['config'] = legacy.upgrade(record['config'])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{beside} is damaged; get it again.') from error
  if hashlib.sha256(content).hexdigest() != wanted:
    raise UserError(
        f'The weights file {path} is truncated or damaged: its SHA-256 is not '
        f'the one in {beside.name}; get it again.')
  tree = {}
  for name, x in safetensors.numpy.load(content).items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    floating = np.issubdtype(x.dtype, np.floating)
    node[last] = x.astype(np.float32) if floating else x
  return tree, record


def _stored(x, dtype):
  x = np.asarray(x)
  floating = jnp.issubdtype(x.dtype, jnp.floating)
  return np.asarray(x.astype(dtype) if floating else x, order='C')


def _flatten(tree, prefix=''):
  flat = {}
  for name, node in tree.items():
    if '/' in name:
      raise UserError(f"The tensor name {name!r} contains a '/'.")
    if hasattr(node, 'items'):
      flat.update(_flatten(node, f'{prefix}{name}/'))
    else:
      flat[prefix + name] = node
  return flat


class Tokenizer:
  """The shipped subword tokenizer: padding 0, end 1, unknown 2."""

  def __init__(self, path):
    self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
    self.vocab_size = self._tokenizer.get_vocab_size()

  def encode(self, texts, length=CAPTION_LENGTH):
    """Strings to (tokens int32 [N, length], mask float32 [N, length]).

    A text that is too long is cut before its end token.
    """
    tokens = np.zeros((len(texts), length), np.int32)
    for row, text in zip(tokens, texts):
      ids = self._tokenizer.encode(text.lower()).ids[:length - 1] + [1]
      row[:len(ids)] = ids
    return tokens, (tokens != 0).astype(np.float32)


@functools.cache
def tokenizer():
  """The shipped Tokenizer of the shapes world's captions."""
  return Tokenizer(FOLDER / 'tokenizer.json')
