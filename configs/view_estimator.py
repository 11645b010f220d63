"""Camera and depth of one picture of the shapes world (see tasks/).

The shipped network stands in for a face reconstructor in the comparison of 3-D
GANs (configs/README.md), and labels pictures that have no cameras. It knows
cats from the front and cars from all around, the sets on which the shipped
GANs are trained: white background, distance 1.7, focal length 1.35.

Variants:
  shapes  The default: 0.8 million parameters, about 5 minutes on two CPU cores.
  tiny    Seconds; for tests.

  python -m gen3d.train --config=configs/view_estimator.py --workdir=runs/views

Goal: a median error of at most 1 degree on held-out pictures.
"""

import ml_collections

from configs import stylegan2


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def shapes():
  """Cats and cars of the shapes world."""
  data = {'cats': stylegan2.cats_data(), 'cars': stylegan2.shapes_data(64)}
  config = ml_collections.ConfigDict({
      'task': 'view_estimation',
      'seed': 0,
      # Sets of tasks/gan.py's form, from which pictures are drawn in equal
      # parts. Their views are stored, so that the GANs do not render them anew.
      'data': data,
      'size': 64, 'distance': 1.7, 'focal': 1.35,
      'held_out': 512,  # pictures of each set
      'model': {'widths': (24, 48, 96, 128), 'hidden': 128},
      # Weights of the squared error of the direction, the absolute error of
      # the depth (in world units) and the cross-entropy of the mask.
      'weights': {'direction': 1.0, 'depth': 2.0, 'mask': 0.1},
      'batch': 32, 'steps': 1500,
      'optimizer': {
          'name': 'adamw', 'learning_rate': 2e-3, 'schedule': 'cosine',
          'warmup': 0, 'weight_decay': 0.02, 'clip': 1.0},
      'ema_decay': 0.995,
      'log_every': 20, 'eval_every': 500, 'checkpoint_every': 250,
      'keep_checkpoints': 1,
      'progress': ('loss/direction', 'loss/depth')}, convert_dict=True)
  config.optimizer.warmup = config.get_ref('steps') // 15
  return config


def tiny():
  """Seconds: a few pictures of 16 pixels, for tests."""
  config = shapes()
  for data in config.data.values():
    data.update({'count': 8, 'size': 16})
  config.size, config.held_out, config.batch, config.steps = 16, 4, 4, 2
  config.model.update({'widths': (8, 8), 'hidden': 8})
  config.optimizer.warmup = 1
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {'shapes': shapes, 'tiny': tiny}
