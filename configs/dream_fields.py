r"""Dream Fields: text to 3-D by CLIP (Jain et al., 2112.01455).

Variants:
  shapes  The default. An object of the shapes world in minutes on two CPU
          cores, by the shipped CLIP pair for guidance: a tri-plane field, views
          of 64 pixels.
  paper   Every number of the paper's quantitative setting and its code, except
          the CLIP: give OpenAI's B/16. One accelerator.
  tiny    Seconds; for tests.

  python -m gen3d.train --config=configs/dream_fields.py \
    --config.prompt='a red chair' --workdir=runs/chair
  python -m gen3d.train --config=configs/dream_fields.py:paper \
    --config.guidance.path=openai/clip-vit-base-patch16 \
    --config.prompt='a snowman in a snow storm' --workdir=runs/snowman

For schedules, see configs/dreamfusion.py.
"""

import ml_collections

from configs import dreamfusion


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def sweep():
  """Eight of the prompts of configs/dreamfusion.py."""
  return [{'prompt': prompt} for prompt in dreamfusion.EIGHT.values()]


def paper():
  """Section 5 and the paper's code at its medium quality."""
  # Of the NeRF-synthetic cameras, in image widths.
  focal, distance = 1111.111 / 800, 4.0
  config = ml_collections.ConfigDict({
      'task': 'text_to_3d',
      'prompt': 'a red chair',
      'negative_prompt': '',
      'seed': 0,
      'steps': 10_000,
      'views': 1,  # per step
      'guidance': {
          # A .safetensors file of the task 'clip', a folder or hub id of a
          # CLIPModel, or '' for the shipped pair.
          'name': 'clip', 'path': '',
          # Keywords of view-dependent prompts: 'front', 'overhead' (degrees).
          'view_prompts': {},
          'image_feature': {'path': '', 'weight': 0.0},
          'augment': {
              'name': 'crops', 'count': 64,  # 8 on each of the paper's 8 cores
              'crop': 154, 'perspective': 0.0,
              # The paper's code has 'as_released', which multiplies the
              # object's color by its opacity twice.
              'composite': 'over',
              'background': {
                  'squares': 8, 'blur_radius': 7, 'blur_max': 10.0}}},
      'scene': {
          'name': 'dream_fields',
          'size': 168,
          'samples': 192,
          'chunk': 4096,  # rays at once; bounds the memory
          'bound': 1.0,
          'field': {'name': 'fourier_mlp', 'frequencies': 128, 'octaves': 8.0,
                    'width': 128, 'hidden': 256, 'blocks': 4},
          'epsilon': 0.01,  # of the normals of previews
          'camera': {
              'azimuth': (-180.0, 180.0), 'elevation': (30.0, 30.0),
              'distance': (distance, distance),
              'focal': (1.2 * focal, 1.2 * focal), 'jitter_position': 0.0,
              'jitter_target': 0.0, 'jitter_up': 0.0},
          # The target of the mean opacity falls exponentially in `steps`.
          'transmittance': {
              'weight': 0.5, 'start': 0.5, 'end': 0.1, 'steps': 0},
          'origin_decay': 0.999,
          'penalties': {},
      },
      'optimizer': {'name': 'adam', 'learning_rate': 1e-4, 'start': 1e-5,
                    'warmup': 0, 'schedule': 'constant',
                    'b1': 0.9, 'b2': 0.999, 'eps': 1e-5},
      'orbit': {'elevation': 30.0, 'distance': distance, 'focal': focal},
      'export': {'resolution': 192, 'size': 256, 'frames': 96, 'fps': 20,
                 'keep_share': 1.0},
      'log_every': 50, 'eval_every': 1000, 'checkpoint_every': 1000,
      'keep_checkpoints': 2, 'progress': ('clip/cosine', 'opacity'),
  }, convert_dict=True)
  config.scene.transmittance.steps = config.get_ref('steps') // 20
  config.optimizer.warmup = 3 * config.get_ref('steps') // 20
  return config


def shapes(steps=500):
  """The shapes world on a CPU, in `steps`."""
  config = paper()
  config.steps = steps
  config.views = 2
  augment = config.guidance.augment
  augment.count, augment.crop = 4, 56
  # The blur of the paper for images of 224 pixels, at 48.
  augment.background.blur_radius, augment.background.blur_max = 4, 2.1
  # The words that the captions of the shapes world have.
  config.guidance.view_prompts = ml_collections.ConfigDict(
      {'front': 45.0, 'overhead': 60.0})
  scene = config.scene
  scene.size, scene.samples, scene.chunk = 64, 48, 4096
  scene.bound = 0.7
  scene.field = ml_collections.ConfigDict({
      'name': 'triplane', 'resolution': 32, 'features': 16, 'width': 64,
      'bound': scene.get_ref('bound'), 'density_scale': 5.0,
      # A ball that is opaque from the first step on: otherwise fog fills the
      # cube, because it hides the random backgrounds.
      'density_bias': {'name': 'magic3d', 'strength': 6.0, 'radius': 0.35}})
  scene.epsilon = 0.02
  # The cameras of the guide's training images.
  scene.camera.elevation = (0.0, 60.0)
  scene.camera.distance, scene.camera.focal = (1.4, 1.8), (1.1, 1.5)
  # A larger weight keeps the object smaller than the guide's training images.
  scene.transmittance.weight = 0.3
  scene.transmittance.steps = config.get_ref('steps') // 3
  scene.penalties = ml_collections.ConfigDict(
      {'opacity_entropy': ((0.5, 0.0), (1.0, 0.3))})
  scene.origin_decay = 0.99
  config.optimizer = ml_collections.ConfigDict({
      # Three times as much saturates the colors: the object stays white.
      'name': 'adam', 'learning_rate': 1e-2, 'schedule': 'cosine',
      'b1': 0.9, 'b2': 0.99, 'eps': 1e-15,
      'lr_multipliers': {'hidden': 0.3}})
  config.orbit = ml_collections.ConfigDict(
      {'elevation': 15.0, 'distance': 1.85, 'focal': 1.3})
  config.export.update({'resolution': 128, 'frames': 48, 'fps': 10})
  config.export.keep_share = 0.005
  config.log_every, config.eval_every, config.checkpoint_every = 10, 100, 200
  return config


def tiny(steps=4):
  """Seconds: the `shapes` variant at a few pixels, for tests."""
  config = shapes(steps)
  scene = config.scene
  scene.size, scene.samples = 16, 8
  config.guidance.augment.count, config.guidance.augment.crop = 2, 14
  scene.field.resolution, scene.field.features, scene.field.width = 8, 4, 8
  scene.field.density_bias.strength = 8.0  # opaque from the first step on
  config.export.update({'resolution': 16, 'size': 16, 'frames': 8})
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {'shapes': shapes, 'paper': paper, 'tiny': tiny}
