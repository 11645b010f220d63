"""Trainings in processes of their own, and what they leave."""

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from campaign import TESTS, outcomes
from campaign.outcomes import Outcome

STEPS = 60
_SETTINGS = {'steps': STEPS, 'checkpoint_every': 6, 'eval_every': 20,
             'log_every': 6, 'pause': 0.03,
             'rows': 12}  # for one, two or three processes
_LIMIT = 240  # seconds of a whole training on a busy machine


def start(workdir: pathlib.Path, env: Mapping[str, str] | None = None,
          before: Callable[[], Any] | None = None) -> subprocess.Popen[str]:
  """Starts a training; it resumes what is in the workdir.

  Args:
    workdir: of the run.
    env: more variables of the environment.
    before: called in the new process.
  """
  command = [sys.executable, '-m', 'campaign.train',
             f'--config={TESTS / "toy_config.py"}', f'--workdir={workdir}',
             *(f'--config.{key}={x}' for key, x in _SETTINGS.items())]
  path = os.pathsep.join([str(TESTS.parent), str(TESTS)])

  def prepare() -> None:
    # A shell lets its commands in the background ignore it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if before:
      before()

  return subprocess.Popen(
      command, env={**os.environ, 'PYTHONPATH': path, **(env or {})},
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
      errors='replace', preexec_fn=prepare)


def end(process: subprocess.Popen[str], seconds: float = _LIMIT) -> Outcome:
  """Waits for a process, and says how it ended; its value is the exit code."""
  begin = time.monotonic()
  try:
    _, printed = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.kill()
    _, printed = process.communicate()
    return Outcome('hang', printed[-300:], '', time.monotonic() - begin)
  code, lines = process.returncode, printed.strip().splitlines()
  last = lines[-1][:500] if lines else ''
  if 'Traceback (most' in printed:
    kind = 'traceback'
  else:
    kind = {0: 'accepted', 2: 'sentence'}.get(
        code, 'crash' if code < 0 else 'accepted')
  return Outcome(kind, last, str(code), time.monotonic() - begin)


def newest(workdir: pathlib.Path) -> int:
  """Step of the newest checkpoint, or 0."""
  names = [p.name for p in workdir.glob('checkpoints/*')]
  return max((int(name) for name in names if name.isdigit()), default=0)


def wait_for_checkpoint(process: subprocess.Popen[str],
                        workdir: pathlib.Path) -> None:
  """Waits until a run has saved once more, or has ended."""
  before = newest(workdir)
  while newest(workdir) == before and process.poll() is None:
    time.sleep(0.01)


def arrays(workdir: pathlib.Path, out: pathlib.Path) -> str:
  """Fingerprint of the last checkpoint as Orbax alone reads it."""
  def read():
    import orbax.checkpoint as ocp
    folder = workdir / 'checkpoints' / str(STEPS) / 'state'
    return ocp.PyTreeCheckpointer().restore(folder)
  outcome = outcomes.forked(read, out / 'log')
  return outcome.value or f'{outcome.kind}: {outcome.text}'


def reference(out: pathlib.Path) -> tuple[str, float]:
  """(fingerprint of a run that nothing disturbs, its seconds)."""
  file = out / 'whole.json'
  if not file.exists():
    shutil.rmtree(out / 'whole', ignore_errors=True)
    ended = end(start(out / 'whole'))
    assert ended.value == '0', ended
    file.write_text(json.dumps([arrays(out / 'whole', out), ended.seconds]))
  value, seconds = json.loads(file.read_text())
  return value, seconds


def judged(ended: Outcome, workdir: pathlib.Path, out: pathlib.Path) -> Outcome:
  """`ended`, after the run has gone on to its end in peace.

  Worse if it does not go on, or does not come to the right arrays, or has a
  step more than once in scalars.jsonl.
  """
  last = end(start(workdir))
  if last.value != '0':
    worse = 'traceback' if last.kind == 'sentence' else last.kind
    return ended._replace(kind=worse, text=f'cannot go on: {last.text}')
  found = arrays(workdir, out)
  steps = [json.loads(line)['step'] for line in
           (workdir / 'scalars.jsonl').read_text().splitlines()]
  doubled = len(steps) - len({*steps})
  expected = json.loads((out / 'whole.json').read_text())[0]
  whole = (out / 'whole' / 'scalars.jsonl').read_text().splitlines()
  if found != expected or len(steps) != len(whole):
    return ended._replace(kind='silent', text=(
        f'another result ({found[:60]}), or {doubled} lines twice'))
  return ended


new_folder = functools.partial(shutil.rmtree, ignore_errors=True)
