"""Images with cameras, in EG3D's format: a folder or a zip with dataset.json.

dataset.json is {"labels": [["00000/img00000000.png", [25 numbers]], ...]}: the
4 x 4 camera-to-world matrix (OpenCV axes: x right, y down, z forward) row by
row, then the 3 x 3 intrinsics divided by the image's size. Images without
cameras have no dataset.json, or "labels": null.

Files are decoded in threads (PNG decoding lets other threads run), and batch
i of a seed is the same whoever asks for it.
"""

import concurrent.futures
import contextlib
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
import sys
import threading
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tqdm
from PIL import Image, ImageDraw, UnidentifiedImageError

from gen3d import files
from gen3d.choices import UserError
from gen3d.files import open_image

_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp')
_LABEL = 25
# What changes when the world is mirrored at x = 0: the pose, the skew and the
# principal point, whose x becomes 1 - x.
_MIRROR = np.ones(_LABEL, np.float32)
_MIRROR[[1, 2, 3, 4, 8, 17, 18]] = -1
_MIRROR_SHIFT = np.zeros(_LABEL, np.float32)
_MIRROR_SHIFT[18] = 1
# A version has dots and belongs to the name: 'a/b:1.0.0', 'a:1.0.0:train[:9]'.
_TFDS = re.compile(
    r'tfds:(?P<name>[^:]*(:(\d+|\*)(\.(\d+|\*))+)?(/[^:]*)?)(:(?P<split>.*))?',
    re.DOTALL)


class Images(NamedTuple):
  """A collection that can be read in any order.

  Attributes:
    where: for messages.
    names: N file names, sorted.
    labels: float32 [N, 25], or [N, 0] where there are no cameras.
    pixels: index -> uint8 [H, W, 3], safe to call from threads; a ValueError
      names a file that cannot be read.
    size: pixels a side.
    files: that hold them, where `where` and `names` are no paths.
  """
  where: str
  names: tuple
  labels: Any
  pixels: Callable
  size: int
  files: tuple = ()


def open_images(path):
  """Opens a folder, a zip, or 'tfds:NAME[:SPLIT]'.

  Args:
    path: where the images are. NAME of a TensorFlow dataset is as tfds has
      it, 'set', 'set/config' or 'set:1.0.0', which is looked for where
      TFDS_DATA_DIR says, in files of the format array_record; SPLIT is
      'train' or as tfds has it, 'test', 'train[:1000]'. It must have a
      feature 'image'; 'label' is taken as a camera if it has 25 numbers.

  Returns:
    Images. Only the first file has been looked into: see `check`.

  Raises:
    UserError: nothing is there, or dataset.json does not fit the files; the
      sentence names the file.
  """
  if str(path).startswith('tfds:'):
    return _open_tfds(str(path))
  path = pathlib.Path(path)
  if path.is_dir():
    found = (p.relative_to(path).as_posix() for p in path.rglob('*'))
    read = _folder_reader(path)
    listing = (path / 'dataset.json').is_file()
  elif zipfile.is_zipfile(path):
    found, read = _open_zip(path)
    listing = 'dataset.json' in found
  else:
    raise UserError(f'{path} is neither a folder nor a zip with images; give '
                    'one in EG3D\'s format (README.md, "Images are square").')
  names = sorted(n for n in found
                 if pathlib.PurePath(n).suffix.lower() in _SUFFIXES)
  if not names:
    raise UserError(f'{path} holds no images ({", ".join(_SUFFIXES)}).')
  labels = _read_labels(
      f'{path}: dataset.json', read('dataset.json'), names) if listing else None
  if labels is None:
    labels = np.zeros((len(names), 0), np.float32)
  pixels = lambda index: _decode(
      f'{path}: {names[index]}', read(names[index]))
  return Images(
      str(path), tuple(names), labels, pixels, pixels(0).shape[0])


def check(images, threads=None):
  """Looks at every label and every file before a training relies on them.

  What was found good is remembered in the cache folder by the names, labels
  and sizes of the files, so that the next start does not look again.

  Raises:
    UserError: names the first file that cannot be read, is not square, has
      another size, or whose camera is none, and the remedy.
  """
  check_labels(images)
  stamp = _stamp(images)
  if os.path.exists(stamp):  # Also where its folder may not be looked into.
    return

  def look(index):
    shape = images.pixels(index).shape
    if shape[:2] != (images.size, images.size):
      raise UserError(
          f'{images.where}: {images.names[index]} has {shape[1]} x {shape[0]} '
          f'pixels, but the others have {images.size} x {images.size}; resize '
          'it.')

  with concurrent.futures.ThreadPoolExecutor(threads or _threads()) as pool:
    for _ in tqdm.tqdm(pool.map(look, range(len(images.names))),
                       'checking images', len(images.names), disable=None):
      pass
  try:
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.touch()
  except OSError as error:
    print(f'That {images.where} was found good is not remembered, since '
          f'{stamp.parent} cannot be written ({error.strerror}).',
          file=sys.stderr)


def check_labels(images):
  """Raises UserError at a label that is no camera, naming its file."""
  if not images.labels.shape[1]:
    return
  c2w = images.labels[:, :16].reshape(-1, 4, 4)
  intrinsics = images.labels[:, 16:].reshape(-1, 3, 3)
  rotation = c2w[:, :3, :3]
  off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
  for bad, what in (
      (~np.isfinite(images.labels).all(1), 'has numbers that are not finite'),
      (off > 1e-2, 'has a rotation that is not orthonormal'),
      (np.linalg.det(rotation) < 0, 'has a rotation that mirrors'),
      (np.abs(c2w[:, 3] - [0, 0, 0, 1]).max(1) > 1e-4,
       'has a matrix whose last row is not 0 0 0 1'),
      ((intrinsics[:, 0, 0] <= 0) | (intrinsics[:, 1, 1] <= 0),
       'has a focal length that is not positive'),
      (np.abs(intrinsics[:, :2, 2] - 0.5).max(1) > 0.5,
       'has a principal point beyond the image: are its intrinsics in pixels? '
       'Divide them by the image\'s size')):
    if np.any(bad):
      first = int(np.argmax(bad))
      raise UserError(f'{images.where}: the label of {images.names[first]} '
                      f'{what}; {int(bad.sum())} labels are like that.')


def mirror_label(label):
  """Labels [..., 25] of the cameras that see the world mirrored at x = 0.

  Such a camera sees the mirrored image.
  """
  return label * _MIRROR + _MIRROR_SHIFT


def batches(images, size, seed, first_step=0, *, mirror=False, threads=None,
            ahead=4, rows=None):
  """Endless batches, each a pure function of (seed, step), read ahead.

  Args:
    images: Images.
    size: of a batch.
    seed: of the order, another one in every epoch.
    first_step: from which batch on.
    mirror: whether each image may come mirrored, its camera with it.
    threads: that decode; None for as many as there are cores, 16 at most.
    ahead: batches that are decoded before they are asked for.
    rows: of each batch that are decoded, as an index of its leading axis;
      the images of the others are black. None is for all.

  Yields:
    {'image': uint8 [size, R, R, 3], 'label': float32 [size, 25],
     'index': int32 [size] within the batch}.
  """
  count = len(images.names)
  chosen = np.arange(size)[slice(None) if rows is None else rows]

  def plan(step):
    rows = np.arange(step * size, (step + 1) * size)
    picked = np.empty(size, int)
    for epoch in np.unique(rows // count):
      here = rows // count == epoch
      order = np.random.default_rng((seed, epoch)).permutation(count)
      picked[here] = order[rows[here] % count]
    flips = np.random.default_rng((seed, step, 1)).random(size) < 0.5
    return picked, flips & mirror

  def load(index, flip):
    pixels = images.pixels(index)
    return pixels[:, ::-1] if flip else pixels

  pool = concurrent.futures.ThreadPoolExecutor(threads or _threads())
  waiting = []
  with contextlib.ExitStack() as stack:
    stack.callback(pool.shutdown, wait=False, cancel_futures=True)
    for step in itertools.count(first_step):
      picked, flips = plan(step)
      labels = images.labels[picked]
      if labels.shape[1]:
        labels = np.where(flips[:, None], mirror_label(labels), labels)
      waiting.append((labels, [pool.submit(load, picked[row], flips[row])
                               for row in chosen]))
      if len(waiting) > ahead:
        labels, pixels = waiting.pop(0)
        decoded = np.stack([p.result() for p in pixels])
        image = decoded
        if rows is not None:
          image = np.zeros((size, *decoded.shape[1:]), decoded.dtype)
          image[chosen] = decoded
        yield {'image': image, 'label': labels,
               'index': np.arange(size, dtype=np.int32)}


def map_of_cameras(images, width=720):
  """A picture of where the cameras are: uint8 [width / 2, width, 3].

  Azimuth runs from left (-180, the back) over the middle (0, the front, +z)
  to the right, elevation from below to above; the darker, the more cameras.
  """
  if not images.labels.shape[1]:
    raise UserError(f'{images.where} has no cameras to draw.')
  position = images.labels[:, [3, 7, 11]].astype(np.float64)
  distance = np.linalg.norm(position, axis=1)
  azimuth = np.rad2deg(np.arctan2(position[:, 0], position[:, 2]))
  elevation = np.rad2deg(np.arcsin(
      np.clip(position[:, 1] / np.maximum(distance, 1e-9), -1, 1)))
  cells = np.histogram2d(
      elevation, azimuth, (60, 120), ((-90, 90), (-180, 180)))[0][::-1]
  shade = 1 - np.log1p(cells) / np.log1p(max(cells.max(), 1))
  dark, light = np.array([38, 70, 140]), np.array([246, 246, 244])
  colors = dark + shade[..., None] * (light - dark)
  picture = Image.fromarray(colors.astype(np.uint8)).resize(
      (width, width // 2), Image.Resampling.NEAREST)
  draw = ImageDraw.Draw(picture)
  for degrees in range(-150, 180, 30):
    x = (degrees + 180) / 360 * width
    draw.line((x, 0, x, width // 2), (200, 200, 200))
    draw.text((x + 2, width // 2 - 14), f'{degrees}°', (90, 90, 90))
  for degrees in range(-60, 90, 30):
    y = (90 - degrees) / 180 * width // 2
    draw.line((0, y, width, y), (200, 200, 200))
    draw.text((2, y - 12), f'{degrees}°', (90, 90, 90))
  draw.text((4, 2), f'{len(position)} cameras, distance '
            f'{distance.min():.2f} to {distance.max():.2f}', (20, 20, 20))
  return np.asarray(picture)


def listed(where, labels):
  """[(file name, label as it is)] of what dataset.json has as "labels".

  Raises:
    UserError: it is of another form.
  """
  if not isinstance(labels, list) or not all(
      isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
      for entry in labels):
    raise UserError(f'{where}: "labels" must be a list of '
                    '[file name, [25 numbers]].')
  return [(name.replace('\\', '/'), label) for name, label in labels]


def _read_labels(where, content, names):
  try:
    found = json.loads(content).get('labels')
  except (ValueError, AttributeError) as error:
    raise UserError(f'{where} is not valid JSON ({error}).') from error
  if found is None:
    return None
  found = dict(listed(where, found))
  labels = np.zeros((len(names), _LABEL), np.float32)
  for i, name in enumerate(names):
    if name not in found:
      raise UserError(f'{where} has no label for {name}; every image needs '
                      'one.')
    try:
      label = np.asarray(found[name], np.float32).ravel()
    except (TypeError, ValueError, OverflowError) as error:
      raise UserError(f'{where}: the label of {name} is not a list of '
                      f'{_LABEL} numbers.') from error
    if label.size != _LABEL:
      raise UserError(f'{where}: the label of {name} has {label.size} '
                      f'numbers instead of {_LABEL}.')
    labels[i] = label
  return labels


def _decode(name, content):
  """uint8 [H, W, 3]; transparency is dropped, gray becomes three channels."""
  try:
    with open_image(io.BytesIO(content)) as image:
      return np.asarray(image.convert('RGB'))
  except (UnidentifiedImageError, OSError, SyntaxError, ValueError,
          Image.DecompressionBombError) as error:
    raise UserError(
        f'{name} cannot be read as an image; get it again or remove it.'
    ) from error


def _folder_reader(path):
  def read(name):
    try:
      return (path / name).read_bytes()
    except OSError as error:
      raise UserError(f'{path}: {name} cannot be read ({error.strerror}); '
                      'get it again or remove it.') from error

  return read


def _open_zip(path):
  """(names, name -> bytes) of a zip, to be read from any thread.

  All threads share one handle, since each handle lists the files anew: for
  FFHQ that would be a second and 80 MB a thread.
  """
  damaged = lambda what, error: ValueError(
      f'{what} is damaged ({_first_line(error)}); get the zip again.')
  try:
    archive = zipfile.ZipFile(path)
  except (zipfile.BadZipFile, OSError, ValueError) as error:
    raise damaged(path, error) from error
  opening = threading.Lock()

  def read(name):
    # zipfile's errors have no base: there are zlib's and lzma's, EOFError,
    # RuntimeError for a password, NotImplementedError for a compression.
    try:
      with opening:  # It counts its open members, without a lock.
        member = archive.open(name)
      try:
        return member.read()
      finally:
        with opening:
          member.close()
    except Exception as error:
      raise damaged(f'{path}: {name}', error) from error

  return archive.namelist(), read


def _open_tfds(path):
  import tensorflow_datasets as tfds
  name, split = _TFDS.fullmatch(path).group('name', 'split')
  split = 'train' if split is None else split
  if not name:
    raise UserError(f'{path} names no data set; give tfds:NAME[:SPLIT].')
  builder = _prepare_tfds(path, name)
  features = dict(builder.info.features.items())
  kind = features.get('image')
  if getattr(kind, 'np_dtype', None) != np.uint8:
    raise UserError(f"{path} has no feature 'image' of bytes, only "
                    f'{sorted(features)}; choose another data set.')
  decoders = ({'image': tfds.decode.SkipDecoding()}
              if isinstance(kind, tfds.features.Image) else None)
  try:
    files = tuple(
        i.filename for i in builder.info.splits[split].file_instructions)
    source = builder.as_data_source(split, decoders=decoders)
  except ValueError as error:
    splits = ', '.join(f'{s} (of {about.num_examples})'
                       for s, about in builder.info.splits.items())
    raise UserError(f"{path} has no split {split!r}; choose from {splits}, "
                    "or a part like 'train[:100]'.") from error
  names = tuple(f'example {i}' for i in range(len(source)))

  def example(index):
    try:
      return source[index]
    except (RuntimeError, ValueError, OSError) as error:
      raise UserError(f'{path}: {names[index]} is damaged '
                      f'({_first_line(error)}); prepare it again.') from error

  def pixels(index):
    image = example(index)['image']
    return (_decode(f'{path}: {names[index]}', image)
            if isinstance(image, bytes) else _three_channels(image))

  labels = np.zeros((len(source), 0), np.float32)
  if np.size(example(0).get('label', ())) == _LABEL:
    labels = np.stack([np.asarray(example(i)['label'], np.float32).ravel()
                       for i in range(len(source))])
  return Images(path, names, labels, pixels, pixels(0).shape[0], files)


def _prepare_tfds(path, name):
  """The builder of a TensorFlow dataset that is prepared."""
  import tensorflow_datasets as tfds
  try:
    builder = tfds.builder(name, file_format='array_record')
    builder.download_and_prepare()
  except tfds.core.DatasetNotFoundError:  # Its message lists all there are.
    raise UserError(
        f'{path}: tfds knows no data set {name!r}, and '
        f'{tfds.core.constants.DATA_DIR} holds none; choose one of '
        'https://www.tensorflow.org/datasets/catalog, or set TFDS_DATA_DIR to '
        'where yours is.') from None
  except Exception as error:  # A data set's own code may raise anything.
    raise UserError(
        f'{path} cannot be prepared ({_first_line(error)}); prepare it with '
        "file_format='array_record', and set TFDS_DATA_DIR to where it is."
    ) from error
  return builder


def _three_channels(image):
  return np.asarray(Image.fromarray(image.squeeze()).convert('RGB'))


def _first_line(error):
  """What an error says, as a part of a sentence."""
  return str(error).strip().partition('\n')[0].rstrip('.')


def _stamp(images):
  path = pathlib.Path(images.where)
  sources = [pathlib.Path(f) for f in images.files] or (
      [path] if path.is_file() else [path / n for n in images.names])
  stats = [f.stat() for f in sources if f.exists()]
  digest = hashlib.sha256(images.labels.tobytes())
  for about in (images.where, images.size, images.names,
                [(s.st_size, s.st_mtime_ns) for s in stats]):
    digest.update(repr(about).encode())
  return files.cache_dir() / 'checked' / digest.hexdigest()[:24]


def _threads():
  return min(max(2, os.cpu_count() or 1), 16)
