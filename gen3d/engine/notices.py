"""Notices about work that takes long: compilation, preparation of data."""

import contextlib
import sys
import threading
from collections.abc import Generator

import tqdm


@contextlib.contextmanager
def slow(text: str, after: float = 5.0) -> Generator[None]:
  """Prints `text` to stderr if the block takes longer than `after` seconds.

  Nothing is printed where the work is quick, as that of a program which is in
  the cache of compiled ones.
  """
  # tqdm.write moves a progress bar out of the way.
  timer = threading.Timer(after, tqdm.tqdm.write, [text], {'file': sys.stderr})
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
