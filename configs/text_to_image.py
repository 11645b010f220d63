r"""Text-to-image diffusion on the shapes world: the teacher that ships.

After Imagen (Saharia et al., 2205.11487) at 1/400 of its size: a U-Net on
64 x 64 pixels, conditioned on a T5 encoder that is trained along.

python -m gen3d.train --config=configs/text_to_image.py --workdir=/tmp/t2i

About 60 images a second on two cores; the record beside the shipped weights
(gen3d/assets/text_to_image_shapes.json) has the number of training images. To
train longer, raise config.steps and resume from a checkpoint before the
cool-down.

The light field, which makes the U-Net's prior image, needs many more images,
but only some rays of each. It is faster to train it alone, at 700 images a
second, once the text encoder is trained:

python -m gen3d.train --config=configs/text_to_image.py:light_field \
  --config.start_from=/tmp/t2i/text_to_image_shapes.safetensors \
  --workdir=/tmp/lf

and to continue the U-Net from there, with only loss_weights.v above zero and
optimizer.lr_multipliers.light_field=0. The shipped weights were trained in such
stages; the record has the settings of each under 'earlier'.

The ControlNet for depth conditioning (gen3d/models/unet.py) has 1.3 M
parameters and is trained beside the frozen shipped weights, from the root of
the repository:

python -m gen3d.train --config=configs/text_to_image.py:depth \
  --workdir=/tmp/depth
"""

import ml_collections

_TINY = {
    'views': 16, 'held_out': 8, 'batch': 4, 'steps': 2, 'grid': 2,
    'log_every': 1, 'eval_every': 2, 'sampler_steps': 2,
    'model': {
        'size': 16, 'unet': {'channels': (16, 32), 'blocks': (1, 1),
                             'attention': (False, True), 'time_width': 32},
        't5': {'layers': 1, 'width': 16, 'heads': 2, 'head_dim': 8,
               'ff_width': 32},
        'light_field': {'width': 16, 'layers': 3, 'experts': 2}},
    'optimizer': {'warmup': 1, 'cooldown': 1}}

# Changes of each variant to `shapes`.
VARIANTS = {
    'shapes': {},
    # The same model; only the light field is trained.
    'light_field': {
        'batch': 512, 'steps': 900, 'eval_every': 0, 'ema_decay': 0.99,
        'drop_caption': 0.0, 'drop_camera': 0.0,
        'loss_weights': {'v': 0.0, 'text_probe': 0.0},
        'optimizer': {'learning_rate': 5e-3,
                      'lr_multipliers': {'t5': 0.0, 'unet': 0.0}},
        'progress': ('loss/prior_image',)},
    # A ControlNet of depth maps for the shipped weights, which are frozen, on
    # views that they were not trained on.
    'depth': {
        'start_from': 'text_to_image_shapes',
        'trained_parts': ('control',), 'data_seed': 1, 'views': 16_000,
        'steps': 4_000, 'model': {'control': {'blocks': (1, 2, 1)}},
        'loss_weights': {'text_probe': 0.0, 'prior_image': 0.0},
        'progress': ('loss/v',)},
    'tiny': _TINY,
    'depth_tiny': {
        **_TINY, 'trained_parts': ('control',),
        'model': {**_TINY['model'], 'control': {'blocks': (1, 1)}},
        'loss_weights': {'text_probe': 0.0, 'prior_image': 0.0},
        'progress': ('loss/v',)}}


# Warm-up and cool-down: `steps` times the first number, divided by the second.
_PHASES = {'shapes': ((3, 100), (1, 5)), 'light_field': ((1, 18), (13, 18)),
           'depth': ((1, 20), (1, 2))}


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  config = shapes()
  for key, (part, whole) in zip(
      ('warmup', 'cooldown'), _PHASES.get(variant, ())):
    config.optimizer[key] = part * config.get_ref('steps') // whole
  config.update(VARIANTS[variant])
  if config.trained_parts:
    # The multipliers are those of parts that are frozen.
    config.optimizer.lr_multipliers = ml_collections.ConfigDict()
  return config


def shapes():
  """The model that ships with the package."""
  config = ml_collections.ConfigDict()
  config.task = 'text_to_image'
  config.seed = 0

  # Data: cached views of the shapes world, relit each time.
  config.data_seed = 0
  config.views = 48_000
  config.held_out = 128
  config.drop_caption = 0.1  # and the camera with it
  config.drop_camera = 0.2   # alone

  # Model: 6.5 M parameters with the text encoder, and 1.1 M of the light field.
  config.model = {
      'size': 64, 'prediction': 'v',
      'unet': {'channels': (32, 64, 160), 'blocks': (1, 2, 2),
               'attention': (False, False, True), 'patch': 2,
               'head_dim': 32, 'time_width': 256,
               'rays': True},
      't5': {'layers': 2, 'width': 128, 'heads': 4, 'head_dim': 32,
             'ff_width': 256},
      'light_field': {'width': 128, 'layers': 5, 'experts': 16}}

  # Training. `start_from` is a file of weights (.safetensors) for the
  # initialization of `start_parts`.
  config.start_from = ''
  config.start_parts = ('t5', 'unet', 'light_field')
  config.trained_parts = ()  # of the parameters; () for all
  config.batch = 32
  config.steps = 10_000
  config.optimizer = {
      'name': 'adamw', 'learning_rate': 1e-3, 'schedule': 'trapezoid',
      'warmup': 0, 'cooldown': 0, 'b1': 0.9, 'b2': 0.99, 'eps': 1e-8,
      'weight_decay': 0.01, 'clip': 1.0,
      # Higher for layers that are added to a trained network.
      # 'sketch' and 'sketch_share' are the U-Net's layers of the prior image.
      'lr_multipliers': {
          't5': 0.15, 'unet': 1.0, 'rays': 10.0, 'sketch': 10.0,
          'sketch_share': 10.0, 'light_field': 1.0}}
  config.ema_decay = 0.999
  config.max_snr_weight = 4.0  # bound on an image's weight 1 + SNR
  config.high_noise_oversampling = 30.0  # density of times at 1 relative to 0
  config.loss_weights = {'v': 1.0, 'text_probe': 0.05, 'prior_image': 1.0}
  config.prior_patches = 64  # of each image, in the prior image's loss

  # Reports.
  config.guidance_scale = 3.0
  config.sampler_steps = 30
  config.grid = 16
  config.log_every = 20
  config.eval_every = 1000
  config.checkpoint_every = 500
  config.keep_checkpoints = 2
  config.progress = ('loss/v', 'loss/text_probe', 'loss/prior_image')

  return config
