"""The part `procs`: a training of two processes, of which one dies."""

import pathlib
import random
import signal
import socket
import time
from collections.abc import Iterator

from campaign import runs
from campaign.outcomes import Outcome
from campaign.table import Record

_LIMIT = 75  # seconds: 60 that are promised, and a busy machine


def procs(seed: int, count: int, out: pathlib.Path, done: set[str]
          ) -> Iterator[Record]:
  """One process is killed; the outcome is how the other one ends."""
  for index in range(count):
    rng, name = random.Random(f'{seed} procs {index}'), str(index)
    if name in done:
      continue
    workdir = out / 'run'
    runs.new_folder(workdir)
    pair = _pair(workdir)
    victim = rng.randrange(2)
    if rng.random() < 0.7:
      runs.wait_for_checkpoint(pair[0], workdir)
    else:
      time.sleep(rng.uniform(0, 10))
    pair[victim].send_signal(signal.SIGKILL)
    ended = runs.end(pair[1 - victim], _LIMIT)
    runs.end(pair[victim])
    ended = ended._replace(text=f'{1 - victim} of 2, exit code {ended.value}: '
                                f'{ended.text}')
    yield Record('procs', name, _resumed(ended, workdir))


def _pair(workdir):
  """Two processes of one run."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  return [runs.start(workdir, {
      'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2',
      'JAX_PROCESS_ID': str(i),
      'XLA_FLAGS': '--xla_force_host_platform_device_count=1'})
          for i in range(2)]


def _resumed(ended: Outcome, workdir: pathlib.Path) -> Outcome:
  """`ended`, after both processes have gone on to the end."""
  again = [runs.end(process) for process in _pair(workdir)]
  if [x.value for x in again] != ['0', '0'] or (
      runs.newest(workdir) != runs.STEPS):
    text = ' / '.join(x.text for x in again)
    return ended._replace(kind='silent', text=f'cannot go on: {text}')
  return ended
