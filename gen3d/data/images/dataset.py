"""Images with camera labels, in EG3D's format: a folder or a zip.

The labels are in dataset.json beside the images (camera_labels.py); images
without cameras have no dataset.json, or "labels": null.

Files are decoded in threads, since Pillow decodes PNG without Python's lock.
Batch i of a seed does not depend on which batches were read before.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gen3d import files, notices
from gen3d.choices import UserError, excerpt
from gen3d.data.images import archives, camera_labels, tfds

_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp')
_MAX_THREADS = 16  # more do not decode faster


class Images(NamedTuple):
  """A collection of square images in random access.

  Attributes:
    where: folder, zip or dataset, for messages.
    names: N file names, sorted.
    labels: float32 [N, 25], or [N, 0] where there are no cameras.
    pixels: index -> uint8 [H, W, 3], to be called from any thread; a UserError
      names a file that cannot be read.
    size: pixels per side.
    files: files that hold the images, where `where` and `names` are not paths.
  """
  where: str
  names: tuple[str, ...]
  labels: np.ndarray
  pixels: Callable[[int], np.ndarray]
  size: int
  files: tuple[str, ...] = ()


def open_images(path: str | os.PathLike) -> Images:
  """Opens a folder, a zip, or 'tfds:NAME[:SPLIT]'.

  Only the first image is decoded, for its size: see `check`.

  Args:
    path: of the images. NAME of a TensorFlow dataset is as in tfds, 'set',
      'set/config' or 'set:1.0.0', in the folder TFDS_DATA_DIR and in files of
      the format array_record; SPLIT is 'train' or as in tfds, 'test' or
      'train[:1000]'. It must have a feature 'image'; a feature 'label' of 25
      numbers is the camera.

  Raises:
    UserError: there are no images, or dataset.json does not fit them; names
      the file.
  """
  if str(path).startswith('tfds:'):
    source = tfds.open_split(str(path))
    return Images(str(path), source.names, source.labels, source.pixels,
                  source.pixels(0).shape[0], source.files)
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    members, read = archives.open_folder(path)
  elif path.is_file() and zipfile.is_zipfile(path):
    members, read = archives.open_zip(path)
  elif path.is_file() and path.open('rb').read(4) == b'PK\x03\x04':
    raise UserError(f'{path} is a zip that is cut off; get it again.')
  else:
    raise UserError(f'{path} is neither a folder nor a zip with images; give '
                    'one in EG3D\'s format (gen3d/data/README.md, "Image '
                    'collections").')
  members, read = _plain_names(path, members, read)
  names = sorted(n for n in members
                 if pathlib.PurePath(n).suffix.lower() in _SUFFIXES)
  if not names:
    raise UserError(f'{path} holds no images ({", ".join(_SUFFIXES)}).')
  labels = None
  if 'dataset.json' in members:
    labels = camera_labels.read_labels(
        f'{path}: dataset.json', read('dataset.json'), names)
  else:
    below = [n for n in members if n.endswith('/dataset.json')]
    if below:
      notices.message(
          f'{path} has no dataset.json beside its folders, and the labels in '
          f'{excerpt(below[0])} are not used: its images have no cameras.')
  # EG3D's format for images without cameras.
  if labels is None:
    labels = np.zeros((len(names), 0), np.float32)
  decode = lambda index, side=None: archives.decode(
      path, names[index], read(names[index]), side)
  side = decode(0).shape[0]
  # Of other images than the first, the size is known before they are decoded.
  return Images(
      str(path), tuple(names), labels,
      lambda index: decode(index, side if index else None), side)


def _plain_names(path: pathlib.Path, members: list[str], read: archives.Read
                 ) -> tuple[list[str], archives.Read]:
  """Members as dataset.json names them, and `read` by these names.

  Without the files of operating systems, with slashes, and without './' and
  the one folder that holds all, where dataset.json is in that.
  """
  stored = {}
  for name in members:
    plain = name.replace('\\', '/').removeprefix('./')
    if files.is_system_file(name):
      continue
    if plain in stored:
      raise UserError(f'{path} has {excerpt(plain)} more than once; remove all '
                      'but one.')
    stored[plain] = name
  tops = {name.partition('/')[0] for name in stored}
  folder = f'{tops.pop()}/' if len(tops) == 1 else ''
  if folder and f'{folder}dataset.json' in stored:
    stored = {name.removeprefix(folder): n for name, n in stored.items()}
  return list(stored), lambda name: read(stored[name])


def check(images: Images, threads: int | None = None) -> None:
  """Checks every label and decodes every file, before a training.

  A successful check is stored in the cache folder under a hash of the names,
  labels, sizes and times of the files, and not repeated while they stay.

  Args:
    images: Images.
    threads: that decode; None for one per core, 16 at most.

  Raises:
    UserError: names the first file that cannot be read, is not square, has
      another size or a label that is not a camera, with a remedy.
  """
  camera_labels.check_labels(images.labels, images.names, images.where)
  stamp = _stamp(images)
  # Unlike Path.exists, this is False where the folder may not be read.
  if os.path.exists(stamp):
    return

  def check_size(index):
    shape = images.pixels(index).shape
    if shape[:2] != (images.size, images.size):
      raise UserError(
          f'{images.where}: {images.names[index]} has {shape[1]} x {shape[0]} '
          f'pixels, but the others have {images.size} x {images.size}; resize '
          'it.')

  with concurrent.futures.ThreadPoolExecutor(threads or _threads()) as pool:
    for _ in notices.track(pool.map(check_size, range(len(images.names))),
                           'Checking images', len(images.names)):
      pass
  stamp.parent.mkdir(parents=True, exist_ok=True)
  stamp.touch()


def batches(images: Images, size: int, seed: int, first_step: int = 0, *,
            mirror: bool = False, threads: int | None = None, ahead: int = 4,
            rows: Any = None) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches without end; each depends on (seed, step) only.

  Args:
    images: Images.
    size: images in a batch.
    seed: of the order, which differs between epochs.
    first_step: number of the first batch.
    mirror: True to mirror each image, and its camera, with probability 1/2.
    threads: that decode; None for one per core, 16 at most.
    ahead: batches that are decoded in advance.
    rows: index of a batch's leading axis: only these images are decoded, the
      others are black. None for all.

  Yields:
    {'image': uint8 [size, R, R, 3], 'label': float32 [size, 25],
     'index': int32 [size] within the batch}.
  """
  decoded_rows = np.arange(size)[slice(None) if rows is None else rows]

  def load(index, flip):
    pixels = images.pixels(index)
    return pixels[:, ::-1] if flip else pixels

  # Random numbers depend on (seed, epoch) and (seed, step) only, so that a
  # training resumes at any step with the same batches.
  def start(step):
    """Labels of a batch and futures of its images."""
    indices = _indices(len(images.names), size, seed, step)
    flips = np.random.default_rng((seed, step, 1)).random(size) < 0.5
    flips &= mirror
    labels = images.labels[indices]
    # The camera is mirrored with its image.
    if labels.shape[1]:
      labels = np.where(
          flips[:, None], camera_labels.mirror_label(labels), labels)
    return labels, [pool.submit(load, indices[row], flips[row])
                    for row in decoded_rows]

  # The stack ends the threads when the generator is closed.
  pool = concurrent.futures.ThreadPoolExecutor(threads or _threads())
  with contextlib.ExitStack() as stack:
    stack.callback(pool.shutdown, wait=False, cancel_futures=True)
    waiting = []
    for step in itertools.count(first_step):
      waiting.append(start(step))
      if len(waiting) <= ahead:
        continue
      labels, pixels = waiting.pop(0)
      image = np.stack([p.result() for p in pixels])
      if rows is not None:
        decoded = image
        image = np.zeros((size, *decoded.shape[1:]), decoded.dtype)
        image[decoded_rows] = decoded
      yield {'image': image, 'label': labels,
             'index': np.arange(size, dtype=np.int32)}


def _indices(count, size, seed, step):
  """Indices [size] of a batch: each epoch is one permutation of all."""
  positions = np.arange(step * size, (step + 1) * size)
  indices = np.empty(size, int)
  for epoch in np.unique(positions // count):
    in_epoch = positions // count == epoch
    order = np.random.default_rng((seed, epoch)).permutation(count)
    indices[in_epoch] = order[positions[in_epoch] % count]
  return indices


def _stamp(images):
  """File in the cache folder that marks a successful check."""
  path = pathlib.Path(images.where)
  sources = [pathlib.Path(f) for f in images.files] or (
      [path] if path.is_file() else [path / n for n in images.names])
  # Sizes and times stand for contents, which would take minutes to hash.
  stats = [f.stat() for f in sources if f.exists()]
  digest = hashlib.sha256(images.labels.tobytes())
  for item in (images.where, images.size, images.names,
               [(s.st_size, s.st_mtime_ns) for s in stats]):
    digest.update(repr(item).encode())
  return files.cache_dir() / 'checked' / digest.hexdigest()[:24]


def _threads():
  return min(max(2, os.cpu_count() or 1), _MAX_THREADS)
