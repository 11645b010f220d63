"""Files that are written completely or not at all, and where caches are."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path`; renamed to it on success.

  The temporary name keeps the suffix, by which writers choose a format. On
  an error the temporary file is removed and the earlier `path` stays.

  Raises:
    ValueError: the folder cannot be made or written to.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.touch()
  except OSError as error:
    raise ValueError(
        f'Cannot write {path}: {error.strerror or error}.') from error
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes bytes by `atomic_write`; errors as there."""
  with atomic_write(path) as temporary:
    temporary.write_bytes(content)


def cache_dir() -> pathlib.Path:
  """Folder for data that can be made again: $GEN3D_CACHE, ~/.cache/gen3d."""
  return pathlib.Path(os.environ.get('GEN3D_CACHE') or
                      pathlib.Path.home() / '.cache' / 'gen3d')


def to_tuples(node: Any) -> Any:
  """JSON with tuples for its lists: configs have tuples only."""
  if isinstance(node, dict):
    return {key: to_tuples(value) for key, value in node.items()}
  return tuple(map(to_tuples, node)) if isinstance(node, list) else node
