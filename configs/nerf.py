r"""NeRF: a scene in a network (Mildenhall et al., 2003.08934).

Variants:
  blender  The default. Every number of the paper's appendix for the synthetic
           scenes, in the frame whose cube [-1, 1]^3 is the capture's box.
           Samples are intervals, not points. The paper reports 31.01 dB on
           average after 500,000 steps, one to two days on a V100.
  quick    Minutes on two CPU cores, for images of about 200 pixels.
  race     The paper's networks with few rays, samples and steps, for the
           comparison of gen3d.compare on two CPU cores.
  tiny     Seconds, for tests.

  python -m gen3d.train --config=configs/nerf.py \
    --config.data.path=nerf_synthetic/lego --workdir=runs/lego

Forward-facing captures (LLFF) and unbounded ones (NeRF++) are sampled evenly in
disparity, in contracted space. The paper has normalized device coordinates:
  --config.scene.extent=range --config.scene.spacing=disparity \
  --config.scene.contract=True

configs/mip_nerf.py, voxels.py and triplanes.py start from `base`.
"""

import ml_collections

VARIANTS = ('blender', 'quick', 'race', 'tiny')


def get_config(variant='blender'):
  """The config of one of VARIANTS."""
  return base(variant, {
      'blender': {}, 'quick': {'optimizer.learning_rate': 1e-3}, 'race': {},
      'tiny': {'scene.field.depth': 2, 'scene.field.width': 16,
               'scene.field.skip': 1}})


def base(variant, changes):
  """NeRF's config with what a variant changes.

  Args:
    variant: one of VARIANTS.
    changes: {variant: {dotted key: value}}; those of 'blender' come first in
      the others as well.
  """
  config = _blender()
  config.update_from_flattened_dict(changes['blender'])
  if variant != 'blender':
    _quick(config)
  if variant == 'race':
    config.steps, config.eval_every, config.log_every = 1000, 125, 20
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = config.get_ref('steps') // 20
    config.crop.steps = config.get_ref('steps') // 20
    config.scene.chunk = 4096  # One chunk, so that memory is comparable.
    config.data.factor, config.eval_views = 2, 3
    config.export.update({'resolution': 64, 'size': 100, 'frames': 8})
  if variant == 'tiny':
    _tiny(config)
  if variant != 'blender':
    config.update_from_flattened_dict(changes[variant])
  return config


def _blender():
  config = ml_collections.ConfigDict({
      'task': 'reconstruction',
      'seed': 0,
      'steps': 500_000,
      'batch': 4096,  # rays, over all devices
      # `path`: a folder, or 'shapes:' and a caption, of which `count` images of
      # `size` pixels are rendered.
      'data': {'path': '', 'format': 'auto', 'factor': 1,
               'count': 100, 'size': 128,
               # Bounds of distances, and half the side of a cube around the
               # origin that is reconstructed; 0 for automatic ones.
               'near': 0.0, 'far': 0.0, 'box': 0.0},
      'crop': {'steps': 0, 'fraction': 0.5},
      'scene': {
          'field': {
              'encode': {'name': 'frequencies', 'degree': 10},
              'depth': 8, 'width': 256, 'skip': 5, 'activation': 'relu',
              'view_degree': 4, 'view_width': 128, 'rgb_padding': 0.0},
          # Rays are sampled within the bounds of distances ('range') or within
          # the cube [-1, 1]^3 ('box').
          'extent': 'range',
          'spacing': 'distance',  # or 'disparity'
          'contract': False,      # unbounded space to a ball (Mip-NeRF 360)
          'coarse': {'samples': 64, 'loss_weight': 1.0, 'separate': True},
          'fine': {'samples': 128, 'include_coarse': True,
                   'resample_padding': 0.0},
          'background': 'white',  # or 'black', 'random', 'learned'
          'background_mlp': {'degree': 4, 'width': 64, 'layers': 2},
          'total_variation': 0.0,
          'chunk': 4096,          # rays at a time on a device: memory bound
          'epsilon': 0.02},       # finite differences of preview normals
      'optimizer': {'name': 'adam', 'learning_rate': 5e-4,
                    'schedule': 'exponential', 'final': 0.1, 'warmup': 0,
                    'b1': 0.9, 'b2': 0.999, 'eps': 1e-7, 'lr_multipliers': {}},
      'lpips': '',  # weights, to report LPIPS by
      'export': {'resolution': 256, 'size': 400, 'frames': 120, 'fps': 30,
                 'texture': 1024},  # texels per side; 0: vertex colors
      'log_every': 100, 'eval_every': 5000, 'eval_views': 4,
      'checkpoint_every': 5000, 'keep_checkpoints': 2,
      'progress': ('psnr',), 'throughput_unit': 'rays',
  })
  config.crop.steps = config.get_ref('steps') // 1000
  return config


def _quick(config):
  config.steps, config.batch = 1500, 512
  config.scene.extent = 'box'
  config.scene.coarse.samples, config.scene.fine.samples = 32, 32
  config.scene.chunk = 256
  config.optimizer.warmup = config.get_ref('steps') // 15
  config.crop.steps = config.get_ref('steps') // 15
  config.export.update({'resolution': 160, 'size': 200, 'frames': 48})
  config.eval_every, config.checkpoint_every = 500, 500


def _tiny(config):
  config.data.update({'path': 'shapes:a red car with blue wheels',
                      'count': 4, 'size': 16})
  config.steps, config.batch = 2, 32
  config.scene.coarse.samples = config.scene.fine.samples = 8
  config.export.update(
      {'resolution': 16, 'size': 16, 'frames': 8, 'texture': 64})
  config.log_every, config.eval_every = 1, 2
  config.checkpoint_every, config.eval_views = 2, 2
