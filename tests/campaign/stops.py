"""The parts `kill` and `term`: a training that is ended from outside."""

import pathlib
import random
import signal
import time
from collections.abc import Iterator

from campaign import runs
from campaign.table import Record

_ANSWER = 30  # seconds that a preempted machine gives


def kill(seed: int, count: int, out: pathlib.Path, done: set[str]
         ) -> Iterator[Record]:
  """Runs that are killed once or twice and resumed."""
  for rng, name, workdir in _plans('kill', seed, count, out, done):
    for _ in range(rng.choice((1, 1, 2))):
      process = _until_a_moment(rng, workdir, out)
      process.kill()
      ended = runs.end(process)
    # Nothing can be said by a process that is killed.
    yield Record('kill', name, runs.judged(
        ended._replace(kind='accepted', text=f'step {runs.newest(workdir)}'),
        workdir, out))


def term(seed: int, count: int, out: pathlib.Path, done: set[str]
         ) -> Iterator[Record]:
  """Runs that get SIGTERM or Ctrl-C; seconds are those to the answer."""
  for rng, name, workdir in _plans('term', seed, count, out, done):
    process = _until_a_moment(rng, workdir, out)
    number = rng.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGINT))
    process.send_signal(number)
    ended = runs.end(process, _ANSWER)
    # Before the loop the signal itself ends the process.
    if ended.value in ('0', '130', str(-number)):
      kind = 'traceback' if ended.kind == 'traceback' else 'accepted'
      ended = ended._replace(kind=kind, text=f'{number.name}, exit code '
                                             f'{ended.value}: {ended.text}')
    yield Record('term', name, runs.judged(ended, workdir, out))


def _plans(part, seed, count, out, done):
  """(random generator, name, empty workdir) of each trial to do."""
  runs.reference(out)
  for index in range(count):
    name = str(index)
    if name not in done:
      workdir = out / 'run'
      runs.new_folder(workdir)
      yield random.Random(f'{seed} {part} {index}'), name, workdir


def _until_a_moment(rng, workdir, out):
  """A run at any moment, or shortly after it has saved."""
  process = runs.start(workdir)
  if rng.random() < 0.5:
    runs.wait_for_checkpoint(process, workdir)
    time.sleep(rng.uniform(0, 0.5))
  else:
    time.sleep(rng.uniform(0, 0.9 * runs.reference(out)[1]))
  return process
