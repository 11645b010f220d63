"""What a capture's files say: which pictures, from where, which lens.

Capture is the record that every reader in layouts.py returns. Its cameras are
in gen3d's world (y up) with OpenGL's axes; `align` is the similarity that was
applied to the files' world, so that points can be carried along.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gen3d.choices import UserError


class Frame(NamedTuple):
  """One picture of a capture.

  Attributes:
    name: as the files have it.
    file: where the picture is.
    source: the file that has its pose, for messages.
    split: 'train', 'test' or 'val'.
    c2w: float64 [4, 4], OpenGL axes, in gen3d's world.
    lens: (width, height) of the picture on disk -> lenses.Lens.
    size: (width, height) that the lens is given for, or None where its
      numbers are of the picture on disk whatever its size.
  """
  name: str
  file: pathlib.Path
  source: pathlib.Path
  split: str
  c2w: Any
  lens: Callable
  size: Any


class Capture(NamedTuple):
  """What the files say.

  Attributes:
    frames: tuple of Frame, of all splits.
    align: [4, 4], a similarity from the files' world to the frames' one.
    bounds: (near, far) or None.
    box: [2, 3] or None.
    box_from: the file that has it, for messages.
    points: [M, 3] on surfaces, or None.
  """
  frames: tuple
  align: Any
  bounds: Any = None
  box: Any = None
  box_from: str = ''
  points: Any = None


def transform_poses(align, c2w):
  """Camera-to-world matrices [..., 4, 4] after a similarity of the world."""
  moved = align @ c2w
  scale = np.cbrt(np.linalg.det(align[:3, :3]))
  moved[..., :3, :3] /= scale
  return moved


def looks_one_way(c2w):
  """Whether the cameras [N, 4, 4] look roughly in one direction."""
  return bool(np.linalg.norm(c2w[:, :3, 2].mean(0)) > 0.5)


def closest_point(c2w):
  """The point nearest to all lines of sight of [N, 4, 4], or None.

  None where the lines are nearly parallel or part behind the cameras.
  """
  centers, forward = c2w[:, :3, 3], -c2w[:, :3, 2]
  across = np.eye(3) - forward[:, :, None] * forward[:, None, :]
  total = across.mean(0)
  if np.linalg.eigvalsh(total)[0] < 1e-3:
    return None
  point = np.linalg.solve(total, (across @ centers[:, :, None]).mean(0)[:, 0])
  ahead = np.sum((point - centers) * forward, axis=-1)
  return point if np.median(ahead) > 0 else None


def check_frame(frame):
  """Raises UserError where a pose is no rotation, or a lens shows nothing."""
  rotation = frame.c2w[:3, :3]
  where = f'{frame.source}: the pose of {frame.name}'
  if not np.isfinite(frame.c2w).all():
    raise UserError(f'{where} has numbers that are not finite.')
  if abs(np.linalg.det(rotation)) < 1e-6:
    raise UserError(f'{where} is singular; remove the picture.')
  if np.abs(rotation.T @ rotation - np.eye(3)).max() > 1e-2:
    raise UserError(f'{where} has a rotation that is not orthonormal.')
  if np.linalg.det(rotation) < 0:
    raise UserError(f'{where} has a rotation that mirrors.')
  size = frame.size or (1, 1)
  numbers = np.concatenate(frame.lens(*size)) if min(size) > 0 else (np.nan,)
  if not (np.isfinite(numbers).all() and min(numbers[:2]) > 0):
    raise UserError(f'{frame.source}: the lens of {frame.name} has a size or '
                    'a focal length that is not positive.')


def normalize_poses(frames, nearest):
  """Puts a world of unknown axes and scale upright.

  Cameras that look roughly one way are turned so that their average looks
  along -z from the origin, and scaled so that what is nearest is at 4/3
  (NeRF's LLFF loader). Others look at something from around: the axis of
  least spread of their positions is up (mip-NeRF 360's PCA), and all fit into
  the cube from -1 to 1.

  Args:
    frames: of the whole capture.
    nearest: distance of what is nearest, in their world.

  Returns:
    (frames in the new world, the similarity [4, 4], its scale).
  """
  for frame in frames:
    check_frame(frame)
  c2w = np.stack([frame.c2w for frame in frames])
  centers, mean = c2w[:, :3, 3], c2w[:, :3].mean(0)
  if looks_one_way(c2w):
    back = mean[:, 2] / np.linalg.norm(mean[:, 2])
    right = np.cross(mean[:, 1], back)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(back, right), back])
    scale = 1 / (0.75 * nearest)
  else:
    _, axes = np.linalg.eigh(np.cov((centers - centers.mean(0)).T))
    rotation = np.stack([axes[:, 2], axes[:, 0], axes[:, 1]])
    if rotation[1] @ mean[:, 1] < 0:
      rotation[1] *= -1
    rotation[2] *= np.linalg.det(rotation)
    spread = np.abs((centers - centers.mean(0)) @ rotation.T).max()
    scale = 1 / max(spread, 1e-9)
  align = np.eye(4)
  align[:3, :3] = scale * rotation
  align[:3, 3] = -align[:3, :3] @ centers.mean(0)
  return ([frame._replace(c2w=transform_poses(align, frame.c2w)) for frame in frames],
          align, scale)
