"""Trials in processes of their own, and what became of them."""

import contextlib
import hashlib
import json
import os
import pathlib
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gen3d.choices import UserError

# sentence: an error of one sentence; accepted: the right result, or another
# one with a message; silent: another result without a word; ran: another
# program was started.
KINDS = ('sentence', 'accepted', 'silent', 'traceback', 'hang', 'crash',
         'memory', 'ran')
_LONGEST = 2000  # characters of a sentence


class Limits(NamedTuple):
  """Of one trial; `seconds` by the clock, `cpu` of the processor."""
  seconds: float = 45
  cpu: int = 25
  memory: int = 2 ** 31  # bytes


USUAL = Limits()


class Outcome(NamedTuple):
  """What became of a trial.

  Attributes:
    kind: one of KINDS.
    text: the error, or what was printed.
    value: fingerprint of what was read, '' after an error.
    seconds: by the clock.
    peak: MB of memory.
  """
  kind: str
  text: str
  value: str = ''
  seconds: float = 0.0
  peak: int = 0


def forked(function: Callable[[], Any], log: pathlib.Path,
           limits: Limits = USUAL) -> Outcome:
  """Runs a function in a copy of this process, which stays as it is.

  Args:
    function: what it returns becomes the fingerprint.
    log: file for what it prints.
    limits: Limits.
  """
  begin, (reader, writer) = time.monotonic(), os.pipe()
  sys.stdout.flush(), sys.stderr.flush()
  pid = os.fork()
  if not pid:
    os.close(reader)
    _child(function, writer, log, limits)
  os.close(writer)
  content, hangs = b'', False
  while True:
    left = begin + limits.seconds - time.monotonic()
    if not select.select([reader], [], [], max(left, 0))[0]:
      hangs = True
      break
    part = os.read(reader, 2 ** 16)
    if not part:
      break
    content += part
  os.close(reader)
  with contextlib.suppress(ProcessLookupError):  # with what it has started
    os.killpg(pid, signal.SIGKILL)
  _, status, usage = os.wait4(pid, 0)
  kind, text, value = _verdict(content, hangs, status)
  printed = ' '.join(log.read_text(errors='replace').split())
  peak = usage.ru_maxrss // 1024
  if peak > limits.memory >> 20:
    kind = 'memory'
  return Outcome(kind, text or printed[-300:], value,
                 time.monotonic() - begin, peak)


def _verdict(content, hangs, status):
  """(kind, text, value) of a process that has ended."""
  if content:
    return json.loads(content)
  number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
  if hangs or number == signal.SIGXCPU:
    return 'hang', '', ''
  return 'crash', f'signal {number}, status {status}', ''


def _child(function, writer, log, limits):
  """Runs the function and ends the process."""
  os.setpgid(0, 0)
  file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(file, 1), os.dup2(file, 2)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu))
  # A bound on what is written to, beyond which the machine would suffer.
  resource.setrlimit(resource.RLIMIT_DATA, (3 * limits.memory // 2,) * 2)
  try:
    result = 'accepted', '', fingerprint(function())
  except UserError as error:
    result = _of_sentence(str(error))
  except MemoryError as error:
    result = 'memory', _place(error), ''
  except OSError as error:  # Commands print them, as engine/cli.py does.
    result = _of_sentence(str(error))
  except BaseException as error:
    result = 'traceback', _place(error), ''
  sys.stdout.flush(), sys.stderr.flush()
  os.write(writer, json.dumps(result).encode())
  os._exit(0)


def _of_sentence(text):
  """(kind, text, value) of an error that a user would see."""
  if len(text) > _LONGEST or not all(
      c.isprintable() or c == '\n' for c in text):
    return 'traceback', f'not fit for a terminal: {text[:200]!r}', ''
  return 'sentence', text, ''


def _place(error):
  """The last places of a traceback in gen3d, and the error."""
  frames = [f'{pathlib.Path(frame.filename).name}:{frame.lineno}'
            for frame in traceback.extract_tb(error.__traceback__)]
  return f'{" ".join(frames[-3:])} {type(error).__name__}: {str(error)[:200]}'


def compared(outcome: Outcome, right: str) -> Outcome:
  """The Outcome, silent where it differs from `right` without a word."""
  if outcome.kind == 'accepted' and outcome.value != right and (
      not outcome.text):
    return outcome._replace(kind='silent')
  return outcome


def fingerprint(value: Any) -> str:
  """SHA-256 of nested containers of arrays, numbers and texts."""
  digest = hashlib.sha256()
  _update(digest, value)
  return digest.hexdigest()


def _update(digest, value):
  if isinstance(value, Mapping):
    value = [item for key in sorted(value, key=str)
             for item in (str(key), value[key])]
  if isinstance(value, list | tuple):
    digest.update(f'{len(value)}[]'.encode())
    for item in value:
      _update(digest, item)
  elif hasattr(value, 'dtype'):
    array = np.asarray(value)
    digest.update(f'{array.dtype} {array.shape}'.encode() + array.tobytes())
  elif not callable(value):
    digest.update(repr(value).encode())
