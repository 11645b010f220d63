"""The config of tests/toy_task.py."""

import ml_collections


VARIANTS = ('small', 'long')


def get_config(variant='small'):
  return ml_collections.ConfigDict({
      'task': 'toy', 'seed': 0, 'steps': 10 if variant == 'small' else 400,
      'log_every': 5, 'eval_every': 5, 'checkpoint_every': 5,
      'keep_checkpoints': 2, 'rows': 8, 'nan_at': 0, 'pause': 0.,
      'optimizer': {'learning_rate': 1e-2}})


def sweep():
  for rows in (8, 16):
    yield {'rows': rows, 'optimizer.learning_rate': 1e-3}
