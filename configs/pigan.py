r"""pi-GAN (Chan et al., 2012.00926): a SIREN steered by a latent.

Variants:
  cats         The default. Cats of the shapes world, seen from the front, at 32
               x 32, then 64 x 64 pixels: pi-GAN's row in the comparison of 3-D
               GANs (configs/README.md). On one CPU core 1 s a step at 32 x
               32 and 2 s at 64 x 64: 80 minutes.
  celeba       Faces, as released: at 64 x 64 from the first step, with a
               discriminator that also estimates the pose. The paper itself
               raised the size by stages and had no pose loss.
  cats_paper   AFHQ's or other photographs of cats, as released.
  carla        Cars, as released: 32 x 32, 64 x 64, 128 x 128 pixels.
  cpu64        The official sizes on two images, at which `python -m
               gen3d.benchmark` is compared with the official code on two CPU
               cores.
  tiny         Seconds; for tests.

  python -m gen3d.train --config=configs/pigan.py --workdir=runs/cats
  python -m gen3d.train --config=configs/pigan.py:celeba \
    --config.data.path=celeba_64.zip --workdir=runs/celeba

The released training takes two RTX 6000 for days. Cameras come from a prior;
labels are ignored. `stages` is ((first step, pixels a side, batch, learning
rate of the generator, of the discriminator), ...). Images are resized to the
pixels of a stage by nearest neighbor, from squares of `resolution` pixels:
CelebA's are the central 256 of the images at a shorter side of 320, resized.
At each stage's beginning its first block fades in, `fade_steps` long; the
noise of the densities ends after `noise_steps`.

In `cats` all of these follow `steps`: a first step with a decimal point is a
fraction of them. In the released trainings they are absolute, as published,
whatever the number of steps.

`ema_images` is the half-life of a decay by 0.999 in a step. Rendering is free
of a resolution: faces that were trained at 64 x 64 pixels are rendered at 128 x
128 or more.
"""

import math

import ml_collections

from configs import stylegan2


def get_config(variant='cats'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def base(name, stages):
  """What the released trainings have in common."""
  config = stylegan2.base()
  config.update({
      'networks': 'pigan', 'name': name, 'resolution': stages[-1][1],
      'stages': stages, 'steps': 200_000, 'batch': stages[-1][2],
      'optimizer': 'adam'})
  config.model = ml_collections.ConfigDict({
      'z_dim': 256,
      'siren': {'width': 256, 'layers': 8, 'coordinate_scale': 2 / 0.24},
      'mapping': {'width': 256, 'layers': 3},
      'rendering': {'chunk': 1024},
      # Of the rendering, where no gradient is needed.
      'evaluation': {},
      'noise_steps': 5000,
      'fade_from': tuple(stage[0] for stage in stages), 'fade_steps': 10_000})
  del config.generator_rate, config.discriminator_rate  # They are in `stages`.
  config.schedule.update({
      'joint_r1': True, 'd_reg_interval': 0, 'g_reg_interval': 0,
      'ema_images': round(693.1 * config.batch)})
  return config


def celeba(name='celeba', batch=56):
  """Faces of people."""
  config = base(name, ((0, 64, batch, 6e-5, 2e-4),))
  config.model.update({
      'camera': {'distribution': 'gaussian', 'yaw': 0.3, 'pitch': 0.155,
                 'fov': 12.0},
      'discriminator': {'kind': 'ccs_encoder', 'widths': ()},
      'pose_weight': 15.0})
  config.model.rendering.update({'samples': 12, 'near': 0.88, 'far': 1.12})
  config.model.evaluation = ml_collections.ConfigDict(
      {'last_background': True})
  config.schedule.update({
      'r1_gamma': 0.2, 'top_k_interval': 2000, 'top_k_floor': 0.6})
  config.clip_norm = 10.0
  return config


def cats_paper():
  """Photographs of cats."""
  config = celeba('cats_paper', 28)
  config.model.camera.update(
      {'distribution': 'uniform', 'yaw': 0.5, 'pitch': 0.4})
  config.model.discriminator.kind = 'strided'
  config.model.pose_weight = 0.0
  config.model.rendering.update({'samples': 24, 'near': 0.8, 'far': 1.2})
  return config


def carla():
  """Cars, from all around and from above, before white."""
  config = base('carla', ((0, 32, 30, 4e-5, 4e-4),
                          (10_000, 64, 14, 2e-5, 2e-4),
                          (55_000, 128, 10, 1e-5, 1e-4)))
  config.data.mirror = False
  # From the pole to 5 degrees above the horizon.
  latitudes = math.pi / 4 * 85 / 90
  config.model.update({
      'camera': {
          'distribution': 'spherical_uniform', 'yaw': math.pi,
          'pitch': latitudes, 'pitch_mean': latitudes, 'fov': 30.0},
      'discriminator': {'kind': 'progressive_encoder', 'widths': ()},
      'pose_weight': 0.0})
  config.model.siren.coordinate_scale = 1.0
  config.model.rendering.update({
      'samples': 48, 'near': 0.7, 'far': 1.3, 'white_background': True})
  config.schedule.r1_gamma = 10.0
  config.clip_norm = 1.0
  return config


def cats():
  """Cats of the shapes world, seen from the front."""
  config = base('cats', ((0.0, 32, 8, 4e-4, 8e-4), (0.8, 64, 4, 2e-4, 4e-4)))
  config.steps = 4000
  config.data = stylegan2.cats_data()
  model = config.model
  model.z_dim = 64
  # Cats are in a ball of radius 0.5 around the origin.
  model.siren = ml_collections.ConfigDict(
      {'width': 64, 'layers': 4, 'coordinate_scale': 2.0})
  model.mapping.update({'width': 64, 'layers': 3})
  model.update({
      # Azimuths within 40 and elevations within 15 degrees; the field of view
      # of the focal length 1.35.
      'camera': {'distribution': 'uniform', 'yaw': math.radians(40),
                 'pitch': math.radians(15), 'radius': 1.7, 'fov': 40.647},
      'discriminator': {
          'kind': 'ccs_encoder', 'widths': (32, 64, 96, 128, 128, 128)},
      'pose_weight': 15.0})
  model.noise_steps = config.get_ref('steps') // 8
  model.fade_steps = config.get_ref('steps') // 8
  # Chunks of few samples stay in a core's cache: twice as fast.
  model.rendering = ml_collections.ConfigDict({
      'samples': 12, 'near': 1.2, 'far': 2.2, 'white_background': True,
      'corner_pixels': False, 'chunk': 64})
  model.evaluation = ml_collections.ConfigDict({'samples': 24})
  config.schedule.update({'r1_gamma': 0.2, 'ema_ramp': 0.05})
  config.clip_norm = 10.0
  config.distance_count = 1000
  config.log_every, config.eval_every, config.checkpoint_every = 20, 1000, 500
  return config


def cpu64():
  """The released network for faces on a few images."""
  config = celeba()
  config.name, config.batch = 'cpu64', 2
  config.stages = ((0, 64, 2, 6e-5, 2e-4),)
  config.model.rendering.chunk = 64
  config.data = stylegan2.cats_data()
  config.data.count = 64
  return config


def tiny():
  """Seconds: the `cats` variant at a few pixels, for tests."""
  config = cats()
  config.resolution, config.batch, config.steps = 16, 4, 2
  config.stages = ((0, 8, 4, 1e-3, 1e-3), (1, 16, 2, 1e-3, 1e-3))
  config.data.update({'count': 16, 'size': 16})
  model = config.model
  model.z_dim, model.fade_from, model.fade_steps = 6, (0, 1), 4
  model.noise_steps = 500
  model.siren.update({'width': 8, 'layers': 2})
  model.mapping.update({'width': 8, 'layers': 1})
  model.discriminator.widths = (8, 8, 8, 8)
  model.rendering.update({'samples': 4, 'chunk': 0})
  config.distance_count = 0
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {
    'cats': cats, 'celeba': celeba, 'cats_paper': cats_paper, 'carla': carla,
    'cpu64': cpu64, 'tiny': tiny,
}
