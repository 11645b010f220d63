"""Records of trials, kept while they are made, and their tables."""

import collections
import json
import pathlib
from typing import NamedTuple

from campaign.outcomes import KINDS, Outcome


class Record(NamedTuple):
  """One trial: its part, its name and its Outcome."""
  part: str
  name: str
  outcome: Outcome


def read(path: pathlib.Path) -> list[Record]:
  """The records of a file, without a last line that is cut off."""
  records = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      part, name, outcome = json.loads(line)
    except ValueError:
      continue
    records.append(Record(part, name, Outcome(*outcome)))
  return records


def append(path: pathlib.Path, record: Record) -> None:
  """Adds a record to a file."""
  with path.open('a') as file:
    file.write(json.dumps(record) + '\n')


def write(out: pathlib.Path, records: list[Record], seed: int) -> str:
  """Writes table.md and table.json; returns the former's text."""
  counts: dict[str, collections.Counter[str]] = {}
  for record in records:
    counts.setdefault(record.part, collections.Counter())[
        record.outcome.kind] += 1
  lines = [f'# Fault campaign, seed {seed}', '',
           f'| part | trials | {" | ".join(KINDS)} |',
           '|---' * (2 + len(KINDS)) + '|']
  for part, kinds in counts.items():
    lines.append(f'| {part} | {kinds.total()} | '
                 f'{" | ".join(str(kinds[kind]) for kind in KINDS)} |')
  worst = sorted(records, key=lambda r: -r.outcome.peak)[:10]
  slowest = sorted(records, key=lambda r: -r.outcome.seconds)[:10]
  for title, rows in (('Most memory', worst), ('Most seconds', slowest),
                      ('Neither a sentence nor accepted', [
                          r for r in records
                          if r.outcome.kind not in KINDS[:2]])):
    lines += ['', f'## {title}', '', '| trial | outcome | s | MB | text |',
              '|---|---|---|---|---|']
    for part, name, outcome in rows:
      text = outcome.text.replace('|', '/').replace('\n', ' ')[:150]
      lines.append(f'| {part}/{name} | {outcome.kind} | {outcome.seconds:.1f} '
                   f'| {outcome.peak} | {text} |')
  text = '\n'.join(lines) + '\n'
  (out / 'table.md').write_text(text)
  (out / 'table.json').write_text(json.dumps({
      'seed': seed, 'counts': counts,
      'records': [{'part': part, 'name': name, **outcome._asdict()}
                  for part, name, outcome in records]}, indent=1))
  return text
