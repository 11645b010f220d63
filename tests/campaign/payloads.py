"""Contents of files that were made to harm, and prompts, by name.

Each is a function of a random generator, which chooses sizes and depths.
"""

import json
import os
import pickle
import struct
import zlib

import ghostscript


def _png(width, height, bits=1, whole=False):
  """A PNG that declares a size; with its pixels, all black, if `whole`."""
  def chunk(kind, content):
    return (struct.pack('>I', len(content)) + kind + content
            + struct.pack('>I', zlib.crc32(kind + content)))
  row = bytes(1 + -(-width * bits // 8))
  pack = zlib.compressobj(9)
  rows = b''.join(pack.compress(row) for _ in range(height if whole else 1))
  return (b'\x89PNG\r\n\x1a\n' + chunk(
      b'IHDR', struct.pack('>IIBBBBB', width, height, bits, 0, 0, 0, 0))
      + chunk(b'IDAT', rows + pack.flush()) + chunk(b'IEND', b''))


def _bmp(width, height):
  return (b'BM' + struct.pack('<IHHI', 54, 0, 0, 54) + struct.pack(
      '<IiiHHIIiiII', 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0))


PICTURES = {
    'postscript': lambda rng: ghostscript.POSTSCRIPT,
    'postscript of DOS': lambda rng: ghostscript.DOS,
    'png bomb': lambda rng: _png(side := rng.randint(11_000, 16_000), side,
                                 whole=True),
    'png of a huge header': lambda rng: _png(
        rng.randint(10 ** 5, 2 ** 31 - 1), rng.randint(10 ** 5, 2 ** 31 - 1)),
    'png that is wide': lambda rng: _png(rng.randint(10 ** 7, 10 ** 9), 1),
    'bmp of a huge header': lambda rng: _bmp(rng.randint(10 ** 5, 2 ** 30),
                                             2 ** 20),
    'ppm of a huge header': lambda rng: b'P6 99999999 99999999 255\n',
    'gif': lambda rng: b'GIF89a' + rng.randbytes(50),
    'text of a link': lambda rng: b'push graphic-context\nfill '
                                  b"'url(https://x/|touch x)'\n"}


def _deep_key(rng):
  return b'\x80\x02})' + b'\x85' * rng.randint(131_000, 400_000) + b'Ns.'


def _program(rng):
  """A pickle that would run a program."""
  class Payload:
    def __reduce__(self):
      return os.system, (f'touch {os.environ["CAMPAIGN_MARK"]}',)
  return pickle.dumps(Payload(), rng.choice((0, 2, 4)))


def _colliding(rng):
  """80,000 integers with one hash as keys."""
  prime = 2 ** 61 - 1
  return b'\x80\x02}(' + b''.join(
      b'\x8a\x10' + (i * prime * 2 ** 3 + 1).to_bytes(16, 'little') + b'N'
      for i in range(1, 80_000)) + b'u.'


def _laughs(rng):
  """A list that doubles itself again and again."""
  content = b'\x80\x02]q\x00'
  for i in range(rng.randint(25, 40)):
    content += b'](h' + bytes([i]) + b'h' + bytes([i]) + b'eq' + bytes([i + 1])
  return content + b'.'


PICKLES = {
    'program': _program, 'deep key': _deep_key, 'colliding keys': _colliding,
    'doubling list': _laughs,
    'memo of 2^28': lambda rng: b'\x80\x02Nr' + struct.pack(
        '<I', 2 ** rng.randint(27, 31)) + b'.',
    'memo in text': lambda rng: b'\x80\x02Np268435456\n.',
    'frame': lambda rng: b'\x80\x04\x95' + b'\xff' * 7 + b'\x7f.',
    'long bytes': lambda rng: b'\x80\x03B' + b'\xff\xff\xff\x7f.',
    'deep lists': lambda rng: b'\x80\x02' + b']' * 10 ** 6 + b'a' * (
        10 ** 6 - 1) + b'.',
    'class of numpy': lambda rng: b'\x80\x02cnumpy\nload\n(\x8c\x01atR.',
    'extension': lambda rng: b'\x80\x02\x82\x01.'}


TEXTS = {
    'deep lists': lambda rng: b'[' * rng.randint(2000, 10 ** 6),
    'deep mappings': lambda rng: b'{"a":' * rng.randint(2000, 10 ** 6),
    'deep within limits': lambda rng: b'[' * 900 + b']' * 900,
    'long number': lambda rng: b'[' + b'9' * rng.randint(5000, 10 ** 6) + b']',
    'nan': lambda rng: b'NaN', 'surrogate': lambda rng: b'"\\ud800"',
    'escape': lambda rng: b'{"\\u001b]0;x\\u0007": "\\u001b[31m"}',
    'long name': lambda rng: json.dumps({'a' * 10 ** 6: 'b' * 9}).encode(),
    'many': lambda rng: json.dumps(['x'] * 10 ** 6).encode(),
    'UTF-16 of nothing': lambda rng: b'\xff\xfe'}


PROMPTS = {
    'long': lambda rng: 'a red chair ' * rng.randint(1000, 100_000),
    'escapes': lambda rng: '\x1b]0;x\x07a chair\x1b[2J' * 99,
    'no UTF-8': lambda rng: '\udcff chair' * 300,
    'empty words': lambda rng: ' ' * rng.randint(3000, 10 ** 6),
    'one word': lambda rng: 'a' * rng.randint(2001, 10 ** 5)}
