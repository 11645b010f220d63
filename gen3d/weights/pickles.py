"""Official network pickles (StyleGAN2-ADA, StyleGAN3, EG3D) as plain data.

Such a file is a program: an ordinary unpickler imports PyTorch and runs the
source text that the file contains. The unpickler here maps each allowed name to
a harmless constructor of this module, refuses all others, and ignores the
source text. PyTorch is not needed.
"""

import collections
import io
import math
import os
import pathlib
import pickle
import re
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from gen3d.choices import UserError

LEGACY_MAGIC = 0x1950a86a20f9469cfc6c
_STORAGES = {
    'FloatStorage': '<f4', 'HalfStorage': '<f2', 'DoubleStorage': '<f8',
    'LongStorage': '<i8', 'IntStorage': '<i4', 'ShortStorage': '<i2',
    'CharStorage': 'i1', 'ByteStorage': 'u1', 'BoolStorage': '?',
    'BFloat16Storage': ml_dtypes.bfloat16,
}
# Classes that are pickled by name. Only their state is read; models/eg3d.py
# implements what they compute.
_CLASSES = {
    'torch.nn.modules.activation': ('Softplus', 'ReLU', 'LeakyReLU'),
    'torch.nn.modules.container': ('Sequential', 'ModuleList', 'ModuleDict'),
    'torch.nn.modules.linear': ('Linear', 'Identity'),
    'training.triplane': ('OSGDecoder', 'TriPlaneGenerator'),
    'training.volumetric_rendering.renderer': ('ImportanceRenderer',),
    'training.volumetric_rendering.ray_marcher': ('MipRayMarcher2',),
    'training.volumetric_rendering.ray_sampler': ('RaySampler',),
}


# Errors that unpickling raises on a damaged file.
DAMAGE = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError,
          ImportError, LookupError, MemoryError, RecursionError, TypeError,
          ValueError)


class PickleError(UserError):
  """The file is no official network pickle, or refers to other code."""


class Module:
  """One object of a pickle: the name of its class and its state."""

  def __init__(self, class_name: str, state: Any = None) -> None:
    self.class_name = class_name
    self.state = {} if state is None else state

  def __getitem__(self, name: str) -> Any:
    return self.state[name]

  def get(self, name: str, default: Any = None) -> Any:
    """The attribute of that name, or the keyword argument of its __init__.

    stylegan2-ada-pytorch has the arguments of the synthesis network in a dict
    of their own, its successors have not.
    """
    keywords = self.state.get('_init_kwargs', {})
    for scope in (self.state, keywords, keywords.get('synthesis_kwargs', {})):
      if name in scope:
        return scope[name]
    return default

  def child(self, name: str) -> 'Module | None':
    """The submodule of that name, or None."""
    return self.state.get('_modules', {}).get(name)


def load(path: str | os.PathLike) -> Module:
  """The averaged generator (G_ema) of an official pickle; runs nothing in it.

  Args:
    path: file whose name usually ends in .pkl.

  Raises:
    PickleError: the file is no such pickle, is cut off, or refers to anything
      that networks do not need.
    OSError: the file cannot be read.
  """
  path = pathlib.Path(path)
  try:
    with path.open('rb') as file:
      content = Unpickler(file).load()
  except PickleError as error:
    raise PickleError(f'{path}: {error}') from None
  except DAMAGE as error:
    raise PickleError(
        f'{path} is not an official network pickle, or is cut off or damaged '
        f'({error}); get it again.') from error
  if not isinstance(content, dict) or not isinstance(
      content.get('G_ema'), Module):
    raise PickleError(f'{path} contains no network G_ema; give the pickle of a '
                      'StyleGAN2 or EG3D training.')
  return content['G_ema']


def tensors(module: Module, prefix: str = '') -> dict[str, np.ndarray]:
  """{dotted name: array} of a Module, the names as in PyTorch's state_dict."""
  excluded = module.state.get('_non_persistent_buffers_set', ())
  arrays = {}
  for kind in ('_parameters', '_buffers'):
    for name, value in module.state.get(kind, {}).items():
      if value is not None and name not in excluded:
        arrays[prefix + name] = value
  for name, child in module.state.get('_modules', {}).items():
    if isinstance(child, Module):
      arrays |= tensors(child, f'{prefix}{name}.')
  return arrays


class Storage(NamedTuple):
  """The type of a storage, from the name of its class."""
  dtype: Any


class Unpickler(pickle.Unpickler):
  """Allows the names that official networks refer to, and no others.

  Classes and functions that stand for a name are created for each file, so
  that no file can change them for the next one.
  """

  def __init__(self, file: IO[bytes]) -> None:
    super().__init__(file)
    scalar, array = _numpy_scalar, type('Array', (_Array,), {})
    self._allowed = {
        ('collections', 'OrderedDict'): collections.OrderedDict,
        ('builtins', 'set'): set,
        ('__builtin__', 'set'): set,
        ('dnnlib.util', 'EasyDict'): type('EasyDict', (dict,), {
            '__setstate__': lambda self, state: self.update(state)}),
        ('_codecs', 'encode'): lambda text, encoding: text.encode('latin1'),
        ('numpy', 'dtype'): lambda code, *rest: _NumberType(code),
        ('numpy', 'ndarray'): _ARRAY,
        ('torch', 'device'): lambda *name: name,
        ('torch', 'Size'): tuple,
        ('torch._utils', '_rebuild_tensor_v2'):
            lambda *args: _rebuild_tensor(*args[:4]),
        ('torch._utils', '_rebuild_parameter'): lambda data, *rest: data,
        ('torch.storage', '_load_from_bytes'): lambda b: _load_storage(b),
        ('torch_utils.persistence', '_reconstruct_persistent_obj'):
            _persistent,
    }
    for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):
      self._allowed[core, 'scalar'] = lambda *args: scalar(*args)
      self._allowed[core, '_reconstruct'] = lambda *args: _new_array(
          array, *args)
    for name, dtype in _STORAGES.items():
      self._allowed['torch', name] = Storage(dtype)

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in self._allowed:
      return self._allowed[module, name]
    if name in _CLASSES.get(module, ()):
      return stand_in(name)
    raise PickleError(
        f'the pickle refers to {module}.{name}, which no weights '
        'need; it is refused, and nothing in it was run.')

  def persistent_load(self, pid: Any) -> Any:
    raise PickleError('it is not an official network pickle, because it '
                      'refers to data outside of itself.')


class _StorageUnpickler(Unpickler):
  """Reads the pickles in a legacy PyTorch file of one storage."""

  def persistent_load(self, pid: Any) -> Any:
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == 'storage'
            and isinstance(pid[1], Storage)):
      raise PickleError('a storage is not described as PyTorch does.')
    return pid[1], pid[2], pid[4]


def _load_storage(content: bytes) -> np.ndarray:
  """Array [n] from the bytes of torch.save(storage) before PyTorch 1.6."""
  file = io.BytesIO(content)
  read = lambda: _StorageUnpickler(file).load()
  if read() != LEGACY_MAGIC:
    raise PickleError('a tensor is not in the format of official networks.')
  read(), read()  # protocol, machine
  (kind, key, count), keys = read(), read()
  if keys != [key] or not isinstance(kind, Storage):
    raise PickleError('a tensor has several storages.')
  stored = int(np.frombuffer(file.read(8), '<i8')[0])
  data = np.frombuffer(file.read(), kind.dtype)
  if stored != count or len(data) < count:
    raise PickleError('a tensor is cut off.')
  return data[:count]


def _rebuild_tensor(storage: Any, offset: int, size: Sequence[int],
                    stride: Sequence[int]) -> np.ndarray:
  """A copy of the part of a storage that a tensor refers to."""
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
      storage[offset:], size, [s * step for s in stride]).copy()


def _persistent(meta: dict[str, Any]) -> Module:
  """A Module from the record that official code rebuilds and runs."""
  return Module(meta['class_name'], dict(meta['state']))


def stand_in(name: str) -> type:
  """A class that takes any state and does nothing."""

  def init(self: Any, *args: Any, **kwargs: Any) -> None:
    del args, kwargs
    Module.__init__(self, name)

  return type(name, (Module,), {
      '__init__': init,
      '__new__': lambda cls, *args, **kwargs: _new_module(cls, name),
      '__setstate__': lambda self, state: self.state.update(state)})


def _new_module(cls: type, name: str) -> Any:
  """Unpickling calls __new__ and not __init__."""
  module = object.__new__(cls)
  Module.__init__(module, name)
  return module


# Stands for the class numpy.ndarray. A file must not call its constructor,
# which can interpret any bytes as Python objects.
_ARRAY = object()


class _NumberType:
  """The dtype of a NumPy array or scalar in a pickle.

  np.dtype accepts flags and fields from a file, with which bytes become
  pointers. Of this class a file can set only the byte order.
  """

  def __init__(self, code: Any) -> None:
    if not (isinstance(code, str) and re.fullmatch(r'[biufc]\d{1,2}', code)):
      raise PickleError(f'numbers are of the type {code!r}, which no weights '
                        'have.')
    self.dtype = np.dtype(code)

  def __setstate__(self, state: Any) -> None:
    if state[1] not in ('<', '>', '|', '='):
      raise PickleError(f'numbers have the byte order {state[1]!r}.')
    self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
  """An array whose content a file may set if it consists of plain numbers."""

  def __setstate__(self, state: Any) -> None:
    _, shape, number, fortran, content = state
    if not (isinstance(number, _NumberType) and isinstance(content, bytes)
            and min(shape, default=0) >= 0
            and math.prod(shape) * number.dtype.itemsize == len(content)):
      raise PickleError('an array is not of plain numbers, or is cut off.')
    # The stubs of NumPy require its own bool; its pickles have Python's.
    array = (1, shape, number.dtype, bool(fortran), content)
    super().__setstate__(array)  # pyrefly: ignore[bad-argument-type]


def _new_array(kind: type, ndarray: Any, *rest: Any) -> np.ndarray:
  """An empty array, whose content __setstate__ sets."""
  del rest
  if ndarray is not _ARRAY:
    raise PickleError('an array is not a NumPy array.')
  return np.ndarray.__new__(kind, (0,), 'b')


def _numpy_scalar(number: Any, content: bytes) -> Any:
  if not isinstance(number, _NumberType):
    raise PickleError('a number is a Python object.')
  return np.frombuffer(content, number.dtype, 1)[0]
