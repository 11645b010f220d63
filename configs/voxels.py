"""Hybrid voxels for one scene (EG3D, 2112.07945, section 3).

A cube of 128^3 voxels with 18 features, as many numbers as the tri-planes of
configs/triplanes.py, and the same network and training.

Variants:
  blender  The paper's size. The default.
  quick    Minutes on two CPU cores, for pictures of about 200 pixels.
  race     See configs/nerf.py. As many numbers as the planes there, too.
  tiny     Seconds; for tests.

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
