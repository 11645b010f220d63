"""The other processes of a run: waits for them, and notices who is gone.

Every process counts in the key-value store of JAX's coordinator, which runs in
process 0. A process whose count stands still is gone, or stopped. JAX itself
notices it later, and ends the others by SIGABRT with a stack of C++; that is
what remains where a version of JAX has no such store, or no such record of the
processes.
"""

import contextlib
import ctypes
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import jax

from gen3d import notices
from gen3d.choices import UserError
from gen3d.engine import stopping

_BEAT = 2.0  # seconds between two counts
_GONE = 30.0  # a process without a count for these seconds is gone
_FAILED = 7.0  # the same after an exchange between processes has failed
_JAX_LIMIT = 24 * 3600  # of JAX's own watch, which is not to interfere
_FOLDER = 'gen3d/alive/'
# What JAX writes before it ends the process.
_FATAL = re.compile(rb'(?i)terminating process because the [\w ]*'
                    rb'(distributed|coordination) service')
# The record of a run of one process.
_ALONE = types.SimpleNamespace(client=None, num_processes=1, process_id=0,
                               coordinator_address='')


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
  # JAX's own watch is not to interfere with this one. The others wait while
  # process 0 writes the results.
  limits = {} if _state() is _ALONE else {
      'heartbeat_timeout_seconds': _JAX_LIMIT,
      'shutdown_timeout_seconds': _JAX_LIMIT}
  try:
    with notices.slow('Waiting for the other processes of the run, at most '
                      f'{seconds} seconds'):
      start(initialization_timeout=_JAX_LIMIT, **limits)
  except (RuntimeError, ValueError) as error:
    raise UserError('The processes of the run cannot be connected '
                    f'({error}); check JAX_COORDINATOR_ADDRESS.') from error
  finally:
    joined.set()
  if _state() is _ALONE:
    notices.message(
        f'JAX {jax.__version__} has another record of the processes of a run '
        'than gen3d knows: they do not watch each other, and where one ends, '
        'the others end after about two minutes, with a message of JAX.')
  if several():
    _counts.update({})
    _check_store()
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
  """JAX's record of the processes; _ALONE where it has none that is known.

  Not jax.process_count(), which starts the devices.
  """
  try:
    from jax._src import distributed
    state: Any = distributed.global_state
  except (ImportError, AttributeError):
    return _ALONE
  return state if all(hasattr(state, name) for name in vars(_ALONE)) else _ALONE


def _check_store():
  """Raises UserError where the key-value store of JAX is another one."""
  try:
    _exchange(0)
  except (AttributeError, TypeError) as error:
    raise UserError(
        f'The processes of a run cannot watch each other with JAX '
        f'{jax.__version__}, whose key-value store is another one ({error}); '
        'install jax 0.10.2, or use one process.') from error
  except Exception:  # A process that does not answer is told of by `_watch`.
    pass


def _exchange(count):
  """Writes the count of this process, and reads those of all."""
  client = _state().client
  client.key_value_set(f'{_FOLDER}{_state().process_id}', str(count),
                       allow_overwrite=True)
  _counts.update({int(key.removeprefix(_FOLDER)): value for key, value
                  in client.key_value_dir_get(_FOLDER)})


def _count():
  """Counts and reads the counts, until JAX is shut down."""
  for count in itertools.count():
    if not several():
      return
    # An exchange with a coordinator that does not answer fails after minutes.
    with contextlib.suppress(Exception):
      _exchange(count)
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
      if _FATAL.search(text):
        stopping.tell(_sentence(0))
        stopping.end(2)
      os.write(real, text)

  threading.Thread(target=forward, daemon=True).start()
