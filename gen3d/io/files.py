"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib


@contextlib.contextmanager
def replacing(path):
  """Yields a temporary path beside `path`; renamed to it on success.

  The temporary name keeps the suffix, by which writers choose a format. On
  an error the temporary file is removed and what `path` was stays.

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
