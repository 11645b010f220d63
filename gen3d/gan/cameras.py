"""The cameras of a GAN's training images."""

import jax.numpy as jnp
import numpy as np

from gen3d.ops import cameras


def median_camera(labels: np.ndarray) -> dict[str, float | None] | None:
  """The typical camera of a data set, for the pictures of its generator.

  Args:
    labels: [N, 25], or [N, 0] where there are no cameras.

  Returns:
    {'elevation', 'distance', 'focal', 'yaw_range'}, the first three medians:
    degrees, distance from the world's origin, image widths. `yaw_range` is
    the 95th percentile of the azimuths to either side of the front, or None
    where the cameras are all around. None where there are no cameras.
  """
  if not labels.shape[1]:
    return None
  azimuth, elevation, distance = cameras.angles(
      jnp.asarray(labels[:, [3, 7, 11]]))
  yaw_range = float(jnp.percentile(jnp.abs(azimuth), 95))
  return {'elevation': float(jnp.median(elevation)),
          'distance': float(jnp.median(distance)),
          'focal': float(np.median(labels[:, 20])),
          'yaw_range': yaw_range if yaw_range < 120 else None}
