"""One writer per workdir, held by a lock of the operating system."""

import contextlib
import os
import pathlib
import platform
from collections.abc import Iterator

from gen3d.choices import UserError

try:
  import fcntl
except ImportError:  # Not on Windows.
  fcntl = None


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[None]:
  """Keeps other processes from holding a workdir, until the context ends.

  The lock is on workdir/.lock, which names the process that holds it and
  remains when it is released. The operating system releases it when the
  process ends, however it ends, so a lock cannot be stale. Where fcntl does
  not exist or the file system has no locks, nothing is held.

  Args:
    workdir: directory that exists.

  Raises:
    UserError: another run holds the lock; the message names its process.
    OSError: workdir/.lock cannot be written, or is a symbolic link.
  """
  if fcntl is None:
    yield
    return
  path = pathlib.Path(workdir) / '.lock'
  # Not truncated before it is locked: it may name the process that holds it.
  # Programs that this process starts do not inherit the descriptor.
  file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
          f'The workdir {workdir} is in use by another run{_holder(file)}; '
          'wait for its end or stop it, or choose another workdir.'
      ) from error
    except OSError:
      pass  # The file system has no locks.
    os.ftruncate(file, 0)
    os.write(file, f'process {os.getpid()} on {platform.node()}\n'.encode())
    yield
  finally:
    os.close(file)  # releases the lock


def _holder(file):
  """Returns ' (process 7 on a_host)', or '' while the file is empty."""
  name = ' '.join(os.read(file, 200).decode(errors='replace').split())
  return f' ({name})' if name else ''
