r"""Hybrid tri-planes for one scene (EG3D, 2112.07945, section 3).

The sum of three planes of 512 x 512 with 48 features, then an MLP of 4 layers
of 128 (Mip-NeRF has 8 of 256). Rays are sampled as in configs/mip_nerf.py, so
that only the field differs. The paper does not report the training: steps,
learning rates and the initialization of the planes are ours.

Variants:
  blender  The default. The paper's size.
  quick    Minutes on two CPU cores, for images of about 200 pixels.
  race     See configs/nerf.py. Planes of 128 x 128: in so few steps, rays do
           not reach every texel of finer ones often enough.
  tiny     Seconds, for tests.

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
  field.encode = {'degree': 4, 'init_std': 0.1, **encode[variant]}
  field.skip = 0
  if variant != 'tiny':
    field.depth, field.width, field.view_width = 4, 128, 128
  if variant == 'quick':
    field.depth, field.width, field.view_width = 2, 64, 32
    config.batch = 1024
  if variant == 'blender':
    # Intermediate values of a chunk are recomputed in the backward pass: less
    # than a third of Mip-NeRF's memory, at six times its speed.
    config.scene.chunk = 1024
  config.steps = {'blender': 30_000, 'quick': 3000}.get(variant, config.steps)
  config.scene.extent = 'box'
  if variant != 'race':  # `race` compares fields only.
    config.scene.coarse.loss_weight = 0.0  # No gradient: half the work.
  config.scene.total_variation = 1e-2
  config.scene.epsilon = 0.03  # Larger than a cell of the grid.
  config.optimizer.learning_rate = 1e-3
  config.optimizer.final = 0.1
  config.optimizer.warmup = 1 if variant == 'tiny' else config.get_ref(
      'steps') // {'blender': 300, 'quick': 30, 'race': 20}[variant]
  config.optimizer.eps = 1e-15
  config.optimizer.lr_multipliers = {'encode': 20.0}
  return config
