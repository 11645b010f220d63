"""Layouts of captures in folders; no image is opened here.

Five layouts are read: transforms*.json of Blender, instant-ngp and nerfstudio,
LLFF's poses_bounds.npy, COLMAP's sparse models, and Tanks and Temples as
published with NSVF (bbox.txt, pose/, rgb/) and with NeRF++ (train/pose ...).

Each becomes a records.Capture in gen3d's world, y up (ops/cameras.py):
  blender  z up is turned to y up: (x, y, z) becomes (x, z, -y)
  llff     axes of the average camera where all look forward, else the
           principal axes of the camera positions; scaled so that the nearest
           bound is 4/3, as in NeRF's code, or that all cameras lie in [-1, 1]
  colmap   the same, with bounds from the 3-D points
  nsvf, nerfpp  unchanged, since their benchmarks are defined in their world
"""

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from gen3d.choices import UserError, check
from gen3d.data.captures import blender, colmap, llff, records, tanks
from gen3d.data.captures.records import Capture


class Layout(NamedTuple):
  """A reader of captures."""
  read: Callable[[pathlib.Path, float], Capture]  # (path, factor) -> Capture
  matches: Callable[[pathlib.Path], bool]         # by the files of a folder
  files: str                                      # that it needs, in words


FORMATS = {
    'blender': Layout(blender.read_capture, blender.is_capture,
                      'transforms_train.json or transforms.json'),
    'llff': Layout(llff.read_capture, llff.is_capture, 'poses_bounds.npy'),
    'colmap': Layout(colmap.read_capture, colmap.is_capture,
                     'sparse/0/cameras.bin or .txt'),
    'nsvf': Layout(tanks.read_nsvf, tanks.is_nsvf,
                   'bbox.txt with pose and rgb'),
    'nerfpp': Layout(tanks.read_nerfpp, tanks.is_nerfpp,
                     'train/pose with train/rgb and train/intrinsics')}


def read(path: str | os.PathLike, format: str = 'auto',
         factor: float = 1) -> Capture:
  """Reads the capture in a folder.

  Args:
    path: the folder.
    format: one of FORMATS, or 'auto' for the first one whose files are there.
    factor: by which the images will be reduced: where there is a folder
      images_{factor} (LLFF, COLMAP), the frames are its files.

  Raises:
    UserError: files are missing or damaged, or a pose is singular; names the
      file.
  """
  path = pathlib.Path(path).expanduser()
  check('format', (*FORMATS, 'auto'), format)
  if not path.is_dir():
    raise UserError(f'{path} is not a folder; give the one that holds the '
                    'capture.')
  if format == 'auto':
    format = detect_format(path)
  capture = FORMATS[format].read(path, factor)
  for frame in capture.frames:
    records.check_frame(frame)
  return capture


def detect_format(path: pathlib.Path) -> str:
  """Name of the first format whose files a folder has.

  Raises:
    UserError: it has the files of no format.
  """
  for name, layout in FORMATS.items():
    if layout.matches(path):
      return name
  expected = '; '.join(f'{n}: {f.files}' for n, f in FORMATS.items())
  raise UserError(f'{path} holds no capture of a known format; expected '
                  f'{expected}.')
