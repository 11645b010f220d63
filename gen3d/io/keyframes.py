"""Camera keyframes of files, as Blender's exporters for NeRF write them."""

import os
import pathlib

import numpy as np

from gen3d import files
from gen3d.choices import UserError
from gen3d.ops import camera_sets
from gen3d.ops.cameras import Z_UP, Camera


def load(path: str | os.PathLike, up: str = 'y') -> Camera:
  """Reads the cameras [N] of a JSON file.

  Its list "frames" has a "transform_matrix" for each camera, camera-to-world
  [4, 4] in OpenGL's camera axes; "camera_angle_x", the angle of view in
  radians, is that of the file or of the frame. Images are taken to be square.

  Args:
    path: of the file.
    up: the upward axis of its world, 'y' or 'z'; the cameras have y up.

  Raises:
    UserError: the file is missing, is not such a file, or has no camera.
  """
  if not os.fspath(path):
    raise UserError('The view distribution "keyframes" needs a file of '
                    'cameras; give it by --config.scene.keyframes=FILE.json.')
  path = pathlib.Path(path)
  content = files.read_json(path)
  try:
    frames = content['frames']
    poses = np.array([frame['transform_matrix'] for frame in frames], float)
    angles = np.array([frame.get('camera_angle_x') or content['camera_angle_x']
                       for frame in frames], float)
  except (ValueError, TypeError, LookupError, AttributeError,
          OverflowError) as error:
    raise UserError(
        f'{path} is not a file of cameras: it needs "camera_angle_x" and a '
        'list "frames", each with a "transform_matrix" of 4 x 4 numbers.'
        ) from error
  if poses.shape[1:] != (4, 4) or not np.isfinite(poses).all() or not (
      (angles > 0) & (angles < np.pi)).all():
    raise UserError(f'{path} has no frames, a "transform_matrix" that is not '
                    'of 4 x 4 finite numbers, or an angle of view that is not '
                    'between 0 and pi.')
  return camera_sets.keyframes(
      poses, np.rad2deg(angles), Z_UP if up == 'z' else np.eye(4))
