r"""A finished run as a mesh, refined by score distillation.

The second stage that Magic3D (2211.10440), ProlificDreamer (2305.16213) and CSD
(2310.19415) share: the surface of a finished field becomes a mesh, its colors a
texture, and both are optimized through a rasterizer. `scene.start_from` may be
a mesh file, too; where it is empty the mesh is a sphere.

Variants:
  shapes  The default. A finished run of configs/dreamfusion.py:shapes, by the
          same teacher.
  sd      The same by Stable Diffusion at 512 pixels, with the settings of
          Magic3D's second stage in threestudio. One accelerator.
  tiny    Seconds; for tests.

  python -m gen3d.train --config=configs/refine.py \
    --config.scene.start_from=runs/chair --config.prompt='a red chair' \
    --workdir=runs/chair_mesh
"""

import ml_collections

from configs import dreamfusion


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def sweep():
  """Eight runs of the sweep of configs/dreamfusion.py in runs/table."""
  return [{'prompt': prompt, 'scene.start_from':
           f'runs/table/{index:03d}_prompt={prompt.replace(" ", "-")}'}
          for index, prompt in dreamfusion.EIGHT.items()]


def shapes(steps=100):
  """A run of the shapes world, on a CPU."""
  config = dreamfusion.shapes(steps)
  field = config.scene
  with config.ignore_type():
    config.guidance.scale = 3.0
    config.guidance.options.update({'time_min': 0.02, 'time_max': 0.6})
  config.scene = _scene(field)
  config.scene.update({'random_background_prob': 1.0, 'background_range': 1.0})
  # In the teacher's training images a ray that touches the object is opaque and
  # one that misses it by a pixel is empty (data/shapes/render.py), so that they
  # show objects half a pixel too large on all sides. The start is not: see
  # `inset` in configs/dreamfusion.py.
  config.scene.outset = 0.5
  # Flat sides and sharp edges. Five times as much also flattens a car's wheels.
  config.scene.normal_variation, config.scene.smoothing = 400.0, 1
  config.scene.resolution = 48
  config.scene.light.update({'albedo_steps': 0, 'shaded_prob': 1.0})
  config.optimizer = ml_collections.ConfigDict({
      'name': 'adam', 'learning_rate': 1e-2, 'schedule': 'cosine',
      'b1': 0.9, 'b2': 0.99, 'eps': 1e-15,
      'lr_multipliers': {'offsets': 0.1}})
  config.log_every, config.eval_every, config.checkpoint_every = 10, 50, 100
  return config


def _scene(field):
  """The mesh scene with the cameras, lights and backgrounds of a field."""
  return ml_collections.ConfigDict({
      'name': 'mesh',
      # A finished run or a mesh file, or '' for a sphere.
      'start_from': '',
      # Of the sphere, and of the ball that a mesh file is scaled into.
      'radius': 0.5, 'subdivisions': 3,
      # Of a run's mesh: grid points along its longest side, and the smallest
      # pieces that are kept.
      'resolution': 64, 'keep_share': 0.005,
      # Pixels by which the surface is moved outwards in images.
      'outset': 0.0,
      'size': field.size, 'layers': 1, 'near': 0.05, 'far': 20.0,
      'bound': field.bound,
      'surface': 'vertices',
      # Rounds of smoothing through which the offsets of vertices are seen.
      'smoothing': 6,
      'laplacian': {'of': 'offsets', 'start': 0.0, 'end': 0.0, 'rate': 0.0},
      'normal_consistency': 0.0, 'normal_variation': 0.0,
      'texture': {'size': 256, 'channels': 3, 'blur_sigma': 1.0,
                  'blur_radius': 0, 'mipmaps': True},
      'normal_map': False,
      'background_mlp': None,
      'view_distribution': 'dreamfusion',
      'random_background_prob': 0.5, 'background_range': 1.0,
      'camera': dict(field.camera), 'light': dict(field.light),
  }, convert_dict=True)


def stable_diffusion():
  """Magic3D's second stage in threestudio: 512 pixels, 5,000 steps."""
  config = dreamfusion.stable_diffusion()
  config.steps = 5000
  background = dict(config.scene.background_mlp)
  config.scene = _scene(config.scene)
  config.scene.update({'size': 512, 'resolution': 128})
  with config.ignore_type():
    config.scene.background_mlp = ml_collections.ConfigDict(background)
  config.scene.light.albedo_steps = 2 * config.get_ref('steps') // 5
  # threestudio's weight is of the mean over edges, and its images have the
  # gradient of a mean over the batch, as here.
  config.scene.normal_consistency = 1e4
  config.scene.texture.size = 1024
  config.scene.camera.focal = (1.207, 1.866)  # from 45 to 30 degrees
  config.guidance.options.update({'time_min': 0.02, 'time_max': 0.5})
  config.optimizer.lr_multipliers = {'background': 0.1}
  return config


def tiny(steps=4):
  """Seconds: a sphere at a few pixels, for tests."""
  config = shapes(steps)
  config.scene.size = 16
  config.scene.subdivisions = 1
  config.scene.texture.size = 16  # the smallest of a run that is refined
  config.export.update({'resolution': 16, 'size': 16, 'frames': 8})
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {'shapes': shapes, 'sd': stable_diffusion, 'tiny': tiny}
