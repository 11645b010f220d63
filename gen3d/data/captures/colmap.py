"""Captures of COLMAP: sparse models of cameras, images and points3D.

Models are read from .bin or .txt as they are: poses are world-to-camera with
OpenCV's axes, camera models are in pixels, whose centers are at +0.5. The
observations in images and the tracks in points3D are skipped.
"""

import os
import pathlib
import re
import struct
from typing import Any, NamedTuple

import numpy as np

from gen3d.choices import UserError
from gen3d.data.captures import camera_models, folders, records
from gen3d.data.captures.records import Capture, Frame
from gen3d.files import read_file
from gen3d.ops.cameras import OPENCV

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


# Points of structure from motion that are so many times as far off as half of
# them: triangulation does not give such, damaged files do.
_ABSURD = 1e6
_MAX_SIDE = 10 ** 7  # pixels of a camera's image


class RegisteredImage(NamedTuple):
  """One image whose pose COLMAP found."""
  name: str
  w2c: np.ndarray            # [4, 4], OpenCV axes
  size: tuple[int, int]      # (width, height) of the camera model
  model: camera_models.CameraModel


class SparseModel(NamedTuple):
  """A sparse model; `file` is the images file, for messages."""
  file: pathlib.Path
  images: tuple[RegisteredImage, ...]  # sorted by name
  points: np.ndarray                   # [M, 3], world


def is_capture(path: pathlib.Path) -> bool:
  """True if a capture's folder has a sparse model."""
  return _model_folder(path) is not None


def read_capture(path: pathlib.Path, factor: float) -> Capture:
  """The capture of a sparse model, in the frame of records.normalize_poses.

  Bounds are percentiles 0.1 and 99.9 of the distances from cameras to the 3-D
  points that they see, since some points are wrong. A model without points has
  no bounds.

  Args:
    path: folder with sparse/0, sparse or colmap/sparse/0, and images; or the
      folder of one model of a capture, such as its sparse/1.
    factor: of layouts.read.

  Raises:
    UserError: there is no sparse model, or one of its files is missing or
      damaged.
  """
  folder = _model_folder(path)
  if folder is None:
    raise UserError(f'{path} has no cameras.bin or cameras.txt in sparse/0, '
                    'sparse or colmap/sparse/0.')
  sparse = read(folder)
  _tell_of_larger(folder, len(sparse.images))
  if not len(sparse.points):
    folders.tell(f'{folder} has no 3-D points; the box and the bounds of the '
                 'scene are those of its cameras.')
  c2w = np.stack(
      [np.linalg.inv(image.w2c) for image in sparse.images]) * OPENCV
  depths = _depths(c2w, sparse)
  # Without points, the extent of the cameras stands in for the distance.
  nearest = np.percentile(depths, 0.1) if len(depths) else np.ptp(
      c2w[:, :3, 3], axis=0).max() or 1.0
  files = _image_files(_root(path, folder), factor, sparse)
  frames = [
      Frame(image.name, file, sparse.file, folders.split_of(i), pose,
            records.fixed_model(image.model), image.size)
      for i, (image, file, pose) in enumerate(zip(sparse.images, files, c2w))]
  frames, align, scale = records.normalize_poses(frames, nearest)
  points = sparse.points @ align[:3, :3].T + align[:3, 3]
  # Margins, since points are only on textured surfaces.
  bounds = (0.9 * scale * nearest, 1.1 * scale * np.percentile(depths, 99.9)
            ) if len(depths) else None
  return Capture(tuple(frames), align, bounds,
                 points=points if len(points) else None)


def _root(path: pathlib.Path, model: pathlib.Path) -> pathlib.Path:
  """The folder of the images: `path`, or one above where it is a model's."""
  if path == model:
    for folder in (path, *path.absolute().parents[:3]):
      if (folder / 'images').is_dir():
        return folder
  return path


def _tell_of_larger(folder: pathlib.Path, count: int) -> None:
  """Tells of a model beside the one in `folder` that has more images."""
  if folder.name != '0':  # chosen by the user
    return
  sizes = {other: _count_images(other) for other in _models(folder.parent)}
  largest = max(sizes, key=lambda other: sizes[other], default=folder)
  if sizes.get(largest, 0) > count:
    folders.tell(f'{folder} has {count} images and is used, but {largest} has '
                 f'{sizes[largest]}; give {largest} as the path to use that.')


def _count_images(folder: pathlib.Path) -> int:
  """Number of images of a sparse model; 0 where it cannot be read."""
  file = folder / 'images.bin'
  try:
    return (_Stream(file).take('Q')[0] if file.is_file()
            else len(_images_txt(file.with_suffix('.txt'))))
  except (ValueError, IndexError, struct.error):
    return 0


def _image_files(path: pathlib.Path, factor: float, sparse: SparseModel
                 ) -> list[pathlib.Path]:
  """Image files of a sparse model, in its order."""
  folder = folders.image_folder(path, factor)
  # Reduced images may have another suffix than the names in the model.
  find = folders.image_finder(folder, any_suffix=folder.name != 'images')
  return [find(image.name) for image in sparse.images]


def _depths(c2w: np.ndarray, sparse: SparseModel) -> np.ndarray:
  """Distances [K] of cameras from the points within their images."""
  # About 5000 points are enough for percentiles.
  points = sparse.points[::max(1, len(sparse.points) // 5000)]
  distances = []
  for pose, image in zip(c2w, sparse.images):
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    ahead = -local[:, 2] > 1e-9
    flat = local[ahead] / -local[ahead, 2:]
    at = image.model.center + flat[:, :2] * [1, -1] * image.model.focal
    inside = np.all((at > 0) & (at < 1), axis=1)
    distances.append(np.linalg.norm(local[ahead][inside], axis=1))
  return np.concatenate(distances)


def _model_folder(path: pathlib.Path) -> pathlib.Path | None:
  """The folder of the sparse model in a capture's folder."""
  named = [path / name for name in ('sparse/0', 'sparse', 'colmap/sparse/0',
                                    '.') if _is_model(path / name)]
  return next(iter([*named, *_models(path / 'sparse'),
                    *_models(path / 'colmap' / 'sparse')]), None)


def _models(folder: pathlib.Path) -> list[pathlib.Path]:
  """Sorted folders of the sparse models in a folder."""
  return sorted(filter(_is_model, folder.glob('*')))


def _is_model(folder: pathlib.Path) -> bool:
  return any((folder / f'cameras{suffix}').is_file()
             for suffix in ('.bin', '.txt'))


def read(folder: pathlib.Path) -> SparseModel:
  """Reads a sparse model; the binary files where there are both kinds.

  Raises:
    UserError: a file is missing, damaged, or has a camera whose model is
      not among the pinhole ones; names the file.
  """
  suffix = '.bin' if (folder / 'cameras.bin').is_file() else '.txt'
  files = [folder / f'{name}{suffix}' for name in ('cameras', 'images',
                                                   'points3D')]
  for file in files[:2]:
    if not file.is_file():
      raise UserError(f'{file} is missing; a COLMAP model has cameras, '
                      'images and points3D of one kind (.bin or .txt).')
  readers = _BINARY if suffix == '.bin' else _TEXT
  contents: list[Any] = []
  for file, reader in zip(files, readers):
    try:
      # There may be no points.
      contents.append(reader(file) if os.path.lexists(file)
                      else np.zeros((0, 3)))
    except (struct.error, IndexError, MemoryError) as error:
      raise UserError(f'{file} ends too early or is damaged; export the '
                      'model again.') from error
  cameras, poses, points = contents
  images = []
  # By name, which decides the split.
  for name, rotation, translation, camera in sorted(
      poses, key=lambda pose: pose[0]):
    if camera not in cameras:
      raise UserError(f'{files[1]}: {name} has the camera {camera}, which '
                      f'{files[0].name} does not have.')
    images.append(RegisteredImage(
        name, _pose(files[1], name, rotation, translation),
        *_camera_model(files[0], camera, *cameras[camera])))
  if not images:
    raise UserError(f'{files[1]} registers no image.')
  points = np.asarray(points, float).reshape(-1, 3)
  _check_points(files[2], points)
  return SparseModel(files[1], tuple(images), points)


def _check_points(file: pathlib.Path, points: np.ndarray) -> None:
  """Raises UserError where a point is not finite or absurdly far off."""
  if not len(points):
    return
  # Half of the largest number, so that no difference overflows.
  limit = np.finfo(float).max ** 0.4
  usual = np.clip(np.nan_to_num(points, nan=limit), -limit, limit)
  away = np.linalg.norm(usual - np.median(usual, axis=0), axis=1)
  wrong = ~np.isfinite(points).all(1) | (
      away > _ABSURD * max(np.median(away), np.finfo(float).tiny))
  if np.median(away) > 0 and wrong.any():
    worst = ', '.join(f'{x:.3g}' for x in points[np.argmax(wrong)])
    raise UserError(f'{file} has a point at {worst}, far from all others; it '
                    'is damaged: export the model again.')


def _pose(file: pathlib.Path, name: str, quaternion: Any,
          translation: Any) -> np.ndarray:
  """World-to-camera matrix [4, 4] of a quaternion (w, x, y, z)."""
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


def _camera_model(file: pathlib.Path, number: int, name: str, width: int,
                  height: int, parameters: Any
                  ) -> tuple[tuple[int, int], camera_models.CameraModel]:
  """((width, height), CameraModel) of one camera of the file."""
  if name not in _SUPPORTED:
    raise UserError(
        f'{file}: camera {number} has the model {name}; choose from '
        f'{sorted(_SUPPORTED)}, or undistort the images with COLMAP\'s '
        'image_undistorter.')
  try:
    *pixels, distortion = _SUPPORTED[name](*parameters)
  except TypeError as error:
    raise UserError(f'{file}: camera {number} ({name}) has '
                    f'{len(parameters)} parameters.') from error
  if min(width, height, *pixels[:2]) <= 0 or max(width, height) > _MAX_SIDE:
    raise UserError(f'{file}: camera {number} has a size or a focal length '
                    f'that is not positive, or a side beyond {_MAX_SIDE:,}.')
  return (width, height), camera_models.from_pixels(
      width, height, *pixels, distortion=distortion)


class _Stream:
  """Reader of little-endian numbers; struct.error at the end of the file."""

  def __init__(self, file: pathlib.Path):
    self.data, self.at = read_file(file), 0

  def take(self, kinds: str) -> tuple[Any, ...]:
    """The next values, by format characters of `struct`."""
    values = struct.unpack_from(f'<{kinds}', self.data, self.at)
    self.skip(struct.calcsize(f'<{kinds}'))
    return values

  def skip(self, count: int) -> None:
    """Moves on by `count` bytes."""
    self.at += count
    if self.at > len(self.data):
      raise struct.error('end of file')

  def string(self) -> str:
    """The next string, which a zero byte ends."""
    start, end = self.at, self.data.find(b'\0', self.at)
    if end < 0:
      raise struct.error('end of file')
    self.at = end + 1
    return os.fsdecode(self.data[start:end])


def _cameras_bin(file: pathlib.Path) -> dict[int, tuple]:
  """{camera's number: (model, width, height, parameters)}."""
  stream, cameras = _Stream(file), {}
  for _ in range(*stream.take('Q')):
    number, model, width, height = stream.take('iiQQ')
    if not 0 <= model < len(_MODELS):
      raise UserError(f'{file}: camera {number} has the unknown model '
                      f'{model}; choose from {sorted(_SUPPORTED)}.')
    name, count = _MODELS[model]
    cameras[number] = name, width, height, stream.take(f'{count}d')
  return cameras


def _images_bin(file: pathlib.Path) -> list[tuple]:
  """[(name, quaternion, translation, camera's number)]."""
  stream, images = _Stream(file), []
  for _ in range(*stream.take('Q')):
    _, *pose, camera = stream.take('i7di')
    images.append((stream.string(), pose[:4], pose[4:], camera))
    stream.skip(24 * stream.take('Q')[0])  # observations
  return images


def _points_bin(file: pathlib.Path) -> list[tuple]:
  stream, points = _Stream(file), []
  for _ in range(*stream.take('Q')):
    points.append(stream.take('Q3d3Bd')[1:4])
    stream.skip(8 * stream.take('Q')[0])  # the track
  return points


def _lines(file: pathlib.Path) -> list[str]:
  """Lines without comments."""
  return [line.strip() for line in folders.read_text(file).splitlines()
          if not line.startswith('#')]


def _check_count(file: pathlib.Path, count: int) -> None:
  """Raises UserError where a file has less than its header announces."""
  announced = re.search(r'^# Number of \w+: (\d{1,12})',
                        folders.read_text(file), re.MULTILINE)
  if announced and count < int(announced[1]):
    raise UserError(f'{file} ends too early: its header announces '
                    f'{announced[1]} entries, but it has {count}; export the '
                    'model again.')


def _numbers(file: pathlib.Path, words: list[str], kind: Any = float) -> list:
  try:
    return [kind(word) for word in words]
  except ValueError as error:
    raise UserError(f'{file}: {" ".join(words)[:60]!r} should be numbers.'
                    ) from error


def _cameras_txt(file: pathlib.Path) -> dict[int, tuple]:
  cameras = {}
  for words in map(str.split, _lines(file)):
    if words:
      number, width, height = _numbers(
          file, [words[0], words[2], words[3]], int)
      if words[1] not in dict(_MODELS):
        raise UserError(f'{file}: camera {number} has the unknown model '
                        f'{words[1]}; choose from {sorted(_SUPPORTED)}.')
      cameras[number] = words[1], width, height, _numbers(file, words[4:])
  _check_count(file, len(cameras))
  return cameras


def _images_txt(file: pathlib.Path) -> list[tuple]:
  # Two lines an image; the second, its observations, may be empty.
  lines, images = _lines(file), []
  while lines and not lines[-1]:
    lines.pop()
  for line in lines[::2]:
    words = line.split(maxsplit=9)
    pose = _numbers(file, words[1:8])
    images.append((words[9], pose[:4], pose[4:],
                   _numbers(file, words[8:9], int)[0]))
  _check_count(file, len(images))
  return images


def _points_txt(file: pathlib.Path) -> list[list[float]]:
  rows = [line.split() for line in _lines(file) if line]
  # A point has a number, a position, a color and an error.
  if any(len(row) < 8 for row in rows):
    raise IndexError('a line ends too early')
  _check_count(file, len(rows))
  return [_numbers(file, row[1:4]) for row in rows]


_BINARY = _cameras_bin, _images_bin, _points_bin
_TEXT = _cameras_txt, _images_txt, _points_txt
