"""Values in a pickle, checked before they are used: keys, shapes, arrays."""

import math
import re
from typing import Any

import numpy as np

from gen3d.choices import UserError, excerpt

_MAX_AXES = 32


class PickleError(UserError):
  """The file is no official network pickle, or refers to other code."""


def array_or_none(value: Any) -> np.ndarray | None:
  """The value, which must be an array, or None as by torch_files.py."""
  if not isinstance(value, np.ndarray | None):
    raise PickleError(f'a tensor is {excerpt(value)}.')
  return value


def mapping(value: Any) -> dict[Any, Any]:
  """The value, which must be a dict."""
  if not isinstance(value, dict):
    raise PickleError(f'a mapping is {excerpt(value)}.')
  return value


def key(value: Any) -> Any:
  """The value, which must be a number or a text; see pickle_scan."""
  if not isinstance(value, str | bytes | int | float | None) or (
      isinstance(value, int) and value.bit_length() > 64):
    raise PickleError('a key is neither a number nor a text.')
  return value


def integer(value: Any) -> int:
  """The value, which must be an integer of 64 bits."""
  if not isinstance(value, int) or value.bit_length() > 63:
    raise PickleError(f'an integer is {excerpt(value)}.')
  return value


def sizes(values: Any) -> tuple[int, ...]:
  """The values, which must be integers of the axes of an array."""
  if not isinstance(values, list | tuple) or len(values) > _MAX_AXES:
    raise PickleError(f'a shape is {excerpt(values)}.')
  return tuple(map(integer, values))


def view_of(storage: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
  """The part of a storage [n] that a tensor refers to, as an array."""
  offset, size, stride = integer(offset), sizes(size), sizes(stride)
  if not (isinstance(storage, np.ndarray) and storage.ndim == 1
          and storage.flags.c_contiguous):
    raise PickleError('the storage of a tensor is not an array.')
  last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  # A stride of 0 repeats values: no weights do, and a file of a few bytes
  # could allocate any amount of memory.
  if math.prod(size) > len(storage) or min(size, default=0) < 0:
    raise PickleError('a tensor has more numbers than its storage.')
  if math.prod(size) and not (
      0 <= offset <= last < len(storage) and min(stride, default=0) >= 0):
    raise PickleError('a tensor reaches beyond its storage.')
  if not math.prod(size):
    return np.zeros(size, storage.dtype)
  step = storage.dtype.itemsize
  return np.lib.stride_tricks.as_strided(
      storage[offset:], size, [s * step for s in stride])


# Stands for the class numpy.ndarray. A file must not call its constructor,
# which can interpret any bytes as Python objects.
NDARRAY = object()


class NumberType:
  """The dtype of a NumPy array or scalar in a pickle.

  np.dtype accepts flags and fields from a file, with which bytes become
  pointers. Of this class a file can set only the byte order.
  """

  def __init__(self, code: Any) -> None:
    if not (isinstance(code, str) and re.fullmatch(r'[biufc]\d{1,2}', code)):
      raise PickleError(f'numbers are of the type {excerpt(code)}, which no '
                        'weights have.')
    self.dtype = np.dtype(code)

  def __setstate__(self, state: Any) -> None:
    if state[1] not in ('<', '>', '|', '='):
      raise PickleError(
          f'numbers have the byte order {excerpt(state[1])}.')
    self.dtype = self.dtype.newbyteorder(state[1])


class Array(np.ndarray):
  """An array whose content a file may set if it consists of plain numbers.

  Of a subclass for each file, whose _spend counts the bytes.
  """

  def _spend(self, count: int) -> None:
    raise NotImplementedError

  def __setstate__(self, state: Any) -> None:
    _, shape, number, fortran, content = state
    shape = sizes(shape)
    if not (isinstance(number, NumberType) and isinstance(content, bytes)
            and min(shape, default=0) >= 0
            and math.prod(shape) * number.dtype.itemsize == len(content)):
      raise PickleError('an array is not of plain numbers, or is cut off.')
    self._spend(len(content))
    # The stubs of NumPy require its own bool; its pickles have Python's.
    array = (1, shape, number.dtype, bool(fortran), content)
    super().__setstate__(array)  # pyrefly: ignore[bad-argument-type]


def new_array(kind: type, ndarray: Any, *rest: Any) -> np.ndarray:
  """An empty array, whose content __setstate__ sets."""
  del rest
  if ndarray is not NDARRAY:
    raise PickleError('an array is not a NumPy array.')
  return np.ndarray.__new__(kind, (0,), 'b')


def number(kind: Any, content: Any) -> Any:
  """The NumPy scalar of a NumberType in these bytes."""
  if not isinstance(kind, NumberType) or not isinstance(content, bytes):
    raise PickleError('a number is a Python object.')
  return np.frombuffer(content, kind.dtype, 1)[0]
