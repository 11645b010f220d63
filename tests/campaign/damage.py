"""Damages of the content of a file, drawn from a random generator."""

import json
import random
import re
import struct
from collections.abc import Callable

Damage = Callable[[random.Random, bytes], bytes]

_NUMBER = re.compile(rb'-?\d+\.?\d*(?:e[+-]?\d+)?')
_WORDS = (b'nan', b'inf', b'1e300', b'-1', b'x', b'0', b'1' * 400)
_VALUES = (None, True, -1, 0, 7, 1e300, 10 ** 12, 10 ** 400, 'x', '', [], {},
           [[]], float('nan'), '\ud800', 'a' * 100_000, '\x1b]0;x\x07', [0] * 9)


def half(rng: random.Random, content: bytes) -> bytes:
  return content[:len(content) // 2]


def cut(rng: random.Random, content: bytes) -> bytes:
  return content[:rng.randrange(len(content) + 1)]


def tail(rng: random.Random, content: bytes) -> bytes:
  return content[:-rng.randint(1, 9)]


def empty(rng: random.Random, content: bytes) -> bytes:
  return b''


def flip(rng: random.Random, content: bytes) -> bytes:
  """One bit, of those at the beginning as often as of the others."""
  if not content:
    return content
  place = rng.randrange(rng.choice((min(200, len(content)), len(content))))
  return (content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)])
          + content[place + 1:])


def zeros(rng: random.Random, content: bytes) -> bytes:
  start = rng.randrange(len(content) + 1)
  return content[:start] + bytes(len(content) - start)


def noise(rng: random.Random, content: bytes) -> bytes:
  return rng.randbytes(len(content))


def longer(rng: random.Random, content: bytes) -> bytes:
  return content + rng.choice((b'\0', b'x' * 100, content))


def not_utf8(rng: random.Random, content: bytes) -> bytes:
  place = rng.randrange(len(content) + 1)
  return content[:place] + b'\xff\xfe' + content[place:]


def page(rng: random.Random, content: bytes) -> bytes:
  return b'<!DOCTYPE html><html><body>404</body></html>'


def pointer(rng: random.Random, content: bytes) -> bytes:
  return (b'version https://git-lfs.github.com/spec/v1\noid sha256:'
          + b'0' * 64 + b'\nsize 12345\n')


def number(rng: random.Random, content: bytes) -> bytes:
  """Another word for one of the numbers of a text."""
  found = list(_NUMBER.finditer(content))
  if not found:
    return content
  place = rng.choice(found)
  return content[:place.start()] + rng.choice(_WORDS) + content[place.end():]


def json_value(rng: random.Random, content: bytes) -> bytes:
  """Another value at one place of a JSON text."""
  try:
    tree = json.loads(content)
  except ValueError:
    return content
  places = [(None, None), *_places(tree)]
  node, key = rng.choice(places)
  value = rng.choice(_VALUES)
  if node is None:
    return json.dumps(value).encode()
  if rng.random() < 0.2:
    del node[key]
  else:
    node[key] = value
  return json.dumps(tree).encode()


def _places(node):
  """All (container, key) of nested lists and dicts."""
  keys = (node if isinstance(node, dict) else
          range(len(node)) if isinstance(node, list) else ())
  for key in keys:
    yield node, key
    yield from _places(node[key])


def json_deep(rng: random.Random, content: bytes) -> bytes:
  """The text within many lists or mappings."""
  depth = rng.choice((100, 2000, 200_000))
  if rng.random() < 0.5:
    return b'[' * depth + content + b']' * depth
  return b'{"a":' * depth + content + b'}' * depth


def header(rng: random.Random, content: bytes) -> bytes:
  """Another value in the header of a safetensors file, whose length fits."""
  length = struct.unpack('<Q', content[:8])[0]
  text = json_value(rng, content[8:8 + length])
  return struct.pack('<Q', len(text)) + text + content[8 + length:]


_ANY = (half, cut, tail, empty, flip, flip, flip, zeros, noise, longer, page,
        pointer)
_TEXTS = (*_ANY, not_utf8, number, number)
_JSON = (*_TEXTS, *[json_value] * 8, json_deep)


def damages(name: str) -> tuple[Damage, ...]:
  """The damages that fit a file of this name."""
  if name.endswith(('.json', '.jsonl', 'metadata', 'METADATA')):
    return _JSON
  if name.endswith(('.txt', '.obj', '.mtl')):
    return _TEXTS
  if name.endswith('.safetensors'):
    return (*_ANY, *[header] * 4)
  return _ANY
