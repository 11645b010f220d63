"""The table of what is said of given files: before and now.

python -m tests.campaign.inputs --inputs=DIR,DIR --out=TABLE.md \
  --against=FOLDER --work=DIR

Every file and folder of the inputs is put to the command of gen3d that reads
its kind (recipes.py), in a process of its own with limits on time and memory.
--against is a checkout of another version of gen3d, for the column "before".
The same command goes on where it was stopped; see the package's docstring for
the outcomes.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

_SECONDS = 60  # of the processor
_PATIENCE = 300  # seconds by the clock
_MEMORY = 2 ** 31  # bytes
_LONGEST = 170  # characters of a cell
# Lines of progress, which say nothing of the input.
_PROGRESS = re.compile(
    r'step \d+/\d+ .*? loss [\d.]+|[A-Z][a-z ]+: \d+/\d+ \(\d:\d\d:\d\d\)')
_NAMES = {'hang': 'timeout', 'memory': 'over 2 GB'}


def main() -> int:
  """Tries all inputs and writes the table; 1 where one fails now."""
  parser = argparse.ArgumentParser(
      prog='python -m tests.campaign.inputs', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--inputs', required=True,
                      help='folders, separated by commas')
  parser.add_argument('--out', required=True, type=pathlib.Path)
  parser.add_argument('--work', required=True, type=pathlib.Path,
                      help='folder for files of trials and their records')
  parser.add_argument('--against', type=pathlib.Path,
                      help='a checkout of the version before')
  parser.add_argument('--only', default='', help='part of the names')
  arguments = parser.parse_args()
  work = arguments.work.absolute()
  work.mkdir(parents=True, exist_ok=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(work / 'jax')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  from campaign import hostile, recipes, table
  mark = work / 'started'
  hostile.plant(work / 'bin', mark)
  inputs = {name: path for folder in arguments.inputs.split(',')
            for name, path in _found(pathlib.Path(folder).absolute()).items()
            if arguments.only in name}
  sides = {'now': pathlib.Path(__file__).resolve().parents[2]}
  if arguments.against:
    sides = {'before': arguments.against.resolve()} | sides
  file = work / 'records.jsonl'
  records = {(r.part, r.name): r for r in table.read(file)}
  for side, root in sides.items():
    # Those that need a training of their own come last.
    for name, path in sorted(inputs.items(), key=lambda item: recipes.recipe(
        item[1]).base in recipes.CACHES):
      if (side, name) in records:
        continue
      outcome = _tried(path, root, work / side)
      if mark.exists():
        outcome = outcome._replace(kind='ran')
        mark.unlink()
      record = table.Record(side, name, outcome)
      print(side, name, outcome.kind, f'{outcome.seconds:.1f} s',
            outcome.peak, 'MB', outcome.text[:200], flush=True)
      table.append(file, record)
      records[side, name] = record
  arguments.out.write_text(_written(records, inputs, sides))
  bad = [r for (side, _), r in records.items() if side == 'now'
         and r.outcome.kind not in ('sentence', 'accepted')]
  return int(bool(bad))


def _found(folder):
  """{name: path} of the inputs in a folder and its folders."""
  from campaign import recipes
  found = {}
  for path in sorted(folder.iterdir()):
    if recipes.recipe(path):
      found[f'{folder.name}/{path.name}'] = path
    elif path.is_dir():
      found |= {f'{folder.name}/{name}': item
                for name, item in _found(path).items()}
  return found


def _tried(path, root, work):
  """The Outcome of an input with the version of gen3d in `root`."""
  from campaign import recipes
  given = recipes.recipe(path)
  bases = work / 'bases'
  if given.base not in ('', 'record') and not (bases / given.base).exists():
    _make_base(bases / given.base, root)
  folder = work / 'trial'
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  command = recipes.place(given, path, folder, bases)
  return run(command, folder, root)


def _make_base(folder, root):
  """Makes right files, a run, or a folder of the cache."""
  from campaign import recipes
  from campaign.subjects import SUBJECTS
  part = folder.with_name(f'{folder.name}.part')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  command = (recipes.RUNS | recipes.CACHES).get(folder.name)
  made = 'pipeline' if folder.name == 'embeddings' else folder.name
  if made in SUBJECTS:
    SUBJECTS[made].make(part)
  if command:
    ended = run([word.format(folder=part) for word in command], part, root,
                900)
    assert ended.kind == 'accepted', (folder, ended)
  if folder.name in recipes.RUNS:
    shutil.rmtree(part / 'cache', ignore_errors=True)
  part.rename(folder)


def run(command, folder, root, seconds=_SECONDS):
  """The Outcome of a command line.

  Args:
    command: module and flags.
    folder: of the trial, with the cache.
    root: folder with the package gen3d.
    seconds: of the processor, after which it is ended.
  """
  import commands

  from campaign.outcomes import Outcome
  tests = pathlib.Path(__file__).resolve().parents[1]
  env = os.environ | {
      'GEN3D_CACHE': str(folder / 'cache'), 'CAMPAIGN_ASSETS': str(folder),
      'PYTHONPATH': os.pathsep.join(map(str, (root, root / 'tests', tests)))}
  begin = time.monotonic()
  done, peak = commands.measured(
      *command, cwd=folder, env=env, timeout=_PATIENCE * seconds // _SECONDS,
      root=root, limits=(seconds, 3 * _MEMORY // 2))
  kind = _kind(done)
  if peak > _MEMORY >> 20:
    kind = 'memory'
  return Outcome(kind, _said(done, folder), '', time.monotonic() - begin, peak)


def _kind(done):
  if done.returncode in (-signal.SIGALRM, -signal.SIGXCPU):
    return 'hang'
  if 'Traceback (most' in done.stderr:
    return 'traceback'
  if done.returncode < 0:
    return 'crash'
  return {0: 'accepted', 2: 'sentence'}.get(done.returncode, 'crash')


def _said(done, folder):
  """The sentence, or the last lines, without paths of this machine."""
  lines = [line for line in (done.stderr.strip() or done.stdout.strip(
      )).splitlines() if not re.match(r'\S+ +\d+%|[WI]\d{4} |.*\r', line)]
  raised = [line for line in lines if re.match(r'[\w.]+: ', line)]
  text = ' '.join(raised[-1:] if 'Traceback (most' in done.stderr and raised
                  else lines[-1:] if done.returncode else lines[-2:])
  text = text.replace(f'{folder}/', '').replace(str(folder), '.')
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _written(records, inputs, sides):
  """The table, with the counts of outcomes at its end."""
  from campaign.outcomes import KINDS
  lines = [f'| input | {" | ".join(sides)} |',
           '|---' * (1 + len(sides)) + '|']
  for name in inputs:
    cells = [_cell(records[side, name].outcome) if (side, name) in records
             else '' for side in sides]
    lines.append(f'| {_escaped(name)} | {" | ".join(cells)} |')
  counts = {side: [r.outcome.kind for (s, _), r in records.items()
                   if s == side] for side in sides}
  lines += ['', f'| version | inputs | '
            f'{" | ".join(_NAMES.get(k, k) for k in KINDS)} |',
            '|---' * (2 + len(KINDS)) + '|']
  for side, kinds in counts.items():
    lines.append(f'| {side} | {len(kinds)} | '
                 f'{" | ".join(str(kinds.count(k)) for k in KINDS)} |')
  return '\n'.join(lines) + '\n'


def _cell(outcome):
  text = ' '.join(_PROGRESS.sub('', outcome.text).split())
  if outcome.kind == 'accepted' and 'out' in text[:9]:
    text = ''
  if len(text) > _LONGEST:
    text = f'{text[:_LONGEST]} ...'
  kind = _NAMES.get(outcome.kind, outcome.kind)
  return f'{kind}: {_escaped(text)}' if text else kind


def _escaped(text):
  return re.sub(r'([|*_<>`\\\[\]])', r'\\\1', text)


if __name__ == '__main__':
  sys.exit(main())
