"""Files: atomic writes, image formats, the cache folder."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Generator
from typing import Any, BinaryIO

from PIL import Image

from gen3d.choices import UserError

# Without a list of formats, Pillow tries all of them, whatever the suffix of
# the file; for PostScript it starts Ghostscript.
IMAGE_FORMATS = ('PNG', 'JPEG', 'WEBP', 'TIFF', 'BMP')


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Generator[pathlib.Path]:
  """Yields a temporary path beside `path`; renamed to it on success.

  The temporary name is unique among processes and threads, and keeps the
  suffix, by which writers choose a format. On an error the temporary file is
  removed and the earlier `path` stays.

  Raises:
    UserError: the folder cannot be made or written to.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(
      f'.{path.stem}.{secrets.token_hex(8)}{path.suffix}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.touch()
  except OSError as error:
    raise UserError(
        f'Cannot write {path}: {error.strerror or error}.') from error
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file by `atomic_write`; raises the same errors."""
  with atomic_write(path) as temporary:
    temporary.write_bytes(content)


def cache_dir() -> pathlib.Path:
  """Returns the folder of caches: $GEN3D_CACHE, else ~/.cache/gen3d."""
  return pathlib.Path(os.environ.get('GEN3D_CACHE') or
                      pathlib.Path.home() / '.cache' / 'gen3d')


def to_tuples(node: Any) -> Any:
  """Returns JSON content with tuples for its lists, as configs have them."""
  if isinstance(node, dict):
    return {key: to_tuples(value) for key, value in node.items()}
  return tuple(map(to_tuples, node)) if isinstance(node, list) else node


def open_image(file: str | os.PathLike | BinaryIO) -> Image.Image:
  """Opens an image file of one of IMAGE_FORMATS; its pixels are read later.

  Args:
    file: path, or binary file that can seek.

  Returns:
    PIL's image, to be closed or used as a context manager.

  Raises:
    OSError: the file cannot be opened, or (PIL.UnidentifiedImageError, a kind
      of OSError) its content is of no such format. Pillow's other errors
      remain as they are.
  """
  return Image.open(file, formats=IMAGE_FORMATS)


@contextlib.contextmanager
def restricted_image_formats() -> Generator[None, None, None]:
  """Lets Pillow open only IMAGE_FORMATS, in this process, while it lasts.

  For libraries that call PIL.Image.open without a list of formats, as trimesh
  does for textures. Pixels may be read later: the format of an opened image
  does not change.
  """
  # All plugins are loaded first, since Pillow would load (and try) them where
  # the registered formats do not fit.
  Image.init()
  registered = list(Image.ID)
  Image.ID[:] = [name for name in registered if name in IMAGE_FORMATS]
  try:
    yield
  finally:
    Image.ID[:] = registered
