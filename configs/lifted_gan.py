r"""LiftedGAN (Shi et al., CVPR 2021, 2011.13126): a frozen 2-D GAN in 3-D.

Variants:
  cats        The default. Cats of the shapes world, 64 x 64 pixels, on the
              shipped generator of configs/stylegan2.py:cats. On one CPU core
              1.6 steps/s: 17 minutes.
  paper       Faces, 256 x 256, with the official hyper-parameters.
  cats_paper  Photographs of cats, 256 x 256, likewise.
  tiny        Seconds; for tests: an untrained generator.

  python -m gen3d.train --config=configs/lifted_gan.py \
    --workdir=runs/cats_lifted
  python -m gen3d.train --config=configs/lifted_gan.py:paper \
    --config.generator=stylegan2-ffhq-cropped-300000.pt \
    --config.vgg16=vgg16-397923af.pth --config.lresnet=lresnet_casia.pth \
    --workdir=runs/faces_lifted

There are no training images: all come from the 2-D generator, a .safetensors
of configs/stylegan2.py, NVIDIA's .pkl or a .pt of stylegan2-pytorch.
"""

import math

import ml_collections


def get_config(variant='cats'):
  """The config of one of VARIANTS."""
  return VARIANTS[variant]()


def paper():
  """The paper's model of faces, 50,000 steps at 256 x 256."""
  return ml_collections.ConfigDict({
      'task': 'lifting', 'networks': 'lifted_gan', 'name': 'paper',
      'seed': 0, 'steps': 50_000, 'batch': 8,
      # Files: the frozen generator, VGG16 as torchvision publishes it, and the
      # official face embedding.
      'generator': '', 'vgg16': '', 'lresnet': '',
      # An official checkpoint of the four networks to start from, or none.
      'checkpoint': '',
      'psi': 0.7,
      'model': {
          'generator': {},  # of its file
          'decompose': {'width': 512},
          'compose': {'width': 512, 'residual': False},
          'depth': {'width': 16, 'hidden': 512},
          'warp': {'width': 16, 'hidden': 16},
          'settings': {
              'fov': 10.0, 'min_depth': 0.9, 'max_depth': 1.1,
              'border_depth': 1.05, 'center_depth': 1.0,
              'rotation_range': 60.0, 'xy_range': 0.1, 'z_range': 0.01,
              'blur_radius': 10, 'blur_sigma': 4.0, 'white': 0.0}},
      'perturbation': {
          'yaw': 45.0, 'pitch': 15.0, 'shift': 0.2, 'identity_yaw': 25.0},
      'weights': {
          'reconstruction': 5.0, 'flip': 0.8, 'perceptual': 1.0,
          'perturbed_image': 2.0, 'perturbed_parameters': 4.0,
          'identity': 1.0, 'style': 0.5, 'albedo_rank': 0.01},
      'rank_pooling': 4,
      'optimizer': {'name': 'adam', 'learning_rate': 1e-4},
      'weight_decay': 5e-4,  # part of the gradient, as in PyTorch's Adam
      # Of the pictures: the front, in world units, and degrees to its sides.
      'camera': {'elevation': 0.0, 'distance': 2.7, 'yaw_range': 45.0},
      'sheet': 8,
      'log_every': 50, 'eval_every': 5000, 'checkpoint_every': 1000,
      'keep_checkpoints': 2,
      'progress': ('loss/total', 'loss/reconstruction'),
  }, convert_dict=True)


def cats_paper():
  """The paper's model of cats: no face embedding, weaker priors."""
  config = paper()
  config.name = 'cats_paper'
  config.weights.update({'identity': 0.0, 'style': 0.1, 'albedo_rank': 5e-3})
  return config


def cats():
  """Cats of the shapes world, seen from the front, 64 x 64 pixels."""
  config = cats_paper()
  config.name, config.steps = 'cats', 1500
  config.generator = 'stylegan2_cats'
  config.model.decompose.width = config.model.compose.width = 128
  # A thirtieth of the paper's steps.
  config.model.compose.residual = True
  config.model.depth.update({'width': 12, 'hidden': 64})
  config.model.warp.width = 8
  # The camera of the data (configs/stylegan2.py). What is seen of cats from the
  # front reaches from 0.71 to 1.14 of the distance to their center.
  config.camera.update({'distance': 1.7, 'yaw_range': 40.0})
  config.model.settings.update({
      'fov': 2 * math.degrees(math.atan(0.5 / 1.35)),
      'min_depth': 0.65, 'max_depth': 1.25, 'border_depth': 1.16,
      'blur_radius': 3, 'blur_sigma': 1.0, 'white': 0.12})
  # The objects turn about the center of rotation: no shift.
  config.perturbation.update({'yaw': 40.0, 'shift': 0.0})
  config.weights.perceptual = 0.0  # VGG16 is not part of gen3d.
  config.optimizer = ml_collections.ConfigDict({
      'name': 'adam', 'learning_rate': 1e-3, 'schedule': 'cosine'})
  config.log_every, config.eval_every, config.checkpoint_every = 20, 500, 250
  return config


def tiny():
  """Seconds: the `cats` variant at a few pixels, for tests."""
  config = cats()
  config.name, config.steps, config.batch, config.sheet = 'tiny', 2, 4, 2
  config.generator = ''
  config.model.generator = ml_collections.ConfigDict({
      'resolution': 8, 'z_dim': 6,
      'synthesis': {'channel_base': 64, 'channel_max': 8},
      'mapping': {'width': 8, 'layers': 1}})
  config.model.decompose.width = config.model.compose.width = 8
  config.model.depth.update({'width': 4, 'hidden': 8})
  config.model.warp.update({'width': 4, 'hidden': 4})
  config.model.settings.update({'blur_radius': 1, 'blur_sigma': 0.5})
  config.log_every, config.eval_every, config.checkpoint_every = 1, 2, 2
  return config


VARIANTS = {'cats': cats, 'paper': paper, 'cats_paper': cats_paper,
            'tiny': tiny}
