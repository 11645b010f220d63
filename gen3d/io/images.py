"""Pictures: PNG files and labeled sheets of them."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gen3d import files
from gen3d.choices import UserError

LABEL = 16  # the height of a line of label, in pixels


def save(path, image):
  """Writes uint8 [H, W, 3] (or [H, W]) as PNG.

  Raises:
    UserError: the folder cannot be written to.
  """
  with files.atomic_write(path) as temporary:
    Image.fromarray(np.asarray(image)).save(temporary, format='PNG')


def to_uint8(image):
  """Floats in [0, 1], clipped, as uint8; uint8 stays."""
  image = np.asarray(image)
  if image.dtype == np.uint8:
    return image
  return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def tile(images, columns, labels=None, gap=2):
  """One white sheet of images, row by row, with a label under each.

  Args:
    images: [N, H, W, 3], uint8 or float in [0, 1].
    columns: images per row.
    labels: N strings or None; those that are too wide are wrapped.
    gap: pixels between images.

  Returns:
    uint8 [H', W', 3].
  """
  images = to_uint8(images)
  count, height, width, _ = images.shape
  if labels is not None and len(labels) != count:
    raise UserError(f'{count} images cannot have {len(labels)} labels.')
  lines = [_wrap(label, width) for label in labels or [''] * count]
  below = LABEL * max(map(len, lines)) if labels else 0
  rows = -(-count // columns)
  sheet = Image.new('RGB', (
      columns * (width + gap) - gap, rows * (height + below + gap) - gap),
      'white')
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
  for i, image in enumerate(images):
    x, y = i % columns * (width + gap), i // columns * (height + below + gap)
    sheet.paste(Image.fromarray(image), (x, y))
    for j, line in enumerate(lines[i]):
      draw.text((x + width / 2, y + height + LABEL * j), line, 'black', font,
                anchor='ma')
  return np.asarray(sheet)


def _wrap(label, width):
  """The label's words in lines of at most `width` pixels where they can be."""
  font, lines = ImageFont.load_default(size=12), ['']
  for word in label.split():
    longer = f'{lines[-1]} {word}'.strip()
    if lines[-1] and font.getlength(longer) > width:
      lines.append(word)
    else:
      lines[-1] = longer
  return lines
