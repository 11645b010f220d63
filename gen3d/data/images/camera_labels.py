"""Camera labels in EG3D's format: 25 numbers for each image.

A label is the 4 x 4 camera-to-world matrix (OpenCV axes: x right, y down, z
forward) row by row, then the 3 x 3 intrinsics divided by the image's size.
dataset.json holds them as {"labels": [["00000/img00000000.png", label], ...]};
"labels" is null where the images have no cameras.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gen3d import files, notices
from gen3d.choices import UserError, excerpt, printable

SIZE = 25
# Entries that change when the world is mirrored at x = 0: the pose, the skew
# and the principal point, whose x becomes 1 - x.
_MIRROR = np.ones(SIZE, np.float32)
_MIRROR[[1, 2, 3, 4, 8, 17, 18]] = -1
_MIRROR_SHIFT = np.zeros(SIZE, np.float32)
_MIRROR_SHIFT[18] = 1


def mirror_label(label: np.ndarray) -> np.ndarray:
  """Labels [..., 25] of cameras in the world mirrored at x = 0.

  The image of such a camera is the mirrored image.
  """
  return label * _MIRROR + _MIRROR_SHIFT


def check_labels(labels: np.ndarray, names: Sequence[str], where: str) -> None:
  """Checks that labels are cameras.

  Args:
    labels: float32 [N, 25], or [N, 0] for images without cameras.
    names: of the N images, for messages.
    where: file or folder that has the labels, for messages.

  Raises:
    UserError: a label is not a camera; names the first image.
  """
  if not labels.shape[1]:
    return
  c2w = labels[:, :16].reshape(-1, 4, 4)
  intrinsics = labels[:, 16:].reshape(-1, 3, 3)
  # Tolerances are for float32 text; errors of convention are far larger.
  # Those that are not finite are checked first, and do not matter then.
  rotation = np.nan_to_num(c2w[:, :3, :3], posinf=0, neginf=0)
  error = np.abs(
      rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
  for bad, problem in (
      (~np.isfinite(labels).all(1), 'has numbers that are not finite'),
      (error > 1e-2, 'has a rotation that is not orthonormal'),
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
      raise UserError(f'{where}: the label of {names[first]} {problem}; '
                      f'{int(bad.sum())} labels are like that.')


def parse_labels(where: str, labels: Any) -> list[tuple[str, Any]]:
  """Pairs of file name and unchecked label from "labels" of dataset.json.

  Args:
    where: the file, for messages.
    labels: JSON value of the key "labels".

  Raises:
    UserError: it is not a list of pairs.
  """
  if not isinstance(labels, list) or not all(
      isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
      for entry in labels):
    raise UserError(f'{where}: "labels" must be a list of '
                    '[file name, [25 numbers]].')
  return [(name.replace('\\', '/'), label) for name, label in labels]


def read_labels(where: str, content: bytes,
                names: Sequence[str]) -> np.ndarray | None:
  """Labels [N, 25] of N images from the content of dataset.json.

  Args:
    where: the file, for messages.
    content: of the file.
    names: of the images.

  Returns:
    float32 [N, 25], or None where "labels" is null or missing.

  Raises:
    UserError: an image has no label, or not one of 25 numbers.
  """
  listed = files.parse_json(content, where, nan=True).get('labels')
  if listed is None:
    return None
  pairs = parse_labels(where, listed)
  by_name = dict(pairs)
  if len(by_name) < len(pairs):
    raise UserError(f'{where} lists an image more than once; make it again.')
  missing = by_name.keys() - set(names)
  if missing:  # Parts of a set are often used with the labels of all.
    notices.message(printable(
        f'{where} lists {len(by_name)} images, of which {len(missing)} are not '
        f'there, such as {excerpt(min(missing))}; the others are used.', 500))
  labels = np.zeros((len(names), SIZE), np.float32)
  for i, name in enumerate(names):
    if name not in by_name:
      raise UserError(f'{where} has no label for {name}; every image needs '
                      'one.')
    try:
      label = np.asarray(by_name[name], np.float32).ravel()
    except (TypeError, ValueError, OverflowError) as error:
      raise UserError(f'{where}: the label of {name} is not a list of '
                      f'{SIZE} numbers.') from error
    if label.size != SIZE:
      raise UserError(f'{where}: the label of {name} has {label.size} '
                      f'numbers instead of {SIZE}.')
    labels[i] = label
  return labels
