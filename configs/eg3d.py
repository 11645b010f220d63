"""EG3D (Chan et al., 2112.07945): 3-D objects from images with cameras.

Variants:
  shapes   The default, whose network ships. Cars of the shapes world, 64 x 64
           pixels from 24 x 24 rays and, after 100,000 images, 32 x 32. On two
           CPU cores 2 and then 1.7 steps/s, about 3 hours in all.
  ffhq512  Faces, with the official hyper-parameters: 25 million images at 64
           rays a side, of which 8 V100 took 24 s for a thousand: 7 days.
  ffhq512_128
           Its second stage, from its weights: 2 million more while the rays
           become 128 a side. 1 to 2 days of the same.
  afhq512  Cats, from ffhq512's weights, with adaptive augmentation, rays from
           64 to 128 a side.
  cars128  ShapeNet cars, 64 rays a side. What the last two took was not told.
  cpu128   The size at which `python -m gen3d.benchmark` is compared with the
           official code on two CPU cores.
  tiny     Seconds; for tests.

  python -m gen3d.train --config=configs/eg3d.py --workdir=runs/cars
  python -m gen3d.train --config=configs/eg3d.py:ffhq512 \
    --config.data.path=FFHQ_512.zip --workdir=runs/ffhq
  python -m gen3d.train --config=configs/eg3d.py:ffhq512_128 \
    --config.data.path=FFHQ_512.zip --workdir=runs/ffhq_128 \
    --config.start_from=runs/ffhq/eg3d_ffhq512.safetensors
  python -m gen3d.train --config=configs/eg3d.py:afhq512 \
    --config.data.path=AFHQ_cats_512.zip --workdir=runs/cats \
    --config.start_from=runs/ffhq/eg3d_ffhq512.safetensors
  python -m gen3d.train --config=configs/eg3d.py:cars128 \
    --config.data.path=cars_128.zip --workdir=runs/shapenet

`steps`, `blur_fade_images` and `ema_images` are for batches of 32; officially the
last two are proportional to the batch. `render_size` is ((images seen, rays a
side), ...), joined by lines and cut to multiples of `render_bucket`.
`start_from` is a generator's .safetensors, its discriminator's beside it. It
also goes on where checkpoints are gone:

  python -m gen3d.train --config=configs/eg3d.py --workdir=runs/more_cars \
    --config.start_from=gen3d/assets/eg3d_shapes.safetensors \
    --config.render_size='((0, 32),)' --config.schedule.blur_fade_images=0 \
    --config.schedule.pose_swap_fade_images=0 --config.schedule.ema_ramp=0
"""

import ml_collections


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def ffhq512():
  """Faces: the first stage of the paper's main model."""
  batch = 32
  return ml_collections.ConfigDict({
      'task': 'gan',
      'networks': 'eg3d',
      'name': 'ffhq512',
      'seed': 0,
      'start_from': '',
      'steps': 25_000_000 // batch,
      'batch': batch,
      'resolution': 512,
      'data': {'path': '', 'mirror': True},
      'model': {
          'z_dim': 512,
          'synthesis': {'resolution': 256, 'channel_base': 32_768, 'channel_max': 512},
          'mapping': {'width': 512, 'layers': 2},
          'features': 32,
          'rendering': {'samples_coarse': 48, 'samples_fine': 48, 'ray_start': 2.25,
                        'ray_end': 3.3, 'box_warp': 1.0, 'chunk': 4096},
          'super_resolution': {'size': 128, 'features': (256, 128),  # 8XDC
                        'up': (True, True)},
          'super_resolution_clamp': 256.0, 'super_resolution_half': True,
          'pose_conditioning': 1.0,  # of the mapping network on the camera; 0: none
          'density_weight': 0.25,
          'discriminator': {'channel_base': 32_768, 'channel_max': 512, 'mbstd_group': 4,
                            'num_half_res': 4, 'clamp': 256.0}},
      'schedule': {
          'r1_gamma': 1.0, 'd_reg_interval': 16, 'g_reg_interval': 4,
          'pose_swap_prob': 0.5, 'pose_swap_fade_images': 1_000_000,
          'blur_init_sigma': 10.0, 'blur_fade_images': 200_000,
          'ema_images': 10_000, 'ema_ramp': 0.05,
          'style_mixing_prob': 0.0,  # EG3D does not mix styles
          # Mean sign of the discriminator on reals that is wanted; 0 is for
          # no augmentation.
          'ada_target': 0.0, 'ada_interval': 4,
          'ada_images': 500_000},
      'generator_rate': 2.5e-3, 'discriminator_rate': 2e-3,
      'render_size': ((0, 64), (1_000_000, 64)), 'render_bucket': 16,
      'distance_count': 0,  # the shipped CLIP pair knows no faces
      'log_every': 50, 'eval_every': 6250, 'checkpoint_every': 1250,
      'keep_checkpoints': 2,
      'progress': ('loss/generator', 'loss/discriminator'),
  }, convert_dict=True)


def ffhq512_128():
  """Faces: the second stage, from the weights of the first."""
  config = ffhq512()
  config.name = 'ffhq512_128'
  config.steps = 2_000_000 // config.batch
  config.render_size = ((0, 64), (1_000_000, 128))
  # What only a beginning needs.
  config.schedule.update(
      {'blur_fade_images': 0, 'pose_swap_fade_images': 0, 'ema_ramp': 0.0})
  return config


def afhq512():
  """Cats' faces, from the weights of human ones."""
  config = ffhq512_128()
  config.name, config.steps = 'afhq512', 25_000_000 // config.batch
  config.schedule.update({
      'r1_gamma': 5.0, 'pose_swap_prob': 0.8, 'ada_target': 0.6,
      'ada_images': 100_000})
  return config


def cars128():
  """ShapeNet cars."""
  config = ffhq512()
  config.name, config.resolution = 'cars128', 128
  config.data.mirror = False
  config.model.rendering = ml_collections.ConfigDict({
      'samples_coarse': 64, 'samples_fine': 64, 'ray_start': 0.1, 'ray_end': 2.6, 'box_warp': 1.6,
      'white_background': True, 'chunk': 4096})
  config.model.super_resolution.update(  # 2X
      {'size': 64, 'features': (128, 64), 'up': (False, True)})
  config.model.pose_conditioning = 0.0
  config.schedule.r1_gamma = 0.3
  return config


def shapes():
  """Cars of the shapes world."""
  config = ffhq512()
  config.name, config.resolution = 'shapes', 64
  # Small steps, and small networks: many updates are what it lacks at first.
  config.batch, config.steps = 8, 21_000
  config.data = ml_collections.ConfigDict({
      'path': 'shapes:car', 'mirror': False, 'count': 20_000, 'size': 64,
      'camera': {
          'azimuth': (-180.0, 180.0), 'elevation': (5.0, 45.0),
          'distance': (1.7, 1.7), 'focal': (1.35, 1.35),
          'jitter_position': 0.0, 'jitter_target': 0.0, 'jitter_up': 0.0}})
  model = config.model
  model.z_dim = 64
  model.synthesis = ml_collections.ConfigDict(
      {'resolution': 64, 'channel_base': 1024, 'channel_max': 64})
  model.mapping = ml_collections.ConfigDict({'width': 64, 'layers': 2})
  model.features = 16
  # Samples that miss a surface now and then are noise at every outline, which
  # the discriminator knows and the generator cannot help: 12 and 12 between
  # fixed distances had three times that of these.
  model.rendering = ml_collections.ConfigDict({
      'samples_coarse': 24, 'samples_fine': 12, 'ray_start': 'auto', 'box_warp': 1.1,
      'white_background': True})
  model.super_resolution.update(
      {'size': 32, 'features': (32, 32), 'up': (False, True)})
  model.super_resolution_clamp, model.super_resolution_half = 0.0, False
  model.pose_conditioning = 0.0
  model.discriminator = ml_collections.ConfigDict(
      {'channel_base': 1024, 'channel_max': 64, 'mbstd_group': 4, 'mapping_layers': 2})
  config.schedule.update({
      'r1_gamma': 0.1, 'pose_swap_fade_images': 50_000, 'blur_init_sigma': 2.0, 'blur_fade_images': 8_000,
      'ema_images': 5_000})
  config.render_size = ((0, 24), (100_000, 24), (100_001, 32))
  config.render_bucket = 8
  config.distance_count = 1000
  config.log_every, config.eval_every, config.checkpoint_every = 20, 2000, 500
  return config


def cpu128():
  """A small EG3D at the official proportions."""
  config = shapes()
  config.name, config.resolution, config.batch = 'cpu128', 128, 4
  config.data.update({'count': 64, 'size': 128})
  model = config.model
  model.z_dim, model.features, model.pose_conditioning = 512, 32, 1.0
  model.synthesis.update({'resolution': 256, 'channel_base': 4096, 'channel_max': 64})
  model.mapping.width = 512
  model.rendering = ml_collections.ConfigDict({
      **model.rendering, 'samples_coarse': 48, 'samples_fine': 48, 'ray_start': 1.1,
      'ray_end': 2.3})
  model.super_resolution.update({'size': 64, 'features': (128, 64)})
  model.discriminator.update(
      {'channel_base': 4096, 'channel_max': 64, 'mapping_layers': 8,
       'mbstd_group': 2})  # Two images on each of two cores.
  config.render_size = ((0, 32), (1, 32))
  return config


def tiny():
  """Seconds: the `shapes` variant at a few pixels, for tests."""
  config = shapes()
  config.resolution, config.batch, config.steps = 16, 4, 2
  config.data.update({'count': 16, 'size': 16})
  model = config.model
  model.z_dim, model.features = 6, 4
  model.synthesis = ml_collections.ConfigDict(
      {'resolution': 8, 'channel_base': 64, 'channel_max': 8})
  model.mapping.update({'width': 8, 'layers': 1})
  model.rendering.update({'samples_coarse': 4, 'samples_fine': 4})
  model.super_resolution.update({'size': 8, 'features': (8, 4)})
  model.discriminator = ml_collections.ConfigDict(
      {'channel_base': 64, 'channel_max': 8, 'mbstd_group': 1, 'mapping_layers': 1})
  # All phases in every step: one program until the rendering grows.
  config.schedule.update({'d_reg_interval': 1, 'g_reg_interval': 1})
  config.render_size, config.render_bucket = ((0, 4), (8, 8)), 4
  config.distance_count = 8
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {
    'shapes': shapes, 'ffhq512': ffhq512, 'ffhq512_128': ffhq512_128,
    'afhq512': afhq512, 'cars128': cars128, 'cpu128': cpu128, 'tiny': tiny,
}
