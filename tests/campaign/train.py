"""gen3d.train, with the toy task of the tests among its tasks."""

from gen3d import tasks, train
from gen3d.engine import cli

tasks.TASKS['toy'] = 'toy_task'

if __name__ == '__main__':
  cli.run(train.main)
