"""How captures lie in folders, and what their files say.

Five layouts are read, none of which opens a picture: Blender's
transforms_*.json (and the single transforms.json of instant-ngp and
nerfstudio), LLFF's poses_bounds.npy, COLMAP's sparse models, Tanks and Temples
as NSVF has it (bbox.txt, pose/, rgb/) and as NeRF++ has it (train/pose ...).

Each becomes a captures.Capture in gen3d's world, y up (ops/cameras.py):
  blender  its world, z up, is turned: (x, y, z) becomes (x, z, -y)
  llff     the average camera, or the axes of the cameras' spread where they
           look around or inwards, becomes the world's; the nearest bound
           becomes 4/3, as in NeRF's code, or all cameras fit into a unit cube
  colmap   the same two ways, with bounds from the 3-D points
  nsvf, nerfpp  stay as they are: their benchmarks are defined in them
"""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gen3d.choices import UserError, check
from gen3d.data.captures import colmap, lenses, records
from gen3d.data.captures.records import Capture, Frame
from gen3d.ops.cameras import OPENCV, Z_UP

EVERY = 8  # every eighth picture is a test one where the files do not say
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')
_NSVF_MARGIN = 1.2  # how much larger the box is made than bbox.txt (TensoRF)
_NERFPP_BOUNDS = (0.1, 1e6)  # multinerf's: unbounded, cameras in a unit ball


def read(path, format='auto', factor=1):
  """Reads the capture in a folder.

  Args:
    path: the folder.
    format: one of FORMATS, or 'auto' to go by the files that are there.
    factor: by how much the pictures will be reduced: where there is a folder
      images_{factor} (LLFF, COLMAP), the frames are its files.

  Raises:
    UserError: the files are missing or damaged, or a pose is singular; the
      sentence names the file.
  """
  path = pathlib.Path(path)
  check('format', (*FORMATS, 'auto'), format)
  if not path.is_dir():
    raise UserError(f'{path} is not a folder; give the one that holds the '
                    'capture.')
  if format == 'auto':
    format = recognize(path)
  capture = FORMATS[format].read(path, factor)
  for frame in capture.frames:
    records.check_frame(frame)
  return capture


def recognize(path):
  """The name of the first format whose files a folder has."""
  for name, layout in FORMATS.items():
    if layout.is_there(path):
      return name
  looked = '; '.join(f'{n}: {f.files}' for n, f in FORMATS.items())
  raise UserError(f'{path} holds no capture that is known here; looked for '
                  f'{looked}.')


def _every_eighth(index):
  return 'test' if index % EVERY == 0 else 'train'


def _pictures_in(folder):
  if not folder.is_dir():
    raise UserError(f'{folder} is missing; it should hold the pictures.')
  return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)


def _image_folder(path, factor):
  reduced = path / f'images_{factor}'
  return reduced if factor != 1 and reduced.is_dir() else path / 'images'


def _matrix(file, count=16):
  """The numbers of a text file; its first `count`."""
  try:
    numbers = [float(word) for word in file.read_text().split()[:count]]
  except OSError as error:
    raise UserError(f'{file} is missing.') from error
  except ValueError as error:
    raise UserError(f'{file} should hold numbers ({error}).') from error
  if len(numbers) < count:
    raise UserError(f'{file} ends too early: it has {len(numbers)} numbers '
                    f'instead of {count}.')
  return np.array(numbers)


# Blender, instant-ngp, nerfstudio.


def _read_blender(path, factor):
  del factor
  split_files = sorted(path.glob('transforms_*.json'))
  single = path / 'transforms.json'
  frames = []
  if split_files:
    for file in split_files:
      split = file.stem.removeprefix('transforms_')
      frames += [_blender_frame(file, split, *pair)
                 for pair in _blender_pairs(file)]
  elif single.is_file():
    pairs = sorted(_blender_pairs(single), key=lambda p: p[1]['file_path'])
    frames = [_blender_frame(single, _every_eighth(i), *pair)
              for i, pair in enumerate(pairs)]
  else:
    raise UserError(f'{path} has no transforms_train.json and no '
                    'transforms.json.')
  return Capture(tuple(frames), Z_UP)


def _blender_pairs(file):
  """[(what holds for all frames, a frame)] of a JSON file."""
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


def _blender_frame(file, split, common, frame):
  name = str(frame['file_path']).replace('\\', '/')
  values = {**common, **frame}
  try:
    pose = np.array(frame['transform_matrix'], float)
    c2w = np.eye(4)
    c2w[:3] = pose.reshape(-1, 4)[:3]
    size, lens = _blender_lens(f'{file}: {name}', values)
  except (TypeError, ValueError) as error:
    if str(error).startswith(str(file)):
      raise
    raise UserError(f'{file}: {name} has a matrix or a lens that is not made '
                    'of numbers.') from error
  return Frame(name, _blender_file(file.parent, name), file, split,
               records.transform_poses(Z_UP, c2w), lens, size)


def _blender_file(folder, name):
  """The picture of a `file_path`, whose suffix may be left out."""
  file = folder / name
  if file.suffix.lower() in SUFFIXES:
    return file
  for suffix in SUFFIXES:
    for spelt in (suffix, suffix.upper()):
      if (whole := file.with_name(file.name + spelt)).is_file():
        return whole
  return file.with_name(f'{file.name}.png')


def _blender_lens(where, values):
  model = str(values.get('camera_model', 'OPENCV'))
  if values.get('is_fisheye') or model not in (
      'OPENCV', 'PINHOLE', 'SIMPLE_PINHOLE', 'PERSPECTIVE'):
    name = 'fisheye' if values.get('is_fisheye') else model
    raise UserError(f'{where} has the camera model {name}; only pinholes with '
                    'or without OpenCV\'s k1, k2, p1, p2 are read: undistort '
                    'the pictures first.')
  if any(float(values.get(k) or 0) for k in ('k3', 'k4', 'k5', 'k6')):
    raise UserError(f'{where} has a distortion beyond k1, k2, p1, p2; '
                    'undistort the pictures first.')
  distortion = [float(values.get(k) or 0) for k in ('k1', 'k2', 'p1', 'p2')]
  given = {k: float(values[k]) for k in (
      'w', 'h', 'fl_x', 'fl_y', 'cx', 'cy', 'camera_angle_x',
      'camera_angle_y') if values.get(k) is not None}
  size = (given['w'], given['h']) if 'w' in given and 'h' in given else None
  if not {'fl_x', 'camera_angle_x'} & given.keys():
    raise UserError(f'{where} has neither "camera_angle_x" nor "fl_x".')

  def lens(width, height):
    width, height = size or (width, height)
    from_angle = lambda side, key: 0.5 * side / np.tan(0.5 * given[key])
    fx = (given['fl_x'] if 'fl_x' in given
          else from_angle(width, 'camera_angle_x'))
    fy = given['fl_y'] if 'fl_y' in given else (
        from_angle(height, 'camera_angle_y')
        if 'camera_angle_y' in given and 'fl_x' not in given else fx)
    return lenses.from_pixels(
        width, height, fx, fy, given.get('cx', width / 2),
        given.get('cy', height / 2), distortion)

  return size, lens


# LLFF.


def _read_llff(path, factor):
  file = path / 'poses_bounds.npy'
  try:
    rows = np.load(file).astype(float)
  except FileNotFoundError as error:
    raise UserError(f'{file} is missing.') from error
  except (ValueError, EOFError, OSError) as error:
    raise UserError(f'{file} cannot be read as an array ({error}).'
                    ) from error
  if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
    raise UserError(f'{file} has the shape {rows.shape} instead of (N, 17).')
  pictures = _pictures_in(_image_folder(path, factor))
  if len(pictures) != len(rows):
    raise UserError(f'{file} has {len(rows)} poses, but '
                    f'{_image_folder(path, factor)} has {len(pictures)} '
                    'pictures.')
  poses, bounds = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:]
  if not (np.isfinite(bounds).all() and bounds.min() > 0):
    raise UserError(f'{file} has a bound that is not positive.')
  # The rotation's columns are down, right, back.
  c2w = np.tile(np.eye(4), (len(rows), 1, 1))
  c2w[:, :3] = np.concatenate(
      [poses[:, :, 1:2], -poses[:, :, :1], poses[:, :, 2:4]], axis=-1)
  frames = []
  for i, picture in enumerate(pictures):
    height, width, focal = poses[i, :, 4]
    lens = lenses.from_pixels(
        width, height, focal, focal, width / 2, height / 2)
    frames.append(Frame(picture.name, picture, file, _every_eighth(i), c2w[i],
                        _fixed(lens), (width, height)))
  frames, align, scale = records.normalize_poses(frames, bounds.min())
  return Capture(tuple(frames), align,
                 (scale * bounds.min(), scale * bounds.max()))


def _fixed(lens):
  return lambda width, height: lens


# COLMAP.


def _colmap_folder(path):
  for below in ('sparse/0', 'sparse', 'colmap/sparse/0', '.'):
    if colmap.holds_model(path / below):
      return path / below
  return None


def _read_colmap(path, factor):
  folder = _colmap_folder(path)
  if folder is None:
    raise UserError(f'{path} has no cameras.bin or cameras.txt in sparse/0, '
                    'sparse or colmap/sparse/0.')
  model = colmap.read(folder)
  c2w = np.stack([np.linalg.inv(shot.w2c) for shot in model.shots]) * OPENCV
  depths = _depths(c2w, model)
  nearest = np.percentile(depths, 0.1) if len(depths) else np.ptp(
      c2w[:, :3, 3], axis=0).max() or 1.0
  images = _image_folder(path, factor)
  reduced = images.name != 'images'
  # Reduced pictures may have another suffix than the model's names.
  by_stem = {f.relative_to(images).with_suffix('').as_posix(): f
             for f in images.rglob('*')} if reduced else {}
  frames = []
  for i, shot in enumerate(model.shots):
    stem = pathlib.PurePosixPath(shot.name).with_suffix('').as_posix()
    frames.append(Frame(
        shot.name, by_stem.get(stem, images / shot.name), model.file,
        _every_eighth(i), c2w[i], _fixed(shot.lens), shot.size))
  frames, align, scale = records.normalize_poses(frames, nearest)
  points = model.points @ align[:3, :3].T + align[:3, 3]
  bounds = (0.9 * scale * nearest, 1.1 * scale * np.percentile(depths, 99.9)
            ) if len(depths) else None
  return Capture(tuple(frames), align, bounds,
                 points=points if len(points) else None)


def _depths(c2w, model):
  """Distances [K] of the cameras to the points that they see."""
  # Some thousand points tell as much about the bounds as a million.
  points = model.points[::max(1, len(model.points) // 5000)]
  found = []
  for pose, shot in zip(c2w, model.shots):
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    ahead = -local[:, 2] > 1e-9
    flat = local[ahead] / -local[ahead, 2:]
    seen = shot.lens.center + flat[:, :2] * [1, -1] * shot.lens.focal
    inside = np.all((seen > 0) & (seen < 1), axis=1)
    found.append(np.linalg.norm(local[ahead][inside], axis=1))
  return np.concatenate(found)


# NSVF.


def _read_nsvf(path, factor):
  del factor
  file = path / 'bbox.txt'
  numbers = _matrix(file, 6).reshape(2, 3)
  if not np.all(numbers[1] > numbers[0]):
    raise UserError(f'{file}: the upper corner {numbers[1].tolist()} is not '
                    f'above the lower one {numbers[0].tolist()}.')
  center, half = numbers.mean(0), np.diff(numbers, axis=0)[0] / 2
  box = center + _NSVF_MARGIN * half * np.array([[-1.0], [1.0]])
  lens = _nsvf_lens(path / 'intrinsics.txt')
  pictures = _pictures_in(path / 'rgb')
  if not pictures:
    raise UserError(f'{path / "rgb"} holds no pictures.')
  splits = _nsvf_splits([f.name for f in pictures])
  frames = []
  for picture, split in zip(pictures, splits):
    pose = path / 'pose' / f'{picture.stem}.txt'
    frames.append(Frame(picture.name, picture, pose, split,
                        _matrix(pose).reshape(4, 4) * OPENCV, lens, None))
  return Capture(tuple(frames), np.eye(4), box=box, box_from=str(file))


def _nsvf_lens(file):
  numbers = _matrix(file, 3)
  try:
    rows = [line.split() for line in file.read_text().splitlines()]
    if len(rows[0]) == 4 and len(rows) > 2 and len(rows[1]) == 4:
      fx, _, cx, _ = map(float, rows[0])
      _, fy, cy, _ = map(float, rows[1])
    else:  # 'f cx cy ...'
      fx, cx, cy = numbers
      fy = fx
  except ValueError as error:
    raise UserError(f'{file} should hold numbers ({error}).') from error
  return lambda width, height: lenses.from_pixels(
      width, height, fx, fy, cx, cy)


def _nsvf_splits(names):
  """By the prefix 0_ (train), 1_ and 2_; every eighth where there is none.

  Where there are three, 1_ is validation and 2_ is test.
  """
  prefixes = [name.partition('_')[0] for name in names]
  if not set(prefixes) <= {'0', '1', '2'}:
    return [_every_eighth(i) for i in range(len(names))]
  middle = 'val' if '2' in prefixes else 'test'
  return [{'0': 'train', '1': middle, '2': 'test'}[p] for p in prefixes]


# NeRF++.


def _read_nerfpp(path, factor):
  del factor
  frames = []
  for split, folder in (('train', 'train'), ('test', 'test'),
                        ('val', 'validation')):
    if split == 'train' or (path / folder / 'pose').is_dir():
      frames += _nerfpp_frames(path / folder, split)
  if not any(frame.split == 'val' for frame in frames):
    frames += [f._replace(split='val') for f in frames if f.split == 'test']
  return Capture(tuple(frames), np.eye(4),
                 _NERFPP_BOUNDS, np.array([[-1.0] * 3, [1.0] * 3]))


def _nerfpp_frames(folder, split):
  pictures = _pictures_in(folder / 'rgb')
  poses = sorted((folder / 'pose').glob('*.txt'))
  if {p.stem for p in pictures} != {p.stem for p in poses}:
    odd = sorted({p.stem for p in pictures} ^ {p.stem for p in poses})[0]
    raise UserError(f'{folder}: {odd} has a picture in rgb or a pose in pose, '
                    'but not both.')
  frames = []
  for picture in pictures:
    k = _matrix(folder / 'intrinsics' / f'{picture.stem}.txt').reshape(4, 4)
    pose = folder / 'pose' / f'{picture.stem}.txt'
    frames.append(Frame(
        picture.name, picture, pose, split,
        _matrix(pose).reshape(4, 4) * OPENCV,
        lambda width, height, k=k: lenses.from_pixels(
            width, height, k[0, 0], k[1, 1], k[0, 2], k[1, 2]), None))
  return frames


class _Layout(NamedTuple):
  read: Callable      # (path, factor) -> Capture
  is_there: Callable  # path -> bool
  files: str          # what is looked for, in words


FORMATS = {
    'blender': _Layout(
        _read_blender, lambda p: bool([*p.glob('transforms*.json')]),
        'transforms_train.json or transforms.json'),
    'llff': _Layout(
        _read_llff, lambda p: (p / 'poses_bounds.npy').is_file(),
        'poses_bounds.npy'),
    'colmap': _Layout(
        _read_colmap, lambda p: _colmap_folder(p) is not None,
        'sparse/0/cameras.bin or .txt'),
    'nsvf': _Layout(
        _read_nsvf, lambda p: (p / 'bbox.txt').is_file() or (
            (p / 'pose').is_dir() and (p / 'rgb').is_dir()),
        'bbox.txt with pose and rgb'),
    'nerfpp': _Layout(
        _read_nerfpp, lambda p: (p / 'train' / 'pose').is_dir(),
        'train/pose with train/rgb and train/intrinsics')}
