"""Files of a capture's folder: images, splits, matrices in text files."""

import functools
import os
import pathlib
import threading
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gen3d import files, notices
from gen3d.choices import UserError, printable
from gen3d.files import is_system_file

TEST_EVERY = 8  # every eighth image is a test one where no file names a split
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')
# Encodings of names in files that other systems wrote.
_ENCODINGS = ('utf-8', 'cp1252', 'gbk', 'shift_jis', 'cp437')
_TOLD: set[str] = set()
_LOCK = threading.Lock()


def split_of(index: int) -> str:
  """Split of the image `index`, by name, where the files name none."""
  return 'test' if index % TEST_EVERY == 0 else 'train'


def tell(message: str) -> None:
  """Prints a message to stderr; the same one only once in a process."""
  with _LOCK:  # Images are decoded in threads.
    if message not in _TOLD:
      _TOLD.add(message)
      notices.message(printable(message, 1000))


def files_in(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
  """Sorted files of a folder with a suffix, without those of the system."""
  return sorted(f for f in folder.glob(f'*{suffix}') if not is_system_file(f))


def images_in(folder: pathlib.Path) -> list[pathlib.Path]:
  """Sorted image files of a folder, without those of the system.

  Raises:
    UserError: there is no such folder.
  """
  if not folder.is_dir():
    raise UserError(f'{folder} is missing; it should hold the images.')
  return sorted(f for f in folder.iterdir() if _is_image(f))


def _is_image(file: pathlib.Path) -> bool:
  return (file.suffix.lower() in SUFFIXES and not is_system_file(file)
          and os.path.isfile(file))  # False, no error, for odd names


def image_finder(folder: pathlib.Path, any_suffix: bool = False
                 ) -> Callable[[str], pathlib.Path]:
  """A function that gives the file of a name in a capture's files.

  A name that is not there as written is looked for with other slashes, in
  other encodings and Unicode forms, and with letters of another case. Where
  there is none, the result is the path of the name as written. Bytes of a name
  that are not UTF-8 are surrogates, as os.fsdecode has them.

  Args:
    folder: that names are relative to.
    any_suffix: True where a name's suffix may be missing or another one.
  """

  def stem(name):
    path = pathlib.PurePosixPath(name)
    return (path.with_suffix('') if any_suffix
            and path.suffix.lower() in SUFFIXES else path).as_posix()

  @functools.cache  # Listed only where a name is not found.
  def by_key():
    found: dict[str, pathlib.Path] = {}
    for file in sorted(filter(_is_image, folder.rglob('*')), key=lambda f: (
        SUFFIXES.index(f.suffix.lower()), f)):
      found.setdefault(_key(stem(file.relative_to(folder).as_posix())), file)
    return found

  def find(name):
    name = name.replace('\\', '/').removeprefix('./')
    plain = folder / name
    if _is_image(plain):
      return plain
    matches = (by_key().get(_key(stem(s))) for s in _spellings(name))
    return next((file for file in matches if file), plain)

  return find


def _spellings(name: str) -> Iterator[str]:
  """A name, and its bytes in other encodings."""
  yield name
  for encoding in _ENCODINGS:
    try:
      yield os.fsencode(name).decode(encoding)
    except ValueError:
      continue


def _key(name: str) -> str:
  """The same for names that differ in case or in the Unicode form."""
  return unicodedata.normalize('NFC', name).casefold()


def read_json(file: pathlib.Path) -> Any:
  """Content of a JSON file in UTF-8 or UTF-16, with a byte order mark or not.

  Bytes of other encodings become surrogates, as in `read_text`.

  Raises:
    UserError: it is missing, or not JSON.
  """
  return files.parse_json(files.read_file(file), file, kind=object,
                          errors='surrogateescape')


def read_text(file: pathlib.Path) -> str:
  """Content of a text file; bytes that are not UTF-8 become surrogates.

  Raises:
    UserError: as files.read_file.
  """
  return files.read_file(file).decode('utf-8-sig', 'surrogateescape')


def image_folder(path: pathlib.Path, factor: float) -> pathlib.Path:
  """images_{factor} in a capture's folder where there is one, or images."""
  reduced = path / f'images_{factor:g}'
  return reduced if factor != 1 and reduced.is_dir() else path / 'images'


def read_numbers(file: pathlib.Path, count: int = 16) -> np.ndarray:
  """The first `count` numbers of a text file, float64 [count].

  Raises:
    UserError: the file is missing, has other words or fewer numbers.
  """
  # Later ones are not read: NSVF's intrinsics.txt has other values below.
  if not os.path.lexists(file):
    raise UserError(f'{file} is missing.')
  text = read_text(file)
  try:
    numbers = [float(word) for word in text.split()[:count]]
  except ValueError as error:
    raise UserError(f'{file} should hold numbers ({str(error)[:80]}).'
                    ) from error
  if len(numbers) < count:
    raise UserError(f'{file} ends too early: it has {len(numbers)} numbers '
                    f'instead of {count}.')
  return np.array(numbers)
