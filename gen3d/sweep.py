r"""Runs a config for each prompt of a file, or each override of its sweep().

python -m gen3d.sweep --config=dreamfusion --prompts=prompts.txt \
  --workdir=runs/mine --run
python -m gen3d.sweep --config=dreamfusion --workdir=/tmp/sweep

A file of prompts has one a line, and each gets a folder of its name in the
workdir; the same command resumes, and ends with a summary. Without --run it
prints the command lines; --run runs them one after another, --index=N runs
one of them, as an element of a job array does, --count prints their number.
Further --config.KEY=VALUE flags are passed to all of them.
"""

import os
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from gen3d.choices import UserError
from gen3d.engine import cli, sweeps

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'NAME or FILE.py of a config, or NAME:VARIANT.')
_WORKDIR = flags.DEFINE_string(
    'workdir', '', 'Directory; each run has one of its own inside it.')
_PROMPTS = flags.DEFINE_string(
    'prompts', '', 'File with a prompt a line, in place of the sweep().')
_RUN = flags.DEFINE_bool('run', False, 'Run them all, one after another.')
_COUNT = flags.DEFINE_bool('count', False, 'Print the number of runs.')
_INDEX = flags.DEFINE_integer(
    'index', None, 'Run only the run with this index, from 0.')


def main() -> None:
  cli.require('config', 'workdir')
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  common = [flag for flag in sys.argv[1:] if flag.startswith('--config.')]
  if sum([_RUN.value, _COUNT.value, _INDEX.value is not None]) > 1:
    raise UserError('Give one of --run, --count and --index.')
  lines = sweeps.commands(path, _WORKDIR.value, common, _PROMPTS.value)
  if _COUNT.value:
    print(len(lines))
  elif _INDEX.value is not None:
    if not 0 <= _INDEX.value < len(lines):
      raise UserError(f'There is no run {_INDEX.value}; the sweep has '
                      f'{len(lines)}, counted from 0.')
    line = lines[_INDEX.value]
    os.execv(line[0], line)  # So that signals go to the training itself.
  elif _RUN.value:
    sweeps.run(lines)
  else:
    print('\n'.join(map(shlex.join, lines)))


if __name__ == '__main__':
  cli.run(main)
