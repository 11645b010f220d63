r"""Mip-NeRF: cones instead of rays (Barron et al., 2103.13415).

Variants:
  blender  The default. Every number of the paper for the single-scale
           synthetic scenes, in the frame whose cube [-1, 1]^3 is the capture's
           box; the warm-up is linear instead of a sine. The paper reports
           33.09 dB on average.
  quick    Minutes on two CPU cores, for images of about 200 pixels.
  race     See configs/nerf.py.
  tiny     Seconds, for tests.

  python -m gen3d.train --config=configs/mip_nerf.py \
    --config.data.path=nerf_synthetic/lego --workdir=runs/lego_mip
"""

from configs import nerf

VARIANTS = nerf.VARIANTS


def get_config(variant='blender'):
  """The config of one of VARIANTS."""
  config = nerf.base(variant, {
      'blender': {
          'steps': 1_000_000,
          'crop.steps': 0,
          'scene.field.encode': {'name': 'integrated', 'degree': 16},
          'scene.field.activation': 'softplus',
          'scene.field.rgb_padding': 0.001,
          'scene.coarse': {
              'samples': 128, 'loss_weight': 0.1, 'separate': False},
          'scene.fine': {'samples': 128, 'include_coarse': False,
                         'resample_padding': 0.01},
          'optimizer.final': 0.01},
      'quick': {'crop.steps': 0, 'optimizer.learning_rate': 1e-3},
      'race': {'optimizer.final': 0.1},
      'tiny': {
          'crop.steps': 0, 'optimizer.warmup': 1, 'scene.field.depth': 2,
          'scene.field.width': 16, 'scene.field.skip': 1}})
  if variant == 'blender':
    config.optimizer.warmup = config.get_ref('steps') // 400
  return config
