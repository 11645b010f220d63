"""Caption files for R-precision: text, one caption per line.

The 153 object-centric COCO captions of Dream Fields and of the papers after
it are in the public repository google-research/google-research, under
dreamfields/dreamfields/config, in coco_queries_val.py (Apache-2.0), as a Python
list: write each of its strings on a line of its own.
"""

import os
import pathlib

from gen3d.choices import UserError, excerpt


def normalize(caption: str) -> str:
  """Normalizes a caption as Dream Fields does before its text encoder.

  Lower case, without spaces, dots and commas at the ends, then one dot.
  """
  return caption.lower().strip(' .,\t') + '.'


def read(path: str | os.PathLike) -> list[str]:
  """Normalized captions of a file, in its order.

  Raises:
    UserError: the file is missing, empty or not UTF-8 text, or a line is
      blank or a duplicate; names the lines.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f'There is no caption file {path}.')
  try:
    # Without the byte order mark that some editors put before the first line.
    lines = path.read_text('utf-8-sig').splitlines()
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is no UTF-8 text ({error}); give a file with '
                    'one caption per line.') from error
  captions = [normalize(line) for line in lines]
  if not captions:
    raise UserError(f'{path} is empty; it should have one caption per line.')
  # Of a blank line only the dot of `normalize` is left.
  blank = [str(i) for i, caption in enumerate(captions, 1) if caption == '.']
  if blank:
    raise UserError(f'{path} has no caption in line {", ".join(blank)}; '
                    'remove blank lines.')
  first = {}
  for i, caption in enumerate(captions, 1):
    if caption in first:
      raise UserError(
          f'{path} has {excerpt(caption)} twice, in lines {first[caption]} '
          f'and {i}, and retrieval cannot distinguish them; remove one.')
    first[caption] = i
  return captions
