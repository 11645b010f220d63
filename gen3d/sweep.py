"""Runs a config many times: once for each overrides that its sweep() gives.

python -m gen3d.sweep --config=configs/dreamfusion.py --workdir=/tmp/sweep
prints the command lines; --run runs them one after another, --index=N runs
one of them, as an element of a job array does, --count prints how many there
are. Further --config.KEY=VALUE flags go to all of them.
"""

import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

from absl import flags
from ml_collections import config_flags

from gen3d.engine import cli

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file with a sweep(), FILE.py or FILE.py:VARIANT.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory; each run has one of its own inside it.')
_RUN = flags.DEFINE_bool('run', False, 'Run them all, one after another.')
_COUNT = flags.DEFINE_bool('count', False, 'Print how many there are.')
_INDEX = flags.DEFINE_integer('index', None, 'Run this one, from 0.')


def commands(path, workdir, common=()):
  """Returns the command lines of a sweep.

  Args:
    path: FILE.py or FILE.py:VARIANT with `sweep()`, that gives dicts of
      {dotted config key: value}.
    workdir: directory; run 3 gets workdir/003_KEY=VALUE,...
    common: '--config.KEY=VALUE' flags for all.

  Raises:
    ValueError: where there is no sweep, or a key is unknown.
  """
  sweep = runpy.run_path(path.partition(':')[0]).get('sweep')
  if sweep is None:
    raise ValueError(f'The config {path} has no sweep().')
  lines = []
  for index, overrides in enumerate(sweep()):
    name = ','.join(f'{key}={value}' for key, value in overrides.items())
    name = re.sub(r'[^\w.,=-]+', '-', f'{index:03d}_{name}')[:80]
    own = [f'--config.{key}={value}' for key, value in overrides.items()]
    # What a sweep varies stands last, for the last flag holds.
    line = [sys.executable, '-m', 'gen3d.train', f'--config={path}', *common,
            *own, f'--workdir={pathlib.Path(workdir) / name}']
    cli.check_config(line)
    lines.append(line)
  return lines


def main():
  cli.require('config', 'workdir')
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  common = [flag for flag in sys.argv[1:] if flag.startswith('--config.')]
  lines = commands(path, _WORKDIR.value, common)
  if _COUNT.value:
    print(len(lines))
  elif _INDEX.value is not None:
    if not 0 <= _INDEX.value < len(lines):
      raise ValueError(f'There is no run {_INDEX.value}; the sweep has '
                       f'{len(lines)}, counted from 0.')
    line = lines[_INDEX.value]
    os.execv(line[0], line)  # So that signals go to the training itself.
  elif _RUN.value:
    _run(lines)
  else:
    print('\n'.join(map(shlex.join, lines)))


def _run(lines):
  """Runs command lines in turn; one that fails does not stop the others."""
  failed = []
  for line in lines:
    print(shlex.join(line), file=sys.stderr, flush=True)
    code = subprocess.run(line).returncode
    if code == 130:
      raise KeyboardInterrupt
    if code:
      failed.append(line[-1])
  if failed:
    raise ValueError(f'{len(failed)} of {len(lines)} runs failed: '
                     f'{", ".join(failed)}.')


if __name__ == '__main__':
  cli.run(main)
