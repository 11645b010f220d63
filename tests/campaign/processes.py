"""The part `procs`: a training of several processes, of which one dies."""

import pathlib
import random
import signal
import socket
import time
from collections.abc import Iterator

from campaign import outcomes, runs
from campaign.outcomes import Outcome
from campaign.table import Record

_LIMIT = 75  # seconds: 60 that are promised, and a busy machine


def procs(seed: int, count: int, out: pathlib.Path, done: set[str]
          ) -> Iterator[Record]:
  """One of two or three processes is killed; the outcome: the others' worst.

  Seconds are those from the kill to the end of the last one.
  """
  for index in range(count):
    rng, name = random.Random(f'{seed} procs {index}'), str(index)
    if name in done:
      continue
    workdir, number = out / 'run', 2 + index % 2
    runs.new_folder(workdir)
    processes = _start(workdir, number)
    victim = rng.randrange(number)
    if rng.random() < 0.7:
      runs.wait_for_checkpoint(processes[0], workdir)
    else:
      time.sleep(rng.uniform(0, 10))
    processes[victim].send_signal(signal.SIGKILL)
    begin, others = time.monotonic(), {}
    for other in {*range(number)} - {victim}:
      ended = runs.end(processes[other], _LIMIT)
      others[other] = ended._replace(seconds=time.monotonic() - begin)
    runs.end(processes[victim])
    worst = max(others, key=lambda i: (outcomes.KINDS.index(others[i].kind),
                                       others[i].seconds))
    ended = others[worst]._replace(
        seconds=max(x.seconds for x in others.values()),
        text=f'{worst} of {number}, exit code {others[worst].value}: '
             f'{others[worst].text}')
    yield Record('procs', name, _resumed(ended, workdir, number))


def _start(workdir, number):
  """The processes of one run."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  return [runs.start(workdir, {
      'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(number),
      'JAX_PROCESS_ID': str(i),
      'XLA_FLAGS': '--xla_force_host_platform_device_count=1'})
          for i in range(number)]


def _resumed(ended: Outcome, workdir: pathlib.Path, number: int) -> Outcome:
  """`ended`, after all processes have gone on to the end."""
  again = [runs.end(process) for process in _start(workdir, number)]
  if any(x.value != '0' for x in again) or (
      runs.newest(workdir) != runs.STEPS):
    text = ' / '.join(x.text for x in again)
    return ended._replace(kind='silent', text=f'cannot go on: {text}')
  return ended
