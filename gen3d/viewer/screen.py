"""Cameras of the browser, tiles of an image, and the size that is fast enough.

viser's cameras are OpenCV's (y down, facing +z), with a vertical field of view
and the proportions of the window. The page has gen3d's world, with y up.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from gen3d.ops.cameras import OPENCV, Camera

SECONDS = 0.2  # for an image while the camera moves: 5 a second


def from_browser(wxyz: Any, position: Any, fov: float, aspect: float) -> Camera:
  """The Camera of a window.

  Args:
    wxyz: quaternion [4], from viser's axes of the camera to the world.
    position: [3], world.
    fov: vertical, in radians.
    aspect: width / height of the window. The Camera's image is the whole
      window, so that the pixels of a square image are as wide as this.

  Returns:
    Camera, float32 NumPy.
  """
  w, x, y, z = np.asarray(wxyz, np.float64)
  c2w = np.eye(4)
  c2w[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
  c2w[:3, 3] = position
  focal = 0.5 / math.tan(fov / 2)
  intrinsics = np.array(
      [[focal / aspect, 0, 0.5], [0, focal, 0.5], [0, 0, 1]])
  return Camera((c2w * OPENCV).astype(np.float32),
                intrinsics.astype(np.float32))


def to_browser(c2w: Any) -> tuple[np.ndarray, np.ndarray]:
  """(wxyz, position) of a camera for viser; inverse of `from_browser`."""
  c2w = np.asarray(c2w, np.float64) * OPENCV
  x, y, z, w = Rotation.from_matrix(c2w[:3, :3]).as_quat()
  return np.array([w, x, y, z]), c2w[:3, 3]


def field_of_view(focal: float) -> float:
  """Vertical field of view, radians, of a focal length in image heights."""
  return 2 * math.atan(0.5 / focal)


def fitting(fov: float, aspect: float) -> float:
  """The vertical field of view of a window that has `fov` in both directions.

  Args:
    fov: radians.
    aspect: width / height of the window; one that is higher than wide, as on a
      telephone, gets a larger field.
  """
  return 2 * math.atan(math.tan(fov / 2) / min(aspect, 1.0))


def orbit_center(c2w: Any, center: Any = (0.0, 0.0, 0.0)) -> np.ndarray:
  """Point [3] on a camera's axis around which the browser moves it.

  It is the one that is nearest to `center`, and at distance 1 where that is
  behind the camera.
  """
  position, forward = np.asarray(c2w)[:3, 3], -np.asarray(c2w)[:3, 2]
  along = float((np.asarray(center) - position) @ forward)
  return position + (along if along > 1e-3 else 1.0) * forward


def in_square(camera: Camera, aspect: float) -> Camera:
  """The camera of the largest square in the middle of a window."""
  intrinsics = np.array(camera.intrinsics)
  wide, high = max(aspect, 1.0), max(1 / aspect, 1.0)
  intrinsics[0, 0] *= wide
  intrinsics[1, 1] *= high
  return camera._replace(intrinsics=intrinsics)


def pad_square(image: np.ndarray, aspect: float, color: int) -> np.ndarray:
  """A window's image [H, W, 3] with a square image [S, S, 3] in its middle.

  Args:
    image: uint8.
    aspect: width / height of the window.
    color: gray value beside the square, from 0 to 255.
  """
  side = len(image)
  wide = round(side * (max(aspect, 1.0) - 1) / 2)
  high = round(side * (max(1 / aspect, 1.0) - 1) / 2)
  return np.pad(image, ((high, high), (wide, wide), (0, 0)),
                constant_values=color)


def tiles(camera: Camera, count: int) -> Camera:
  """Cameras [count^2] of the tiles of a camera's image, row by row."""
  row, column = np.divmod(np.arange(count * count), count)
  intrinsics = np.repeat(
      np.asarray(camera.intrinsics)[None], count * count, axis=0)
  intrinsics[:, :2] *= count
  intrinsics[:, 0, 2] -= column
  intrinsics[:, 1, 2] -= row
  return Camera(
      np.repeat(np.asarray(camera.c2w)[None], count * count, axis=0),
      intrinsics)


def join(images: np.ndarray) -> np.ndarray:
  """The image [C T, C T, 3] of its tiles [C^2, T, T, 3]."""
  count, side = math.isqrt(len(images)), images.shape[1]
  return images.reshape(count, count, side, side, 3).swapaxes(1, 2).reshape(
      count * side, count * side, 3)


def choose_size(sizes: Sequence[int], seconds: Mapping[int, float],
                limit: float = SECONDS) -> int:
  """The largest size whose image is rendered within a time.

  Args:
    sizes: pixels a side, ascending.
    seconds: {size: measured time}. The time of a size without a measurement is
      that of the nearest one with, in proportion to the pixels.
    limit: seconds for an image.

  Returns:
    One of `sizes`: the first one where nothing was measured, or where all take
    longer.
  """
  if not seconds:
    return sizes[0]

  def expected(size):
    nearest = min(seconds, key=lambda x: abs(math.log(x / size)))
    return seconds[nearest] * (size / nearest) ** 2

  return max((size for size in sizes if expected(size) <= limit),
             default=sizes[0])
