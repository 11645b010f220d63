"""Progress of work that takes long.

A notice appears after 5 seconds: on a terminal a bar with the time left, or a
clock where the amount of work is unknown; elsewhere a line, and another one
where nothing has been printed for 30 seconds. Of nested notices that have
appeared, the innermost prints.
"""

import contextlib
import datetime
import itertools
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from typing import TypeVar

import tqdm

_Item = TypeVar('_Item')

_AFTER = 5.0
_EVERY = 30.0  # seconds between two lines
_TICK = 1.0  # seconds between two updates on a terminal, and two checks else

# Numbers of the notices that have appeared; the innermost has the largest.
_shown: set[int] = set()
_numbers = itertools.count()
# When the last message was, or the command began; None before that.
_printed: float | None = None


def message(text: str) -> None:
  """Prints a text to stderr, above the bars of a terminal."""
  global _printed
  _printed = time.monotonic()
  tqdm.tqdm.write(text, file=sys.stderr)


_background = contextlib.ExitStack()


def loading() -> None:
  """Begins a notice about the import of the libraries; `working` ends it.

  In a file it appears after 30 seconds only, which no quiet machine takes.
  """
  _begin()
  _background.enter_context(progress(
      'Loading the libraries', in_silence=not sys.stderr.isatty()))


def working(text: str) -> None:
  """Begins the notice of a command for the work that has none of its own.

  It appears in files only. The notice of `loading` ends.
  """
  attended()
  _begin()
  if not sys.stderr.isatty():
    _background.enter_context(progress(text, in_silence=True))


def _begin():
  global _printed
  if _printed is None:
    _printed = time.monotonic()


def attended() -> None:
  """Ends the notice of `working`: a child tells, or there is none to tell."""
  _background.close()


@contextlib.contextmanager
def slow(text: str, after: float = _AFTER) -> Generator[None]:
  """A notice, from `after` seconds on, about a block of unknown length."""
  with progress(text, after=after):
    yield


def track(items: Iterable[_Item], text: str, total: int | None = None
          ) -> Iterator[_Item]:
  """Yields the items, with a notice about how many are done.

  Args:
    items: iterable.
    text: what is done to them.
    total: their number; that of a collection if not given.
  """
  if total is None and isinstance(items, Collection):
    total = len(items)
  with progress(text, total) as advance:
    for item in items:
      yield item
      advance(1)


@contextlib.contextmanager
def progress(text: str, total: int | None = None, after: float = _AFTER,
             in_silence: bool = False) -> Generator[Callable[[int], None]]:
  """A notice about a block; yields the function that counts what is done.

  Args:
    text: what is done.
    total: amount of work, or None where it is unknown.
    after: seconds before the notice appears.
    in_silence: whether, instead, it appears in files only where nothing has
      been printed for 30 seconds.
  """
  begin, number, ended = time.monotonic(), next(_numbers), threading.Event()
  done = 0

  def advance(count):
    nonlocal done
    done += count

  def show():
    if not in_silence and ended.wait(after):
      return
    _shown.add(number)
    if sys.stderr.isatty():
      # The bar's clock begins with the block.
      with tqdm.tqdm(total=total, desc=text, file=sys.stderr, leave=False,
                     dynamic_ncols=True, bar_format=None if total else
                     '{desc}: {elapsed}') as bar:
        bar.start_t -= time.monotonic() - begin
        while not ended.wait(_TICK):
          bar.n = done
          bar.refresh()
      return
    first = not in_silence
    while True:
      now = time.monotonic()
      if number == max(_shown, default=number) and (
          first or now - (_printed or begin) >= _EVERY):
        message(_line(text, done, total, now - begin))
      first = False
      if ended.wait(min(_TICK, _EVERY)):
        return

  thread = threading.Thread(target=show, daemon=True)
  thread.start()
  try:
    yield advance
  finally:
    ended.set()
    thread.join()
    _shown.discard(number)


def _line(text, done, total, seconds):
  """Such as 'Rendering: 3/8 (0:00:35, 0:00:58 left)'."""
  clock = lambda seconds: str(datetime.timedelta(seconds=round(seconds)))
  if not total:
    return f'{text} ({clock(seconds)})'
  left = f', {clock(seconds * (total - done) / done)} left' if done else ''
  return f'{text}: {done}/{total} ({clock(seconds)}{left})'
