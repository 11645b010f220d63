"""COLMAP's sparse models: cameras, images and points3D, .bin or .txt.

What a model says, as it says it: poses are world-to-camera with OpenCV's
axes, lenses are in pixels. The pixels' centers are at +0.5, as everywhere
here. Of the files only what reconstruction needs is read: the observations
in images and the tracks in points3D are skipped.
"""

import pathlib
import struct
from typing import Any, NamedTuple

import numpy as np

from gen3d.choices import UserError
from gen3d.data.captures import lenses

# Name and number of parameters of every model, by number (COLMAP's models.h).
_MODELS = (
    ('SIMPLE_PINHOLE', 3), ('PINHOLE', 4), ('SIMPLE_RADIAL', 4),
    ('RADIAL', 5), ('OPENCV', 8), ('OPENCV_FISHEYE', 8), ('FULL_OPENCV', 12),
    ('FOV', 5), ('SIMPLE_RADIAL_FISHEYE', 4), ('RADIAL_FISHEYE', 5),
    ('THIN_PRISM_FISHEYE', 12), ('RAD_TAN_THIN_PRISM_FISHEYE', 16),
    ('SIMPLE_DIVISION', 4), ('DIVISION', 5), ('SIMPLE_FISHEYE', 3),
    ('FISHEYE', 4), ('EUCM', 6), ('EQUIRECTANGULAR', 2))
# Parameters of the models that are read -> fx, fy, cx, cy, distortion.
_SUPPORTED = {
    'SIMPLE_PINHOLE': lambda f, x, y: (f, f, x, y, (0, 0, 0, 0)),
    'PINHOLE': lambda fx, fy, x, y: (fx, fy, x, y, (0, 0, 0, 0)),
    'SIMPLE_RADIAL': lambda f, x, y, k: (f, f, x, y, (k, 0, 0, 0)),
    'RADIAL': lambda f, x, y, k1, k2: (f, f, x, y, (k1, k2, 0, 0)),
    'OPENCV': lambda fx, fy, x, y, *k: (fx, fy, x, y, k)}


class Shot(NamedTuple):
  """One registered image."""
  name: str
  w2c: Any        # [4, 4], OpenCV axes
  size: tuple     # (width, height) that the lens is given for
  lens: lenses.Lens


class Model(NamedTuple):
  """A sparse model; `file` names the images file, for messages."""
  file: pathlib.Path
  shots: tuple    # of Shot, sorted by name
  points: Any     # [M, 3], world


def holds_model(folder):
  """Whether a folder has a model's cameras and images file."""
  return any((folder / f'cameras{end}').is_file() for end in ('.bin', '.txt'))


def read(folder):
  """Reads a model; the binary files where there are both kinds.

  Raises:
    UserError: a file is missing, damaged, or has a camera whose model is
      not among the pinhole ones; the sentence names the file.
  """
  end = '.bin' if (folder / 'cameras.bin').is_file() else '.txt'
  files = [folder / f'{name}{end}' for name in ('cameras', 'images',
                                                'points3D')]
  for file in files[:2]:
    if not file.is_file():
      raise UserError(f'{file} is missing; a COLMAP model has cameras, '
                      'images and points3D of one kind (.bin or .txt).')
  readers = _BINARY if end == '.bin' else _TEXT
  found = []
  for file, reader in zip(files, readers):
    try:
      found.append(reader(file) if file.is_file() else np.zeros((0, 3)))
    except (struct.error, UnicodeDecodeError, IndexError, MemoryError
            ) as error:
      raise UserError(f'{file} ends too early or is damaged; export the '
                      'model again.') from error
  cameras, images, points = found
  shots = []
  for name, rotation, translation, camera in sorted(
      images, key=lambda image: image[0]):
    if camera not in cameras:
      raise UserError(f'{files[1]}: {name} has the camera {camera}, which '
                      f'{files[0].name} does not have.')
    shots.append(Shot(name, _pose(files[1], name, rotation, translation),
                      *_lens(files[0], camera, *cameras[camera])))
  if not shots:
    raise UserError(f'{files[1]} registers no image.')
  return Model(files[1], tuple(shots), np.asarray(points, float).reshape(-1, 3))


def _pose(file, name, quaternion, translation):
  length = np.linalg.norm(quaternion)
  if not (np.isfinite(length) and length > 1e-6):
    raise UserError(f'{file}: the pose of {name} is singular (its quaternion '
                    f'is {list(map(float, quaternion))}); remove the image.')
  w, x, y, z = np.asarray(quaternion) / length
  pose = np.eye(4)
  pose[:3, :3] = [
      [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
      [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
      [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]
  pose[:3, 3] = translation
  return pose


def _lens(file, number, model, width, height, parameters):
  if model not in _SUPPORTED:
    raise UserError(
        f'{file}: camera {number} has the model {model}; choose from '
        f'{sorted(_SUPPORTED)}, or undistort the images with COLMAP\'s '
        'image_undistorter.')
  try:
    *pixels, distortion = _SUPPORTED[model](*parameters)
  except TypeError as error:
    raise UserError(f'{file}: camera {number} ({model}) has '
                    f'{len(parameters)} parameters.') from error
  if min(width, height, *pixels[:2]) <= 0:
    raise UserError(f'{file}: camera {number} has a size or a focal length '
                    'that is not positive.')
  return (width, height), lenses.from_pixels(
      width, height, *pixels, distortion)


class _Stream:
  """Little-endian numbers out of bytes; struct.error where they end."""

  def __init__(self, file):
    self.data, self.at = file.read_bytes(), 0

  def take(self, kinds):
    values = struct.unpack_from(f'<{kinds}', self.data, self.at)
    self.skip(struct.calcsize(f'<{kinds}'))
    return values

  def skip(self, count):
    self.at += count
    if self.at > len(self.data):
      raise struct.error('end of file')

  def string(self):
    start, end = self.at, self.data.find(b'\0', self.at)
    if end < 0:
      raise struct.error('end of file')
    self.at = end + 1
    return self.data[start:end].decode()


def _cameras_bin(file):
  stream, cameras = _Stream(file), {}
  for _ in range(*stream.take('Q')):
    number, model, width, height = stream.take('iiQQ')
    if not 0 <= model < len(_MODELS):
      raise UserError(f'{file}: camera {number} has the unknown model '
                      f'{model}; choose from {sorted(_SUPPORTED)}.')
    name, count = _MODELS[model]
    cameras[number] = name, width, height, stream.take(f'{count}d')
  return cameras


def _images_bin(file):
  stream, images = _Stream(file), []
  for _ in range(*stream.take('Q')):
    _, *pose, camera = stream.take('i7di')
    images.append((stream.string(), pose[:4], pose[4:], camera))
    stream.skip(24 * stream.take('Q')[0])  # observations
  return images


def _points_bin(file):
  stream, points = _Stream(file), []
  for _ in range(*stream.take('Q')):
    points.append(stream.take('Q3d3Bd')[1:4])
    stream.skip(8 * stream.take('Q')[0])  # the track
  return points


def _lines(file):
  return [line.strip() for line in file.read_text().splitlines()
          if not line.startswith('#')]


def _numbers(file, words, kind=float):
  try:
    return [kind(word) for word in words]
  except ValueError as error:
    raise UserError(f'{file}: {" ".join(words)[:60]!r} should be numbers.'
                    ) from error


def _cameras_txt(file):
  cameras = {}
  for words in map(str.split, _lines(file)):
    if words:
      number, width, height = _numbers(
          file, [words[0], words[2], words[3]], int)
      if words[1] not in dict(_MODELS):
        raise UserError(f'{file}: camera {number} has the unknown model '
                        f'{words[1]}; choose from {sorted(_SUPPORTED)}.')
      cameras[number] = words[1], width, height, _numbers(file, words[4:])
  return cameras


def _images_txt(file):
  # Two lines an image; the second, its observations, may be empty.
  lines, images = _lines(file), []
  while lines and not lines[-1]:
    lines.pop()
  for line in lines[::2]:
    words = line.split(maxsplit=9)
    pose = _numbers(file, words[1:8])
    images.append((words[9], pose[:4], pose[4:],
                   _numbers(file, words[8:9], int)[0]))
  return images


def _points_txt(file):
  return [_numbers(file, line.split()[1:4]) for line in _lines(file) if line]


_BINARY = _cameras_bin, _images_bin, _points_bin
_TEXT = _cameras_txt, _images_txt, _points_txt
