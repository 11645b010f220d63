"""StyleGAN2 (Karras et al., 1912.04958; ADA, 2006.06676): images alone.

Variants:
  shapes    The default. Cars of the shapes world, 64 x 64 pixels, on two CPU
            cores; augmented adaptively, for they are 20,000 only.
  config_f  The paper's configuration F at 1024 x 1024.
  paper256, paper512, paper1024
            Those of the ADA paper at these resolutions.
  tiny      Seconds; for tests.

  python -m gen3d.train --config=configs/stylegan2.py --workdir=runs/cars2d
  python -m gen3d.train --config=configs/stylegan2.py:paper256 \
    --config.data.path=FFHQ_256.zip --config.schedule.ada_target=0.6 \
    --workdir=runs/ffhq256

The official runs of 25 million images took 8 V100 two days (256 x 256) to
nine (1024 x 1024). Any images will do that configs/eg3d.py takes; cameras are
not looked at unless `conditional` is true.
"""

import ml_collections


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def config_f():
  """The paper's main model, faces at 1024 x 1024."""
  batch = 32
  return ml_collections.ConfigDict({
      'task': 'gan',
      'networks': 'stylegan2',
      'name': 'config_f',
      'seed': 0,
      'start_from': '',
      'steps': 25_000_000 // batch,
      'batch': batch,
      'resolution': 1024,
      'conditional': False,  # on the images' labels
      'data': {'path': '', 'mirror': True},
      'model': {
          'z_dim': 512,
          'synthesis': {'channel_base': 32_768, 'channel_max': 512, 'num_half_res': 4,
                        'clamp': 256.0},
          'mapping': {'width': 512, 'layers': 8},
          'path_weight': 2.0, 'path_shrink': 2,
          'discriminator': {'channel_base': 32_768, 'channel_max': 512, 'mbstd_group': 4,
                            'num_half_res': 4, 'clamp': 256.0}},
      'schedule': {
          'r1_gamma': 10.0, 'd_reg_interval': 16, 'g_reg_interval': 4, 'style_mixing_prob': 0.9,
          'pose_swap_prob': 0.0, 'pose_swap_fade_images': 0, 'blur_init_sigma': 0.0, 'blur_fade_images': 0,
          'ema_images': 10_000, 'ema_ramp': 0.0,
          # 0.6 is the ADA paper's; 0 for no augmentation.
          'ada_target': 0.0, 'ada_interval': 4,
          'ada_images': 500_000},
      'generator_rate': 2e-3, 'discriminator_rate': 2e-3,
      'distance_count': 0,  # the shipped CLIP pair knows no faces
      'log_every': 50, 'eval_every': 6250, 'checkpoint_every': 1250,
      'keep_checkpoints': 2,
      'progress': ('loss/generator', 'loss/discriminator'),
  }, convert_dict=True)


def paper1024():
  """The ADA paper's at 1024 x 1024."""
  config = config_f()
  config.name = 'paper1024'
  config.schedule.r1_gamma = 2.0
  return config


def paper512():
  """The ADA paper's at 512 x 512."""
  config = paper1024()
  config.name, config.resolution = 'paper512', 512
  config.batch, config.steps = 64, 25_000_000 // 64
  config.schedule.r1_gamma, config.schedule.ema_images = 0.5, 20_000
  config.model.discriminator.mbstd_group = 8
  config.generator_rate = config.discriminator_rate = 2.5e-3
  return config


def paper256():
  """The ADA paper's at 256 x 256."""
  config = paper512()
  config.name, config.resolution = 'paper256', 256
  config.schedule.r1_gamma = 1.0
  config.model.synthesis.channel_base = config.model.discriminator.channel_base = 16_384
  return config


def shapes():
  """Cars of the shapes world."""
  config = paper256()
  config.name, config.resolution = 'shapes', 64
  config.batch, config.steps = 16, 20_000
  config.data = ml_collections.ConfigDict({
      'path': 'shapes:car', 'mirror': False, 'count': 20_000, 'size': 64,
      'camera': {
          'azimuth': (-180.0, 180.0), 'elevation': (5.0, 45.0),
          'distance': (1.7, 1.7), 'focal': (1.35, 1.35),
          'jitter_position': 0.0, 'jitter_target': 0.0, 'jitter_up': 0.0}})
  model = config.model
  model.z_dim = 64
  model.synthesis = ml_collections.ConfigDict({'channel_base': 2048, 'channel_max': 96})
  model.mapping = ml_collections.ConfigDict({'width': 64, 'layers': 2})
  model.discriminator = ml_collections.ConfigDict(
      {'channel_base': 2048, 'channel_max': 96, 'mbstd_group': 4})
  config.schedule.update({
      'r1_gamma': 0.3, 'ema_images': 5_000, 'ema_ramp': 0.05,
      'ada_target': 0.6, 'ada_images': 100_000})
  config.distance_count = 1000
  config.log_every, config.eval_every, config.checkpoint_every = 20, 1000, 500
  return config


def tiny():
  """Seconds: the `shapes` variant at a few pixels, for tests."""
  config = shapes()
  config.resolution, config.batch, config.steps = 8, 4, 2
  config.data.update({'count': 16, 'size': 8})
  model = config.model
  model.z_dim = 6
  model.synthesis = ml_collections.ConfigDict({'channel_base': 64, 'channel_max': 8})
  model.mapping.update({'width': 8, 'layers': 1})
  model.discriminator = ml_collections.ConfigDict(
      {'channel_base': 64, 'channel_max': 8, 'mbstd_group': 1})
  # All phases in every step: one program.
  config.schedule.update(
      {'d_reg_interval': 1, 'g_reg_interval': 1, 'ada_interval': 1})
  config.distance_count = 8
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {
    'shapes': shapes, 'config_f': config_f, 'paper256': paper256,
    'paper512': paper512, 'paper1024': paper1024, 'tiny': tiny,
}
