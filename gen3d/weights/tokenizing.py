"""Tokenizers of transformers, in folders beside a text encoder."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from absl import logging

from gen3d import files
from gen3d.choices import UserError, check_prompt, excerpt


class Tokenizer:
  """A tokenizer of transformers that cuts or pads texts to one length."""

  def __init__(self, tokenizer: Any, length: int) -> None:
    """`tokenizer` is that of transformers, `length` in tokens."""
    self._tokenizer, self._length = tokenizer, length

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """N strings -> (tokens int32, mask float32) [N, length].

    The mask is 0 at padding. A warning names texts that are cut.

    Raises:
      UserError: a text is too long for any encoder.
    """
    for text in texts:
      check_prompt(text)
      if not self.fits(text):
        logging.warning(
            'The text encoder takes %d tokens; the end of %r is ignored.',
            self._length, text if len(text) < 60 else f'{text[:60]}...')
    encoded = self._tokenizer(
        list(texts), padding='max_length', truncation=True,
        max_length=self._length, return_tensors='np')
    return (encoded['input_ids'].astype(np.int32),
            encoded['attention_mask'].astype(np.float32))

  def fits(self, text: str) -> bool:
    """True if no part of a text is cut."""
    encoded = self._tokenizer([text], truncation=False, verbose=False)
    return len(encoded['input_ids'][0]) <= self._length


def load_tokenizer(path: str | os.PathLike, vocab: int, length: int = 77
                   ) -> Tokenizer:
  """The tokenizer in a folder.

  The padding token is that of the folder: Stable Diffusion 1 was trained with
  its last token as padding, Stable Diffusion 2 with token 0.

  Args:
    path: folder as transformers saves it.
    vocab: number of tokens in the vocabulary of the text encoder.
    length: in tokens, to which each text is cut or padded.

  Raises:
    UserError: the folder contains no tokenizer, or that of another encoder.
  """
  if not pathlib.Path(path).is_dir():
    raise UserError(f'There is no folder {path}; a checkpoint with a text '
                    'encoder has its tokenizer there.')
  import transformers  # This import takes seconds.
  for file in pathlib.Path(path).glob('*.json'):
    files.read_json(file)
  _check_merges(pathlib.Path(path))
  try:
    with _in_utf8(pathlib.Path(path)) as folder:
      tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
          str(folder), local_files_only=True)
  except Exception as error:  # tokenizers raises no narrower kind
    raise UserError(f'{path} contains no tokenizer that transformers can read '
                    f'({excerpt(error)}); download it again.') from error
  if tokenizer.pad_token_id is None:
    raise UserError(f'The tokenizer in {path} has no padding token; download '
                    'its tokenizer_config.json again.')
  # transformers builds an empty tokenizer when files are missing.
  if not vocab / 2 < len(tokenizer) <= vocab:
    raise UserError(
        f'The tokenizer in {path} has {len(tokenizer)} tokens and the text '
        f'encoder {vocab}: files are missing, or it belongs to another model; '
        'download both from one checkpoint.')
  return Tokenizer(tokenizer, length)


@contextlib.contextmanager
def _in_utf8(folder: pathlib.Path) -> Generator[pathlib.Path]:
  """The folder, or one with its texts in UTF-8, as transformers needs them."""
  texts = {}
  for file in (*folder.glob('*.json'), *folder.glob('merges.txt')):
    content = files.read_file(file)
    text = _decode(content).encode()
    if text != content:
      texts[file.name] = text
  if not texts:
    yield folder
    return
  with tempfile.TemporaryDirectory() as name:
    copy = pathlib.Path(name)
    for file in folder.resolve().iterdir():
      if file.name in texts:
        (copy / file.name).write_bytes(texts[file.name])
      else:  # The folder can have weights, too, which are large.
        (copy / file.name).symlink_to(file)
    yield copy


def _decode(content: bytes) -> str:
  """A text that begins with two ASCII characters, in any Unicode encoding."""
  return content.decode(json.detect_encoding(content))


def _check_merges(folder: pathlib.Path) -> None:
  """Checks that merges.txt makes all words of vocab.json, which are numbered.

  With fewer merges or other numbers, a tokenizer gives other tokens without an
  error.

  Raises:
    UserError: there are words that no merge makes, or numbers are missing.
  """
  file, vocab = folder / 'merges.txt', folder / 'vocab.json'
  if not (file.is_file() and vocab.is_file()):
    return
  try:
    lines = _decode(files.read_file(file)).splitlines()
  except UnicodeDecodeError as error:
    raise UserError(f'{file} is damaged ({excerpt(error)}); download it again.'
                    ) from error
  made = {''.join(line.split()) for line in lines}
  words = files.read_json(vocab)
  if not (all(type(x) is int for x in words.values())
          and sorted(words.values()) == list(range(len(words)))):
    raise UserError(f'{vocab} does not number its {len(words)} words from 0 '
                    f'to {len(words) - 1}; download it again.')
  # Single letters and special tokens, such as <|endoftext|>, need no merge.
  wanted = {word for word in words
            if len(word.removesuffix('</w>')) > 1
            and not (word.startswith('<') and word.endswith('>'))}
  if wanted - made:
    raise UserError(
        f'{file} lacks the merges of {len(wanted - made)} of the {len(wanted)} '
        f'words in {vocab.name}, such as {excerpt(min(wanted - made))}; '
        'download both again.')
