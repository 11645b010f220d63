"""Opening image files, in a fixed list of formats.

Every package may import this module; it imports none.
"""

import os
from typing import BinaryIO

from PIL import Image

# Pillow tries every format that it knows where none are named, whatever the
# file's suffix says; for PostScript it starts Ghostscript.
IMAGE_FORMATS = ('PNG', 'JPEG', 'WEBP', 'TIFF', 'BMP')


def open_image(file: str | os.PathLike | BinaryIO) -> Image.Image:
  """Opens an image file of one of IMAGE_FORMATS; its pixels are read later.

  Args:
    file: path, or binary file that can seek.

  Returns:
    PIL's image, to be closed or used as a context manager.

  Raises:
    OSError: the file cannot be opened, or (PIL.UnidentifiedImageError, a kind
      of OSError) its content is of no such format. Pillow's other errors
      remain as they are.
  """
  return Image.open(file, formats=IMAGE_FORMATS)
