"""Photographs with known cameras of one thing: what reconstruction starts from.

`open_posed` reads any of the layouts of layouts.py and returns a Posed record
whose pictures are pinhole photographs of one size, in memory, and whose bounds
are known. Distances are along unit rays. Bounds that no file gives follow from
the cameras of all splits, so that they are the same for every split:

  box     around the 3-D points without the outermost half per cent (COLMAP);
          what the cameras see between near and far (LLFF, looking one way);
          else a cube around the point that the cameras look at, as wide as
          what the median camera sees there: for the published Blender scenes
          a half side of 1.45 (1.5 is usual)
  near,   the bounds file's (LLFF), of the points that each camera sees
  far     (COLMAP), else the least and the largest distance of a camera to the
          box: 1.5 to 6.5 for the published Blender scenes (2 to 6 is usual)
"""

import concurrent.futures
import os
from typing import Any, NamedTuple

import numpy as np
import tqdm
from PIL import Image, ImageDraw, UnidentifiedImageError

from gen3d.choices import UserError
from gen3d.data.captures import layouts, lenses, records
from gen3d.files import open_image
from gen3d.ops.cameras import Camera

FORMATS = tuple(layouts.FORMATS)
_MARGIN = 0.1      # of the points' extent, around it
_CLOSEST = 0.005   # near, at least, as a share of far


class Posed(NamedTuple):
  """Photographs with cameras of one split.

  Attributes:
    where: for messages.
    names: N file names.
    camera: Camera, float32 NumPy: c2w [N, 4, 4] (OpenGL axes), intrinsics
      [N, 3, 3], normalized.
    images: uint8 [N, H, W, 4], RGB and straight alpha; alpha is 255 where the
      files have none.
    near, far: bounds of distances along unit rays.
    box: float32 [2, 3], lower and upper corner of what is to be
      reconstructed.
    has_alpha: whether any pixel of this split is not opaque.
    align: [4, 4], the similarity from the files' world to this one; None
      where there are no files.
  """
  where: str
  names: tuple
  camera: Any
  images: Any
  near: float
  far: float
  box: Any
  has_alpha: bool
  align: Any = None


def open_posed(path, split='train', *, format='auto', factor=1, near=None,
               far=None, box=None):
  """Reads one split of a capture, pictures and all.

  World axes: y is up. Blender's world (z up) is turned, so that its
  (x, y, z) is (x, z, -y) here; LLFF and COLMAP are put upright and scaled
  (layouts.py); NSVF's and NeRF++'s stay as the files have them.

  Pictures with a distorted lens are resampled to a pinhole one. Reducing
  averages areas, with colors weighted by alpha; where LLFF and COLMAP have a
  folder images_{factor} its files are taken.

  Args:
    path: the folder of the capture.
    split: 'train', 'test' or, where there is one, 'val'. Where the files do
      not say, every eighth picture by name is a test one.
    format: one of FORMATS, or 'auto' to go by the files that are there.
    factor: by how much to reduce the pictures' sides.
    near, far: instead of the automatic bounds.
    box: [2, 3], or half the side of a cube around the origin, instead of the
      automatic one.

  Returns:
    Posed.

  Raises:
    UserError: files are missing, damaged or do not fit together, or the
      bounds hold nothing that a camera sees; the sentence names the file.
  """
  if not factor >= 1:
    raise UserError(f'factor is {factor}; it is by how much pictures are '
                    'reduced, at least 1.')
  capture = layouts.read(path, format, factor)
  frames = [f for f in capture.frames if f.split == split]
  if not frames:
    there = sorted({f.split for f in capture.frames})
    raise UserError(f'{path} has no pictures of the split {split!r}; choose '
                    f'from {there}.')
  box, near, far = _bounds(path, capture, near, far, box)
  missing = [f for f in frames if not f.file.is_file()]
  if missing:
    raise UserError(
        f'{missing[0].file} is missing, but {missing[0].source} lists it '
        f'({len(missing)} of {len(frames)} pictures are missing).')
  images, intrinsics = _load(frames, factor, split)
  c2w = np.stack([f.c2w for f in frames])
  camera = Camera(c2w.astype(np.float32), intrinsics.astype(np.float32))
  _check_seen(path, capture, camera, box, near, far)
  return Posed(
      str(path), tuple(f.name for f in frames), camera, images, near, far,
      box.astype(np.float32), bool(images[..., 3].min() < 255),
      capture.align)


def composite_over(rgba, background):
  """Pictures uint8 [..., 4] over a background: [..., 3] in [0, 1].

  `background` is a gray level or colors [..., 3]; 1.0 is white.
  """
  color, alpha = rgba[..., :3] / 255.0, rgba[..., 3:] / 255.0
  return alpha * color + (1 - alpha) * background


def map_of_posed(posed, width=960):
  """A picture of the cameras and the box: uint8 [width / 2, width, 3].

  Left from above (x to the right, z, the front, downwards), right from the
  side (z to the left, y upwards: seen from +x). The box is red, a camera is
  its position with the edges of what it sees.
  """
  side = width // 2
  c2w = np.asarray(posed.camera.c2w, np.float64)
  k = np.asarray(posed.camera.intrinsics, np.float64)
  corners = np.stack(np.meshgrid(*np.asarray(posed.box).T, indexing='ij'),
                     -1).reshape(-1, 3)
  everything = np.concatenate([c2w[:, :3, 3], corners])
  middle = (everything.min(0) + everything.max(0)) / 2
  extent = 1.15 * max(np.ptp(everything, axis=0).max(), 1e-9)
  picture = Image.new('RGB', (width, side), 'white')
  draw = ImageDraw.Draw(picture)
  views = ((0, 2, 1, 1, 'from above: x right, z down'),
           (2, 1, -1, -1, 'from the side: z left, y up'))
  for panel, (across, down, sign, sign_down, title) in enumerate(views):

    def at(points, panel=panel, axes=(across, down), signs=(sign, sign_down)):
      flat = (points - middle)[..., list(axes)] * signs / extent + 0.5
      return [(x + panel * side, y) for x, y in flat * side]

    for pose, lens in zip(c2w, k):
      tips = _frustum(pose, lens, 0.06 * extent)
      center, *tips = at(np.concatenate([pose[None, :3, 3], tips]))
      for tip in tips:
        draw.line((center, tip), (110, 140, 190))
      draw.line((*tips, tips[0]), (110, 140, 190))
      x, y = center
      draw.ellipse((x - 2, y - 2, x + 2, y + 2), (26, 58, 128))
    flat = at(corners)
    draw.rectangle((*np.min(flat, 0), *np.max(flat, 0)), None, (200, 40, 40), 2)
    draw.text((panel * side + 6, 4), title, (20, 20, 20))
  draw.line((side, 0, side, side), (200, 200, 200))
  size = np.ptp(np.asarray(posed.box), axis=0)
  draw.text((6, side - 16), f'{len(c2w)} cameras; box '
            f'{" x ".join(f"{s:.3g}" for s in size)}; near {posed.near:.3g}, '
            f'far {posed.far:.3g}', (20, 20, 20))
  return np.asarray(picture)


def _frustum(pose, intrinsics, depth):
  """Corners [4, 3] of what a camera sees at a depth, in a circle."""
  border = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1.0]])
  local = border @ np.linalg.inv(intrinsics).T * [1, -1, -1] * depth
  return local @ pose[:3, :3].T + pose[:3, 3]


def _bounds(path, capture, near, far, box):
  """(box [2, 3], near, far): those given, else the automatic ones."""
  c2w = np.stack([f.c2w for f in capture.frames])
  if box is not None:
    box = np.asarray(box, np.float64)
    box = np.outer([-box, box], np.ones(3)) if box.ndim == 0 else box
  else:
    box = _automatic_box(path, capture, c2w)
  if box.shape != (2, 3) or not np.all(box[1] > box[0]):
    raise UserError(f'The box of {path}, {box.tolist()}, is empty; give the '
                    'lower and the upper corner.')
  centers = c2w[:, :3, 3]
  nearest = np.linalg.norm(
      centers - np.clip(centers, box[0], box[1]), axis=-1).min()
  farthest = np.linalg.norm(
      np.maximum(abs(centers - box[0]), abs(centers - box[1])), axis=-1).max()
  automatic = capture.bounds or (
      max(nearest, _CLOSEST * farthest), farthest)
  near = float(automatic[0] if near is None else near)
  far = float(automatic[1] if far is None else far)
  if not 0 < near < far:
    raise UserError(f'The bounds of {path} are near {near:g} and far {far:g}; '
                    'they must be positive, and near the smaller one.')
  return box, near, far


def _automatic_box(path, capture, c2w):
  if capture.box is not None:
    return capture.box
  if capture.points is not None:
    box = np.percentile(capture.points, (0.5, 99.5), axis=0)
    return box + _MARGIN * np.maximum(
        np.diff(box, axis=0), 1e-6) * [[-1], [1]]
  # Square pictures: only the sides' ratio is unknown before one is opened.
  k = np.stack([f.lens(*(f.size or (1, 1))).intrinsics()
                for f in capture.frames])
  if capture.bounds is not None and records.looks_one_way(c2w):
    seen = np.concatenate([_frustum(pose, lens, distance)
                           for pose, lens in zip(c2w, k)
                           for distance in capture.bounds])
    return np.stack([seen.min(0), seen.max(0)])
  center = records.closest_point(c2w)
  if center is None:
    raise UserError(
        f'{path}: the cameras look along nearly parallel lines, which does '
        'not tell what is to be reconstructed; give the box (and near, far).')
  distance = np.linalg.norm(c2w[:, :3, 3] - center, axis=-1)
  half = np.median(distance * 0.5 / k[:, 0, 0])
  return center + half * np.array([[-1.0] * 3, [1.0] * 3])


def _load(frames, factor, split):
  """(uint8 [N, H, W, 4], intrinsics float64 [N, 3, 3]), decoded in threads."""
  images, intrinsics = [], []
  with concurrent.futures.ThreadPoolExecutor(
      max(2, os.cpu_count() or 1)) as pool:
    for image, k in tqdm.tqdm(
        pool.map(lambda frame: _picture(frame, factor), frames),
        f'{split} pictures', len(frames), disable=None):
      images.append(image)
      intrinsics.append(k)
      if image.shape != images[0].shape:
        size = lambda image: f'{image.shape[1]} x {image.shape[0]}'
        raise UserError(
            f'{frames[len(images) - 1].file} has {size(image)} pixels, but '
            f'{frames[0].file.name} has {size(images[0])}; all pictures of a '
            'split must be of one size: crop or resize them, and their '
            'cameras with them.')
  return np.stack(images), np.stack(intrinsics)


def _picture(frame, factor):
  """One picture, reduced and straightened, and its intrinsics [3, 3]."""
  try:
    with open_image(frame.file) as opened:
      image = opened.convert('RGBA')
  except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
    raise UserError(f'{frame.file} cannot be read as an image; get it again '
                    'or remove it.') from error
  width, height = image.size
  whole = frame.size or image.size
  # A pixel and a half: both sides may have been rounded.
  if abs(width * whole[1] / whole[0] - height) > 1.5:
    raise UserError(
        f'{frame.file} has {width} x {height} pixels, which is not the shape '
        f'of {whole[0]:g} x {whole[1]:g} that {frame.source} says.')
  lens = frame.lens(width, height)
  if not (min(lens.center) >= 0 and max(lens.center) <= 1):
    raise UserError(
        f'{frame.file}: the principal point lies beyond the picture of '
        f'{width} x {height} pixels; was it resized without its intrinsics?')
  target = [max(1, round(side / factor)) for side in whole]
  if width > target[0] + 1 or height > target[1] + 1:
    image = image.resize(target, Image.Resampling.BOX)
  image = np.asarray(image)
  if any(lens.distortion):
    try:
      pinhole = lenses.straighten(lens)
    except ValueError as error:
      raise UserError(f'{frame.source}: the lens of {frame.name} cannot be '
                      f'straightened: {error}.') from error
    image, lens = lenses.resample(image, lens, pinhole), pinhole
  return image, lens.intrinsics()


def _check_seen(path, capture, camera, box, near, far):
  """Raises UserError where no camera sees the box within the bounds."""
  steps = (np.arange(16) + 0.5) / 16
  pixels = np.stack([*np.meshgrid(steps, steps), np.ones((16, 16))], -1)
  for c2w, k in zip(camera.c2w, camera.intrinsics):
    local = pixels.reshape(-1, 3) @ np.linalg.inv(k).T * [1, -1, -1]
    rays = local @ c2w[:3, :3].T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    rays = np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    walls = (box[:, None] - c2w[:3, 3]) / rays
    enters = np.maximum(walls.min(0).max(-1), near)
    leaves = np.minimum(walls.max(0).min(-1), far)
    if np.any(enters < leaves):
      return
  low, high = box.round(3).tolist()
  raise UserError(
      f'{capture.box_from or path}: no camera sees the box from {low} to '
      f'{high} between near {near:g} and far {far:g}; are box and poses in the '
      'same units and axes?')
