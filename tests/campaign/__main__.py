"""The command; see the package's docstring."""

import argparse
import os
import pathlib

# Children compute little: compiled programs are kept for the next ones.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

# Number of trials of each part with --trials=1; the attacks are counted by
# themselves.
_TRIALS = {'mutants': 400, 'hostile': 1, 'kill': 4, 'term': 4,
           'concurrency': 2, 'disk': 3, 'procs': 2}


def main() -> int:
  """Runs the parts; returns 1 where a trial has a bad outcome."""
  parser = argparse.ArgumentParser(
      prog='python -m tests.campaign', description='Faults made from a seed.')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--parts', default=','.join(_TRIALS),
                      help='of ' + ', '.join(_TRIALS))
  parser.add_argument('--out', required=True, type=pathlib.Path)
  parser.add_argument('--trials', type=float, default=1.0,
                      help='factor of the number of trials')
  parser.add_argument('--quick', action='store_true',
                      help='only inputs that are read in a fraction of a '
                           'second')
  arguments = parser.parse_args()
  unknown = {*arguments.parts.split(',')} - {*_TRIALS}
  if unknown:
    parser.error(f'there is no part {min(unknown)!r}; choose from '
                 f'{", ".join(_TRIALS)}')
  out = arguments.out.absolute()
  out.mkdir(parents=True, exist_ok=True)
  cache = out / 'cache'
  os.environ['GEN3D_CACHE'] = str(cache)
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache / 'jax'))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  # After the environment is set.
  from campaign import (
    disks,
    hostile,
    mutants,
    outcomes,
    processes,
    rivals,
    stops,
    subjects,
    table,
  )
  with_runs = {'kill': stops.kill, 'term': stops.term,
               'concurrency': rivals.concurrency, 'disk': disks.disk,
               'procs': processes.procs}
  file = out / 'records.jsonl'
  records = table.read(file)
  for part in arguments.parts.split(','):
    count = max(1, round(arguments.trials * _TRIALS[part]))
    done = {r.name for r in records if r.part == part}
    if part == 'mutants':
      names = subjects.QUICK if arguments.quick else tuple(subjects.SUBJECTS)
      made = mutants.trials(arguments.seed, count, out, done, names)
    elif part == 'hostile':
      made = hostile.trials(arguments.seed, arguments.trials, out, done,
                            arguments.quick)
    else:
      made = with_runs[part](arguments.seed, count, out, done)
    for record in made:
      table.append(file, record)
      records.append(record)
  print(table.write(out, records, arguments.seed))
  bad = set(outcomes.KINDS) - {'sentence', 'accepted', 'silent'}
  return int(any(r.outcome.kind in bad for r in records))


if __name__ == '__main__':
  raise SystemExit(main())
