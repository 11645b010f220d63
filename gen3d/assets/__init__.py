"""Weights and the tokenizer that ship with the package, and their format.

Weights are a safetensors file with a record beside it: a JSON file that holds
how they were trained, the SHA-256 of the safetensors file, and a digest of the
record itself.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers

from gen3d import files, legacy, schemas
from gen3d.choices import UserError, check_prompt, excerpt

FOLDER = pathlib.Path(__file__).parent
TEXT_TO_IMAGE = FOLDER / 'text_to_image_shapes.safetensors'
TEXT_TO_IMAGE_DEPTH = FOLDER / 'text_to_image_shapes_depth.safetensors'
CLIP = FOLDER / 'clip_shapes.safetensors'  # judges
CLIP_GUIDE = FOLDER / 'clip_shapes_guide.safetensors'  # guides
VIEW_ESTIMATOR = FOLDER / 'view_estimator_shapes.safetensors'
_RECORD = {
    'config': schemas.MAPPING, 'sha256': schemas.TEXT, 'model': schemas.TEXT,
    'version': schemas.whole(1, legacy.VERSION)}
CAPTION_LENGTH = 24  # tokens, with the end token


def save(
    path: str | os.PathLike, tree: Mapping[str, Any],
    record: Mapping[str, Any], dtype: str = 'float32'
) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes a safetensors file, and its record as a JSON file beside it.

  Args:
    path: of the safetensors file, ending in .safetensors.
    tree: nested dict of arrays; tensors are named 'a/b/c'.
    record: JSON content: how the weights were trained. The version of the
      config's keys, the dtype, the number of parameters, the SHA-256 and the
      digest are added.
    dtype: 'float32' or 'float16', of the floating-point tensors on disk.

  Returns:
    The paths of the safetensors file and of the record.

  Raises:
    UserError: a name contains a '/', or the folder cannot be written.
  """
  path = pathlib.Path(path)
  tensors = {name: _stored(x, dtype) for name, x in _flatten(tree).items()}
  content = safetensors.numpy.save(tensors)
  record = {**record, 'version': legacy.VERSION, 'dtype': dtype,
            'parameters': int(sum(x.size for x in tensors.values())),
            'sha256': hashlib.sha256(content).hexdigest()}
  # As JSON has it: tuples are lists, and numbers of NumPy are Python's.
  record = files.parse_json(
      json.dumps(record, default=float).encode(), 'the record', nan=True)
  record['digest'] = _digest(record)
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_suffix('.json')
  files.write_bytes(path, content)
  text = json.dumps(record, indent=2) + '\n'
  files.write_bytes(beside, text.encode())
  return path, beside


def load(path: str | os.PathLike, task: str | None = None
         ) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the files that `save` wrote.

  Args:
    path: of the safetensors file, or the name of a shipped one without suffix.
    task: that the weights must be of, by the config in their record; None for
      any.

  Returns:
    (nested dict of NumPy arrays, with floating-point tensors as float32;
    record, with tuples for lists and its config under the present names of
    the keys).

  Raises:
    UserError: a file is missing or damaged, or of another task.
  """
  path = pathlib.Path(path)
  shipped = FOLDER / f'{path}.safetensors'
  if shipped.parent == FOLDER and shipped.is_file():
    path = shipped
  beside = path.with_suffix('.json')
  for file in (path, beside):
    if not file.is_file():
      raise UserError(f'The weights file {file} is missing; get it again.')
  record = files.read_json(beside, _RECORD)
  # Records of earlier versions have no digest.
  if record.get('digest') not in (None, _digest(record)):
    raise UserError(f'{beside} is damaged or was edited: its digest is not '
                    'that of its content; get it again.')
  record = files.to_tuples(record)
  schemas.check(beside, record, {'sha256': schemas.TEXT}, required=True)
  if 'config' in record:
    record['config'] = legacy.upgrade(
        record['config'], record.get('version', 1))
  content = path.read_bytes()
  if hashlib.sha256(content).hexdigest() != record['sha256']:
    raise UserError(
        f'The weights file {path} is truncated or damaged: its SHA-256 is not '
        f'the one in {beside.name}; get it again.')
  found = record.get('config', {}).get('task')
  if task not in (None, found):
    raise UserError(f'The weights file {path} is of the task {found!r}; give '
                    f'weights of the task {task!r}.')
  try:
    tensors = safetensors.numpy.load(content)
  except Exception as error:  # Types that NumPy has not are KeyErrors.
    raise UserError(f'{path} is not a safetensors file of gen3d '
                    f'({excerpt(error)}); get it again.') from error
  tree = {}
  for name, x in tensors.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise UserError(f'{path} has a tensor {excerpt(parent)} with others '
                        'below it; get it again.')
    floating = np.issubdtype(x.dtype, np.floating)
    node[last] = x.astype(np.float32) if floating else x
  return tree, record


def check_fits(path: str | os.PathLike, tree: Any, like: Any,
               name: str = 'model') -> None:
  """Checks that weights are those of a network.

  Args:
    path: of their file, for the message.
    tree: the weights.
    like: weights of the network, as arrays or shapes.
    name: of the network, for the message.

  Raises:
    UserError: they differ in structure or shapes.
  """
  shapes_of = functools.partial(jax.tree.map, np.shape)
  if shapes_of(tree) != shapes_of(like):
    raise UserError(f'{path} is of another {name} than the config describes; '
                    'give one that was trained with the same sizes.')


def _digest(record: Mapping[str, Any]) -> str:
  """SHA-256 of a record without its digest, of which spaces are no part."""
  content = {key: x for key, x in record.items() if key != 'digest'}
  return hashlib.sha256(
      json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stored(x, dtype):
  """Returns an array as it is on disk: contiguous, floats as `dtype`."""
  x = np.asarray(x)
  floating = jnp.issubdtype(x.dtype, jnp.floating)
  return np.asarray(x.astype(dtype) if floating else x, order='C')


def _flatten(tree, prefix=''):
  """Returns {'a/b/c': array} of a nested dict."""
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

  def __init__(self, path: str | os.PathLike):
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(
          files.read_file(path).decode())
    except Exception as error:  # The library raises no narrower kind.
      raise UserError(f'The tokenizer {path} is missing or damaged '
                      f'({excerpt(error)}); get it again.') from error
    self.vocab_size = self._tokenizer.get_vocab_size()

  def encode(
      self, texts: Sequence[str], length: int = CAPTION_LENGTH
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens int32 [N, length], mask float32 [N, length]).

    Longer texts are truncated; the last token is always the end token. Raises
    UserError for texts that choices.check_prompt refuses.
    """
    tokens = np.zeros((len(texts), length), np.int32)
    for row, text in zip(tokens, texts):
      check_prompt(text)
      ids = self._tokenizer.encode(text.lower()).ids[:length - 1] + [1]
      row[:len(ids)] = ids
    return tokens, (tokens != 0).astype(np.float32)

  def fits(self, text: str, length: int = CAPTION_LENGTH) -> bool:
    """Returns True if `encode` truncates nothing of a text."""
    return len(self._tokenizer.encode(text.lower()).ids) < length


@functools.cache
def tokenizer() -> Tokenizer:
  """Returns the shipped Tokenizer, of the shapes world's captions."""
  return Tokenizer(FOLDER / 'tokenizer.json')
