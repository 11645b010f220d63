"""Sets of cameras [N] for scenes that are seen from inside or around.

A texture is optimized from cameras of a fixed set, of which each step draws
one. Angles are in degrees, as in ops/cameras.py; a field of view is that of the
image's height.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gen3d.ops import cameras
from gen3d.ops.cameras import Camera

# (x, y, z) of a world -> (x, z, y): that of BlenderProc's poses in SceneTex's
# reader, which mirrors the world.
SWAPPED = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def focal_length(field_of_view: Any) -> np.ndarray:
  """Focal lengths [...], in image heights, of fields of view [...]."""
  return 0.5 / np.tan(np.deg2rad(field_of_view) / 2)


def sphere(distance: Sequence[float], elevation: Sequence[float],
           azimuth: Sequence[float], field_of_view: Sequence[float],
           target: Sequence[float] = (0.0, 0.0, 0.0)) -> Camera:
  """All combinations of positions around one point, facing it.

  In SceneTex's order: the field of view varies slowest, then azimuth, distance
  and elevation.

  Args:
    distance: from the target.
    elevation, azimuth: of the position, seen from the target.
    field_of_view: of the cameras.
    target: the point [3].
  """
  fov, azimuths, distances, elevations = np.array(list(itertools.product(
      field_of_view, azimuth, distance, elevation)), np.float32).T
  return cameras.orbit(azimuths, elevations, distances, focal_length(fov),
                       target)


def room(low: Sequence[float], high: Sequence[float], counts: Sequence[int],
         elevation: Sequence[float], azimuth: Sequence[float],
         field_of_view: Sequence[float]) -> Camera:
  """Cameras on a grid of positions in a box, each facing all directions.

  Args:
    low, high: corners [3] of the box.
    counts: positions along each axis [3]; one alone is in the middle.
    elevation, azimuth: of what a camera faces: azimuth 0 is towards +z,
      elevation 90 straight up.
    field_of_view: of the cameras.
  """
  axes = [np.linspace(a, b, n) if n > 1 else [(a + b) / 2]
          for a, b, n in zip(low, high, counts, strict=True)]
  rows = np.array(list(itertools.product(
      field_of_view, azimuth, elevation, *axes)), np.float32)
  position = jnp.asarray(rows[:, 3:])
  ahead = cameras.spherical(rows[:, 1], rows[:, 2], jnp.ones(len(rows)))
  up = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0]), position.shape)
  return Camera(cameras.look_at(position, position + ahead, up),
                cameras.pinhole(focal_length(rows[:, 0])))


def keyframes(poses: np.ndarray, field_of_view: Any,
              axes: np.ndarray = cameras.Z_UP) -> Camera:
  """Cameras of poses in another world.

  Args:
    poses: camera-to-world matrices [N, 4, 4] of OpenGL cameras.
    field_of_view: [N] or one number.
    axes: [4, 4], from their world to ours: cameras.Z_UP for Blender's, the
      identity for a world with y up (3D-FRONT), SWAPPED.
  """
  poses = np.asarray(axes) @ np.asarray(poses, np.float64)
  focal = np.broadcast_to(focal_length(field_of_view), len(poses))
  return Camera(jnp.asarray(poses, jnp.float32),
                cameras.pinhole(np.asarray(focal, np.float32)))
