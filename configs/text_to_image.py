"""Text-to-image diffusion on the shapes world: the teacher that ships.

After Imagen (Saharia et al., 2205.11487) at 1/400 of its size: a U-Net on
64 x 64 pixels, conditioned on a T5 encoder that is trained along.

python -m gen3d.train --config=configs/text_to_image.py --workdir=/tmp/t2i

On two cores about 60 pictures a second; the record beside the shipped weights
(gen3d/assets/text_to_image_shapes.json) says how many it has seen. A longer
run shares its beginning with a shorter one: raise config.steps and resume
from a checkpoint before the cool-down.
"""

import ml_collections


def get_config(variant='shapes'):
  """The config; variants: 'shapes' (ships with the package), 'tiny'."""
  config = ml_collections.ConfigDict()
  config.task = 'text_to_image'
  config.seed = 0

  # Data: cached views of the shapes world, lit anew each time.
  config.data_seed = 0
  config.views = 48_000
  config.held_out = 128
  config.drop_caption = 0.1  # and the camera with it
  config.drop_camera = 0.2   # alone

  # Model: 6.5 M parameters, text encoder included.
  config.model = {
      'size': 64, 'prediction': 'v',
      'unet': {'channels': (32, 64, 160), 'blocks': (1, 2, 2),
               'attention': (False, False, True), 'patch': 2,
               'head_dim': 32, 'time_width': 256,
               'rays': True},
      't5': {'layers': 2, 'width': 128, 'heads': 4, 'head_dim': 32,
             'ff_width': 256}}

  # Training. `start_from` takes weights (.safetensors) to go on from where
  # the run's own checkpoints are gone; `start_parts` says which of them.
  config.start_from = ''
  config.start_parts = ('t5', 'unet')
  config.batch = 32
  config.steps = 10_000
  config.optimizer = {
      'name': 'adamw', 'learning_rate': 1e-3, 'schedule': 'trapezoid',
      'warmup': 300, 'cooldown': 2000, 'b1': 0.9, 'b2': 0.99, 'eps': 1e-8,
      'weight_decay': 0.01, 'clip': 1.0,
      'rates': {'t5': 0.15, 'rays': 10.0}}
  config.ema_decay = 0.999
  config.most_weight = 4.0  # of an image's squared error, else 1 + SNR
  config.late_times = 30.0  # at 1, relative to 0
  config.reading_weight = 0.05  # of the encoder's lessons in word order

  # Reports.
  config.guidance_scale = 3.0
  config.sampler_steps = 30
  config.grid = 16
  config.log_every = 20
  config.eval_every = 1000
  config.checkpoint_every = 500
  config.keep_checkpoints = 2
  config.progress = ('loss/v', 'loss/reading')

  variants = ('shapes', 'tiny')
  if variant not in variants:
    raise ValueError(f'Unknown variant {variant!r}; choose from '
                     f'{list(variants)}.')
  if variant == 'tiny':
    config.update({
        'views': 16, 'held_out': 8, 'batch': 4, 'steps': 2, 'grid': 2,
        'log_every': 1, 'eval_every': 2, 'sampler_steps': 2,
        'model': {
            'size': 16, 'unet': {'channels': (16, 32), 'blocks': (1, 1),
                                 'attention': (False, True),
                                 'time_width': 32},
            't5': {'layers': 1, 'width': 16, 'heads': 2, 'head_dim': 8,
                   'ff_width': 32}},
        'optimizer': {'warmup': 1, 'cooldown': 1}})
  return config
