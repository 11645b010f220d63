"""Captures of Blender, instant-ngp and nerfstudio: transforms*.json.

transforms_{train,val,test}.json has one split each (NeRF's Blender scenes). A
single transforms.json may list the images of each split (nerfstudio's
train_filenames, val_filenames and test_filenames); else every eighth image, by
name, is a test one.
"""

import pathlib
from collections.abc import Callable
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
  split_files = [(split, file) for split in ('test', 'train', 'val')
                 if (file := path / f'transforms_{split}.json').is_file()]
  single = path / 'transforms.json'
  find, frames = _image_finder(path), []
  if ('train', path / 'transforms_train.json') in split_files:
    for split, file in split_files:
      # Only a scene to train on cannot be empty.
      common, listed = _content(file, may_be_empty=split != 'train')
      frames += [_frame(file, split, find, common, own) for own in listed]
  elif single.is_file():
    common, listed = _content(single)
    # By name, so that the split is independent of the order of the file.
    listed.sort(key=lambda own: own['file_path'])
    frames = [_frame(single, split, find, common, listed[i])
              for i, split in _splits(single, common, listed)]
  else:
    raise UserError(f'{path} has no transforms_train.json and no '
                    'transforms.json.')
  return Capture(tuple(frames), Z_UP)


def _content(file: pathlib.Path, may_be_empty: bool = False
             ) -> tuple[dict, list[dict]]:
  """The file's common values, and the values of each frame."""
  content = folders.read_json(file)
  frames = content.get('frames') if isinstance(content, dict) else None
  if not isinstance(frames, list) or not (frames or may_be_empty):
    raise UserError(f'{file} lists no "frames".')
  for frame in frames:
    if not (isinstance(frame, dict) and 'transform_matrix' in frame
            and isinstance(frame.get('file_path'), str)):
      raise UserError(f'{file}: every frame needs "file_path", a string, and '
                      '"transform_matrix".')
  return content, frames


def _splits(file: pathlib.Path, common: dict, frames: list[dict]
            ) -> list[tuple[int, str]]:
  """(index of a frame, its split); a frame may be in several splits or none."""
  listed = {split: common[key] for split in ('train', 'test', 'val')
            if common.get(key := f'{split}_filenames')}
  if not listed:
    return [(i, folders.split_of(i)) for i in range(len(frames))]
  plain = lambda name: str(pathlib.PurePosixPath(name.replace('\\', '/')))
  index = {plain(frame['file_path']): i for i, frame in enumerate(frames)}
  found = []
  for split, names in listed.items():
    if not (isinstance(names, list)
            and all(isinstance(name, str) for name in names)):
      raise UserError(f'{file}: "{split}_filenames" should be a list of file '
                      'names.')
    unknown = sorted({*map(plain, names)} - {*index})
    if unknown:
      raise UserError(
          f'{file}: "{split}_filenames" has {unknown[0][:80]!r}, but no frame '
          f'has this "file_path" ({len(unknown)} of {len(names)} names have '
          'none).')
    found += [(i, split) for i in sorted({index[plain(n)] for n in names})]
  return found


def _frame(file: pathlib.Path, split: str,
           find: Callable[[str], pathlib.Path], common: dict, own: dict
           ) -> Frame:
  name = own['file_path'].replace('\\', '/')
  where = f'{file}: {name[:80]}'
  try:
    c2w = np.eye(4)
    # Some files leave out the last row.
    c2w[:3] = np.array(own['transform_matrix'], float).reshape(-1, 4)[:3]
    size, model = _camera_model(where, {**common, **own})
  except UserError:
    raise
  except (TypeError, ValueError, OverflowError) as error:
    raise UserError(f'{where} has a matrix or a camera model that is not made '
                    'of numbers.') from error
  return Frame(name, find(name), file, split,
               records.transform_poses(Z_UP, c2w), model, size)


def _image_finder(folder: pathlib.Path) -> Callable[[str], pathlib.Path]:
  """Gives the image of a `file_path`, whose suffix may be left out."""
  find = folders.image_finder(folder)
  find_stem = folders.image_finder(folder, any_suffix=True)

  def find_either(name):
    if pathlib.PurePosixPath(name).suffix.lower() in folders.SUFFIXES:
      return find(name)
    file = find_stem(name)
    # NeRF's files leave it out for PNG; this name is in the error message.
    return file if file.suffix.lower() in folders.SUFFIXES else (
        file.with_name(f'{file.name}.png'))

  return find_either


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
  for key in {'camera_angle_x', 'camera_angle_y'} & given.keys():
    if key.replace('camera_angle', 'fl') in given:
      continue  # not used
    if not 0 < given[key] < np.pi:
      raise UserError(f'{where} has the "{key}" {given[key]:g}; an angle of '
                      'view in radians is between 0 and pi.')

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
