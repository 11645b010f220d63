"""gen3d.train with the task of tests/toy_task.py registered as 'toy'."""

from gen3d import train
from gen3d.engine import cli

if __name__ == '__main__':
  train.tasks.TASKS['toy'] = 'toy_task'
  cli.run(train.main)
