"""The part `concurrency`: two trainings in one workdir."""

import pathlib
import random
import time
from collections.abc import Iterator

from campaign import runs
from campaign.table import Record


def concurrency(seed: int, count: int, out: pathlib.Path, done: set[str]
                ) -> Iterator[Record]:
  """Two runs start within some seconds; the outcome is the second one's."""
  _, seconds = runs.reference(out)
  for index in range(count):
    rng, name = random.Random(f'{seed} rivals {index}'), str(index)
    if name in done:
      continue
    workdir = out / 'run'
    runs.new_folder(workdir)
    first = runs.start(workdir)
    time.sleep(rng.uniform(0, seconds))
    second = runs.start(workdir)
    ended = [runs.end(first), runs.end(second)]
    worst = max(ended, key=lambda e: ('accepted', 'sentence').index(e.kind)
                if e.kind in ('accepted', 'sentence') else 2)
    if [e.value for e in ended] == ['2', '2']:
      worst = worst._replace(kind='silent', text='both were refused')
    yield Record('concurrency', name, runs.judged(worst, workdir, out))
