"""Files of a folder or a zip, and images in them, read from any thread."""

import os
import pathlib
import threading
import zipfile
from collections.abc import Callable

import numpy as np

from gen3d import files, pixels
from gen3d.choices import UserError, excerpt

Read = Callable[[str], bytes]  # file name -> content


def open_folder(path: pathlib.Path) -> tuple[list[str], Read]:
  """File names in a folder and below it, and a function that reads one."""

  def read(name):
    return files.read_file(path / name)

  return [p.relative_to(path).as_posix() for p in path.rglob('*')], read


def open_zip(path: pathlib.Path) -> tuple[list[str], Read]:
  """File names in a zip, and a function that reads one.

  All threads share one handle, since each handle lists the files anew: for
  FFHQ that would be a second and 80 MB a thread.

  Raises:
    UserError: the zip is damaged; the function raises it for one file.
  """
  damaged = lambda name, error: UserError(
      f'{name} is damaged ({excerpt(error)}); get the zip again.')
  # The errors of zipfile have no common base: there are those of zlib and
  # lzma, EOFError, RuntimeError for a password, NotImplementedError for a
  # version or a compression.
  try:
    archive = zipfile.ZipFile(path)
  except Exception as error:
    raise damaged(path, error) from error
  lock = threading.Lock()

  def read(name):
    files.check_zip(archive, path, name)
    try:
      with lock:  # ZipFile counts its open members without a lock.
        member = archive.open(name)
      try:
        return member.read()
      finally:
        with lock:
          member.close()
    except Exception as error:
      where = f'{path}: {excerpt(name)[1:-1]}'
      raise damaged(where, error) from error

  return archive.namelist(), read


def decode(path: str | os.PathLike, name: str, content: bytes,
           side: int | None = None) -> np.ndarray:
  """An image file's content as uint8 [H, W, 3].

  Transparent pixels are composited over white, gray becomes three channels.

  Args:
    path: of the collection, for messages.
    name: of the file in it.
    content: of the file.
    side: pixels per side that it must have, checked before it is decoded;
      None for any size.

  Raises:
    UserError: it is not an image, has another size, or more than
      files.MAX_PIXELS.
  """
  try:
    with pixels.open_checked(content) as image:
      size = image.size
      if side is None or size == (side, side):
        # A quarter faster than np.asarray of the image.
        rgb = pixels.to_rgb(image)
        return np.frombuffer(rgb.tobytes(), np.uint8).reshape(*size[::-1], 3)
  except Exception as error:  # Pillow raises many kinds for one damage.
    raise pixels.unreadable(f'{path}: {excerpt(name)[1:-1]}',
                            content[:pixels.HEAD], error) from error
  raise UserError(
      f'{path}: {excerpt(name)[1:-1]} has {size[0]} x {size[1]} pixels, but '
      f'the others have {side} x {side}; resize it.')
