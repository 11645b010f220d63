"""The part `disk`: a disk that is full, without inodes, or with limits."""

import pathlib
import random
import resource
import subprocess
from collections.abc import Iterator

from campaign import runs
from campaign.table import Record


def disk(seed: int, count: int, out: pathlib.Path, done: set[str]
         ) -> Iterator[Record]:
  """Runs on a small file system; then there is room, and they go on.

  Where no file system may be mounted, the sizes of files are limited.
  """
  runs.reference(out)
  for index in range(count):
    rng, name = random.Random(f'{seed} disk {index}'), str(index)
    if name in done:
      continue
    place = out / 'disk'
    place.mkdir(exist_ok=True)
    runs.new_folder(place / 'run')
    options = (f'size={rng.randint(8, 700)}k' if rng.random() < 0.7 else
               f'size=64m,nr_inodes={rng.randint(4, 120)}')
    mounted = _mount(place, options)
    size = rng.randint(100, 20_000)
    limit = None if mounted else (lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)))  # noqa: B023
    try:
      ended = runs.end(runs.start(place / 'run', before=limit))
      ended = ended._replace(text=f'{options if mounted else size}: '
                                  f'{ended.text}')
      if mounted:
        _mount(place, 'remount,size=64m,nr_inodes=10000')
      yield Record('disk', name, runs.judged(ended, place / 'run', out))
    finally:
      if mounted:
        subprocess.run(['umount', place], check=True)


def _mount(place, options):
  """Mounts a file system in memory; False where that is not permitted."""
  try:
    return not subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', place],
        capture_output=True).returncode
  except OSError:
    return False
