"""Files of a folder or a zip, and images in them, read from any thread."""

import io
import pathlib
import threading
import zipfile
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

from gen3d.choices import UserError
from gen3d.files import open_image

Read = Callable[[str], bytes]  # file name -> content


def open_folder(path: pathlib.Path) -> tuple[list[str], Read]:
  """File names in a folder and below it, and a function that reads one."""

  def read(name):
    try:
      return (path / name).read_bytes()
    except OSError as error:
      raise UserError(f'{path}: {name} cannot be read ({error.strerror}); '
                      'get it again or remove it.') from error

  return [p.relative_to(path).as_posix() for p in path.rglob('*')], read


def open_zip(path: pathlib.Path) -> tuple[list[str], Read]:
  """File names in a zip, and a function that reads one.

  All threads share one handle, since each handle lists the files anew: for
  FFHQ that would be a second and 80 MB a thread.

  Raises:
    UserError: the zip is damaged; the function raises it for one file.
  """
  damaged = lambda name, error: UserError(
      f'{name} is damaged ({first_line(error)}); get the zip again.')
  try:
    archive = zipfile.ZipFile(path)
  except (zipfile.BadZipFile, OSError, ValueError) as error:
    raise damaged(path, error) from error
  lock = threading.Lock()

  def read(name):
    # The errors of zipfile have no common base: there are those of zlib and
    # lzma, EOFError, RuntimeError for a password, NotImplementedError for a
    # compression.
    try:
      with lock:  # ZipFile counts its open members without a lock.
        member = archive.open(name)
      try:
        return member.read()
      finally:
        with lock:
          member.close()
    except Exception as error:
      raise damaged(f'{path}: {name}', error) from error

  return archive.namelist(), read


def decode(name: str, content: bytes) -> np.ndarray:
  """An image file's content as uint8 [H, W, 3].

  Transparency is dropped, gray becomes three channels.

  Args:
    name: of the file, for messages.
    content: of the file.

  Raises:
    UserError: it is not an image, or has more pixels than Pillow accepts.
  """
  try:
    with open_image(io.BytesIO(content)) as image:
      return np.asarray(image.convert('RGB'))
  except (UnidentifiedImageError, OSError, SyntaxError, ValueError,
          Image.DecompressionBombError) as error:
    raise UserError(
        f'{name} cannot be read as an image; get it again or remove it.'
    ) from error


def first_line(error: BaseException) -> str:
  """First line of an error's message, without the final dot."""
  return str(error).strip().partition('\n')[0].rstrip('.')
