r"""GIRAFFE (Niemeyer and Geiger, 2011.12100): scenes from images alone.

Variants:
  cats     The default. Cats of the shapes world, seen from the front, 64 x 64
           pixels, from features of 16 x 16: GIRAFFE's row in the comparison of
           3-D GANs (configs/README.md). About 25 minutes on two CPU cores.
  compcars64, cats64, celeba64, chairs64, church64
           The published models at 64 x 64.
  cars256, celebahq256, ffhq256, church256, clevr2256, clevr2345256
           Those at 256 x 256. The names are those of the official checkpoints.
  cpu64    The official model at 64 x 64 with a batch of 4, at which `python -m
           gen3d.benchmark` is compared with the official code on two CPU cores.
  tiny     Seconds; for tests.

  python -m gen3d.train --config=configs/giraffe.py --workdir=runs/cats
  python -m gen3d.train --config=configs/giraffe.py:ffhq256 \
    --config.data.path=FFHQ_256.zip --workdir=runs/ffhq

The paper trains for one to four days on one GPU, without a fixed length, and
keeps the weights with the least FID. Images have no cameras here; labels are
ignored. `data.mirror` as in the official code. Images of the data must be
square already: the official code takes random squares of cars and churches and
the central 108 (CelebA) or 650 (CelebA-HQ) pixels of faces. The prior of Clevr
needs `model.prior.locations`, a file of the data set.

`r1_gamma` is for images in [-1, 1], of which half is applied: the official
10 |g|^2 for images in [0, 1], where the gradient g is twice as large, is
0.5 gamma |g|^2 with gamma = 80. `ema_images` is the half-life of a decay by
0.999 in a step of 32 images.
"""

import ml_collections

from configs import stylegan2


def get_config(variant='cats'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def base(name, resolution):
  """What the published models have in common; their boxes are `default`."""
  config = stylegan2.base()
  wide = resolution > 64
  config.update({
      'networks': 'giraffe', 'name': name, 'resolution': resolution,
      'render_size': ((0, 16),), 'render_bucket': 1})
  config.model = ml_collections.ConfigDict({
      # Of each of the two codes, shape and appearance.
      'z_dim': 256, 'z_dim_background': 128,
      'features': 256 if wide else 128,
      'decoder': {'width': 128, 'layers': 8, 'skips': (4,), 'downscale': 2.0},
      'background': {
          'width': 64, 'layers': 4, 'skips': (), 'downscale': 12.0},
      'renderer': {'width': 256 if wide else 128, 'min_width': 32,
                   'blocks': 4 if wide else 2},
      'rendering': {'samples': 64, 'near': 0.5, 'far': 6.0,
                    'composition': 'sum', 'chunk': 0},
      # Boxes in the scene's world, which has z up; turns; (1 - sin(elevation))
      # / 2 of the camera.
      'prior': {
          'boxes': 1, 'scale_min': (0.5, 0.5, 0.5),
          'scale_max': (0.5, 0.5, 0.5), 'translation_min': (-0.75, -0.75, 0.0),
          'translation_max': (0.75, 0.75, 0.0), 'rotation_range': (0.0, 1.0),
          'background_rotation_range': (0.0, 0.0), 'v_range': (0.25, 0.25),
          'radius_range': (2.732, 2.732), 'fov': 49.13},
      'background_color': 'black',  # of the data, behind what is cut out
      'discriminator': {'width': 512}})
  config.optimizer = 'rmsprop'
  config.generator_rate = 2.5e-4 if wide else 5e-4
  config.discriminator_rate = 1e-4
  config.schedule.update({
      'r1_gamma': 80.0, 'joint_r1': True, 'd_reg_interval': 0,
      'g_reg_interval': 0, 'ema_images': 22_170})
  return config


def compcars64(name='compcars64', resolution=64):
  """CompCars."""
  config = base(name, resolution)
  config.model.prior.update({
      'scale_min': (0.2, 0.16, 0.16), 'scale_max': (0.25, 0.2, 0.2),
      'translation_min': (-0.22, -0.12, 0.0),
      'translation_max': (0.22, 0.12, 0.0),
      'v_range': (0.41667, 0.5), 'fov': 10.0})
  return config


def celeba64(name='celeba64', resolution=64):
  """Faces."""
  config = base(name, resolution)
  config.model.prior.update({
      'scale_min': (0.21, 0.21, 0.21), 'scale_max': (0.21, 0.21, 0.21),
      'translation_min': (0.0, 0.0, 0.0), 'translation_max': (0.0, 0.0, 0.0),
      'rotation_range': (0.40278, 0.59722), 'v_range': (0.4167, 0.5),
      'fov': 10.0})
  return config


def cats64():
  """Faces of cats."""
  config = celeba64('cats64')
  config.model.prior.v_range = (0.41667, 0.5)
  return config


def celebahq256():
  """Faces, turned a little more."""
  config = celeba64('celebahq256', 256)
  config.model.prior.rotation_range = (0.375, 0.625)
  return config


def chairs64():
  """Chairs, from all around and from above."""
  config = base('chairs64', 64)
  config.model.prior.update({
      'translation_min': (0.0, 0.0, 0.0), 'translation_max': (0.0, 0.0, 0.0),
      'v_range': (0.05, 0.5)})
  config.model.background_color = 'white'
  return config


def church64(name='church64', resolution=64):
  """LSUN's churches."""
  config = base(name, resolution)
  config.model.prior.update({
      'scale_min': (0.45, 0.45, 0.45), 'scale_max': (0.55, 0.55, 0.55),
      'translation_min': (-0.15, -0.15, 0.0),
      'translation_max': (0.15, 0.15, 0.0),
      'background_rotation_range': (0.0, 0.25),
      'v_range': (0.5, 0.5), 'fov': 30.0})
  return config


def clevr2256():
  """Two objects of Clevr on a plane."""
  config = base('clevr2256', 256)
  config.model.prior.update({
      'boxes': 2, 'scale_min': (0.17, 0.17, 0.17),
      'scale_max': (0.17, 0.17, 0.17),
      'translation_min': (-0.713, -0.713, 0.0),
      'translation_max': (0.713, 0.713, 0.0), 'rotation_range': (0.0, 0.0),
      'plane': 0.1665, 'locations': '', 'v_range': (0.33333, 0.33333)})
  return config


def clevr2345256():
  """Two to five objects of Clevr."""
  config = clevr2256()
  config.name = 'clevr2345256'
  config.generator_rate = 5e-4
  config.model.update({'z_dim': 64, 'z_dim_background': 32, 'features': 128})
  config.model.decoder.width, config.model.background.width = 64, 32
  config.model.renderer.width = 128
  config.model.prior.update({
      'boxes': 5, 'translation_min': (-0.71, -0.71, 0.0),
      'translation_max': (0.71, 0.71, 0.0),
      # Of no, one, ... five objects.
      'counts': (0.0, 0.0, 0.19457, 0.24355, 0.25270, 0.30919)})
  return config


def cats():
  """Cats of the shapes world, seen from the front."""
  config = base('cats', 64)
  config.batch, config.steps = 8, 9000
  config.data = stylegan2.cats_data()
  model = config.model
  model.update({'z_dim': 64, 'z_dim_background': 4, 'features': 64,
                'background_color': 'white'})
  model.decoder.update({'width': 64, 'layers': 6, 'skips': (3,)})
  # Behind cats there is white. A background that depends on the position can
  # draw the cat, which then does not turn, or leave a hole of its shape in an
  # object that is white: this one is the same everywhere.
  model.background.update({'width': 16, 'layers': 2, 'downscale': 1e6})
  model.renderer.width = 64
  # Cats are in a ball of radius 0.5 around the origin.
  model.rendering.update({'samples': 16, 'near': 1.15, 'far': 2.35})
  model.prior.update({
      'translation_min': (0.0, 0.0, 0.0), 'translation_max': (0.0, 0.0, 0.0),
      # Azimuths within 40 and elevations within 15 degrees.
      'rotation_range': (0.38889, 0.61111), 'v_range': (0.37059, 0.62941),
      'radius_range': (1.7, 1.7),
      'fov': 40.647})  # of the focal length 1.35
  model.discriminator.width = 128
  # Faster than the paper: after 500 steps there are cats, where at its rates
  # there is nothing yet.
  config.generator_rate, config.discriminator_rate = 1e-3, 4e-4
  config.schedule.update(
      {'r1_gamma': 20.0, 'ema_images': 5_000, 'ema_ramp': 0.05})
  config.distance_count = 1000
  config.log_every, config.eval_every, config.checkpoint_every = 20, 1000, 500
  return config


def cpu64():
  """The official model at 64 x 64 on a few images."""
  config = compcars64('cpu64')
  config.batch = 4
  config.data = stylegan2.cats_data()
  config.data.count = 64
  return config


def tiny():
  """Seconds: the `cats` variant at a few pixels, for tests."""
  config = cats()
  config.resolution, config.batch, config.steps = 16, 4, 2
  config.data.update({'count': 16, 'size': 16})
  model = config.model
  model.update({'z_dim': 4, 'z_dim_background': 2, 'features': 8})
  model.decoder.update({'width': 8, 'layers': 4, 'skips': (2,)})
  model.background.update({'width': 8, 'layers': 2})
  model.renderer.update({'width': 16, 'min_width': 8, 'blocks': 1})
  model.rendering.samples = 6
  model.discriminator.width = 8
  config.render_size = ((0, 8),)
  config.distance_count = 0
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {
    'cats': cats, 'compcars64': compcars64, 'cats64': cats64,
    'celeba64': celeba64, 'chairs64': chairs64, 'church64': church64,
    'cars256': lambda: compcars64('cars256', 256),
    'celebahq256': celebahq256,
    'ffhq256': lambda: celeba64('ffhq256', 256),
    'church256': lambda: church64('church256', 256),
    'clevr2256': clevr2256, 'clevr2345256': clevr2345256, 'cpu64': cpu64,
    'tiny': tiny,
}
