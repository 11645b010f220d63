"""Runs a config once for each of the overrides that its sweep() gives.

python -m gen3d.sweep --config=configs/dreamfusion.py --workdir=/tmp/sweep
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
    'config', None, 'Config file with a sweep(), FILE.py or FILE.py:VARIANT.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory; each run has one of its own inside it.')
_RUN = flags.DEFINE_bool('run', False, 'Run them all, one after another.')
_COUNT = flags.DEFINE_bool('count', False, 'Print the number of runs.')
_INDEX = flags.DEFINE_integer(
    'index', None, 'Run only the run with this index, from 0.')


def main() -> None:
  cli.require('config', 'workdir')
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  common = [flag for flag in sys.argv[1:] if flag.startswith('--config.')]
  lines = sweeps.commands(path, _WORKDIR.value, common)
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
