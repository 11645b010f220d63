"""Captures of Tanks and Temples as published with NSVF and with NeRF++.

NSVF: bbox.txt, intrinsics.txt, pose/ and rgb/, splits by a prefix of the
names. NeRF++: train/, test/ and validation/, each with rgb/, pose/ and
intrinsics/. Both have OpenCV's axes, and keep their world, in which their
benchmarks are defined.
"""

import pathlib

import numpy as np

from gen3d.choices import UserError
from gen3d.data.captures import camera_models, folders
from gen3d.data.captures.records import Capture, Frame, ModelOfSize
from gen3d.ops.cameras import OPENCV

_NSVF_MARGIN = 1.2  # factor by which TensoRF enlarges the box of bbox.txt
_NERFPP_BOUNDS = (0.1, 1e6)  # multinerf's: unbounded, cameras in a unit ball


def is_nsvf(path: pathlib.Path) -> bool:
  """True if a folder has bbox.txt, or pose and rgb."""
  return (path / 'bbox.txt').is_file() or (
      (path / 'pose').is_dir() and (path / 'rgb').is_dir())


def read_nsvf(path: pathlib.Path, factor: float) -> Capture:
  """Reads a capture of NSVF.

  Args:
    path: the folder.
    factor: not used, since there is one folder of images.

  Raises:
    UserError: a file is missing or damaged.
  """
  del factor
  file = path / 'bbox.txt'
  corners = folders.read_numbers(file, 6).reshape(2, 3)
  if not np.all(corners[1] > corners[0]):
    raise UserError(f'{file}: the upper corner {corners[1].tolist()} is not '
                    f'above the lower one {corners[0].tolist()}.')
  center, half = corners.mean(0), np.diff(corners, axis=0)[0] / 2
  # The box of the file is tight around the object.
  box = center + _NSVF_MARGIN * half * np.array([[-1.0], [1.0]])
  model = _nsvf_model(path / 'intrinsics.txt')
  images = folders.images_in(path / 'rgb')
  if not images:
    raise UserError(f'{path / "rgb"} holds no images.')
  splits = _nsvf_splits([f.name for f in images])
  frames = []
  for image, split in zip(images, splits):
    pose = path / 'pose' / f'{image.stem}.txt'
    c2w = folders.read_numbers(pose).reshape(4, 4) * OPENCV
    frames.append(Frame(image.name, image, pose, split, c2w, model, None))
  return Capture(tuple(frames), np.eye(4), box=box, box_from=str(file))


def _nsvf_model(file: pathlib.Path) -> ModelOfSize:
  """The model in intrinsics.txt: a 4 x 4 matrix, or 'f cx cy ...'.

  The second number distinguishes them: a matrix has zero there.
  """
  fx, cx, cy = folders.read_numbers(file, 3)
  fy = fx
  if cx == 0:
    fx, _, cx, _, _, fy, cy = folders.read_numbers(file, 12)[:7]
  return lambda width, height: camera_models.from_pixels(
      width, height, fx, fy, cx, cy)


def _nsvf_splits(names: list[str]) -> list[str]:
  """Splits by the prefix 0_ (train), 1_ and 2_; else every eighth is a test.

  Where there are three prefixes, 1_ is validation and 2_ is test.
  """
  prefixes = [name.partition('_')[0] for name in names]
  if not set(prefixes) <= {'0', '1', '2'}:
    return [folders.split_of(i) for i in range(len(names))]
  middle = 'val' if '2' in prefixes else 'test'
  return [{'0': 'train', '1': middle, '2': 'test'}[p] for p in prefixes]


def is_nerfpp(path: pathlib.Path) -> bool:
  """True if a folder has train/pose."""
  return (path / 'train' / 'pose').is_dir()


def read_nerfpp(path: pathlib.Path, factor: float) -> Capture:
  """Reads a capture of NeRF++; without validation images, val is test.

  Args:
    path: the folder.
    factor: not used, since there is one folder of images for each split.

  Raises:
    UserError: a file is missing or damaged.
  """
  del factor
  frames = []
  for split, folder in (('train', 'train'), ('test', 'test'),
                        ('val', 'validation')):
    if split == 'train' or (path / folder / 'pose').is_dir():
      frames += _nerfpp_frames(path / folder, split)
  if not any(frame.split == 'val' for frame in frames):
    # Scenes are published without validation images.
    frames += [f._replace(split='val') for f in frames if f.split == 'test']
  # Poses are normalized by the publisher: all cameras in the unit ball.
  return Capture(tuple(frames), np.eye(4),
                 _NERFPP_BOUNDS, np.array([[-1.0] * 3, [1.0] * 3]))


def _nerfpp_frames(folder: pathlib.Path, split: str) -> list[Frame]:
  images = folders.images_in(folder / 'rgb')
  poses = folders.files_in(folder / 'pose', '.txt')
  if {p.stem for p in images} != {p.stem for p in poses}:
    odd = sorted({p.stem for p in images} ^ {p.stem for p in poses})[0]
    raise UserError(f'{folder}: {odd} has an image in rgb or a pose in pose, '
                    'but not both.')
  frames = []
  for image in images:
    k = folders.read_numbers(
        folder / 'intrinsics' / f'{image.stem}.txt').reshape(4, 4)
    pose = folder / 'pose' / f'{image.stem}.txt'
    c2w = folders.read_numbers(pose).reshape(4, 4) * OPENCV
    model = lambda width, height, k=k: camera_models.from_pixels(
        width, height, k[0, 0], k[1, 1], k[0, 2], k[1, 2])
    frames.append(Frame(image.name, image, pose, split, c2w, model, None))
  return frames
