"""The other processes of a run: waits for them, and notices who is gone.

Every process counts in the key-value store of JAX's coordinator, which runs in
process 0. A process whose count stands still is gone, or stopped. JAX itself
notices it later, and ends the others by SIGABRT with a stack of C++.
"""

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed

from gen3d import notices
from gen3d.choices import UserError
from gen3d.engine import stopping

_BEAT = 2.0  # seconds between two counts
_GONE = 30.0  # a process without a count for these seconds is gone
_FAILED = 7.0  # the same after an exchange between processes has failed
_JAX_LIMIT = 24 * 3600  # of JAX's own watch, which is not to interfere
_FOLDER = 'gen3d/alive/'
_FATAL = b'Terminating process because the JAX distributed service'


class Lost(stopping.AtOnce):
  """Another process of the run is gone."""


class _Counts:
  """When the count of each process last changed."""

  def __init__(self):
    self.lock, self.seen = threading.Lock(), {}

  def update(self, values: dict[int, str]) -> None:
    now = time.monotonic()
    with self.lock:
      for index in range(_state().num_processes):
        value = values.get(index, '')
        if self.seen.get(index, ('none', 0.))[0] != value:
          self.seen[index] = value, now

  def gone(self, seconds: float) -> int | None:
    """The first process without a change for `seconds`, or None."""
    now = time.monotonic()
    with self.lock:
      late = [index for index, (_, at) in self.seen.items()
              if index != _state().process_id and now - at > seconds]
    return min(late, default=None)


_counts = _Counts()


def join(start: Callable[..., None], seconds: int) -> None:
  """Connects the processes of a run, and watches them from then on.

  Args:
    start: jax.distributed.initialize, with the addresses where JAX cannot
      detect them.
    seconds: in which all processes have to start; else this one ends.
  """
  # Its notifier would take SIGTERM, which stopping.py answers.
  jax.config.update('jax_enable_preemption_service', False)
  _catch_fatal()
  joined = threading.Event()

  def expire():
    if not joined.wait(seconds):
      stopping.tell(_missing(seconds))
      stopping.end(2)

  threading.Thread(target=expire, daemon=True).start()
  try:
    with notices.slow('Waiting for the other processes of the run, at most '
                      f'{seconds} seconds'):
      start(initialization_timeout=_JAX_LIMIT,
            heartbeat_timeout_seconds=_JAX_LIMIT,
            # The others wait while process 0 writes the results.
            shutdown_timeout_seconds=_JAX_LIMIT)
  except (RuntimeError, ValueError) as error:
    raise UserError('The processes of the run cannot be connected '
                    f'({error}); check JAX_COORDINATOR_ADDRESS.') from error
  finally:
    joined.set()
  if several():
    _counts.update({})
    for task in (_count, _watch):
      threading.Thread(target=task, daemon=True).start()


def _missing(seconds: int) -> str:
  """What to say where not all processes have started."""
  state = _state()
  address = state.coordinator_address or ''
  host, _, port = address.rpartition(':')
  missing = f'not all of the {state.num_processes} processes have started'
  try:
    socket.create_connection((host.strip('[]'), int(port)), 2).close()
  except (OSError, ValueError):
    missing = f'process 0 cannot be reached at {address}'
  return (f'Process {state.process_id} has waited {seconds} seconds, and '
          f'{missing}; start all of them together with the same '
          'JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES.')


def several() -> bool:
  """Whether the run has several processes; does not start JAX."""
  return _state().client is not None and _state().num_processes > 1


def end(code: int) -> None:
  """Ends this process after a failure, without JAX's wait for the others.

  Process 0 ends last: with it ends the coordinator, and so the others, which
  may have a message of their own.
  """
  if _state().process_id == 0:
    time.sleep(_BEAT)
  stopping.end(code)


def check(error: Exception) -> None:
  """Raises Lost if an error has come from the end of another process."""
  if isinstance(error, UserError) or not several():
    return
  until = time.monotonic() + _FAILED + 2 * _BEAT
  while time.monotonic() < until:
    gone = _counts.gone(_FAILED)
    if gone is not None:
      raise Lost(_sentence(gone)) from error
    time.sleep(_BEAT / 4)


def _sentence(index: int) -> str:
  return (f'Process {index} of the {_state().num_processes} processes of the '
          'run has ended or does not answer; start all of them again with the '
          'same commands, which go on from the newest checkpoint.')


def _state() -> Any:
  # Not jax.process_count(), which starts the devices.
  return distributed.global_state


def _count():
  """Counts and reads the counts, until JAX is shut down."""
  for count in itertools.count():
    if not several():
      return
    # An exchange with a coordinator that does not answer fails after minutes.
    with contextlib.suppress(Exception):
      _state().client.key_value_set(f'{_FOLDER}{_state().process_id}',
                                    str(count), allow_overwrite=True)
      _counts.update({int(key.removeprefix(_FOLDER)): value for key, value
                      in _state().client.key_value_dir_get(_FOLDER)})
    time.sleep(_BEAT)


def _watch():
  """Ends this process when another one no longer counts."""
  while several():
    gone = _counts.gone(_GONE)
    if gone is not None:
      stopping.tell(_sentence(gone))
      stopping.end(2)
    time.sleep(_BEAT)


def _catch_fatal():
  """One sentence instead of JAX's stack of C++ where the coordinator is gone.

  JAX then writes to stderr and calls abort(), both in C++. What C++ writes is
  read by a thread, which ends the process at this message; abort() is kept
  waiting for it. Python's own messages do not take this way.
  """
  real = os.dup(2)
  sys.stderr = os.fdopen(os.dup(2), 'w', buffering=1,
                         errors='backslashreplace')
  reader, writer = os.pipe()
  os.dup2(writer, 2)
  os.close(writer)
  with contextlib.suppress(OSError, AttributeError, TypeError):
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))

  def forward():
    while text := os.read(reader, 2 ** 16):
      if _FATAL in text:
        stopping.tell(_sentence(0))
        stopping.end(2)
      os.write(real, text)

  threading.Thread(target=forward, daemon=True).start()
