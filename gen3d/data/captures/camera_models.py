"""Camera models: pinholes with OpenCV's distortion, and its removal.

A camera model is normalized like a camera's intrinsics (ops/cameras.py): image
coordinates run from (0, 0) at the top left corner to (1, 1) at the bottom
right one. A direction (x, y) is the point where a ray meets the plane at depth
1, x to the right and y down. The model of OpenCV and COLMAP is

  image = center + focal * distort((x, y))

with k1, k2 (radial) and p1, p2 (tangential); without them it is a pinhole.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from gen3d.choices import UserError

_MAX_ZOOM = 10  # of the pinhole that replaces a distorted camera


class CameraModel(NamedTuple):
  """Map from directions to image coordinates, normalized."""
  focal: tuple[float, float]       # (fx / width, fy / height)
  center: tuple[float, float]      # (cx / width, cy / height)
  distortion: tuple[float, ...]    # (k1, k2, p1, p2)

  def intrinsics(self) -> np.ndarray:
    """Intrinsics [3, 3] of the pinhole, without the distortion."""
    (fx, fy), (cx, cy) = self.focal, self.center
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def from_pixels(width: float, height: float, fx: float, fy: float, cx: float,
                cy: float, distortion: Sequence[float] = (0, 0, 0, 0)
                ) -> CameraModel:
  """A CameraModel from numbers in pixels of an image of this size.

  Args:
    width, height: of the image.
    fx, fy: focal lengths.
    cx, cy: principal point; a pixel's center is at +0.5.
    distortion: (k1, k2, p1, p2).
  """
  return CameraModel((fx / width, fy / height), (cx / width, cy / height),
                     tuple(map(float, distortion)))


def distort(directions: np.ndarray, distortion: Sequence[float]) -> np.ndarray:
  """Directions [..., 2] after OpenCV's distortion (k1, k2, p1, p2)."""
  k1, k2, p1, p2 = distortion
  x, y = directions[..., 0], directions[..., 1]
  r2 = x * x + y * y
  radial = 1 + k1 * r2 + k2 * r2 * r2
  return np.stack([
      x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
      y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], axis=-1)


def project(model: CameraModel, directions: np.ndarray) -> np.ndarray:
  """Image coordinates [..., 2] of directions [..., 2]."""
  return model.center + np.multiply(
      model.focal, distort(directions, model.distortion))


def undistorted(model: CameraModel) -> CameraModel:
  """The pinhole with the widest view that lies within a distorted image.

  Its center is that of the model; its focal length is that of the model, or
  the smallest larger one for which every pixel lies within the image.

  Raises:
    UserError: the distortion folds the image over, or no pinhole fits.
  """
  # If the border lies within the image, so does the interior, unless the
  # distortion folds it over, which is checked below.
  edge = np.linspace(0, 1, 33)
  border = np.concatenate([
      np.stack([a, b], -1) for e in (np.zeros(33), np.ones(33))
      for a, b in ((edge, e), (e, edge))])
  directions = (border - model.center) / model.focal

  def fits(zoom):
    at = project(model, directions / zoom)
    return np.all((at > -1e-6) & (at < 1 + 1e-6))

  # The least zoom by growth, then by bisection.
  low, high = 1.0, 1.0
  while not fits(high):
    low, high = high, 1.1 * high
    if high > _MAX_ZOOM:
      raise UserError('no pinhole fits into the image')
  while high - low > 1e-4:
    middle = (low + high) / 2
    low, high = (low, middle) if fits(middle) else (middle, high)
  _check_monotonic(directions / high, model.distortion)
  fx, fy = model.focal
  return CameraModel((high * fx, high * fy), model.center, (0,) * 4)


def _check_monotonic(directions, distortion):
  """Raises UserError where two directions map to one point of the image."""
  # Along each ray of the plane from the center to the border.
  fractions = np.linspace(0, 1, 65)[:, None, None]
  moved = distort(fractions * directions, distortion)
  along = np.sum(np.diff(moved, axis=0) * directions, axis=-1)
  if np.any(along < -1e-12):
    raise UserError('the distortion folds the image over')


def resample(image: np.ndarray, model: CameraModel,
             pinhole: CameraModel) -> np.ndarray:
  """Resamples an image of one camera model to another one.

  Bilinear, with colors weighted by alpha.

  Args:
    image: uint8 [H, W, 4], straight alpha.
    model: of the image.
    pinhole: of the result, without distortion.

  Returns:
    uint8 [H, W, 4], straight alpha.
  """
  height, width = image.shape[:2]
  y, x = np.meshgrid((np.arange(height) + 0.5) / height,
                     (np.arange(width) + 0.5) / width, indexing='ij')
  at = project(model, (np.stack([x, y], -1) - pinhole.center) / pinhole.focal)
  rows, columns = at[..., 1] * height - 0.5, at[..., 0] * width - 0.5
  # Transparent pixels have no color of their own: premultiply by alpha.
  alpha = image[..., 3:].astype(np.float32)
  weighted = np.concatenate([image[..., :3] * (alpha / 255), alpha], -1)
  result = np.stack([
      scipy.ndimage.map_coordinates(
          weighted[..., c], [rows, columns], order=1, mode='nearest')
      for c in range(4)], axis=-1)
  result[..., :3] *= 255 / np.maximum(result[..., 3:], 1e-3)
  return np.round(np.clip(result, 0, 255)).astype(np.uint8)
