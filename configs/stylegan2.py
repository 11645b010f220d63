r"""StyleGAN2 (Karras et al., 1912.04958) with ADA (2006.06676): 2-D images.

Variants:
  shapes    The default. Cars of the shapes world, 64 x 64 pixels, on two CPU
            cores; with adaptive augmentation, as there are only 20,000 images.
  cats      Cats of the shapes world, seen from the front: the frozen generator
            of configs/lifted_gan.py, whose weights ship. On one CPU core 2.7
            steps/s: 50 minutes.
  config_f  The paper's configuration F at 1024 x 1024.
  paper256, paper512, paper1024
            Those of the ADA paper at these resolutions.
  tiny      Seconds; for tests.

  python -m gen3d.train --config=configs/stylegan2.py --workdir=runs/cars2d
  python -m gen3d.train --config=configs/stylegan2.py:paper256 \
    --config.data.path=FFHQ_256.zip --config.schedule.ada_target=0.6 \
    --workdir=runs/ffhq256

The official runs of 25 million images took two days (256 x 256) to nine
(1024 x 1024) on 8 V100. The data are those of configs/eg3d.py; cameras are
not needed, and not used unless `conditional` is true.
"""

import ml_collections


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def base():
  """The values that StyleGAN2 and EG3D have in common (configs/eg3d.py)."""
  batch = 32
  return ml_collections.ConfigDict({
      'task': 'gan',
      'seed': 0,
      'start_from': '',
      'steps': 25_000_000 // batch,
      'batch': batch,
      'data': {'path': '', 'mirror': True},
      'model': {
          'z_dim': 512,
          'synthesis': {'channel_base': 32_768, 'channel_max': 512},
          'mapping': {'width': 512, 'layers': 8},
          'discriminator': {
              'channel_base': 32_768, 'channel_max': 512, 'mbstd_group': 4,
              'num_half_res': 4, 'clamp': 256.0}},
      'schedule': {
          'd_reg_interval': 16, 'g_reg_interval': 4,
          'ema_images': 10_000, 'ema_ramp': 0.0,
          # Target of the discriminator's mean sign on reals. 0: no
          # augmentation; 0.6 in the ADA paper.
          'ada_target': 0.0, 'ada_interval': 4, 'ada_images': 500_000},
      'generator_rate': 2e-3, 'discriminator_rate': 2e-3,
      # Images for the Frechet distance. 0: none, as the features of the
      # shipped CLIP are for the shapes world only.
      'distance_count': 0,
      'log_every': 50, 'eval_every': 6250, 'checkpoint_every': 1250,
      'keep_checkpoints': 2,
      'progress': ('loss/generator', 'loss/discriminator'),
  }, convert_dict=True)


def shapes_data(size):
  """`data` of cars of the shapes world, `size` x `size` pixels."""
  return ml_collections.ConfigDict({
      'path': 'shapes:car', 'mirror': False, 'count': 20_000, 'size': size,
      'camera': {
          'azimuth': (-180.0, 180.0), 'elevation': (5.0, 45.0),
          'distance': (1.7, 1.7), 'focal': (1.35, 1.35),
          'jitter_position': 0.0, 'jitter_target': 0.0, 'jitter_up': 0.0}})


def cats_data():
  """`data` of cats of the shapes world from the front, 64 x 64 pixels.

  The set on which configs/README.md compares four 3-D GANs: yaw within 40 and
  pitch within 15 degrees, as in collections of photographs of faces.
  """
  data = shapes_data(64)
  data.path = 'shapes:cat'
  data.camera.update({'azimuth': (-40.0, 40.0), 'elevation': (-15.0, 15.0)})
  return data


def config_f():
  """The paper's main model, faces at 1024 x 1024."""
  config = base()
  config.update({
      'networks': 'stylegan2', 'name': 'config_f', 'resolution': 1024,
      'conditional': False})  # on the labels of the images
  config.model.synthesis.update({'num_half_res': 4, 'clamp': 256.0})
  config.model.update({'path_weight': 2.0, 'path_shrink': 2})
  config.schedule.update({'r1_gamma': 10.0, 'style_mixing_prob': 0.9})
  return config


def paper1024():
  """The ADA paper's configuration at 1024 x 1024."""
  config = config_f()
  config.name = 'paper1024'
  config.schedule.r1_gamma = 2.0
  return config


def paper512():
  """The ADA paper's configuration at 512 x 512."""
  config = paper1024()
  config.name, config.resolution = 'paper512', 512
  config.batch, config.steps = 64, 25_000_000 // 64
  config.schedule.r1_gamma, config.schedule.ema_images = 0.5, 20_000
  config.model.discriminator.mbstd_group = 8
  config.generator_rate = config.discriminator_rate = 2.5e-3
  return config


def paper256():
  """The ADA paper's configuration at 256 x 256."""
  config = paper512()
  config.name, config.resolution = 'paper256', 256
  config.schedule.r1_gamma = 1.0
  for network in (config.model.synthesis, config.model.discriminator):
    network.channel_base = 16_384
  return config


def shapes():
  """Cars of the shapes world."""
  config = paper256()
  config.name, config.resolution = 'shapes', 64
  config.batch, config.steps = 16, 20_000
  config.data = shapes_data(64)
  model = config.model
  model.z_dim = 64
  model.synthesis = ml_collections.ConfigDict(
      {'channel_base': 2048, 'channel_max': 96})
  model.mapping.update({'width': 64, 'layers': 2})
  model.discriminator = ml_collections.ConfigDict(
      {'channel_base': 2048, 'channel_max': 96, 'mbstd_group': 4})
  config.schedule.update({
      'r1_gamma': 0.3, 'ema_images': 5_000, 'ema_ramp': 0.05,
      'ada_target': 0.6, 'ada_images': 100_000})
  config.distance_count = 1000
  config.log_every, config.eval_every, config.checkpoint_every = 20, 1000, 500
  return config


def cats():
  """Cats of the shapes world, seen from the front."""
  config = shapes()
  config.name, config.data = 'cats', cats_data()
  config.batch, config.steps = 8, 8000
  for network in (config.model.synthesis, config.model.discriminator):
    network.update({'channel_base': 1024, 'channel_max': 64})
  # Three epochs of 20,000 images: too few to overfit. With logistic losses and
  # R1 alone, the discriminator wins: the losses of R3GAN (2501.05441).
  config.schedule.update({
      'ada_target': 0.0, 'g_reg_interval': 0, 'relativistic': True, 'r2': True,
      'r1_gamma': 5.0, 'r1_gamma_final': 0.5})
  config.schedule.r1_gamma_fade_images = (
      3 * config.get_ref('steps') * config.get_ref('batch') // 4)
  return config


def tiny():
  """Seconds: the `shapes` variant at a few pixels, for tests."""
  config = shapes()
  config.resolution, config.batch, config.steps = 8, 4, 2
  config.data.update({'count': 16, 'size': 8})
  model = config.model
  model.z_dim = 6
  model.synthesis.update({'channel_base': 64, 'channel_max': 8})
  model.mapping.update({'width': 8, 'layers': 1})
  model.discriminator.update(
      {'channel_base': 64, 'channel_max': 8, 'mbstd_group': 1})
  # All phases in every step: a single program to compile.
  config.schedule.update(
      {'d_reg_interval': 1, 'g_reg_interval': 1, 'ada_interval': 1})
  config.distance_count = 8
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {
    'shapes': shapes, 'cats': cats, 'config_f': config_f, 'paper256': paper256,
    'paper512': paper512, 'paper1024': paper1024, 'tiny': tiny,
}
