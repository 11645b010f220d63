"""PNG files, and labeled sheets of images."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gen3d import files
from gen3d.choices import UserError

_FONT_SIZE = 12    # pixels
_LINE_HEIGHT = 16  # of a label, pixels


def save(path: str | os.PathLike, image: np.ndarray) -> None:
  """Writes uint8 [H, W, 3] or [H, W] as PNG.

  Raises:
    UserError: the folder cannot be written to.
  """
  with files.atomic_write(path) as temporary:
    Image.fromarray(np.asarray(image)).save(temporary, format='PNG')


def to_uint8(image: np.ndarray) -> np.ndarray:
  """Converts floats, clipped to [0, 1], to uint8; uint8 is returned as is."""
  image = np.asarray(image)
  if image.dtype == np.uint8:
    return image
  return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def tile(images: np.ndarray, columns: int,
         labels: Sequence[str] | None = None, gap: int = 2) -> np.ndarray:
  """Arranges images row by row on a white sheet, with labels below them.

  Args:
    images: [N, H, W, 3], uint8 or float in [0, 1].
    columns: images per row.
    labels: N strings, wrapped to the width of an image, or None.
    gap: pixels between images.

  Returns:
    uint8 [H', W', 3].

  Raises:
    UserError: the number of labels is not that of the images.
  """
  images = to_uint8(images)
  count, height, width, _ = images.shape
  if labels is not None and len(labels) != count:
    raise UserError(f'{count} images cannot have {len(labels)} labels; give '
                    'one label per image.')
  lines = [_wrap(label, width) for label in labels or [''] * count]
  label_height = _LINE_HEIGHT * max(map(len, lines)) if labels else 0
  rows = -(-count // columns)
  row_height = height + label_height + gap
  sheet = Image.new('RGB', (
      columns * (width + gap) - gap, rows * row_height - gap), 'white')
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=_FONT_SIZE)
  for i, image in enumerate(images):
    x, y = i % columns * (width + gap), i // columns * row_height
    sheet.paste(Image.fromarray(image), (x, y))
    for j, line in enumerate(lines[i]):
      draw.text((x + width / 2, y + height + _LINE_HEIGHT * j), line, 'black',
                font, anchor='ma')
  return np.asarray(sheet)


def _wrap(label, width):
  """Lines of a label of at most `width` pixels; longer words stay whole."""
  font, lines = ImageFont.load_default(size=_FONT_SIZE), ['']
  for word in label.split():
    extended = f'{lines[-1]} {word}'.strip()
    if lines[-1] and font.getlength(extended) > width:
      lines.append(word)
    else:
      lines[-1] = extended
  return lines
