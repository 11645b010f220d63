r"""Trains the task that a config describes; the same command resumes.

python -m gen3d.train --config=configs/dreamfusion.py:shapes \
  --config.prompt='a red chair' --workdir=/tmp/chair
"""

import contextlib

from absl import flags
from ml_collections import config_flags

from gen3d import notices, tasks
from gen3d.engine import cli, loop, workdirs
from gen3d.viewer import page

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'NAME or FILE.py of a config, or NAME:VARIANT.')
_WORKDIR = flags.DEFINE_string(
    'workdir', '', 'Directory for checkpoints, reports and results.')
_VIEW = flags.DEFINE_bool(
    'view', False, 'Show the object in the browser as it trains; checkpoints '
    'are then written at least twice a minute.')
_MINUTES = 0.5  # between two checkpoints, with --view


def main() -> None:
  cli.require('config', 'workdir')
  config, workdir = _CONFIG.value, _WORKDIR.value
  module = tasks.module_of(config)
  workdirs.check(config, workdir)
  with notices.slow('Reading what the run starts from'):
    task = module.make(config)
  if _VIEW.value:
    with config.unlocked():
      config.checkpoint_minutes = min(
          _MINUTES, config.get('checkpoint_minutes', _MINUTES))
  with page.beside(workdir) if _VIEW.value else contextlib.nullcontext():
    _, files = loop.run(task, config, workdir)
    for file in files:
      print(file, flush=True)


if __name__ == '__main__':
  cli.run(main)
