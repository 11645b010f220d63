"""The judge: a small CLIP pair (Radford et al., 2103.00020), shapes world.

python -m gen3d.train --config=configs/clip.py --workdir=/tmp/clip

Goal: on renders of 512 held-out captions the right one is found among 64
distractors at least 95 % of the time. The record beside the shipped weights
(gen3d/assets/clip_shapes.json) says what was reached, and in how long.
"""

import ml_collections

VARIANTS = {
    'shapes': {},
    'tiny': {
        'resolution': 16, 'views': 16, 'held_out': 96, 'features': 16,
        'batch': 8, 'steps': 2, 'log_every': 1, 'eval_every': 2,
        'image': {'resolution': 16, 'width': 16, 'layers': 1, 'heads': 2},
        'text': {'width': 16, 'layers': 1, 'heads': 2},
        'optimizer': {'warmup': 1, 'cooldown': 1}},
}


def get_config(variant='shapes'):
  """The config; variants: 'shapes' (ships with the package), 'tiny'."""
  config = ml_collections.ConfigDict()
  config.task = 'clip'
  config.seed = 0

  # Data: cached views of the shapes world, lit anew each time.
  config.data_seed = 0
  config.resolution = 64
  config.views = 30_000
  config.held_out = 512

  # Model: 0.08 GFLOP a pair forward, 1.1 M parameters. Pictures are made
  # smaller for it: half of the work, and shapes and colors stay plain.
  config.image = {'resolution': 48, 'patch': 8, 'width': 128, 'layers': 4,
                  'heads': 4}
  config.text = {'width': 96, 'layers': 2, 'heads': 3}
  config.features = 128

  # Training. `start_from` takes weights (.safetensors) to go on from where
  # the run's own checkpoints are gone.
  config.start_from = ''
  config.batch = 128
  config.steps = 3000
  config.optimizer = {
      'name': 'adamw', 'learning_rate': 1e-3, 'schedule': 'trapezoid',
      'warmup': 100, 'cooldown': 1000, 'b1': 0.9, 'b2': 0.98,
      'eps': 1e-6, 'weight_decay': 0.1, 'clip': 1.0}
  config.ema_decay = 0.995

  # Reports.
  config.log_every = 20
  config.eval_every = 500
  config.checkpoint_every = 250
  config.keep_checkpoints = 1
  config.progress = ('loss/contrastive', 'accuracy/text_of_image')

  config.update(VARIANTS[variant])
  return config
