"""Files: atomic writes, bounded reads, image formats, the cache folder.

A file that is read may be damaged, or made to harm: what it declares is
checked before memory is allocated for it.
"""

import atexit
import contextlib
import errno
import functools
import json
import os
import pathlib
import re
import secrets
import shutil
import stat
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Generator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from gen3d import schemas
from gen3d.choices import UserError, excerpt

# Without a list of formats, Pillow tries all of them, whatever the suffix of
# the file; for PostScript it starts Ghostscript.
IMAGE_FORMATS = ('PNG', 'JPEG', 'WEBP', 'TIFF', 'BMP')
MAX_PIXELS = 100_000_000  # of an image, which decodes to 0.4 GB
# An image may decode to this many bytes, and to this many times its own size,
# which a mask without much in it can have; images that are one color have more.
_DECODED_BYTES, _DECODED_RATIO = 2 ** 26, 2000
# Pillow warns of a limit of its own, below this one.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
_TOKEN_BYTES = 8  # in the names of temporary files
_TEMPORARY = re.compile(rf'\..+\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}(\.\w+)?')
_MAX_BYTES = 2 ** 30  # of a file that is read whole
# A zip may unpack to this many bytes, and to this many times its own size.
# Images and weights hardly shrink; bombs have ratios of 1,000 and more.
_UNPACKED_BYTES, _UNPACKED_RATIO = 2 ** 26, 20
_MAX_DEPTH = 64  # of nested lists and mappings in JSON
_MAX_DIGITS = 20  # of an integer in JSON: those of 64 bits


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Generator[pathlib.Path]:
  """Yields a temporary path beside `path`; renamed to it on success.

  The temporary name is unique among processes and threads, and keeps the
  suffix, by which writers choose a format. On an error the temporary file is
  removed and the earlier `path` stays.

  Raises:
    UserError: the folder cannot be made or written to, or the disk is full.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(
      f'.{path.stem}.{secrets.token_hex(_TOKEN_BYTES)}{path.suffix}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.touch()
  except OSError as error:
    error.filename = str(path)  # not the temporary one
    raise UserError(
        f'Cannot write {path}: {error.strerror or error}.') from error
  try:
    yield temporary
    os.replace(temporary, path)
  except OSError as error:
    if not is_full(error):
      raise
    error.filename = str(path)
    raise UserError(f'Cannot write {path}: {error.strerror}; free space there '
                    'and run the same command again.') from error
  finally:
    temporary.unlink(missing_ok=True)


def is_full(error: BaseException | None) -> bool:
  """Whether an error says that a disk takes no more, or is read-only."""
  return isinstance(error, OSError) and error.errno in (
      errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def remove_temporary(folder: pathlib.Path) -> None:
  """Removes what killed processes have left of `atomic_write`.

  Args:
    folder: where no other process is writing; folders in it are searched, too,
      but none in these.
  """
  for path in (*folder.glob('.*'), *folder.glob('*/.*')):
    if _TEMPORARY.fullmatch(path.name) and path.is_file():
      path.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file by `atomic_write`; raises the same errors."""
  with atomic_write(path) as temporary:
    temporary.write_bytes(content)


def cache_dir() -> pathlib.Path:
  """Returns the folder of caches: $GEN3D_CACHE, else ~/.cache/gen3d.

  Where it cannot be written, it is a temporary folder of this process, and a
  note is printed once.
  """
  given = os.environ.get('GEN3D_CACHE')
  path = (pathlib.Path(given).expanduser() if given else home_cache())
  return path if _is_writable(path) else _temporary_cache(path)


def home_cache() -> pathlib.Path:
  """Returns ~/.cache/gen3d, or a temporary path where there is no home."""
  try:
    return pathlib.Path.home() / '.cache' / 'gen3d'
  except RuntimeError:
    return pathlib.Path(tempfile.gettempdir()) / f'gen3d-{os.getuid()}'


def _is_writable(path: pathlib.Path) -> bool:
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError:
    return False
  return os.access(path, os.W_OK | os.X_OK)


@functools.cache
def _temporary_cache(path: pathlib.Path) -> pathlib.Path:
  """A folder instead of the cache at `path`; deleted when the process ends."""
  folder = tempfile.mkdtemp(prefix='gen3d-cache-')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  print(f'Nothing is kept for the next run, because {path} cannot be written; '
        'set GEN3D_CACHE to a folder that can.', file=sys.stderr)
  return pathlib.Path(folder)


def check_regular(path: str | os.PathLike) -> os.stat_result:
  """The status of a file or folder that is no pipe and no device.

  Opening a pipe would wait for its writer, and a device may have no end.

  Raises:
    UserError: it is one.
    OSError: it is missing or cannot be read.
  """
  status = os.stat(path)
  if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
    raise UserError(f'{path} is no regular file but a pipe or a device; '
                    'remove it.')
  return status


def read_file(path: str | os.PathLike) -> bytes:
  """The content of a regular file of at most 1 GB.

  Raises:
    UserError: it is missing, cannot be read, is larger, or is a pipe or a
      device, which could be read without end.
  """
  try:
    status = check_regular(path)
    if status.st_size > _MAX_BYTES:
      raise UserError(f'{path} has {status.st_size:,} bytes, more than the '
                      f'{_MAX_BYTES:,} that are read; give another file.')
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror or error}); get '
                    'it again or remove it.') from error


def read_json(path: str | os.PathLike, schema: schemas.Schema | None = None,
              kind: type = dict, remedy: str = 'get it again',
              nan: bool = False) -> Any:
  """The content of a JSON file; see `parse_json`.

  Raises:
    UserError: as `read_file` and `parse_json`.
  """
  return parse_json(read_file(path), path, schema, kind, remedy, nan)


def read_result(path: str | os.PathLike, schema: schemas.Schema | None = None
                ) -> dict[str, Any] | None:
  """A JSON file of results that can be made again; None where it is missing.

  None also where it is damaged, which is noted on stderr.
  """
  if not os.path.exists(path):
    return None
  try:
    content = read_json(path, nan=True)
    if schema is not None:
      schemas.check(path, content, schema, required=True)
    return content
  except UserError:
    report_damage(path)
    return None


def parse_json(content: bytes, where: Any,
               schema: schemas.Schema | None = None, kind: type = dict,
               remedy: str = 'get it again', nan: bool = False,
               errors: str = 'strict') -> Any:
  """The value of a JSON text in UTF-8, UTF-16 or UTF-32.

  A byte order mark may precede it.

  Args:
    content: the text.
    where: its file, for messages.
    schema: of the keys of the mapping, or None.
    kind: type that the value must have: dict, or object for any.
    remedy: end of the messages.
    nan: whether NaN and infinities are accepted, as in results.
    errors: of bytes.decode: what becomes of bytes of other encodings.

  Raises:
    UserError: it is not JSON, is nested too deep, has NaN, an infinity or half
      a surrogate pair, or does not keep the kind or the schema.
  """
  def refuse(reason: str) -> UserError:
    return UserError(f'{where} is not JSON ({reason}); {remedy}.')

  try:
    encoding = json.detect_encoding(content)
    text = content.decode(encoding, errors)
    value = json.loads(text, parse_int=_parse_int,
                       parse_constant=float if nan else _refuse_constant)
    # Only escapes can be halves, which no file or terminal could be given.
    if re.search(r'\\u[dD][89a-fA-F]', text):
      json.dumps(value, ensure_ascii=False).encode()
  except RecursionError:
    raise refuse(f'it is nested deeper than {_MAX_DEPTH}') from None
  except UnicodeEncodeError as error:
    raise refuse('it has half a surrogate pair') from error
  except ValueError as error:
    raise refuse(excerpt(error)) from error
  if _is_deep(value):
    raise refuse(f'it is nested deeper than {_MAX_DEPTH}')
  if not isinstance(value, kind):
    raise UserError(f'{where} contains no JSON object but {excerpt(value)}; '
                    f'{remedy}.')
  if schema is not None:
    schemas.check(where, value, schema)
  return value


def _refuse_constant(name):
  raise ValueError(f'it has the value {name}')


def _parse_int(digits):
  """An integer; a float, which may be infinite, where it has over 64 bits."""
  return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _is_deep(value):
  """Whether lists and mappings are nested deeper than _MAX_DEPTH."""
  level = [value]
  for _ in range(_MAX_DEPTH):
    children = []
    for node in level:
      values = node.values() if isinstance(node, dict) else (
          node if isinstance(node, list) else ())
      # The types first: most lists are of numbers, and long.
      if not {dict, list}.isdisjoint(map(type, values)):
        children += [x for x in values if isinstance(x, dict | list)]
    if not children:
      return False
    level = children
  return True


def check_zip(archive: zipfile.ZipFile, where: Any,
              name: str | None = None) -> None:
  """Refuses a zip, or one member, that is far smaller than its content.

  The sizes are those that the zip declares; zipfile reads no more of a member
  than its declared size.

  Args:
    archive: open zip.
    where: its file, for the message.
    name: of the member; None for all of them together.

  Raises:
    UserError: names the file, its size and that of its content.
  """
  members = archive.infolist() if name is None else [archive.getinfo(name)]
  unpacked = sum([member.file_size for member in members])
  if unpacked <= _UNPACKED_BYTES:
    return
  packed = sum(member.compress_size for member in members)
  if unpacked > _UNPACKED_RATIO * packed:
    inside = '' if name is None else f': {excerpt(name)[1:-1]}'
    raise UserError(
        f'{where}{inside} would unpack from {packed:,} to {unpacked:,} bytes, '
        'as no images or weights do; get it again, or store it uncompressed.')


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The arrays of an .npz file; none of Python objects.

  Raises:
    UserError: the file is missing, is another one, is damaged, or would
      unpack to far more than its size.
  """
  try:
    check_regular(path)
    # Not numpy.load, which also opens other formats under this name.
    with zipfile.ZipFile(path) as archive:
      check_zip(archive, path)
      arrays = {}
      for name in archive.namelist():
        with archive.open(name) as member:
          arrays[name.removesuffix('.npy')] = np.lib.format.read_array(
              member, allow_pickle=False)
      return arrays
  except UserError:
    raise
  except Exception as error:  # zipfile, NumPy and zlib have many.
    raise UserError(f'{path} cannot be read as .npz, it is cut off or damaged '
                    f'({excerpt(error)}); get it again.') from error


def read_cached(path: pathlib.Path, names: list[str]
                ) -> list[np.ndarray] | None:
  """Arrays of an .npz file in the cache folder; None where it is not usable.

  A file that is there but damaged is named on stderr, since the work that it
  saves is then done again.
  """
  if not path.exists():
    return None
  try:
    arrays = read_npz(path)
    return [arrays[name] for name in names]
  except (UserError, KeyError):
    report_damage(path)
    return None


def report_damage(path: str | os.PathLike) -> None:
  """Notes on stderr that a file of results is damaged and made again."""
  print(f'{path} is damaged and is made again.', file=sys.stderr)


def nearest_present(path: str | os.PathLike) -> pathlib.Path:
  """Returns the absolute path, or the nearest of its parents that exists."""
  path = pathlib.Path(path).absolute()
  return next(p for p in (path, *path.parents) if p.exists())


def check_folder(path: str | os.PathLike) -> None:
  """Raises UserError where a folder for results cannot be made or written.

  For before the work; it makes nothing.
  """
  present = nearest_present(path)
  if not present.is_dir():
    raise UserError(f'{present} is a file; name a folder for the results '
                    '(--out).')
  if not os.access(present, os.W_OK | os.X_OK):
    raise UserError(f'{present} cannot be written to; name another folder for '
                    'the results (--out).')


def is_system_file(name: str | os.PathLike) -> bool:
  """True for what operating systems put beside files.

  Those are ._NAME and .DS_Store, all below __MACOSX, Thumbs.db and
  desktop.ini. `name` is a path with either kind of slash.
  """
  parts = os.fspath(name).replace('\\', '/').split('/')
  return '__MACOSX' in parts or parts[-1].startswith(('._', '.DS_Store')) or (
      parts[-1].lower() in ('thumbs.db', 'desktop.ini'))


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
    UserError: it has more than MAX_PIXELS, by its header, or is far smaller
      than its pixels, or is no regular file; the message is a clause, for a
      sentence that names the file.
    OSError: the file cannot be opened, or (PIL.UnidentifiedImageError, a kind
      of OSError) its content is of no such format. Pillow's other errors
      remain as they are.
  """
  if isinstance(file, str | os.PathLike):
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
      raise UserError('it is no regular file')
    packed = status.st_size
  else:
    packed = file.seek(0, os.SEEK_END)
    file.seek(0)
  try:
    image = Image.open(file, formats=IMAGE_FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
      image.close()
      raise Image.DecompressionBombError
    if 4 * width * height > max(_DECODED_BYTES, _DECODED_RATIO * packed):
      image.close()
      raise UserError(f'its {packed:,} bytes would decode to {width:,} x '
                      f'{height:,} pixels, as those of no photograph do')
  except Image.DecompressionBombError:
    raise UserError(f'it has more than {MAX_PIXELS:,} pixels') from None
  return image


@contextlib.contextmanager
def restricted_image_formats() -> Generator[None, None, None]:
  """Lets Pillow open only IMAGE_FORMATS of MAX_PIXELS, in this process.

  For libraries that call PIL.Image.open without a list of formats, as trimesh
  does for textures. Pixels may be read later: the format of an opened image
  does not change.
  """
  # All plugins are loaded first, since Pillow would load (and try) them where
  # the registered formats do not fit.
  Image.init()
  registered, limit = list(Image.ID), Image.MAX_IMAGE_PIXELS
  Image.ID[:] = [name for name in registered if name in IMAGE_FORMATS]
  Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # It refuses twice this number.
  try:
    yield
  finally:
    Image.ID[:], Image.MAX_IMAGE_PIXELS = registered, limit
