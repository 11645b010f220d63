"""Photographs of one scene with known cameras: the input of reconstruction.

`open_posed` reads any of the layouts of layouts.py into a Posed record, whose
photographs are pinhole images in memory, and whose bounds are known. Distances
are along unit rays. Bounds that are neither in the files nor given are computed
from the cameras of all splits, so that every split has the same ones:

  box     the 3-D points without the outermost half per cent (COLMAP); the
          frustums between near and far (LLFF, forward facing); else a cube
          around the point closest to the optical axes, as wide as the median
          camera's view there: for the published Blender scenes a half side of
          1.45 (1.5 is usual)
  near,   those of the file (LLFF) or of the visible points (COLMAP), else the
  far     least and the largest distance of a camera from the box: 1.5 to 6.5
          for the published Blender scenes (2 to 6 is usual)

Pixels are used as they are stored, as COLMAP, nerfstudio and instant-ngp do. A
turn by EXIF is applied only where the size of the camera model demands it.
"""

import concurrent.futures
import os
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gen3d import notices, pixels
from gen3d.choices import UserError
from gen3d.data.captures import camera_models, folders, layouts, records
from gen3d.data.captures.records import Capture, Frame
from gen3d.files import open_image, read_file
from gen3d.ops.cameras import Camera

_MARGIN = 0.1      # around the points, as a fraction of their extent
_ORIENTATION = 0x112  # tag of EXIF
# All images may take this many bytes in memory, and this many times the size of
# their files. Photographs have ratios of 5 to 50, renders of one object on a
# plain background up to 200.
_DECODED_BYTES, _DECODED_RATIO = 2 ** 29, 250
_CLOSEST = 0.005   # least automatic near, as a fraction of far


class Posed(NamedTuple):
  """Photographs with cameras, of one split.

  Attributes:
    where: folder or scene, for messages.
    names: N file names.
    camera: Camera, float32 NumPy: c2w [N, 4, 4] (OpenGL axes), intrinsics
      [N, 3, 3], normalized by W and H.
    images: uint8 [N, H, W, 4], RGB and straight alpha; alpha is 255 where the
      files have none. A photograph that is smaller than the largest width or
      height is at the upper left, and all is 0 beside it.
    near, far: bounds of distances along unit rays.
    box: float32 [2, 3], lower and upper corner of what is to be
      reconstructed.
    has_alpha: True if any pixel of this split is not opaque.
    align: [4, 4], the similarity from the world of the files to this one;
      None where there are no files.
    sizes: int [N, 2], height and width of each photograph; None where all are
      H x W.
  """
  where: str
  names: tuple[str, ...]
  camera: Any
  images: np.ndarray
  near: float
  far: float
  box: np.ndarray
  has_alpha: bool
  align: np.ndarray | None = None
  sizes: np.ndarray | None = None

  def all_sizes(self) -> np.ndarray:
    """Height and width of each photograph, int [N, 2]."""
    count, height, width, _ = self.images.shape
    return (np.tile((height, width), (count, 1)) if self.sizes is None
            else self.sizes)


def open_posed(path: str | os.PathLike, split: str = 'train', *,
               format: str = 'auto', factor: float = 1,
               near: float | None = None, far: float | None = None,
               box: Any = None) -> Posed:
  """Reads one split of a capture with its images.

  World axes: y is up. Blender's world (z up) is turned, so that its (x, y, z)
  is (x, z, -y) here; LLFF's and COLMAP's are turned and scaled (layouts.py);
  NSVF's and NeRF++'s are as in the files.

  Images with distortion are resampled to a pinhole. Reducing averages areas,
  with colors weighted by alpha; where LLFF and COLMAP have a folder
  images_{factor}, its files are used.

  Args:
    path: the capture's folder.
    split: 'train', 'test' or, where there is one, 'val'. Where the files name
      no split, every eighth image by name is a test one. Where they name no
      test images, or those are not there, every eighth training image is one,
      with a note.
    format: one of layouts.FORMATS, or 'auto' to detect it by the files.
    factor: by which the sides of the images are reduced.
    near, far: bounds in place of the automatic ones.
    box: [2, 3], or half the side of a cube around the origin, in place of the
      automatic one.

  Raises:
    UserError: files are missing, damaged or do not fit together, or no camera
      sees the box between the bounds; names the file.
  """
  if not factor >= 1:
    raise UserError(f'factor is {factor}, but images are reduced by at least '
                    '1.')
  capture = layouts.read(path, format, factor)
  capture = capture._replace(frames=_with_test(path, capture.frames))
  frames = [f for f in capture.frames if f.split == split]
  if not frames:
    splits = sorted({f.split for f in capture.frames})
    raise UserError(f'{path} has no images of the split {split!r}; choose '
                    f'from {splits}.')
  # Bounds are of all splits; images only of the one that is read.
  box = _box(path, capture, box)
  near, far = _near_and_far(path, capture, box, near, far)
  missing = [f for f in frames if not os.path.isfile(f.file)]
  if missing:
    file = str(missing[0].file)
    name = f'{file[:200]} ...' if len(file) > 200 else file
    raise UserError(
        f'{name} is missing, but {missing[0].source} lists it '
        f'({len(missing)} of {len(frames)} images are missing).')
  _check_total(path, frames, factor)
  images, intrinsics, sizes = _load(frames, factor, split)
  c2w = np.stack([f.c2w for f in frames])
  camera = Camera(c2w.astype(np.float32), intrinsics.astype(np.float32))
  _check_visible(path, capture, camera, box, near, far)
  return Posed(
      str(path), tuple(f.name for f in frames), camera, images, near, far,
      box.astype(np.float32),
      any(image[:h, :w, 3].min() < 255 for image, (h, w) in zip(images, sizes)),
      capture.align, sizes)


def _check_total(path, frames: list[Frame], factor: float) -> None:
  """Raises UserError where the images would need too much memory.

  That is all that the machine has, or far more than the sizes of their files.
  """
  # Each image, reduced, at the largest width and height; see `_load`.
  sizes = []
  for frame in frames:
    size = _file_size(frame)
    sizes.append(np.minimum(
        size, np.ceil(np.divide(frame.size or size, factor))))
  total = 4 * len(frames) * np.prod(np.max(sizes, axis=0))
  packed = sum(os.path.getsize(file) for file in {f.file for f in frames})
  limit = max(_DECODED_BYTES, _DECODED_RATIO * packed)
  if total > min(limit, _memory()):
    raise UserError(
        f'The {len(frames)} images of {path}, of {packed:,} bytes, would take '
        f'{total:,.0f} bytes in memory; set --config.data.factor to a number '
        'by which they are reduced, or give images of similar sizes.')


def _memory() -> float:
  """Bytes of memory of the machine, or infinity where that is not known."""
  try:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  except (AttributeError, ValueError, OSError):
    return np.inf


def _with_test(path, frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
  """The frames, some of which are test ones also where no files are."""
  exists = lambda frame: os.path.isfile(frame.file)
  of = lambda split: [frame for frame in frames if frame.split == split]
  train = of('train')
  if any(map(exists, of('test'))) or not any(map(exists, train)):
    return frames
  others = tuple(frame for frame in frames if frame.split != 'test')
  if (val := of('val')) and all(map(exists, val)):
    folders.tell(f'{path} has no test images; those for validation are used.')
    return *others, *(frame._replace(split='test') for frame in val)
  if len(train) == 1:
    folders.tell(f'{path} has one image, on which the scene is also tested.')
    return *others, train[0]._replace(split='test')
  folders.tell(f'{path} has no test images; every {folders.TEST_EVERY}th '
               'training image is held out for the test.')
  held_out = {train[i].file for i in range(len(train))
              if folders.split_of(i) == 'test'}
  return tuple(frame._replace(split='test') if frame.split == 'train'
               and frame.file in held_out else frame for frame in others)


def composite_over(rgba: np.ndarray, background: Any) -> np.ndarray:
  """Composites images over a background.

  Args:
    rgba: uint8 [..., 4], straight alpha.
    background: a gray level or colors [..., 3] in [0, 1]; 1.0 is white.

  Returns:
    [..., 3] in [0, 1].
  """
  color, alpha = rgba[..., :3] / 255.0, rgba[..., 3:] / 255.0
  return alpha * color + (1 - alpha) * background


def _box(path, capture: Capture, box) -> np.ndarray:
  """Float64 [2, 3]: the given box, or else the automatic one."""
  if box is None:
    box = _automatic_box(path, capture)
  else:
    box = np.asarray(box, np.float64)
    box = np.outer([-box, box], np.ones(3)) if box.ndim == 0 else box
  if not np.isfinite(box).all():
    raise UserError(f'The box of {path}, {box.tolist()}, has numbers that are '
                    'not finite; set --config.data.box.')
  if box.shape != (2, 3) or not np.all(box[1] > box[0]):
    raise UserError(f'The box of {path}, {box.tolist()}, is empty; its first '
                    'corner must be below the second in all coordinates.')
  return box


def _near_and_far(path, capture: Capture, box, near, far
                  ) -> tuple[float, float]:
  """The given bounds, or else the automatic ones."""
  centers = np.stack([f.c2w for f in capture.frames])[:, :3, 3]
  nearest = np.linalg.norm(
      centers - np.clip(centers, box[0], box[1]), axis=-1).min()
  farthest = np.linalg.norm(
      np.maximum(abs(centers - box[0]), abs(centers - box[1])), axis=-1).max()
  automatic = capture.bounds or (
      max(nearest, _CLOSEST * farthest), farthest)
  near = float(automatic[0] if near is None else near)
  far = float(automatic[1] if far is None else far)
  if not 0 < near < far < np.inf:
    raise UserError(f'The bounds of {path} are near {near:g} and far {far:g}; '
                    'they must be positive, and near the smaller one.')
  return near, far


def _automatic_box(path, capture: Capture) -> np.ndarray:
  """The box of the module's docstring."""
  if capture.box is not None:
    return capture.box
  # Percentiles, since some points of structure from motion are far off.
  if capture.points is not None:
    box = np.percentile(capture.points, (0.5, 99.5), axis=0)
    return box + _MARGIN * np.maximum(
        np.diff(box, axis=0), 1e-6) * [[-1], [1]]
  c2w = np.stack([f.c2w for f in capture.frames])
  intrinsics = np.stack([f.model(*(f.size or _file_size(f))).intrinsics()
                         for f in capture.frames])
  if capture.bounds is not None and records.is_forward_facing(c2w):
    corners = np.concatenate([records.frustum(pose, k, depth)
                              for pose, k in zip(c2w, intrinsics)
                              for depth in capture.bounds])
    return np.stack([corners.min(0), corners.max(0)])
  center = records.closest_point(c2w)
  if center is None:
    raise UserError(
        f'{path}: the optical axes of the cameras are nearly parallel, which '
        'leaves open what is to be reconstructed; set --config.data.box to '
        'half the side of a cube around the origin (and --config.data.near '
        'and --config.data.far).')
  distance = np.linalg.norm(c2w[:, :3, 3] - center, axis=-1)
  half = np.median(distance * 0.5 / intrinsics[:, 0, 0])
  return center + half * np.array([[-1.0] * 3, [1.0] * 3])


def _load(frames: list[Frame], factor: float, split: str
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Images, intrinsics [N, 3, 3] and sizes of Posed, decoded in threads."""
  images, intrinsics = [], []
  # Pillow decodes without Python's lock.
  with concurrent.futures.ThreadPoolExecutor(
      max(2, os.cpu_count() or 1)) as pool:
    for image, k in notices.track(
        pool.map(lambda frame: _read_image(frame, factor), frames),
        f'Reading {split} images', len(frames)):
      images.append(image)
      intrinsics.append(k)
  sizes = np.array([image.shape[:2] for image in images])
  height, width = sizes.max(0)
  # Intrinsics relative to the common size have the same rays.
  scale = np.ones((len(images), 3, 1))
  scale[:, :2, 0] = sizes[:, ::-1] / (width, height)
  if np.all(sizes == (height, width)):
    return np.stack(images), np.stack(intrinsics), sizes
  common = np.zeros((len(images), height, width, 4), np.uint8)
  for place, image in zip(common, images):
    place[:image.shape[0], :image.shape[1]] = image
  return common, scale * np.stack(intrinsics), sizes


def _read_image(frame: Frame, factor: float) -> tuple[np.ndarray, np.ndarray]:
  """One image, reduced and without distortion, and its intrinsics [3, 3]."""
  image = _decode(frame)
  height, width = image.shape[:2]
  whole = frame.size or (width, height)
  if not _is_of_aspect((width, height), whole):
    raise UserError(
        f'{frame.file} has {width} x {height} pixels, which is not the aspect '
        f'ratio of {whole[0]:g} x {whole[1]:g} in {frame.source}.')
  model = frame.model(width, height)
  if not (min(model.center) >= 0 and max(model.center) <= 1):
    raise UserError(
        f'{frame.file}: the principal point lies beyond the image of '
        f'{width} x {height} pixels; was it resized without its intrinsics?')
  # The size is that of the camera model: files may be reduced already.
  target = [max(1, round(side / factor)) for side in whole]
  # Images of a folder images_{factor} have their size already.
  if width > target[0] + 1 or height > target[1] + 1:
    image = np.asarray(Image.fromarray(image).resize(
        target, Image.Resampling.BOX))
  if any(model.distortion):
    try:
      pinhole = camera_models.undistorted(model)
    except UserError as error:
      raise UserError(f'{frame.source}: {frame.name} cannot be undistorted: '
                      f'{error}.') from error
    image, model = camera_models.resample(image, model, pinhole), pinhole
  return image, model.intrinsics()


def _file_size(frame: Frame) -> tuple[int, int]:
  """(width, height) in the header of an image; (1, 1) where it has none."""
  try:
    with open_image(frame.file) as image:
      return image.size
  except Exception:  # Reported where the image is read.
    return 1, 1


def _is_of_aspect(size, whole) -> bool:
  """Whether an image of `size` has the aspect ratio of `whole`."""
  # A pixel and a half: both sides may have been rounded.
  return abs(size[0] * whole[1] / whole[0] - size[1]) <= 1.5


def _decode(frame: Frame) -> np.ndarray:
  """Pixels uint8 [H, W, 4] of the file of a frame.

  Raises:
    UserError: it cannot be read.
  """
  content = b''
  try:
    content = read_file(frame.file)
    with pixels.open_checked(content) as image:
      if image.getexif().get(_ORIENTATION, 1) != 1:
        image = _turned(frame, image)
      return pixels.to_rgba(image)
  except Exception as error:  # Pillow raises many kinds for one damage.
    raise pixels.unreadable(
        str(frame.file), content[:pixels.HEAD], error) from error


def _turned(frame: Frame, image: Image.Image) -> Image.Image:
  """The image, turned by EXIF where it has the camera's size only then."""
  turned = ImageOps.exif_transpose(image)
  if frame.size and not _is_of_aspect(image.size, frame.size) and (
      _is_of_aspect(turned.size, frame.size)):
    folders.tell(f'{frame.source}: images are turned as their EXIF data say, '
                 'since their cameras have the size of the turned ones.')
    return turned
  folders.tell(
      f'{frame.source}: there are images that EXIF data would turn; they are '
      'used as stored, as COLMAP and nerfstudio do. If the poses are of turned '
      'images, turn the files (mogrify -auto-orient).')
  return image


def _check_visible(path, capture: Capture, camera: Camera, box, near, far
                   ) -> None:
  """Raises UserError where no ray meets the box between near and far."""
  # 16 x 16 rays per camera find any box that is large enough to be useful.
  steps = (np.arange(16) + 0.5) / 16
  pixels = np.stack([*np.meshgrid(steps, steps), np.ones((16, 16))], -1)
  for c2w, k in zip(camera.c2w, camera.intrinsics):
    local = pixels.reshape(-1, 3) @ np.linalg.inv(k).T * [1, -1, -1]
    rays = local @ c2w[:3, :3].T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    rays = np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    # Distances to the two planes of each axis (slab method).
    planes = (box[:, None] - c2w[:3, 3]) / rays
    enters = np.maximum(planes.min(0).max(-1), near)
    leaves = np.minimum(planes.max(0).min(-1), far)
    if np.any(enters < leaves):
      return
  low, high = box.round(3).tolist()
  raise UserError(
      f'{capture.box_from or path}: no camera sees the box from {low} to '
      f'{high} between near {near:g} and far {far:g}; are box and poses in the '
      'same units and axes?')
