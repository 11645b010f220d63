"""Images and camera labels of a prepared TensorFlow dataset."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gen3d.choices import UserError, excerpt
from gen3d.data.images import archives, camera_labels

# A version has dots and belongs to the name: 'a/b:1.0.0', 'a:1.0.0:train[:9]'.
_PATH = re.compile(
    r'tfds:(?P<name>[^:]*(:(\d+|\*)(\.(\d+|\*))+)?(/[^:]*)?)(:(?P<split>.*))?',
    re.DOTALL)


class Source(NamedTuple):
  """One split of a TensorFlow dataset; fields as of dataset.Images."""
  names: tuple[str, ...]
  labels: np.ndarray
  pixels: Callable[[int], np.ndarray]
  files: tuple[str, ...]


def open_split(path: str) -> Source:
  """Opens 'tfds:NAME[:SPLIT]'; see dataset.open_images.

  Raises:
    UserError: there is no such dataset or split, or it has no images.
  """
  # Imported here, since TensorFlow Datasets takes seconds to import.
  import tensorflow_datasets as tfds
  match = _PATH.fullmatch(path)
  name, split = match.group('name', 'split') if match else ('', None)
  split = 'train' if split is None else split
  if not name:
    raise UserError(f'{path} names no data set; give tfds:NAME[:SPLIT].')
  builder = _prepare(path, name)
  features = dict(builder.info.features.items())
  feature = features.get('image')
  if getattr(feature, 'np_dtype', None) != np.uint8:
    raise UserError(f"{path} has no feature 'image' of bytes, only "
                    f'{sorted(features)}; choose another data set.')
  # Images stay encoded, so that `decode` names a file that is damaged.
  decoders = ({'image': tfds.decode.SkipDecoding()}
              if isinstance(feature, tfds.features.Image) else None)
  try:
    files = tuple(
        i.filename for i in builder.info.splits[split].file_instructions)
    source = builder.as_data_source(split, decoders=decoders)
  except ValueError as error:
    splits = ', '.join(f'{s} (of {info.num_examples})'
                       for s, info in builder.info.splits.items())
    raise UserError(f"{path} has no split {split!r}; choose from {splits}, "
                    "or a part like 'train[:100]'.") from error
  return _read(path, source, files)


def _read(path: str, source: Any, files: tuple[str, ...]) -> Source:
  """The Source of a random-access data source of examples."""
  # Examples have no file names.
  names = tuple(f'example {i}' for i in range(len(source)))

  def example(index):
    try:
      return source[index]
    except (RuntimeError, ValueError, OSError) as error:
      raise UserError(
          f'{path}: {names[index]} is damaged '
          f'({excerpt(error)}); prepare it again.') from error

  def pixels(index):
    image = example(index)['image']
    if isinstance(image, bytes):
      return archives.decode(path, names[index], image)
    return np.asarray(Image.fromarray(image.squeeze()).convert('RGB'))

  labels = np.zeros((len(source), 0), np.float32)
  if np.size(example(0).get('label', ())) == camera_labels.SIZE:
    labels = np.stack([np.asarray(example(i)['label'], np.float32).ravel()
                       for i in range(len(source))])
  return Source(names, labels, pixels, files)


def _prepare(path: str, name: str) -> Any:
  """The builder of a dataset, prepared where it was not."""
  import tensorflow_datasets as tfds
  try:
    builder = tfds.builder(name, file_format='array_record')
    builder.download_and_prepare()
  except tfds.core.DatasetNotFoundError:  # Its message lists all datasets.
    raise UserError(
        f'{path}: tfds has no data set {name!r}, and '
        f'{tfds.core.constants.DATA_DIR} holds none; choose one of '
        'https://www.tensorflow.org/datasets/catalog, or set TFDS_DATA_DIR to '
        'where yours is.') from None
  except Exception as error:  # A dataset's own code may raise anything.
    raise UserError(
        f'{path} cannot be prepared ({excerpt(error)}); prepare '
        "it with file_format='array_record', and set TFDS_DATA_DIR to where it "
        'is.') from error
  return builder
