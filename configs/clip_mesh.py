r"""CLIP-Mesh: text to a textured mesh by CLIP (Khalid et al., 2203.13333).

Variants:
  shapes  The default. An object of the shapes world in minutes on two CPU
          cores, by the shipped CLIP pair for guidance: views of 64 pixels.
  paper   Every number of the paper's code, except the CLIP: give OpenAI's B/32.
          One accelerator. The code rounds 1 / tan(fov / 2) of its cameras
          towards zero; here the angles of view are those that it draws.
  fast    The paper's code with its faster settings.
  tiny    Seconds; for tests.

  python -m gen3d.train --config=configs/clip_mesh.py \
    --config.prompt='a red chair' --workdir=runs/chair
  python -m gen3d.train --config=configs/clip_mesh.py:paper \
    --config.guidance.path=openai/clip-vit-base-patch32 \
    --config.prompt='a snowman' --workdir=runs/snowman

The paper's second text, an image feature that a diffusion prior makes of the
prompt, is a .npy file of that feature: `guidance.image_feature.path`.
"""

import math

import ml_collections

from configs import dreamfusion


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def sweep():
  """Eight of the prompts of configs/dreamfusion.py."""
  return [{'prompt': prompt} for prompt in dreamfusion.EIGHT.values()]


def paper(steps=5000):
  """The settings of the paper's figures."""
  config = ml_collections.ConfigDict({
      'task': 'text_to_3d',
      'prompt': 'a red chair',
      'negative_prompt': '',
      'seed': 99,
      'steps': steps,
      'views': 25,  # per step
      'guidance': {
          # A .safetensors file of the task 'clip', a folder or hub id of a
          # CLIPModel, or '' for the shipped pair.
          'name': 'clip', 'path': '',
          'view_prompts': {},
          'image_feature': {'path': '', 'weight': 0.33},
          'augment': {'name': 'whole', 'kernel': 'lanczos2', 'edges': 'zero'}},
      'scene': {
          'name': 'mesh',
          'start_from': '',  # a sphere; see configs/refine.py
          'radius': 1.0, 'subdivisions': 3,  # 642 control vertices
          'resolution': 64, 'keep_share': 1.0, 'outset': 0.0,
          'size': 512, 'layers': 2, 'near': 1.0, 'far': 50.0, 'bound': 2.0,
          'surface': 'clip_mesh_limit',
          'smoothing': 0,
          'laplacian': {'of': 'positions', 'start': 30.0, 'end': 0.6,
                        'rate': 1e-6},
          'normal_consistency': 0.0, 'normal_variation': 0.0,
          'texture': {'size': 512, 'channels': 4, 'blur_sigma': 3.0,
                      'blur_radius': 2, 'mipmaps': True},
          'normal_map': True,
          'view_distribution': 'clip_mesh',
          'camera': {
              'azimuth': (0.0, 361.0), 'elevation_beta': 5.0,
              'elevation_max': 90.0, 'distance': (5.0, 12.0),
              'fov': (30.0, 90.0), 'shift': 2.0},
          # A power of 5, of which a diffuse surface reflects 5 / pi.
          'light': {'ambient': 0.0, 'diffuse': 5 / math.pi,
                    'untextured_steps': 0, 'untextured_gray': 0.5},
      },
      'optimizer': {'name': 'adam', 'learning_rate': 1e-2,
                    'schedule': 'exponential', 'final': 10 ** (-2e-4 * steps),
                    'b1': 0.9, 'b2': 0.999, 'eps': 1e-8, 'lr_multipliers': {}},
      'orbit': {'elevation': 30.0, 'distance': 5.0, 'focal': 1.6},
      'export': {'resolution': 192, 'size': 256, 'frames': 96, 'fps': 20,
                 'keep_share': 1.0},
      'log_every': 50, 'eval_every': 500, 'checkpoint_every': 1000,
      'keep_checkpoints': 2, 'progress': ('clip/cosine', 'opacity'),
  }, convert_dict=True)
  config.scene.light.untextured_steps = config.get_ref('steps') // 2
  return config


def fast(steps=2000):
  """The faster settings of the paper's code."""
  config = paper(steps)
  config.scene.size = 356
  config.guidance.augment.kernel = 'cubic'
  config.scene.texture.blur_radius = 3
  config.scene.camera.update({'elevation_max': 60.0, 'distance': (5.0, 8.0)})
  return config


def shapes(steps=800):
  """The shapes world on a CPU, in `steps`."""
  config = paper(steps)
  config.views = 8
  # The words that the captions of the shapes world have.
  config.guidance.view_prompts = ml_collections.ConfigDict(
      {'front': 45.0, 'overhead': 60.0})
  scene = config.scene
  scene.radius, scene.bound, scene.near, scene.far = 0.45, 0.7, 0.05, 20.0
  scene.size, scene.layers = 64, 1
  scene.texture.update({'size': 64, 'channels': 3})
  # The cameras of the guide's training images, and their light.
  scene.camera.update({
      'elevation_beta': 1.0, 'elevation_max': 60.0, 'distance': (1.4, 1.8),
      'fov': (37.0, 49.0), 'shift': 0.05})
  # Always textured: the gray of the others contradicts a color in the prompt.
  scene.light.update({'ambient': 0.4, 'diffuse': 0.6, 'untextured_steps': 0})
  config.optimizer.lr_multipliers = {'offsets': 0.15}
  config.orbit = ml_collections.ConfigDict(
      {'elevation': 15.0, 'distance': 1.85, 'focal': 1.3})
  config.export.update({'frames': 48, 'fps': 10})
  config.log_every, config.eval_every, config.checkpoint_every = 10, 100, 400
  return config


def tiny(steps=4):
  """Seconds: the `shapes` variant at a few pixels, for tests."""
  config = shapes(steps)
  config.views = 4
  config.scene.size, config.scene.subdivisions = 16, 1
  config.scene.texture.update({'size': 8, 'channels': 4})
  config.scene.layers = 2
  config.export.update({'resolution': 16, 'size': 16, 'frames': 8})
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {'shapes': shapes, 'paper': paper, 'fast': fast, 'tiny': tiny}
