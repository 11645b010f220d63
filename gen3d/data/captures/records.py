"""Content of a capture's files: images, poses and camera models.

Capture is the record that every reader in layouts.py returns. Its cameras are
in gen3d's world (y up) with OpenGL's axes; `align` is the similarity from the
world of the files to gen3d's, for points given in the former.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gen3d.choices import UserError
from gen3d.data.captures import camera_models

# (width, height) of an image file -> camera_models.CameraModel
ModelOfSize = Callable[[float, float], camera_models.CameraModel]
# Second singular value of the mean rotation below which cameras count as all
# around: 1 is for equal rotations, 0 for a full circle at any elevation, 0.5
# for an arc of 217 degrees.
_AROUND = 0.5
# Cosine of image rows with the vertical below which they do not tell up from
# down.
_SIDEWAYS = 0.1
_FARTHEST = 1e30  # coordinate whose square is a finite float64


class Frame(NamedTuple):
  """One image of a capture.

  Attributes:
    name: as in the files of the capture.
    file: the image file.
    source: the file that has its pose, for messages.
    split: 'train', 'test' or 'val'.
    c2w: float64 [4, 4], OpenGL axes, in gen3d's world.
    model: (width, height) of the image file -> CameraModel.
    size: (width, height) of the camera model, or None where its numbers hold
      for any size of the image file.
  """
  name: str
  file: pathlib.Path
  source: pathlib.Path
  split: str
  c2w: np.ndarray
  model: ModelOfSize
  size: tuple[float, float] | None


class Capture(NamedTuple):
  """All images of a capture, and bounds where the files have some.

  Attributes:
    frames: tuple of Frame, of all splits.
    align: [4, 4], the similarity from the world of the files to gen3d's.
    bounds: (near, far) or None.
    box: [2, 3], lower and upper corner, or None.
    box_from: the file that has the box, for messages.
    points: [M, 3] on surfaces, or None.
  """
  frames: tuple[Frame, ...]
  align: np.ndarray
  bounds: tuple[float, float] | None = None
  box: np.ndarray | None = None
  box_from: str = ''
  points: np.ndarray | None = None


def fixed_model(model: camera_models.CameraModel) -> ModelOfSize:
  """Field `model` of a Frame whose model holds for any size."""
  return lambda width, height: model


def transform_poses(align: np.ndarray, c2w: np.ndarray) -> np.ndarray:
  """Camera-to-world matrices [..., 4, 4] after a similarity of the world.

  Args:
    align: [4, 4], a rotation times a scale, and a translation.
    c2w: [..., 4, 4].
  """
  with np.errstate(invalid='ignore', over='ignore'):  # see check_frame
    moved = align @ c2w
  # Positions are scaled, rotations stay rotations.
  scale = np.cbrt(np.linalg.det(align[:3, :3]))
  moved[..., :3, :3] /= scale
  return moved


def is_forward_facing(c2w: np.ndarray) -> bool:
  """True unless the cameras [N, 4, 4] surround a point.

  A circle of cameras may be high above the point, where all directions are
  similar: what differs from cameras that face forward is that the images turn
  with the positions. Cameras whose axes do not meet, or meet behind them,
  surround nothing: they face forward if they have one direction.
  """
  turning = np.linalg.svd(c2w[:, :3, :3].mean(0), compute_uv=False)
  if turning[1] >= _AROUND:
    return True
  return bool(closest_point(c2w) is None
              and np.linalg.norm(c2w[:, :3, 2].mean(0)) > _AROUND)


def closest_point(c2w: np.ndarray) -> np.ndarray | None:
  """The point [3] with the least squared distance to the optical axes.

  Args:
    c2w: [N, 4, 4], OpenGL axes.

  Returns:
    None where the axes are nearly parallel, or the point is behind most of
    the cameras.
  """
  centers, forward = c2w[:, :3, 3], -c2w[:, :3, 2]
  # Projections onto the planes orthogonal to the axes.
  across = np.eye(3) - forward[:, :, None] * forward[:, None, :]
  # Least squares; its smallest eigenvalue is 0 for parallel axes.
  total = across.mean(0)
  if np.linalg.eigvalsh(total)[0] < 1e-3:
    return None
  point = np.linalg.solve(total, (across @ centers[:, :, None]).mean(0)[:, 0])
  ahead = np.sum((point - centers) * forward, axis=-1)
  return point if np.median(ahead) > 0 else None


def frustum(c2w: np.ndarray, intrinsics: np.ndarray,
            depth: float) -> np.ndarray:
  """Corners [4, 3] of a camera's view at a depth, in cyclic order.

  Args:
    c2w: [4, 4], OpenGL axes.
    intrinsics: [3, 3], normalized.
    depth: along the viewing axis.
  """
  border = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1.0]])
  local = border @ np.linalg.inv(intrinsics).T * [1, -1, -1] * depth
  return local @ c2w[:3, :3].T + c2w[:3, 3]


def check_frame(frame: Frame) -> None:
  """Checks the pose and the camera model of a Frame.

  Raises:
    UserError: the pose is not a rigid motion or is absurdly far off, or the
      model has a size or a focal length that is not positive.
  """
  rotation = frame.c2w[:3, :3]
  where = f'{frame.source}: the pose of {frame.name}'
  if not (np.abs(frame.c2w) < _FARTHEST).all():  # or NaN
    raise UserError(f'{where} has numbers that are not finite or beyond '
                    f'{_FARTHEST:g}.')
  if abs(np.linalg.det(rotation)) < 1e-6:
    raise UserError(f'{where} is singular; remove the image.')
  if np.abs(rotation.T @ rotation - np.eye(3)).max() > 1e-2:
    raise UserError(f'{where} has a rotation that is not orthonormal.')
  if np.linalg.det(rotation) < 0:
    raise UserError(f'{where} has a rotation that mirrors.')
  size = frame.size or (1, 1)
  numbers = np.concatenate(frame.model(*size)) if min(size) > 0 else (np.nan,)
  if not (np.isfinite(numbers).all() and min(numbers[:2]) > 0):
    raise UserError(f'{frame.source}: the camera model of {frame.name} has a '
                    'size or a focal length that is not positive.')


def normalize_poses(frames: Sequence[Frame], nearest: float
                    ) -> tuple[list[Frame], np.ndarray, float]:
  """Gives a world of unknown axes and scale y up and a known scale.

  Forward-facing cameras: the average camera is moved to the origin with -z as
  viewing direction, and the world scaled so that the nearest depth is 4/3
  (NeRF's LLFF loader). Other cameras: y is the principal axis of their
  positions with the least variance (Mip-NeRF 360), and the world is scaled so
  that all positions lie in [-1, 1]^3.

  Args:
    frames: all of the capture.
    nearest: the least depth of what is visible, in their world.

  Returns:
    (frames in the new world, the similarity [4, 4], its scale).

  Raises:
    UserError: as check_frame.
  """
  for frame in frames:
    check_frame(frame)
  c2w = np.stack([frame.c2w for frame in frames])
  centers, mean = c2w[:, :3, 3], c2w[:, :3].mean(0)
  if is_forward_facing(c2w):
    back = mean[:, 2] / np.linalg.norm(mean[:, 2])
    # Upward directions that cancel, as of a drone that flies to and fro, leave
    # the turn about the viewing direction open: the first image decides.
    up = (mean[:, 1] if np.linalg.norm(mean[:, 1]) > _SIDEWAYS
          else c2w[0, :3, 1])
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(back, right), back])
    scale = 1 / (0.75 * nearest)
  else:
    # eigh sorts by variance, the least one first.
    _, axes = np.linalg.eigh(np.cov((centers - centers.mean(0)).T))
    rotation = np.stack([axes[:, 2], axes[:, 0], axes[:, 1]])
    # Up is that of the images; of images that lie on their side it is where
    # the cameras are, which mostly point downwards.
    upright = rotation[1] @ mean[:, 1]
    if (upright if abs(upright) > _SIDEWAYS else rotation[1] @ mean[:, 2]) < 0:
      rotation[1] *= -1
    rotation[2] *= np.linalg.det(rotation)  # no mirror image
    extent = np.abs((centers - centers.mean(0)) @ rotation.T).max()
    scale = 1 / max(extent, 1e-9)
  align = np.eye(4)
  align[:3, :3] = scale * rotation
  align[:3, 3] = -align[:3, :3] @ centers.mean(0)
  moved = [frame._replace(c2w=transform_poses(align, frame.c2w))
           for frame in frames]
  return moved, align, scale
