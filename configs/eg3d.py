r"""EG3D (Chan et al., 2112.07945): 3-D objects from images with cameras.

Variants:
  shapes   The default, with weights in the package. Cars of the shapes world,
           64 x 64 pixels, rendered at 24 x 24 and, after 100,000 images, at
           32 x 32. On two CPU cores 2, then 1.7 steps/s: about 3 hours.
  cats     Cats of the shapes world, seen from the front: EG3D's row in the
           comparison of 3-D GANs (configs/README.md). On one CPU core
           1 step/s: 100 minutes.
  ffhq512  Faces, with the official hyper-parameters: 25 million images,
           rendered at 64 x 64. On 8 V100, 24 s for 1000 images: 7 days.
  ffhq512_128
           The second stage, from the weights of ffhq512: 2 million images
           more, rendered at 64 x 64 to 128 x 128. 1 to 2 days on 8 V100.
  afhq512  Cats, from the weights of ffhq512, with adaptive augmentation,
           rendered at 64 x 64 to 128 x 128.
  cars128  ShapeNet cars, rendered at 64 x 64. The training costs of afhq512
           and cars128 are not published.
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

`steps`, `blur_fade_images` and `ema_images` are for batches of 32; in the
official code, the latter two are proportional to the batch. `render_size` is
((images seen, rays a side), ...), interpolated linearly and rounded down to
multiples of `render_bucket`; a number of images with a decimal point is a
fraction of the training's. In `shapes` and `cats` all phases follow `steps` and
`batch`; with the official hyper-parameters they are numbers of images, as
published. `start_from` is a generator's .safetensors, with
its discriminator's in the same folder. It also continues a training without
checkpoints:

  python -m gen3d.train --config=configs/eg3d.py --workdir=runs/more_cars \
    --config.start_from=gen3d/assets/eg3d_shapes.safetensors \
    --config.render_size='((0, 32),)' --config.schedule.blur_fade_images=0 \
    --config.schedule.pose_swap_fade_images=0 --config.schedule.ema_ramp=0
"""

import ml_collections

from configs import stylegan2


def get_config(variant='shapes'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def ffhq512():
  """Faces: the first stage of the paper's main model."""
  config = stylegan2.base()
  config.update({
      'networks': 'eg3d', 'name': 'ffhq512', 'resolution': 512,
      'render_size': ((0, 64), (1_000_000, 64)), 'render_bucket': 16})
  config.generator_rate = 2.5e-3
  config.model.synthesis.resolution = 256
  config.model.mapping.layers = 2
  config.model.update({
      'features': 32,
      'rendering': {
          'samples_coarse': 48, 'samples_fine': 48, 'ray_start': 2.25,
          'ray_end': 3.3, 'box_warp': 1.0, 'chunk': 4096},
      # 8XDC of the official code.
      'super_resolution': {
          'size': 128, 'features': (256, 128), 'up': (True, True)},
      'super_resolution_clamp': 256.0, 'super_resolution_half': True,
      # Scale of the camera in the mapping network; 0: no pose conditioning.
      'pose_conditioning': 1.0,
      'density_weight': 0.25, 'opacity_weight': 0.0,
      'mesh_inset': 0.0})  # of an exported mesh, inwards
  config.schedule.update({
      'r1_gamma': 1.0, 'ema_ramp': 0.05,
      'pose_swap_prob': 0.5, 'pose_swap_fade_images': 1_000_000,
      'blur_init_sigma': 10.0, 'blur_fade_images': 200_000})
  return config


def ffhq512_128():
  """Faces: the second stage, from the weights of the first."""
  config = ffhq512()
  config.name = 'ffhq512_128'
  config.steps = 2_000_000 // config.batch
  config.render_size = ((0, 64), (1_000_000, 128))
  # Only a training from scratch fades these in.
  config.schedule.update(
      {'blur_fade_images': 0, 'pose_swap_fade_images': 0, 'ema_ramp': 0.0})
  return config


def afhq512():
  """Faces of cats, from the weights of human ones."""
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
      'samples_coarse': 64, 'samples_fine': 64, 'ray_start': 0.1,
      'ray_end': 2.6, 'box_warp': 1.6, 'white_background': True,
      'chunk': 4096})
  config.model.super_resolution.update(  # 2X of the official code
      {'size': 64, 'features': (128, 64), 'up': (False, True)})
  config.model.pose_conditioning = 0.0
  config.schedule.r1_gamma = 0.3
  return config


def shapes():
  """Cars of the shapes world."""
  config = ffhq512()
  config.name, config.resolution = 'shapes', 64
  # A small batch and small networks: early in a training, the number of
  # updates limits the quality.
  config.batch, config.steps = 8, 21_000
  config.data = stylegan2.shapes_data(64)
  model = config.model
  model.z_dim = 64
  model.synthesis.update(
      {'resolution': 64, 'channel_base': 1024, 'channel_max': 64})
  model.mapping.update({'width': 64, 'layers': 2})
  model.features = 16
  # With too few samples, some rays miss a thin surface. This is noise at
  # outlines, which the discriminator detects and the generator cannot avoid:
  # 12 and 12 samples between fixed distances have three times as much of it.
  model.rendering = ml_collections.ConfigDict({
      'samples_coarse': 24, 'samples_fine': 12, 'ray_start': 'auto',
      'box_warp': 1.1, 'white_background': True})
  model.super_resolution.update(
      {'size': 32, 'features': (32, 32), 'up': (False, True)})
  model.super_resolution_clamp, model.super_resolution_half = 0.0, False
  model.pose_conditioning = 0.0
  # The pictures show objects half a pixel too large on all sides: a ray that
  # touches one is opaque (data/shapes/render.py). So do the surfaces, at the
  # cameras' distance and focal length.
  model.mesh_inset = 0.5 * 1.7 / (1.35 * 64)
  model.discriminator = ml_collections.ConfigDict({
      'channel_base': 1024, 'channel_max': 64, 'mbstd_group': 4,
      'mapping_layers': 2})
  config.schedule.update({
      'r1_gamma': 0.1, 'blur_init_sigma': 2.0, 'ema_images': 5_000})
  images = config.get_ref('steps') * config.get_ref('batch')
  config.schedule.pose_swap_fade_images = 25 * images // 84  # 50,000
  config.schedule.blur_fade_images = images // 21  # 8000
  # From 100,000 images on.
  config.render_size = ((0.0, 24), (25 / 42, 24), (25 / 42, 32))
  config.render_bucket = 8
  config.distance_count = 1000
  config.log_every, config.eval_every, config.checkpoint_every = 20, 2000, 500
  return config


def cats():
  """Cats of the shapes world, seen from the front."""
  config = shapes()
  config.name, config.data = 'cats', stylegan2.cats_data()
  config.steps = 6000
  # The losses of R3GAN (2501.05441), their penalties in every 8th step.
  config.schedule.update({
      'relativistic': True, 'r2': True, 'd_reg_interval': 8,
      'r1_gamma': 3.0, 'r1_gamma_final': 1.0, 'ema_ramp': 0.05})
  images = config.get_ref('steps') * config.get_ref('batch')
  config.schedule.r1_gamma_fade_images = 5 * images // 8
  config.schedule.pose_swap_fade_images = 5 * images // 12
  config.schedule.blur_fade_images = images // 6
  # White objects before white are transparent otherwise.
  config.model.opacity_weight = 1.0
  # With an inset the parts of these surfaces, thinner than true ones, get worse
  # (IoU 0.55 instead of 0.58).
  config.model.mesh_inset = 0.0
  config.render_size = ((0, 32), (1, 32))
  return config


def cpu128():
  """A small EG3D at the official proportions."""
  config = shapes()
  config.name, config.resolution, config.batch = 'cpu128', 128, 4
  config.schedule.update(
      {'pose_swap_fade_images': 50_000, 'blur_fade_images': 8_000})
  config.data.update({'count': 64, 'size': 128})
  model = config.model
  model.z_dim, model.features, model.pose_conditioning = 512, 32, 1.0
  model.synthesis.update(
      {'resolution': 256, 'channel_base': 4096, 'channel_max': 64})
  model.mapping.width = 512
  model.rendering = ml_collections.ConfigDict({
      **model.rendering, 'samples_coarse': 48, 'samples_fine': 48,
      'ray_start': 1.1, 'ray_end': 2.3})
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
  model.synthesis.update(
      {'resolution': 8, 'channel_base': 64, 'channel_max': 8})
  model.mapping.update({'width': 8, 'layers': 1})
  model.rendering.update({'samples_coarse': 4, 'samples_fine': 4})
  model.super_resolution.update({'size': 8, 'features': (8, 4)})
  model.discriminator.update({
      'channel_base': 64, 'channel_max': 8, 'mbstd_group': 1,
      'mapping_layers': 1})
  # All phases in every step: one program until the rendering grows.
  config.schedule.update({
      'd_reg_interval': 1, 'g_reg_interval': 1,
      'pose_swap_fade_images': 50_000, 'blur_fade_images': 8_000})
  config.render_size, config.render_bucket = ((0, 4), (8, 8)), 4
  config.distance_count = 8
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {
    'shapes': shapes, 'cats': cats, 'ffhq512': ffhq512,
    'ffhq512_128': ffhq512_128, 'afhq512': afhq512, 'cars128': cars128,
    'cpu128': cpu128, 'tiny': tiny,
}
