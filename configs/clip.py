r"""A small CLIP pair (Radford et al., 2103.00020) for the shapes world.

python -m gen3d.train --config=configs/clip.py --workdir=/tmp/clip

Goal: R-precision of 95 % or more on images of 512 held-out objects, among 64
distractors. gen3d/assets/clip_shapes.json records the training of the bundled
weights: R-precision, steps and time.

A second pair guides scenes (guidance/clip.py), which the first one evaluates.
It is trained in two stages, the second one with adversarial images, without
which a scene finds images that only the guide retrieves:

python -m gen3d.train --config=configs/clip.py:guide --workdir=/tmp/guide
python -m gen3d.train --config=configs/clip.py:guide_robust \
  --config.start_from=/tmp/guide/clip_shapes_guide.safetensors \
  --workdir=/tmp/guide_robust
"""

import ml_collections

# The pair that guides (guidance/clip.py): other data, another network, and the
# backgrounds and crops of guidance. Muon and a smaller batch learn more from
# the same number of images.
_GUIDE = {
    'asset': 'clip_shapes_guide', 'seed': 2, 'data_seed': 1, 'views': 12_000,
    'augment': {'zoom': (0.7, 1.5), 'shift': 0.15, 'background': 'mixed'},
    'image': {'width': 96}, 'text': {'width': 80, 'heads': 4}, 'features': 96,
    'batch': 64}

VARIANTS = {
    'shapes': {},
    'guide': {**_GUIDE, 'steps': 2400, 'optimizer': {'name': 'muon'}},
    # Goes on from the weights of `guide`: set start_from.
    'guide_robust': {
        **_GUIDE, 'seed': 3, 'adversary': 1.5, 'steps': 1000,
        'optimizer': {'name': 'muon', 'learning_rate': 7e-4}},
    'tiny': {
        'resolution': 16, 'views': 16, 'held_out': 96, 'features': 16,
        'batch': 8, 'steps': 2, 'log_every': 1, 'eval_every': 2,
        'image': {'resolution': 16, 'width': 16, 'layers': 1, 'heads': 2},
        'text': {'width': 16, 'layers': 1, 'heads': 2},
        'optimizer': {'warmup': 1, 'cooldown': 1}},
}

# Warm-up and cool-down: `steps` times the first number, divided by the second.
_PHASES = {'shapes': ((1, 30), (1, 3)), 'guide': ((1, 24), (5, 24)),
           'guide_robust': ((1, 20), (1, 2))}


def get_config(variant='shapes'):
  """The config of one of VARIANTS; 'shapes' is the pair that evaluates."""
  config = ml_collections.ConfigDict()
  config.task = 'clip'
  config.asset = 'clip_shapes'  # name of the weights that a run writes
  config.seed = 0

  # Data: cached views of the shapes world, lit anew in every step.
  config.data_seed = 0
  config.resolution = 64
  config.views = 30_000
  config.held_out = 512
  config.augment = {'zoom': (0.75, 1.2), 'shift': 0.1, 'background': 'shapes'}

  # Model: 0.08 GFLOP forward per pair, 1.1 M parameters. Images are reduced
  # from 64 to 48 pixels: half of the cost, and shapes and colors remain clear.
  config.image = {'resolution': 48, 'patch': 8, 'width': 128, 'layers': 4,
                  'heads': 4}
  config.text = {'width': 96, 'layers': 2, 'heads': 3}
  config.features = 128

  # Radius of adversarial changes of the images, see tasks/clip.py; 0: none.
  config.adversary = 0.0

  # Training. `start_from`: weights (.safetensors) to continue from, for a run
  # whose checkpoints no longer exist.
  config.start_from = ''
  config.batch = 128
  config.steps = 3000
  config.optimizer = {
      'name': 'adamw', 'learning_rate': 1e-3, 'schedule': 'trapezoid',
      'warmup': 0, 'cooldown': 0, 'b1': 0.9, 'b2': 0.98,
      'eps': 1e-6, 'weight_decay': 0.1, 'clip': 1.0}
  config.ema_decay = 0.995

  # Logging, evaluation and checkpoints.
  config.log_every = 20
  config.eval_every = 500
  config.checkpoint_every = 250
  config.keep_checkpoints = 1
  config.progress = ('loss/contrastive', 'accuracy/text_of_image')

  for key, (part, whole) in zip(
      ('warmup', 'cooldown'), _PHASES.get(variant, ())):
    config.optimizer[key] = part * config.get_ref('steps') // whole
  config.update(VARIANTS[variant])
  return config
