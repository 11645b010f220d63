"""The camera of one image from a JSON file."""

import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from gen3d import files
from gen3d.choices import UserError
from gen3d.data.images import camera_labels
from gen3d.ops import cameras


def read_camera(path: str | os.PathLike,
                image: str | os.PathLike = '') -> cameras.Camera:
  """Reads a camera from a list of 25 numbers or from EG3D's dataset.json.

  Args:
    path: of the JSON file.
    image: path of the image. It gets the label of the file name in
      dataset.json that shares the longest end of the path with it.

  Returns:
    Camera without leading axes.

  Raises:
    UserError: the file has no camera, none of this image, or several that may
      be of this image.
  """
  path = pathlib.Path(path)
  content = files.read_json(path, kind=object, nan=True)
  if isinstance(content, dict) and 'labels' in content:
    content = _label_of(path, content['labels'], image)
  # Integers beyond the range of a float raise OverflowError.
  try:
    label = np.asarray(content, np.float32).ravel()
  except (TypeError, ValueError, OverflowError):
    label = np.zeros(0, np.float32)
  if label.size != 25:
    raise UserError(f'{path} holds no camera: a list of 25 numbers is wanted, '
                    "camera-to-world and intrinsics, or EG3D's dataset.json.")
  camera_labels.check_labels(
      label[None], (str(image) or 'the image',), str(path))
  return cameras.from_label(jnp.asarray(label))


def _label_of(path: pathlib.Path, labels: Any, image: str | os.PathLike) -> Any:
  """The label of an image in dataset.json's "labels"."""
  # Names are relative to a data set whose folder is not known here, so that
  # they are compared with the path from the end.
  own = pathlib.Path(os.path.abspath(image)).parts[::-1]

  def similarity(name):
    """Number of parts in common from the end; whether all parts of `name`."""
    parts = pathlib.PurePosixPath(name).parts[::-1]
    count = len(os.path.commonprefix([parts, own]))
    return count, count == len(parts)

  candidates = [(similarity(name), name, label)
                for name, label in camera_labels.parse_labels(
                    str(path), labels)]
  # Of names with equally many parts in common, one that is wholly part of the
  # path is better.
  best = max((rank for rank, *_ in candidates), default=(0, False))
  if not best[0]:
    raise UserError(f'{path} has no label for {os.path.basename(image)}; '
                    'write its 25 numbers into a JSON file as a list.')
  (_, first, label), *others = (
      candidate for candidate in candidates if candidate[0] == best)
  if others:
    raise UserError(
        f'{path} lists {first} and {others[0][1]}, and {image} may be '
        'either; give it in the folder that it is listed with, or write its 25 '
        'numbers into a JSON file as a list.')
  return label
