"""Hybrid tri-planes for one scene (EG3D, 2112.07945, section 3).

Three planes of 512 x 512 with 48 features, summed, then an MLP of 4 x 128,
where Mip-NeRF has 8 x 256. Rays are sampled as in configs/mip_nerf.py, so
that only the field differs. The paper does not say how it was trained: steps,
rates and the first planes are ours.

Variants:
  blender  The paper's size. The default.
  quick    Minutes on two CPU cores, for pictures of about 200 pixels.
  race     See configs/nerf.py. Planes of 128 x 128: few rays leave finer ones
           half learned.
  tiny     Seconds; for tests.

  python -m gen3d.train --config=configs/triplanes.py:quick \
    --config.data.path=shapes:'a red car with blue wheels' --workdir=runs/car
"""

from configs import mip_nerf

VARIANTS = mip_nerf.VARIANTS


def get_config(variant='blender'):
  """The config of one of VARIANTS."""
  return hybrid(variant, {
      'blender': {'name': 'planes', 'resolution': 512, 'features': 48},
      'quick': {'name': 'planes', 'resolution': 128, 'features': 16},
      'race': {'name': 'planes', 'resolution': 128, 'features': 48},
      'tiny': {'name': 'planes', 'resolution': 8, 'features': 4}})


def hybrid(variant, encode):
  """Mip-NeRF's config with a small network on a grid of features.

  Args:
    variant: as in get_config.
    encode: {variant: {'name', 'resolution', 'features'}} of the grid.
  """
  config = mip_nerf.get_config(variant)
  field = config.scene.field
  field.encode = {'degree': 4, 'spread': 0.1, **encode[variant]}
  field.skip = 0
  if variant != 'tiny':
    field.depth, field.width, field.view_width = 4, 128, 128
  if variant == 'quick':
    field.depth, field.width, field.view_width = 2, 64, 32
    config.batch = 1024
  if variant == 'blender':
    # What is between a ray and its color is computed again on the way back:
    # less than a third of Mip-NeRF's memory, and still six times its speed.
    config.scene.chunk = 1024
  config.steps = {'blender': 30_000, 'quick': 3000}.get(variant, config.steps)
  config.scene.extent = 'box'
  if variant != 'race':  # There, only the field is to differ.
    config.scene.coarse.loss = 0.0  # A look without gradient: half the work.
  config.scene.total_variation = 1e-2
  config.scene.epsilon = 0.03  # Wider than the grid's cells.
  config.optimizer.learning_rate = 1e-3
  config.optimizer.final = 0.1
  config.optimizer.warmup = {'tiny': 1, 'race': 50}.get(variant, 100)
  config.optimizer.eps = 1e-15
  config.optimizer.lr_multipliers = {'encode': 20.0}
  return config
