"""Official network pickles (StyleGAN2-ADA, StyleGAN3, EG3D) as plain data.

Such a file is a program: an ordinary unpickler imports PyTorch and runs the
source text that the file contains. The unpickler here maps each allowed name to
a harmless constructor of this module, refuses all others, and ignores the
source text. PyTorch is not needed.

What a file can take is bounded: weights/pickle_scan.py reads it first, and the
constructors copy at most a multiple of its size.
"""

import contextlib
import io
import os
import pathlib
import pickle
from collections.abc import Generator
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from gen3d import files
from gen3d.choices import UserError, excerpt
from gen3d.weights import pickle_scan
from gen3d.weights import pickle_values as values
from gen3d.weights.pickle_values import PickleError

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
# Bytes that a file's constructors may copy: a multiple of its size, since
# tensors are copied out of storages that they share, and a constant.
_COPIES, _COPIED_BYTES = 8, 2 ** 24
_STORAGE_COST = 4096  # bytes, as which the reading of one storage is counted
_MAX_CLASSES, _MAX_MODULES, _MAX_NESTED = 1000, 20_000, 64

# Errors that unpickling raises on a damaged file.
DAMAGE = (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError,
          ImportError, LookupError, MemoryError, RecursionError, TypeError,
          ValueError)


class Module:
  """One object of a pickle: the name of its class and its state."""

  def __init__(self, class_name: str, state: Any = None) -> None:
    self.class_name = class_name
    self.state = {} if state is None else state

  def __setstate__(self, state: Any) -> None:
    self.state.update(values.mapping(state))

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
    UserError: the path is of a pipe or a device.
    OSError: the file cannot be read.
  """
  path = pathlib.Path(path).expanduser()
  files.check_regular(path)
  try:
    with path.open('rb') as file:
      content = Unpickler(file).load()
  except PickleError as error:
    raise PickleError(f'{path}: {error}') from None
  except DAMAGE as error:
    with path.open('rb') as file:
      if file.read(64).lstrip().startswith(b'<'):
        raise PickleError(f'{path} is a web page and no network; download the '
                          'file itself.') from error
    raise PickleError(
        f'{path} is not an official network pickle, or is cut off or damaged '
        f'({excerpt(error)}); get it again.') from error
  if not isinstance(content, dict) or not isinstance(
      content.get('G_ema'), Module):
    raise PickleError(f'{path} contains no network G_ema; give the pickle of a '
                      'StyleGAN2 or EG3D training.')
  check_modules(path, content['G_ema'])
  return content['G_ema']


@contextlib.contextmanager
def reported_damage(path: str | os.PathLike) -> Generator[None]:
  """Turns the errors of a file whose values make no network into one sentence.

  Raises:
    PickleError: names the file.
  """
  try:
    yield
  except UserError:
    raise
  except DAMAGE as error:
    raise PickleError(f'{path} has settings or tensors that make no network '
                      f'({excerpt(error)}); get it again.') from error


def check_modules(path: str | os.PathLike, module: Module) -> None:
  """Checks that a Module and all below it are built as PyTorch's.

  Args:
    path: of the file, for messages.
    module: Module.

  Raises:
    PickleError: names or the dicts of parts are of another type, an array is
      something else, or modules are nested without end or too many.
  """
  try:
    _check_levels(module)
  except PickleError as error:
    raise PickleError(f'{path}: {error}') from None


def _check_levels(module):
  """Checks the modules of each depth; see `check_modules`."""
  level = [module]
  count = 0
  for _ in range(_MAX_NESTED):
    children = []
    for node in level:
      state = node.state
      keywords = values.mapping(state.get('_init_kwargs', {}))
      values.mapping(keywords.get('synthesis_kwargs', {}))
      parts = {kind: values.mapping(state.get(kind, {}))
               for kind in ('_modules', '_parameters', '_buffers')}
      arrays = [*parts['_parameters'].values(), *parts['_buffers'].values()]
      if not isinstance(node.class_name, str) or not all(
          x is None or isinstance(x, np.ndarray) for x in arrays):
        raise PickleError('a module has a name or tensors of another type.')
      if not isinstance(state.get('_non_persistent_buffers_set', ()),
                        set | frozenset | list | tuple):
        raise PickleError('a module has no list of its buffers.')
      children += [x for x in parts['_modules'].values()
                   if isinstance(x, Module)]
      count += 1 + len(arrays)
    if count + len(children) > _MAX_MODULES:
      raise PickleError(f'it has more than {_MAX_MODULES:,} modules or '
                        'tensors.')
    if not children:
      return
    level = children
  raise PickleError(f'its modules are nested deeper than {_MAX_NESTED}.')


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

  def __init__(self, file: IO[bytes], size: int | None = None) -> None:
    """Starts to read a pickle.

    Args:
      file: at the start of the pickle; it can seek.
      size: bytes of all data of the pickle; None for those of the file.
    """
    super().__init__(file)
    self._file = file
    if size is None:
      start = file.tell()
      size = file.seek(0, os.SEEK_END)
      file.seek(start)
    self._left = _COPIES * size + _COPIED_BYTES
    self._stand_ins = {}
    array = type('Array', (values.Array,), {
        '_spend': lambda _, count: self._spend(count)})
    self._allowed = {
        ('collections', 'OrderedDict'): self._ordered_dict,
        ('builtins', 'set'): self._set,
        ('__builtin__', 'set'): self._set,
        ('dnnlib.util', 'EasyDict'): type('EasyDict', (dict,), {
            '__init__': lambda self: None,
            '__setstate__': lambda self, state: self.update(
                values.mapping(state))}),
        ('_codecs', 'encode'): self._encode,
        ('numpy', 'dtype'): lambda code, *rest: values.NumberType(code),
        ('numpy', 'ndarray'): values.NDARRAY,
        ('torch', 'device'): lambda *name: name,
        ('torch', 'Size'): lambda sizes=(): values.sizes(sizes),
        ('torch._utils', '_rebuild_tensor_v2'): self._rebuild_tensor,
        ('torch._utils', '_rebuild_parameter'):
            lambda data, *rest: values.array_or_none(data),
        ('torch.storage', '_load_from_bytes'): self._load_storage,
        ('torch_utils.persistence', '_reconstruct_persistent_obj'):
            self._persistent,
    }
    for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):
      self._allowed[core, 'scalar'] = lambda *args: values.number(*args)
      self._allowed[core, '_reconstruct'] = lambda *args: values.new_array(
          array, *args)
    for name, dtype in _STORAGES.items():
      self._allowed['torch', name] = Storage(dtype)

  def load(self) -> Any:
    """The content, of a pickle within the bounds of pickle_scan."""
    pickle_scan.check(self._file)
    return super().load()

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in self._allowed:
      return self._allowed[module, name]
    if name in _CLASSES.get(module, ()):
      return self._stand_in(name)
    if module.startswith('dnnlib.tflib'):
      raise PickleError(
          'it is a network of TensorFlow (StyleGAN2 and before), of which '
          'nothing was run; convert it by legacy.py of stylegan2-ada-pytorch '
          '(python legacy.py --source=IN.pkl --dest=OUT.pkl).')
    raise _unknown(module, name)

  def persistent_load(self, pid: Any) -> Any:
    raise PickleError('it is not an official network pickle, because it '
                      'refers to data outside of itself.')

  def _stand_in(self, name: str) -> type:
    """The class that stands for one of a name, the same within a file."""
    if name not in self._stand_ins:
      if len(self._stand_ins) >= _MAX_CLASSES:
        raise PickleError(f'it refers to more than {_MAX_CLASSES:,} classes.')
      self._stand_ins[name] = stand_in(name)
    return self._stand_ins[name]

  def _spend(self, count: int) -> None:
    """Counts bytes that are copied; raises PickleError beyond the bound."""
    self._left -= count
    if self._left < 0:
      raise PickleError('it would take far more memory than its size.')

  def _ordered_dict(self, items: Any = ()) -> dict[Any, Any]:
    """A dict, which is ordered, for an OrderedDict of a file's items."""
    self._spend(100 * len(items))
    content = _KeyedDict()
    pairs = items.items() if isinstance(items, dict) else items
    for key, value in pairs:
      content[values.key(key)] = value
    return content

  def _set(self, items: Any = ()) -> set[Any]:
    self._spend(100 * len(items))
    return set(map(values.key, items))

  def _encode(self, text: Any, encoding: Any) -> bytes:
    """Bytes, which protocol 2 has as a text of Latin-1."""
    del encoding
    if not isinstance(text, str):
      raise PickleError('a text is something else.')
    self._spend(len(text))
    return text.encode('latin1')

  def _persistent(self, meta: dict[str, Any]) -> Module:
    """A Module from the record that official code rebuilds and runs."""
    state = values.mapping(values.mapping(meta)['state'])
    self._spend(100 * len(state))
    return Module(meta['class_name'], dict(state))

  def _load_storage(self, content: bytes) -> np.ndarray:
    """Array [n] from the bytes of torch.save(storage) before PyTorch 1.6."""
    if not isinstance(content, bytes):
      raise PickleError('a storage is something else than bytes.')
    self._spend(_STORAGE_COST + 2 * len(content))
    return _load_storage(content)

  def _rebuild_tensor(self, *args: Any) -> np.ndarray:
    """A copy of the part of a storage that a tensor refers to."""
    tensor = values.view_of(*args[:4])
    self._spend(tensor.nbytes)
    return tensor.copy()


def _unknown(module: str, name: str) -> PickleError:
  """The error of a name that no weights need."""
  return PickleError(
      f'the pickle refers to {excerpt(f"{module}.{name}")[1:-1]}, which no '
      'weights need; it is refused, and nothing in it was run.')


class _KeyedDict(dict):
  """A dict that ignores the attributes which a file gives it."""

  def __setstate__(self, state: Any) -> None:
    del state


class _StorageUnpickler(pickle.Unpickler):
  """Reads the pickles in a legacy PyTorch file of one storage.

  A network has hundreds of such files, so that nothing is made for each.
  """

  def find_class(self, module: str, name: str) -> Any:
    if module != 'torch' or name not in _STORAGES:
      raise _unknown(module, name)
    return Storage(_STORAGES[name])

  def persistent_load(self, pid: Any) -> Any:
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == 'storage'
            and isinstance(pid[1], Storage)):
      raise PickleError('a storage is not described as PyTorch does.')
    return pid[1], pid[2], pid[4]


def _load_storage(content: bytes) -> np.ndarray:
  """Array [n] from the bytes of torch.save(storage) before PyTorch 1.6."""
  file = io.BytesIO(content)

  def read() -> Any:
    pickle_scan.check(file)
    return _StorageUnpickler(file).load()

  if read() != LEGACY_MAGIC:
    raise PickleError('a tensor is not in the format of official networks.')
  read(), read()  # protocol, machine
  (kind, key, count), keys = read(), read()
  # Types first: two lists may take forever to compare.
  if not (isinstance(key, str) and isinstance(keys, list) and len(keys) == 1
          and isinstance(keys[0], str) and keys[0] == key
          and isinstance(kind, Storage) and values.integer(count) >= 0):
    raise PickleError('a tensor has several storages.')
  stored = int(np.frombuffer(file.read(8), '<i8')[0])
  # A view of the content, not of a copy.
  rest, start = len(content) - file.tell(), file.tell()
  data = np.frombuffer(
      content, kind.dtype, rest // np.dtype(kind.dtype).itemsize, start)
  if stored != count or len(data) < count:
    raise PickleError('a tensor is cut off.')
  return data[:count]


def stand_in(name: str) -> type:
  """A class that takes any state and does nothing."""

  def init(self: Any, *args: Any, **kwargs: Any) -> None:
    del args, kwargs
    Module.__init__(self, name)

  return type(name, (Module,), {
      '__init__': init,
      '__new__': lambda cls, *args, **kwargs: _new_module(cls, name)})


def _new_module(cls: type, name: str) -> Any:
  """Unpickling calls __new__ and not __init__."""
  module = object.__new__(cls)
  Module.__init__(module, name)
  return module
