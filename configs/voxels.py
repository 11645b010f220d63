r"""Hybrid voxels for one scene (EG3D, 2112.07945, section 3).

A grid of 128^3 voxels with 18 features, as many parameters as the tri-planes of
configs/triplanes.py, with the same network and training.

Variants:
  blender  The default. The paper's size.
  quick    Minutes on two CPU cores, for images of about 200 pixels.
  race     See configs/nerf.py. As many parameters as the planes' `race`.
  tiny     Seconds, for tests.

  python -m gen3d.train --config=configs/voxels.py:quick \
    --config.data.path=shapes:'a red car with blue wheels' --workdir=runs/car
"""

from configs import triplanes

VARIANTS = triplanes.VARIANTS


def get_config(variant='blender'):
  """The config of one of VARIANTS."""
  return triplanes.hybrid(variant, {
      'blender': {'name': 'voxels', 'resolution': 128, 'features': 18},
      'quick': {'name': 'voxels', 'resolution': 48, 'features': 8},
      'race': {'name': 'voxels', 'resolution': 64, 'features': 9},
      'tiny': {'name': 'voxels', 'resolution': 8, 'features': 4}})
