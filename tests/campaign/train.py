"""gen3d.train, with the toy task of the tests among its tasks."""

import os
import signal

# As gen3d does for its own commands, until engine/cli.py sets its handler.
signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from gen3d import tasks, train  # noqa: E402
from gen3d.engine import cli  # noqa: E402

tasks.TASKS['toy'] = 'toy_task'

if __name__ == '__main__':
  cli.run(train.main)
