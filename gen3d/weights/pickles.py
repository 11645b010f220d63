"""Official network pickles (StyleGAN2-ADA, StyleGAN3, EG3D) as plain data.

Such a file is a program: unpickled as usual it imports PyTorch and runs the
source text that it carries. Here every name that it may refer to stands for a
harmless constructor of ours, anything else is refused, and the source text is
never looked at. No PyTorch is needed.
"""

import collections
import io
import math
import pathlib
import pickle
import re
from typing import Any, NamedTuple

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
# Classes that are pickled by name: what they do is written anew in
# models/eg3d.py, what they hold is kept.
_CLASSES = {
    'torch.nn.modules.activation': ('Softplus', 'ReLU', 'LeakyReLU'),
    'torch.nn.modules.container': ('Sequential', 'ModuleList', 'ModuleDict'),
    'torch.nn.modules.linear': ('Linear', 'Identity'),
    'training.triplane': ('OSGDecoder', 'TriPlaneGenerator'),
    'training.volumetric_rendering.renderer': ('ImportanceRenderer',),
    'training.volumetric_rendering.ray_marcher': ('MipRayMarcher2',),
    'training.volumetric_rendering.ray_sampler': ('RaySampler',),
}


# What unpickling raises where a file is not what it should be.
DAMAGE = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError,
          ImportError, LookupError, MemoryError, RecursionError, TypeError,
          ValueError)


class PickleError(UserError):
  """A file that is no official network pickle, or that tries more."""


class Module:
  """What a pickle says of one object: its class's name and its state."""

  def __init__(self, class_name, state=None):
    self.class_name = class_name
    self.state = {} if state is None else state

  def __getitem__(self, name):
    return self.state[name]

  def get(self, name, default=None):
    """The attribute of that name, which may also be a keyword of its init.

    stylegan2-ada-pytorch keeps the keywords of a generator's synthesis
    network apart, its successors do not.
    """
    keywords = self.state.get('_init_kwargs', {})
    for known in (self.state, keywords, keywords.get('synthesis_kwargs', {})):
      if name in known:
        return known[name]
    return default

  def child(self, name):
    """The submodule of that name, or None."""
    return self.state.get('_modules', {}).get(name)


class Networks(NamedTuple):
  """The networks of a pickle; each a Module or None."""
  generator: Any      # G_ema
  generator_raw: Any  # G
  discriminator: Any  # D


def load(path):
  """Reads an official network pickle.

  Args:
    path: file whose name usually ends in .pkl.

  Returns:
    Networks.

  Raises:
    PickleError: the file is none, is cut off, or refers to anything beyond
      what networks need; nothing in it has run.
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
    raise PickleError(f'{path} holds no network G_ema; give the pickle of a '
                      'StyleGAN2 or EG3D training.')
  return Networks(*(content.get(name) if isinstance(content.get(name), Module)
                    else None for name in ('G_ema', 'G', 'D')))


def tensors(module, prefix=''):
  """{dotted name: array} of a Module, as PyTorch's state_dict names them."""
  hidden = module.state.get('_non_persistent_buffers_set', ())
  found = {}
  for kind in ('_parameters', '_buffers'):
    for name, value in module.state.get(kind, {}).items():
      if value is not None and name not in hidden:
        found[prefix + name] = value
  for name, child in module.state.get('_modules', {}).items():
    if isinstance(child, Module):
      found |= tensors(child, f'{prefix}{name}.')
  return found


class Storage(NamedTuple):
  """The kind of a storage, as its class is named."""
  dtype: Any


class Unpickler(pickle.Unpickler):
  """Knows the names that official networks use, and none besides.

  What stands for a name is made anew for each file, so that no file can
  change what another one meets.
  """

  def __init__(self, file):
    super().__init__(file)
    scalar, array = _numpy_scalar, type('Array', (_Array,), {})
    self._known = {
        ('collections', 'OrderedDict'): collections.OrderedDict,
        ('builtins', 'set'): set,
        ('__builtin__', 'set'): set,
        ('dnnlib.util', 'EasyDict'): type('EasyDict', (dict,), {
            '__setstate__': lambda self, state: self.update(state)}),
        ('_codecs', 'encode'): lambda text, encoding: text.encode('latin1'),
        ('numpy', 'dtype'): lambda code, *rest: _Number(code),
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
      self._known[core, 'scalar'] = lambda *args: scalar(*args)
      self._known[core, '_reconstruct'] = lambda *args: _started_array(
          array, *args)
    for name, dtype in _STORAGES.items():
      self._known['torch', name] = Storage(dtype)

  def find_class(self, module, name):
    if (module, name) in self._known:
      return self._known[module, name]
    if name in _CLASSES.get(module, ()):
      return _stand_in(name)
    raise PickleError(
        f'the pickle refers to {module}.{name}, which no weights '
        'need; it is refused, and nothing in it was run.')

  def persistent_load(self, pid):
    raise PickleError('it is not an official network pickle, for it refers '
                      'to data outside of itself.')


class _StorageUnpickler(Unpickler):
  """Reads the parts of a legacy PyTorch file that holds one storage."""

  def persistent_load(self, pid):
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == 'storage'
            and isinstance(pid[1], Storage)):
      raise PickleError('a storage is not described as PyTorch does.')
    return pid[1], pid[2], pid[4]


def _load_storage(content):
  """Array [n] of the bytes that torch.save(storage) wrote before 1.6."""
  file = io.BytesIO(content)
  read = lambda: _StorageUnpickler(file).load()
  if read() != LEGACY_MAGIC:
    raise PickleError('a tensor is not in the format of official networks.')
  read(), read()  # protocol, machine
  (kind, key, count), keys = read(), read()
  if keys != [key] or not isinstance(kind, Storage):
    raise PickleError('a tensor is spread over several storages.')
  stored = int(np.frombuffer(file.read(8), '<i8')[0])
  data = np.frombuffer(file.read(), kind.dtype)
  if stored != count or len(data) < count:
    raise PickleError('a tensor is cut off.')
  return data[:count]


def _rebuild_tensor(storage, offset, size, stride):
  if not (isinstance(storage, np.ndarray) and storage.ndim == 1
          and storage.flags.c_contiguous):
    raise PickleError('a tensor is not of a storage.')
  last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  # Repeated values, as of a stride of 0, are no weights, and a few bytes
  # could ask for any memory.
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


def _persistent(meta):
  """A Module from the record that official code would rebuild and run."""
  return Module(meta['class_name'], dict(meta['state']))


def _stand_in(name):
  """A class that takes any state and does nothing."""

  def begin(self, *args, **kwargs):
    del args, kwargs
    Module.__init__(self, name)

  return type(name, (Module,), {
      '__init__': begin,
      '__new__': lambda cls, *args, **kwargs: _started(cls, name),
      '__setstate__': lambda self, state: self.state.update(state)})


def _started(cls, name):
  module = object.__new__(cls)
  Module.__init__(module, name)
  return module


# Stands for the class numpy.ndarray, whose constructor a file must not call:
# it takes any bytes for Python objects.
_ARRAY = object()


class _Number:
  """The type of numbers in a NumPy array or scalar, as pickles tell it.

  A NumPy dtype takes flags and fields from a file, by which bytes become
  pointers; of this one a file can say the byte order only.
  """

  def __init__(self, code):
    if not (isinstance(code, str) and re.fullmatch(r'[biufc]\d{1,2}', code)):
      raise PickleError(f'numbers are of the type {code!r}, which no weights '
                        'have.')
    self.dtype = np.dtype(code)

  def __setstate__(self, state):
    if state[1] not in ('<', '>', '|', '='):
      raise PickleError(f'numbers have the byte order {state[1]!r}.')
    self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
  """An array whose content a file may set, as far as it is plain numbers."""

  def __setstate__(self, state):
    _, shape, number, fortran, content = state
    if not (isinstance(number, _Number) and isinstance(content, bytes)
            and min(shape, default=0) >= 0
            and math.prod(shape) * number.dtype.itemsize == len(content)):
      raise PickleError('an array is not of plain numbers, or is cut off.')
    super().__setstate__((1, shape, number.dtype, bool(fortran), content))


def _started_array(kind, of, *rest):
  del rest
  if of is not _ARRAY:
    raise PickleError('an array is not a NumPy array.')
  return np.ndarray.__new__(kind, (0,), 'b')


def _numpy_scalar(number, content):
  if not isinstance(number, _Number):
    raise PickleError('a number is a Python object.')
  return np.frombuffer(content, number.dtype, 1)[0]
