"""Captures of LLFF: poses_bounds.npy and a folder of images.

A row of poses_bounds.npy is a 3 x 5 matrix (rotation, whose columns are down,
right and back; position; height, width and focal length in pixels), then the
nearest and the farthest depth that the camera sees.
"""

import io
import pathlib
import zipfile

import numpy as np

from gen3d import files
from gen3d.choices import UserError
from gen3d.data.captures import camera_models, folders, records
from gen3d.data.captures.records import Capture, Frame

_FILE = 'poses_bounds.npy'


def is_capture(path: pathlib.Path) -> bool:
  """True if a folder has poses_bounds.npy."""
  return (path / _FILE).is_file()


def read_capture(path: pathlib.Path, factor: float) -> Capture:
  """The capture that poses_bounds.npy describes, in a normalized frame.

  Rows of the file belong to the images in the order of their names. Bounds are
  the least and the greatest of all rows; see records.normalize_poses for the
  frame.

  Args:
    path: folder with poses_bounds.npy and images.
    factor: of layouts.read.

  Raises:
    UserError: a file is missing or damaged, there are not as many images as
      rows, or a bound is not positive.
  """
  file = path / _FILE
  rows = _read_rows(file)
  folder = folders.image_folder(path, factor)
  images = folders.images_in(folder)
  if len(images) != len(rows):
    raise UserError(f'{file} has {len(rows)} poses, but {folder} has '
                    f'{len(images)} images.')
  # One row per image: 15 numbers of the matrix, then the two bounds.
  poses, bounds = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:]
  if not (np.isfinite(bounds).all() and bounds.min() > 0):
    raise UserError(f'{file} has a bound that is not positive.')
  # Down, right, back become right, up, back (OpenGL).
  c2w = np.tile(np.eye(4), (len(rows), 1, 1))
  c2w[:, :3] = np.concatenate(
      [poses[:, :, 1:2], -poses[:, :, :1], poses[:, :, 2:4]], axis=-1)
  frames = []
  for i, image in enumerate(images):
    height, width, focal = poses[i, :, 4]
    # The file has no principal point: it is the middle of the image.
    model = camera_models.from_pixels(
        width, height, focal, focal, width / 2, height / 2)
    frames.append(Frame(image.name, image, file, folders.split_of(i), c2w[i],
                        records.fixed_model(model), (width, height)))
  frames, align, scale = records.normalize_poses(frames, bounds.min())
  return Capture(tuple(frames), align,
                 (scale * bounds.min(), scale * bounds.max()))


def _read_rows(file: pathlib.Path) -> np.ndarray:
  """The array [N, 17] of the file."""
  if not file.is_file():
    raise UserError(f'{file} is missing.')
  try:
    content = np.load(io.BytesIO(files.read_file(file)))
    if not isinstance(content, np.ndarray):
      raise ValueError('it is an archive of arrays')
    rows = content.astype(float)
  except UserError:
    raise
  except (ValueError, TypeError, EOFError, OSError, MemoryError,
          zipfile.BadZipFile) as error:
    raise UserError(f'{file} cannot be read as an array ({str(error)[:80]}).'
                    ) from error
  if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
    raise UserError(f'{file} has the shape {rows.shape} instead of (N, 17).')
  return rows
