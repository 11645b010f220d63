"""8-bit pixels of image files of every mode, and names of other files."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from gen3d import files
from gen3d.choices import UserError

# (offset, first bytes, what the file is, remedy) of files that are mistaken
# for images that can be read.
_CONVERT = 'convert it to PNG or JPEG'
_KINDS = (
    (4, b'ftyphe', 'a HEIC photograph', _CONVERT),
    (4, b'ftypmif1', 'a HEIC photograph', _CONVERT),
    (4, b'ftypmsf1', 'a HEIC photograph', _CONVERT),
    (4, b'ftypavi', 'an AVIF picture', _CONVERT),
    (4, b'ftyp', 'a film or a camera\'s own format', _CONVERT),
    (4, b'JXL ', 'a JPEG XL picture', _CONVERT),
    (0, b'\xff\x0a', 'a JPEG XL picture', _CONVERT),
    (4, b'jP  ', 'a JPEG 2000 picture', _CONVERT),
    (0, b'GIF8', 'a GIF', _CONVERT),
    (0, b'v/1\x01', 'an OpenEXR picture', _CONVERT),
    (0, b'8BPS', 'a Photoshop file', _CONVERT),
    (0, b'%PDF', 'a PDF', _CONVERT),
    (0, b'%!PS', 'a PostScript file', _CONVERT),
    (0, b'\x00\x05\x16\x07', 'a file that macOS puts beside others',
     'remove it'),
    (0, b'version https://git-lfs', 'a pointer of Git LFS',
     'get the file itself by `git lfs pull`'),
    (0, b'<!DOCTYPE', 'a web page', 'download it again'),
    (0, b'<html', 'a web page', 'download it again'))
_CHUNK = struct.Struct('>I4s').unpack_from  # of a PNG: length and kind
_SUM = struct.Struct('>I').unpack_from
HEAD = 32  # first bytes of a file that `unreadable` needs


def unreadable(name: str, head: bytes, error: Exception) -> UserError:
  """The error for a file that cannot be read as an image.

  Args:
    name: of the file.
    head: its first HEAD bytes.
    error: what reading it raised.
  """
  message = f'{name} cannot be read as an image'
  if isinstance(error, UserError):
    return UserError(f'{message}: {error}.')
  if not head:
    return UserError(f'{message}: it is empty; get it again or remove it.')
  for offset, start, kind, remedy in _KINDS:
    if head[offset:].startswith(start):
      return UserError(f'{message}: it is {kind}; {remedy}.')
  return UserError(f'{message}; get it again or remove it.')


def open_checked(content: bytes) -> Image.Image:
  """Opens the content of an image file, whose checksums are verified.

  Only PNG has some, and decoding ignores them. Errors as files.open_image.

  Raises:
    ValueError: the content is damaged or cut off.
  """
  image = files.open_image(io.BytesIO(content))
  if image.format == 'PNG':
    _verify_png(memoryview(content))
  return image


def _verify_png(content: memoryview) -> None:
  """Verifies each chunk: its length, kind, data and CRC-32."""
  kind, at = b'', 8
  try:
    while kind != b'IEND':
      length, kind = _CHUNK(content, at)
      end = at + 8 + length
      if (zlib.crc32(content[at + 4:end]),) != _SUM(content, end):
        raise ValueError('it is damaged')
      at = end + 4
  except struct.error as error:
    raise ValueError('it is cut off') from error


def to_rgba(image: Image.Image) -> np.ndarray:
  """The pixels of an image of any mode: uint8 [H, W, 4], straight alpha.

  16-bit grays are divided by 257; floats in [0, 1] are multiplied by 255.

  Raises:
    UserError: it has more than 16 bits, or floats beyond [0, 1]; the message
      completes a sentence about the file. Pillow's errors remain as they are.
  """
  return np.asarray(_to_8_bits(image).convert('RGBA'))


def to_rgb(image: Image.Image, background: str = 'white') -> Image.Image:
  """An image of any mode as RGB, over a background where it is transparent.

  Args:
    image: see `to_rgba`, of which the errors are.
    background: Pillow's name of a color.
  """
  if image.mode == 'RGB' and 'transparency' not in image.info:
    image.load()
    return image  # convert() would copy it.
  image = _to_8_bits(image)
  if image.has_transparency_data:
    image = Image.alpha_composite(
        Image.new('RGBA', image.size, background), image.convert('RGBA'))
  return image.convert('RGB')


def _to_8_bits(image: Image.Image) -> Image.Image:
  """The image, as 8-bit gray where its grays have more bits."""
  if image.mode.startswith('I'):  # Pillow would clip 16 bits at 255.
    gray, white = np.asarray(image), 65535
    if gray.min() < 0 or gray.max() > white:
      raise UserError('it has more than 16 bits; save it with 8 or 16')
  elif image.mode == 'F':
    gray, white = np.asarray(image), 1
    if not (gray.min() >= 0 and gray.max() <= white):  # or NaN
      raise UserError(
          f'its floats are from {gray.min():.3g} to {gray.max():.3g} instead '
          'of from 0 to 1; save it with 8 or 16 bits')
  else:
    return image
  return Image.fromarray(np.round(gray * (255 / white)).astype(np.uint8))
