r"""Trains the task that a config describes; the same command resumes.

python -m gen3d.train --config=configs/dreamfusion.py:shapes \
  --config.prompt='a red chair' --workdir=/tmp/chair
"""

from absl import flags
from ml_collections import config_flags

from gen3d import tasks
from gen3d.engine import cli, loop, workdirs

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'NAME or FILE.py of a config, or NAME:VARIANT.')
_WORKDIR = flags.DEFINE_string(
    'workdir', '', 'Directory for checkpoints, reports and results.')


def main() -> None:
  cli.require('config', 'workdir')
  config, workdir = _CONFIG.value, _WORKDIR.value
  module = tasks.module_of(config)
  workdirs.check(config, workdir)
  task = module.make(config)
  _, files = loop.run(task, config, workdir)
  for file in files:
    print(file)


if __name__ == '__main__':
  cli.run(main)
