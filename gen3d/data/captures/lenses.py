"""Lenses of photographs: pinholes with OpenCV's distortion, and its removal.

Vocabulary. A lens is normalized like a camera's intrinsics (ops/cameras.py):
image coordinates run from (0, 0) at the top left corner to (1, 1) at the
bottom right one. A direction (x, y) is the point where a ray meets the plane
at depth 1, x to the right and y down. OpenCV's and COLMAP's model is

  image = center + focal * distort((x, y))

with k1, k2 (radial) and p1, p2 (tangential); without them it is a pinhole.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage

from gen3d.choices import UserError


class Lens(NamedTuple):
  """How a camera maps directions to image coordinates; normalized."""
  focal: Any       # (fx / width, fy / height)
  center: Any      # (cx / width, cy / height)
  distortion: Any  # (k1, k2, p1, p2)

  def intrinsics(self):
    """[3, 3]; of the pinhole, without the distortion."""
    (fx, fy), (cx, cy) = self.focal, self.center
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def from_pixels(width, height, fx, fy, cx, cy, distortion=(0, 0, 0, 0)):
  """A Lens out of numbers in pixels of an image of this size."""
  return Lens((fx / width, fy / height), (cx / width, cy / height),
              tuple(map(float, distortion)))


def distort(directions, distortion):
  """Where OpenCV's lens moves the directions [..., 2]."""
  k1, k2, p1, p2 = distortion
  x, y = directions[..., 0], directions[..., 1]
  r2 = x * x + y * y
  radial = 1 + k1 * r2 + k2 * r2 * r2
  return np.stack([
      x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
      y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], axis=-1)


def straighten(lens):
  """The pinhole that sees as much as it can of what a distorted lens saw.

  Its center is the lens's; its focal length is the lens's, or longer by as
  much as it takes for every pixel to lie within the distorted image.

  Returns:
    Lens without distortion.

  Raises:
    UserError: the lens folds the picture over: no pinhole can show it.
  """
  edge = np.linspace(0, 1, 33)
  border = np.concatenate([
      np.stack([a, b], -1) for e in (np.zeros(33), np.ones(33))
      for a, b in ((edge, e), (e, edge))])
  directions = (border - lens.center) / lens.focal

  def inside(zoom):
    seen = lens.center + np.multiply(
        lens.focal, distort(directions / zoom, lens.distortion))
    return np.all((seen > -1e-6) & (seen < 1 + 1e-6))

  low, high = 1.0, 1.0
  while not inside(high):
    low, high = high, 1.1 * high
    if high > 10:
      raise UserError('no pinhole fits into the picture')
  while high - low > 1e-4:
    middle = (low + high) / 2
    low, high = (low, middle) if inside(middle) else (middle, high)
  _refuse_folds(directions / high, lens.distortion)
  return Lens(tuple(high * f for f in lens.focal), lens.center, (0,) * 4)


def _refuse_folds(directions, distortion):
  """Raises where two directions land on one place before the border."""
  shares = np.linspace(0, 1, 65)[:, None, None]
  moved = distort(shares * directions, distortion)
  along = np.sum(np.diff(moved, axis=0) * directions, axis=-1)
  if np.any(along < -1e-12):
    raise UserError('the distortion folds the picture over')


def resample(image, lens, pinhole):
  """What `pinhole` sees of an image [H, W, 4] taken through `lens`.

  Bilinear, with colors weighted by alpha: uint8 [H, W, 4], straight alpha.
  """
  height, width = image.shape[:2]
  y, x = np.meshgrid((np.arange(height) + 0.5) / height,
                     (np.arange(width) + 0.5) / width, indexing='ij')
  directions = (np.stack([x, y], -1) - pinhole.center) / pinhole.focal
  seen = lens.center + np.multiply(
      lens.focal, distort(directions, lens.distortion))
  rows, columns = seen[..., 1] * height - 0.5, seen[..., 0] * width - 0.5
  alpha = image[..., 3:].astype(np.float32)
  weighted = np.concatenate([image[..., :3] * (alpha / 255), alpha], -1)
  found = np.stack([
      scipy.ndimage.map_coordinates(
          weighted[..., c], [rows, columns], order=1, mode='nearest')
      for c in range(4)], axis=-1)
  found[..., :3] *= 255 / np.maximum(found[..., 3:], 1e-3)
  return np.round(np.clip(found, 0, 255)).astype(np.uint8)
