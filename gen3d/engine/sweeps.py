"""One config, many runs: the command lines of its sweep()."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

from gen3d.choices import UserError
from gen3d.engine import cli, config_files


def commands(
    path: str, workdir: str | os.PathLike, common: Sequence[str] = ()
) -> list[list[str]]:
  """Returns the command lines of a sweep.

  Args:
    path: FILE.py or FILE.py:VARIANT with `sweep()`, which gives dicts of
      {dotted config key: value}.
    workdir: directory; run 3 gets workdir/003_KEY=VALUE,...
    common: '--config.KEY=VALUE' flags for all.

  Raises:
    UserError: there is no sweep, or a key is unknown.
  """
  sweep = config_files.execute(
      config_files.resolve(path).partition(':')[0]).get('sweep')
  if sweep is None:
    raise UserError(f'The config {path} has no sweep().')
  lines = []
  for index, overrides in enumerate(sweep()):
    name = ','.join(f'{key}={value}' for key, value in overrides.items())
    name = re.sub(r'[^\w.,=-]+', '-', f'{index:03d}_{name}')[:80]
    own = [f'--config.{key}={value}' for key, value in overrides.items()]
    # The overrides stand last, because the last of equal flags applies.
    line = [sys.executable, '-m', 'gen3d.train', f'--config={path}', *common,
            *own, f'--workdir={pathlib.Path(workdir) / name}']
    cli.check_config(line)
    lines.append(line)
  return lines


def run(lines: Sequence[Sequence[str]], keep_going: bool = True) -> None:
  """Runs command lines in turn.

  Args:
    lines: command lines as lists of words.
    keep_going: whether the others run after one that fails; else it is the
      last.

  Raises:
    UserError: at least one failed.
    KeyboardInterrupt: one was stopped by Ctrl-C.
  """
  failed = []
  for line in lines:
    print(shlex.join(line), file=sys.stderr, flush=True)
    code = subprocess.run(line).returncode
    if code == 130:
      raise KeyboardInterrupt
    if code:
      failed.append(line[-1])
      if not keep_going:
        break
  if failed:
    raise UserError(f'{len(failed)} of {len(lines)} runs failed: '
                    f'{", ".join(failed)}.')
