"""One config, many runs: the command lines that its sweep() stands for."""

import pathlib
import re
import runpy
import shlex
import subprocess
import sys

from gen3d.choices import UserError
from gen3d.engine import cli


def commands(path, workdir, common=()):
  """Returns the command lines of a sweep.

  Args:
    path: FILE.py or FILE.py:VARIANT with `sweep()`, that gives dicts of
      {dotted config key: value}.
    workdir: directory; run 3 gets workdir/003_KEY=VALUE,...
    common: '--config.KEY=VALUE' flags for all.

  Raises:
    UserError: where there is no sweep, or a key is unknown.
  """
  sweep = runpy.run_path(path.partition(':')[0]).get('sweep')
  if sweep is None:
    raise UserError(f'The config {path} has no sweep().')
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


def run(lines, go_on=True):
  """Runs command lines in turn.

  Args:
    lines: lists of words.
    go_on: whether one that fails leaves the others to run; else it is the
      last.

  Raises:
    UserError: if any failed.
    KeyboardInterrupt: if one was stopped.
  """
  failed = []
  for line in lines:
    print(shlex.join(line), file=sys.stderr, flush=True)
    code = subprocess.run(line).returncode
    if code == 130:
      raise KeyboardInterrupt
    if code:
      failed.append(line[-1])
      if not go_on:
        break
  if failed:
    raise UserError(f'{len(failed)} of {len(lines)} runs failed: '
                    f'{", ".join(failed)}.')
