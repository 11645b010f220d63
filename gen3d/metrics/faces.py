"""Metrics of generators of faces: identity, depth and pose.

EG3D (2112.07945) introduced them without code. The protocol here is that of
the benchmark Carver (2306.12423) with changes that are named where they are
made; its numbers are 'our protocol', not EG3D's.

Vocabulary. Landmarks [5, 2] are of one face: left eye, right eye (as in the
image), nose, left and right corner of the mouth; (x, y) in pixels, whole
numbers at the centers of pixels. A matrix [2, 3] maps (x, y, 1) of an image to
a crop. Failures (a face without landmarks, a depth map without a face, numbers
that are not finite) are left out of a mean, and counted.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from gen3d.choices import UserError, pick

# Where the landmarks are in a crop of 112 pixels, of ArcFace's training.
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014],
                     [56.0252, 71.7366], [41.5493, 92.3655],
                     [70.7299, 92.2041]])
# The part of a side of EG3D's images that the face reconstructor wants: they
# are crops of 700 pixels at a scale of 300, its own ones are of 224 at 102.
CENTRAL = (224 * 300 / 102) / 700
_LEAST_PIXELS = 16  # of a face, to compare depths


class Score(NamedTuple):
  """A mean over the samples that did not fail."""
  mean: float  # NaN if all failed
  count: int   # of samples, with those that failed
  failed: int


def score(values: np.ndarray) -> Score:
  """The Score of values [N], of which those that are not finite failed."""
  values = np.asarray(values, np.float64)
  good = np.isfinite(values)
  mean = float(values[good].mean()) if good.any() else float('nan')
  return Score(mean, len(values), int(np.sum(~good)))


def template(size: int = 112) -> np.ndarray:
  """Landmarks [5, 2] in a crop of `size` pixels a side, as in insightface.

  Raises:
    UserError: `size` is a multiple of neither 112 nor 128, whose crops are
      wider by 8 pixels at either side.
  """
  if size > 0 and size % 112 == 0:
    return TEMPLATE * (size / 112)
  if size > 0 and size % 128 == 0:
    return (TEMPLATE + [8, 0]) * (size / 128)
  raise UserError(f'Faces are aligned to 112 or 128 pixels or a multiple of '
                  f'them, not to {size}.')


def alignment(landmarks: np.ndarray, size: int = 112,
              fit: str = 'insightface') -> np.ndarray:
  """The matrix [2, 3] of the similarity that moves landmarks to the template.

  Args:
    landmarks: [5, 2].
    size: of the crop, see `template`.
    fit: of FITS. 'insightface' minimizes the distances in the crop (Umeyama,
      1991), 'treb1en' those in the image. They differ by up to 0.3 pixels.

  Raises:
    UserError: there is no such fit.
  """
  goal = template(size)
  return pick('fit of landmarks', FITS, fit)(
      np.asarray(landmarks, np.float64), goal)


def _fit_forward(landmarks, goal):
  return _matrix(*_similarity(landmarks, goal))


def _fit_inverse(landmarks, goal):
  # w = a z + b from the template to the image is inverted.
  scale, shift = _similarity(goal, landmarks)
  return _matrix(1 / scale, -shift / scale)


FITS = {'insightface': _fit_forward, 'treb1en': _fit_inverse}


def _similarity(points, goal):
  """Complex (a, b) of the least squares of w = a z + b, z = x + i y.

  A similarity without reflection is one product of complex numbers, so that
  the fit is that of a line.
  """
  z, w = (p[:, 0] + 1j * p[:, 1] for p in (points, goal))
  centered = z - z.mean()
  scale = (np.sum(centered.conj() * (w - w.mean()))
           / np.sum(np.abs(centered) ** 2))
  return scale, w.mean() - scale * z.mean()


def _matrix(scale, shift):
  return np.array([[scale.real, -scale.imag, shift.real],
                   [scale.imag, scale.real, shift.imag]])


def warp(image: np.ndarray, matrix: np.ndarray, size: int = 112) -> np.ndarray:
  """The crop [size, size, C] of an image, bilinear; black beyond the image.

  cv2.warpAffine rounds positions to 1/32 pixel, and differs by that.

  Args:
    image: [H, W, C], uint8 or float; the crop has the same type.
    matrix: [2, 3] from the image to the crop.
    size: of the crop, pixels a side.
  """
  scale = matrix[0, 0] + 1j * matrix[1, 0]
  shift = matrix[0, 2] + 1j * matrix[1, 2]
  target = np.arange(size) + 1j * np.arange(size)[:, None]
  source = (target - shift) / scale
  x, y = source.real, source.imag
  left, top = np.floor(x).astype(int), np.floor(y).astype(int)
  height, width = image.shape[:2]
  crop = np.zeros((size, size, image.shape[2]))
  for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
    weight = np.abs(1 - row - (y - top)) * np.abs(1 - column - (x - left))
    i, j = top + row, left + column
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    crop += (weight * inside)[..., None] * image[
        np.clip(i, 0, height - 1), np.clip(j, 0, width - 1)]
  if np.issubdtype(image.dtype, np.integer):
    crop = np.round(crop)
  return crop.astype(image.dtype)


def central(images: np.ndarray, size: int, part: float = 1.0) -> np.ndarray:
  """The central part of images [N, H, W, ...], to size x size pixels.

  The nearest pixels are taken, as Carver's protocol does (PyTorch's
  interpolation 'nearest', which rounds down).

  Args:
    images: square, [N, S, S, ...].
    size: of the result.
    part: of the side, 1 for the whole image.
  """
  side = images.shape[1]
  start, step = side * (1 - part) / 2, side * part / size
  # The tolerance keeps whole numbers whole.
  index = np.floor(start + np.arange(size) * step + 1e-6).astype(int)
  return images[:, index[:, None], index]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Cosines [N] of embeddings [N, D]; NaN where one is zero or not finite."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  with np.errstate(invalid='ignore', divide='ignore'):
    return np.sum(a * b, 1) / (
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def depth_error(depth: np.ndarray, other: np.ndarray) -> float:
  """Mean squared difference of two depth maps, each standardized.

  Where both have a depth, the mean of each becomes 0 and its standard
  deviation 1: the error is 0 for maps that agree up to scale and offset, 2 for
  independent ones, 4 for opposite ones; 2 - 2 r for a correlation r.

  Args:
    depth, other: [H, W], along the viewing axis; 0 or not finite where there
      is no depth.

  Returns:
    The error; NaN where there are too few pixels, or a map is flat.
  """
  depth, other = np.asarray(depth, np.float64), np.asarray(other, np.float64)
  mask = (depth != 0) & (other != 0) & np.isfinite(depth) & np.isfinite(other)
  if mask.sum() < _LEAST_PIXELS:
    return float('nan')
  standardized = []
  for values in (depth[mask], other[mask]):
    deviation = values.std()
    # Rounding errors of a constant are no relief.
    if deviation <= 1e-9 * np.abs(values).max():
      return float('nan')
    standardized.append((values - values.mean()) / deviation)
  return float(np.mean((standardized[0] - standardized[1]) ** 2))


def pose_errors(rotations: np.ndarray, others: np.ndarray,
                remove_offset: bool = False) -> np.ndarray:
  """Mean squared differences [N] of rotation vectors, in squared radians.

  A rotation vector is the axis times the angle; the mean is over its three
  components. It jumps at half a turn: the measure is for views from the front.

  Args:
    rotations, others: [N, 3, 3], camera-to-world, of one convention for axes.
    remove_offset: rotates the world of `others` by the one rotation that
      brings them nearest to `rotations`, for generators whose world has no
      absolute orientation.

  Returns:
    Errors; NaN where a matrix is not finite.
  """
  rotations = np.asarray(rotations, np.float64)
  others = np.asarray(others, np.float64)
  errors = np.full(len(rotations), np.nan)
  good = np.isfinite(rotations).all((1, 2)) & np.isfinite(others).all((1, 2))
  if not good.any():
    return errors
  first, second = rotations[good], others[good]
  if remove_offset:
    second = nearest_rotation(np.einsum(
        'nij,nkj->ik', first, second)) @ second
  vectors = [Rotation.from_matrix(r).as_rotvec() for r in (first, second)]
  errors[good] = np.mean((vectors[0] - vectors[1]) ** 2, axis=1)
  return errors


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
  """The rotation [3, 3] that is nearest to a matrix [3, 3] (Kabsch, 1976)."""
  u, _, v = np.linalg.svd(matrix)
  return (u * [1, 1, np.sign(np.linalg.det(u @ v))]) @ v


def arcface_input(images: np.ndarray | jax.Array) -> jax.Array:
  """Bytes [..., 3] as ArcFace takes them, in [-1, 1]."""
  return (jnp.asarray(images, jnp.float32) - 127.5) / 127.5


def align(images: np.ndarray, landmarks: Any, size: int = 112,
          fit: str = 'insightface') -> tuple[np.ndarray, np.ndarray]:
  """Aligned crops of faces, and which of them have landmarks.

  Args:
    images: uint8 [N, H, W, 3].
    landmarks: [N, 5, 2]; of a face that was not detected, not finite.
    size: see `template`.
    fit: of FITS.

  Returns:
    (uint8 [N, size, size, 3], bool [N]). A crop is black where landmarks are
    not finite, not all within the image, or all at one point.
  """
  landmarks = np.asarray(landmarks, np.float64)
  corner = np.array(images.shape[2:0:-1]) - 1
  with np.errstate(invalid='ignore'):
    found = np.all((landmarks >= 0) & (landmarks <= corner), axis=(1, 2))
  crops = np.zeros((len(images), size, size, 3), images.dtype)
  # Landmarks at one point have no scale.
  found &= landmarks.std(axis=1).max(axis=1) > 1e-6
  for i in np.flatnonzero(found):
    crops[i] = warp(images[i], alignment(landmarks[i], size, fit), size)
  return crops, found
