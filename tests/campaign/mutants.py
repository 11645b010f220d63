"""The part `mutants`: one file of a right input, damaged."""

import pathlib
import random
import shutil
from collections.abc import Iterator

from campaign import damage, outcomes
from campaign.subjects import SUBJECTS
from campaign.table import Record

_PATIENT = outcomes.Limits(600, 120)  # of what is known to be right


def trials(seed: int, count: int, out: pathlib.Path, done: set[str],
           names: tuple[str, ...] = tuple(SUBJECTS)) -> Iterator[Record]:
  """Yields the records of `count` trials, without those that are done.

  Args:
    seed: of the damages.
    count: of trials.
    out: folder for their files.
    done: names of records.
    names: of SUBJECTS.
  """
  right = {}
  for index in range(count):
    rng = random.Random(f'{seed} mutant {index}')
    subject = names[index % len(names)]
    if subject not in right:
      right[subject] = _prepare(subject, out)
    whole = out / 'right' / subject
    file = _choose(rng, whole)
    change = rng.choice(damage.damages(file.name))
    name = f'{index:04d}/{subject}/{file}/{change.__name__}'
    if name in done:
      continue
    folder = out / 'trial'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    before = (folder / file).read_bytes()
    after = change(rng, before)
    if after == before:
      continue
    (folder / file).write_bytes(after)
    value, limits = right[subject]
    outcome = outcomes.compared(outcomes.forked(
        lambda: SUBJECTS[subject].read(folder), out / 'log', limits), value)  # noqa: B023
    yield Record('mutants', name, outcome)


def _choose(rng, folder):
  """A file in a folder: every ending has the same probability."""
  by_ending: dict[str, list[pathlib.Path]] = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path.name != '.lock':
      by_ending.setdefault(path.suffix, []).append(path.relative_to(folder))
  return rng.choice(by_ending[rng.choice(sorted(by_ending))])


def _prepare(subject, out):
  """Makes the right files once.

  Returns:
    (fingerprint of what is read, Limits of a trial). By the clock, a trial has
    longer where this machine is too busy to read the right files in time.
  """
  folder, log = out / 'right' / subject, out / 'log'
  if not folder.exists():
    part = out / 'right' / f'{subject}.part'
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    made = outcomes.forked(lambda: SUBJECTS[subject].make(part), log, _PATIENT)
    assert made.kind == 'accepted', made
    part.rename(folder)
  copy = out / 'trial'
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(folder, copy)
  read = outcomes.forked(lambda: SUBJECTS[subject].read(copy), log, _PATIENT)
  assert read.kind == 'accepted', (subject, read)
  usual = outcomes.USUAL
  return read.value, usual._replace(
      seconds=max(usual.seconds, 3 * read.seconds))
