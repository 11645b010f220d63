"""Captures of Blender, instant-ngp and nerfstudio: transforms*.json.

transforms_{train,val,test}.json has one split each (NeRF's Blender scenes); of
a single transforms.json every eighth image, by name, is a test one.
"""

import json
import pathlib
from typing import Any

import numpy as np

from gen3d.choices import UserError
from gen3d.data.captures import camera_models, folders, records
from gen3d.data.captures.records import Capture, Frame
from gen3d.ops.cameras import Z_UP

# Values of nerfstudio's "camera_model" for pinholes, with distortion or not.
_PINHOLES = ('OPENCV', 'PINHOLE', 'SIMPLE_PINHOLE', 'PERSPECTIVE')


def is_capture(path: pathlib.Path) -> bool:
  """True if a folder has a file transforms*.json."""
  return bool([*path.glob('transforms*.json')])


def read_capture(path: pathlib.Path, factor: float) -> Capture:
  """Reads the capture in a folder.

  Args:
    path: the folder.
    factor: not used, since the images are those that the file lists.

  Raises:
    UserError: a file is missing or damaged.
  """
  del factor
  split_files = sorted(path.glob('transforms_*.json'))
  single = path / 'transforms.json'
  frames = []
  if split_files:
    for file in split_files:
      split = file.stem.removeprefix('transforms_')
      frames += [_frame(file, split, *entry) for entry in _entries(file)]
  elif single.is_file():
    # By name, so that the split is independent of the order of the file.
    entries = sorted(_entries(single), key=lambda e: e[1]['file_path'])
    frames = [_frame(single, folders.split_of(i), *entry)
              for i, entry in enumerate(entries)]
  else:
    raise UserError(f'{path} has no transforms_train.json and no '
                    'transforms.json.')
  return Capture(tuple(frames), Z_UP)


def _entries(file: pathlib.Path) -> list[tuple[dict, dict]]:
  """Pairs of the file's common values and the values of one frame."""
  try:
    content = json.loads(file.read_text())
  except ValueError as error:
    raise UserError(f'{file} is not valid JSON ({error}).') from error
  frames = content.get('frames') if isinstance(content, dict) else None
  if not isinstance(frames, list) or not frames:
    raise UserError(f'{file} lists no "frames".')
  for frame in frames:
    if not (isinstance(frame, dict) and 'file_path' in frame
            and 'transform_matrix' in frame):
      raise UserError(f'{file}: every frame needs "file_path" and '
                      '"transform_matrix".')
  return [(content, frame) for frame in frames]


def _frame(file: pathlib.Path, split: str, common: dict, own: dict) -> Frame:
  name = str(own['file_path']).replace('\\', '/')
  try:
    c2w = np.eye(4)
    # Some files leave out the last row.
    c2w[:3] = np.array(own['transform_matrix'], float).reshape(-1, 4)[:3]
    size, model = _camera_model(f'{file}: {name}', {**common, **own})
  except UserError:
    raise
  except (TypeError, ValueError) as error:
    raise UserError(f'{file}: {name} has a matrix or a camera model that is '
                    'not made of numbers.') from error
  return Frame(name, _image_file(file.parent, name), file, split,
               records.transform_poses(Z_UP, c2w), model, size)


def _image_file(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The image of a `file_path`, whose suffix may be left out."""
  file = folder / name
  if file.suffix.lower() in folders.SUFFIXES:
    return file
  for suffix in folders.SUFFIXES:
    for spelling in (suffix, suffix.upper()):
      if (whole := file.with_name(file.name + spelling)).is_file():
        return whole
  # NeRF's files leave it out for PNG; this name is in the error message.
  return file.with_name(f'{file.name}.png')


def _camera_model(where: str, values: dict[str, Any]
                  ) -> tuple[tuple | None, records.ModelOfSize]:
  """Fields `size` and `model` of a Frame, from the values of one frame."""
  name = str(values.get('camera_model', 'OPENCV'))
  if values.get('is_fisheye') or name not in _PINHOLES:
    name = 'fisheye' if values.get('is_fisheye') else name
    raise UserError(f'{where} has the camera model {name}; only pinholes with '
                    'or without OpenCV\'s k1, k2, p1, p2 are read: undistort '
                    'the images first.')
  if any(float(values.get(k) or 0) for k in ('k3', 'k4', 'k5', 'k6')):
    raise UserError(f'{where} has a distortion beyond k1, k2, p1, p2; '
                    'undistort the images first.')
  # Missing and null values are zero.
  distortion = [float(values.get(k) or 0) for k in ('k1', 'k2', 'p1', 'p2')]
  given = {k: float(values[k]) for k in (
      'w', 'h', 'fl_x', 'fl_y', 'cx', 'cy', 'camera_angle_x',
      'camera_angle_y') if values.get(k) is not None}
  size = (given['w'], given['h']) if 'w' in given and 'h' in given else None
  if not {'fl_x', 'camera_angle_x'} & given.keys():
    raise UserError(f'{where} has neither "camera_angle_x" nor "fl_x".')

  def model(width, height):
    # Numbers in pixels are of `size`, whatever the size of the image.
    width, height = size or (width, height)
    from_angle = lambda side, key: 0.5 * side / np.tan(0.5 * given[key])
    fx = (given['fl_x'] if 'fl_x' in given
          else from_angle(width, 'camera_angle_x'))
    # As in instant-ngp: square pixels where only one focal length is given.
    if 'fl_y' in given:
      fy = given['fl_y']
    elif 'camera_angle_y' in given and 'fl_x' not in given:
      fy = from_angle(height, 'camera_angle_y')
    else:
      fy = fx
    return camera_models.from_pixels(
        width, height, fx, fy, given.get('cx', width / 2),
        given.get('cy', height / 2), distortion)

  return size, model
