"""SIGTERM and Ctrl-C, answered within seconds whatever the process does.

Python runs the handlers of signals in its main thread, between two
instructions. While that thread is in a library, such as XLA's compiler, which
may take minutes, they wait. A Watch therefore reads the numbers of the signals
in a thread of its own.
"""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType, TracebackType
from typing import Any, Self

from gen3d.choices import UserError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds for the main thread to answer a signal by itself. Those who send one
# expect an answer within 10 seconds; a preempted machine has 30.
_GRACE = 6.0
_NOTICE = 1.5  # seconds after which Ctrl-C is confirmed
_LATER = 2.0  # seconds after which it is passed on
_SAVING = 30.0  # longest wait for a checkpoint that is being written
_STEP = 18.0  # longest further wait for a step that is replacing the state
_EXIT = 5.0  # longest wait for the threads of libraries after a failure


class AtOnce(UserError):
  """A UserError after which the process cannot wait for its libraries.

  Their threads and exit handlers would wait for a disk or for a process that
  is gone, or print what they cannot do.
  """


def end(code: int) -> None:
  """Ends the process now, without the exit handlers of libraries."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)


class Stopped(SystemExit):
  """The end by SIGTERM while results are computed.

  JAX waits for the computation when Python ends; cli.run does not.
  """


def exit_soon(code: int) -> None:
  """Raises SystemExit; ends the process where that takes over 5 seconds."""
  _limit_exit(code)
  sys.exit(code)


def end_soon(code: int) -> None:
  """Ends the process after the exit handlers, at most 5 seconds later.

  For a process that is stopped at its work: after SystemExit Python would
  destroy what XLA's compiler is using in other threads, a segmentation fault.
  """
  _limit_exit(code)
  with contextlib.suppress(Exception):
    atexit._run_exitfuncs()
  end(code)


def _limit_exit(code):
  def expire():
    time.sleep(_EXIT)
    end(code)

  threading.Thread(target=expire, daemon=True).start()


def tell(text: str) -> None:
  """Prints a line to stderr, also while another thread is printing."""
  line = f'{text}\n' if not sys.stderr.isatty() else f'\n{text}\n'
  with contextlib.suppress(OSError, ValueError):  # ValueError: no such file.
    os.write(sys.stderr.fileno(), line.encode(errors='backslashreplace'))


def _is_interactive() -> bool:
  return hasattr(sys, 'ps1') or 'ipykernel' in sys.modules


def exit_code(number: int) -> int:
  """The exit code after a signal."""
  return 130 if number == signal.SIGINT else 0


class Watch:
  """A context that calls `late` for a signal that is not answered in time.

  It sees only signals that have a handler in Python. Outside the main thread,
  where signals cannot be handled, it does nothing; nor in a notebook, whose
  kernel has other work than this.

  Args:
    late: is called in a thread, with the number of the signal, when the
      context has not ended within 6 seconds of the signal or of the last call
      of `progress`, and for a second Ctrl-C at once. Where it returns a number
      of seconds, it is called again after them.
  """

  def __init__(self, late: Callable[[int], float | None]):
    self._late, self._moved = late, 0.0

  def __enter__(self) -> Self:
    self._active = (threading.current_thread() is threading.main_thread()
                    and not _is_interactive())
    if self._active:
      self._reader, self._writer = socket.socketpair()
      self._writer.setblocking(False)
      self._before = signal.set_wakeup_fd(
          self._writer.fileno(), warn_on_full_buffer=False)
      threading.Thread(target=self._run, daemon=True).start()
    return self

  def __exit__(self, kind: type[BaseException] | None,
               error: BaseException | None, trace: TracebackType | None):
    if self._active:
      signal.set_wakeup_fd(self._before, warn_on_full_buffer=False)
      self._writer.close()

  def progress(self) -> None:
    """Says that the main thread will see the signal."""
    self._moved = time.monotonic()

  def _run(self):
    """Reads the numbers of signals, until the other end is closed."""
    received, at, told = 0, 0.0, False
    with self._reader:
      while True:
        self._reader.settimeout(_NOTICE if received else None)
        try:
          number = self._reader.recv(1)
        except TimeoutError:
          if time.monotonic() - max(at, self._moved) > _GRACE - _NOTICE:
            more = self._late(received)
            if not more:
              return None
            at = time.monotonic() + more - _GRACE
          if not told and received == signal.SIGINT:
            told = True
            tell('Stopping; Ctrl-C again does not wait.')
          continue
        if not number:
          return None
        if number[0] in _SIGNALS:
          if received and number[0] == signal.SIGINT:
            self._late(received)
            return None
          received, at = received or number[0], at or time.monotonic()


@contextlib.contextmanager
def interrupts() -> Generator[None]:
  """Within it, Ctrl-C ends a command within seconds, with exit code 130."""

  def late(number):
    tell('Stopped.')
    end(130)

  if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as nohup wants it
    yield
    return
  signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with Watch(late):
      yield
  finally:
    signal.signal(signal.SIGINT, lambda *_: end(130))


@contextlib.contextmanager
def left_to(send: Callable[[int], None]) -> Generator[None]:
  """Within it, a program that was started answers the signals.

  SIGTERM is passed to `send`. So is SIGINT, seconds later: Ctrl-C in a terminal
  reaches that program too, and one that was sent to this process does not.
  """

  def send_later(number, frame):
    timer = threading.Timer(_LATER, send, (number,))
    timer.daemon = True
    timer.start()

  handlers = {signal.SIGINT: send_later,
              signal.SIGTERM: lambda number, frame: send(number)}
  before = {number: signal.signal(number, handler)
            for number, handler in handlers.items()}
  descriptor = signal.set_wakeup_fd(-1)
  try:
    yield
  finally:
    signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    for number, handler in before.items():
      signal.signal(number, handler)


class Stopping:
  """A context that ends a run at SIGTERM (exit code 0) or Ctrl-C (130).

  The run asks for `received` after each step, and saves and ends by itself.
  Where it does not come to the end of a step within 6 seconds, because a
  program is compiled, an evaluation runs or a step is long, a thread saves the
  state after the last step and ends the process. Where a step is replacing that
  state, the thread waits 18 seconds more for the run to save the next one.

  Args:
    save: (state) saves a state and waits until it is on disk.
    wait: waits for a save in progress.
    latest: returns the step of the newest checkpoint.
  """

  def __init__(self, save: Callable[[Any], None], wait: Callable[[], None],
               latest: Callable[[], int]):
    self.received = 0
    self._save, self._wait, self._latest = save, wait, latest
    self._at_once, self._state, self._done = False, None, 0
    self._waited = False  # for the step in progress
    self._ending = threading.Lock()  # of the thread that ends the run
    self._watch, self._before = Watch(self._late), {}

  def __enter__(self) -> Self:
    self._watch.__enter__()
    # Python allows handlers in the main thread only.
    if threading.current_thread() is threading.main_thread():
      for number in _SIGNALS:
        self._before[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, kind: type[BaseException] | None,
               error: BaseException | None, trace: TracebackType | None):
    self._restore()
    self._watch.__exit__(kind, error, trace)

  def done(self, step: int, state: Any) -> None:
    """Says that a step is done; its state may be saved until the next.

    Args:
      step: number of steps done.
      state: TrainState after it; None where this process cannot save it.
    """
    self._watch.progress()
    self._done, self._state = step, state

  def keep(self) -> None:
    """The caller saves and ends the run; waits if the thread does so."""
    self._ending.acquire()

  def at_once(self) -> None:
    """From now on signals raise SystemExit or KeyboardInterrupt at once.

    So does one that was received before.
    """
    self._at_once = True
    if self.received:
      self._stop()

  def _restore(self):
    """Sets the handlers back to those before this object."""
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _receive(self, number: int, frame: FrameType | None):
    if self.received and number == signal.SIGINT:
      self._restore()
      raise KeyboardInterrupt
    if self.received:  # A sweep passes on what its group has got, too.
      return
    self.received = number
    if self._at_once:
      self._stop()

  def _stop(self):
    tell(f'Stopped before all results were written; step {self._latest()} is '
         'saved, and the same command writes them.')
    if self.received == signal.SIGINT:
      raise KeyboardInterrupt
    raise Stopped(0)

  def _late(self, number):
    """Ends the process from the watching thread, or returns when to do so."""
    # The main thread keeps it while it saves for this reason.
    mine = self._ending.acquire(timeout=_SAVING)
    if mine and not self._at_once:
      thread = threading.Thread(target=self._save_last, daemon=True)
      thread.start()
      thread.join(_SAVING)
      if _is_replaced(self._state) and not self._waited:
        self._waited = True
        self._ending.release()
        return _STEP
    saved = self._latest()
    tell(f'Stopped {_moment(self._at_once, self._done)}; '
         + (f'step {saved} is saved, and ' if saved else
            'no step is saved yet, and ')
         + f'the same command goes on from {"there" if saved else "step 0"}.')
    end(exit_code(number))
    return None

  def _save_last(self):
    """Saves the state after the last step, if no step is replacing it."""
    try:
      self._wait()
      if self._state is not None and self._done > self._latest():
        self._save(self._state)
    except Exception:  # The arrays are deleted, or the disk is full.
      pass


def _is_replaced(state):
  """Whether a step is using the memory of a state's arrays for its result."""
  import jax  # Not above: this module is imported to watch the imports.
  return any(x.is_deleted() for x in jax.tree.leaves(state)
             if isinstance(x, jax.Array))


def _moment(finishing, done):
  return 'while the results were written' if finishing else (
      f'after step {done}, without waiting for the next one')
