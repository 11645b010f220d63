"""Checks of the place of a run's files, and its error messages."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Generator

from gen3d import files
from gen3d.choices import excerpt, printable
from gen3d.engine import peers
from gen3d.engine.stopping import AtOnce

# Files and folders of a checkpoint while Orbax writes it, whatever its size.
_ENTRIES = 30
_SAVING = '.orbax-checkpoint-tmp'  # end of the name of a folder until then
# Of TensorStore and Orbax, which do not raise OSError.
_TEXTS = re.compile(
    'RESOURCE_EXHAUSTED|PERMISSION_DENIED|NOT_FOUND|No space left|'
    'Disk quota exceeded|Read-only file system|Permission denied|'
    'File too large|No such file or directory|Input/output error')
_CODE = re.compile(r"os_error_code='(\d+)'")


class Unwritable(AtOnce):
  """A file of a run cannot be written."""


def check_room(folder: pathlib.Path, size: int) -> None:
  """Checks that a checkpoint may fit into the file system of a folder.

  It need have only half of `size`, because checkpoints are compressed.

  Args:
    folder: of the checkpoints.
    size: bytes of the arrays.

  Raises:
    OSError: there is too little room, or the folder cannot be written.
  """
  if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
    raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
  if not hasattr(os, 'statvfs'):  # Not on Windows.
    return
  room = os.statvfs(folder)
  free = room.f_bavail * room.f_frsize
  if free < size // 2:
    raise OSError(errno.ENOSPC, f'{free:,} bytes are free, and a checkpoint '
                  f'has about {size:,}', str(folder))
  # File systems without a fixed number of files say that they have 0.
  if room.f_files and room.f_favail < _ENTRIES:
    raise OSError(errno.ENOSPC, f'{room.f_favail} more files can be made, and '
                  f'a checkpoint needs {_ENTRIES}', str(folder))


def check_present(workdir: pathlib.Path) -> None:
  """Raises AtOnce where the workdir of a running training is gone.

  What a save in progress has made again in its place is removed.
  """
  if not (workdir / 'config.json').is_file():
    _remove_save_in_progress(workdir / 'checkpoints')
    raise AtOnce(
        f'The workdir {workdir} was deleted or moved while the training used '
        'it; move it back and run the same command again, which goes on from '
        'its newest checkpoint, or begins anew where there is no workdir.')


def _remove_save_in_progress(checkpoints):
  """Removes what Orbax's threads may still be writing, and empty folders."""
  while paths := list(checkpoints.glob(f'*{_SAVING}')):
    for path in paths:
      shutil.rmtree(path, ignore_errors=True)
    time.sleep(0.2)
  with contextlib.suppress(OSError):  # Other files are there.
    checkpoints.rmdir()
    checkpoints.parent.rmdir()


def os_error(error: Exception, path: pathlib.Path) -> OSError | None:
  """The OSError for what a library has raised in writing `path`.

  None where the reason is another one.
  """
  if isinstance(error, OSError):
    error.filename = error.filename or str(path)
    return error
  code = _CODE.search(str(error))
  if code:
    return OSError(int(code[1]), os.strerror(int(code[1])), str(path))
  if _TEXTS.search(str(error)):
    return OSError(errno.EIO, excerpt(error), str(path))
  return None


@contextlib.contextmanager
def failures(workdir: pathlib.Path, saved: Callable[[], int]
             ) -> Generator[None]:
  """Turns failures of a disk or of other processes into one sentence.

  Args:
    workdir: of the run.
    saved: returns the step of the newest checkpoint, or 0.

  Raises:
    AtOnce: a file of the run cannot be written, the workdir is gone, or
      another process of the run has ended.
  """
  try:
    yield
  except AtOnce:
    raise
  except Exception as error:
    cause = _os_error(error, workdir)
    if cause is None or not files.is_full(cause):
      peers.check(error)
    if cause is None:
      raise
    check_present(workdir)
    step = saved()
    after = (f'it goes on from step {step}, the last good checkpoint' if step
             else 'it begins anew, for no checkpoint was written yet')
    raise Unwritable(
        f'{os.fsdecode(cause.filename or workdir)} cannot be written '
        f'({printable(cause.strerror or str(cause), 200)}); free space there, '
        f'or make it writable, and run the same command again: {after}.'
    ) from error


def _os_error(error, workdir):
  """The OSError among the causes that is about files of the workdir."""
  while error is not None:
    if isinstance(error, OSError) and (
        files.is_full(error) or error.filename is not None and pathlib.Path(
            os.fsdecode(error.filename)).is_relative_to(workdir)):
      return error
    error = error.__cause__
  return None
