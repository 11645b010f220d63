"""Files of a capture's folder: images, splits, matrices in text files."""

import pathlib

import numpy as np

from gen3d.choices import UserError

TEST_EVERY = 8  # every eighth image is a test one where no file names a split
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')


def split_of(index: int) -> str:
  """Split of the image `index`, by name, where the files name none."""
  return 'test' if index % TEST_EVERY == 0 else 'train'


def images_in(folder: pathlib.Path) -> list[pathlib.Path]:
  """Sorted image files of a folder.

  Raises:
    UserError: there is no such folder.
  """
  if not folder.is_dir():
    raise UserError(f'{folder} is missing; it should hold the images.')
  return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)


def image_folder(path: pathlib.Path, factor: float) -> pathlib.Path:
  """images_{factor} in a capture's folder where there is one, or images."""
  reduced = path / f'images_{factor}'
  return reduced if factor != 1 and reduced.is_dir() else path / 'images'


def read_numbers(file: pathlib.Path, count: int = 16) -> np.ndarray:
  """The first `count` numbers of a text file, float64 [count].

  Raises:
    UserError: the file is missing, has other words or fewer numbers.
  """
  # Later ones are not read: NSVF's intrinsics.txt has other values below.
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
