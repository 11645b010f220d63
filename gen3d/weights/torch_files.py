"""Files of weights as {name: array}: .safetensors, .npz and PyTorch's.

.safetensors and .npz are plain data. A PyTorch file (.pth, .pt, .bin) is a
program. It is a zip since PyTorch 1.6 and was a sequence of pickles before, in
which torchvision and LPIPS still publish; both are read by the restricted
unpickler of weights/pickles.py, so that nothing in them runs. PyTorch is not
needed.
"""

import functools
import io
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import IO, Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from gen3d import files
from gen3d.choices import UserError, excerpt
from gen3d.weights import pickles

_SUFFIXES = {'.safetensors', '.npz', '.pth', '.pt', '.bin', '.ckpt'}
# (dtype, key, count) -> array [count].
StorageReader = Callable[[np.dtype, str, int], np.ndarray | None]


def read(path: str | os.PathLike, section: str | None = None,
         packages: Sequence[str] = ()) -> dict[str, np.ndarray]:
  """The tensors of a file, {name: NumPy array}.

  Args:
    path: file ending in .safetensors, .npz, .pth, .pt or .bin; the last three
      contain a state_dict.
    section: key of the state_dict in a checkpoint that contains more, such as
      the state of an optimizer; None where the file is a state_dict.
    packages: see `read_object`.

  Raises:
    UserError: there is no such file or section, its ending is another, it is
      damaged, or it contains or refers to anything else than tensors.
  """
  return state_dict_of(path, read_object(path, packages), section)


def state_dict_of(path: str | os.PathLike, content: Any,
                  section: str | None = None) -> dict[str, np.ndarray]:
  """The tensors in what `read_object` returns; see `read`."""
  tensors = content
  if section is not None:
    if not isinstance(tensors, dict) or section not in tensors:
      raise UserError(f'{path} has no section {section!r}; give the checkpoint '
                      'as it was published.')
    tensors = tensors[section]
  if isinstance(tensors, dict):
    # Parameters that old files pickle by class are Modules, others arrays.
    tensors = {name: x.state if isinstance(x, pickles.Module) else x
               for name, x in tensors.items()}
  if not isinstance(tensors, dict) or not all(
      isinstance(name, str) and isinstance(tensor, np.ndarray)
      for name, tensor in tensors.items()):
    raise UserError(f'{path} contains something else than a state_dict of '
                    'tensors; save model.state_dict() alone.')
  return tensors


def read_object(
    path: str | os.PathLike, packages: Sequence[str] = ()) -> Any:
  """The content of a file, which may be more than a state_dict.

  Args:
    path: see `read`.
    packages: names of packages whose classes a PyTorch file may refer to.
      Their objects become pickles.Module; no code of theirs is needed or run.

  Raises:
    UserError: there is no such file, its ending is another, it is damaged, or
      it refers to other code.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix.lower() not in _SUFFIXES:
    raise UserError(f'{path} is not in a supported format; give a file whose '
                    f'name ends in one of {sorted(_SUFFIXES)}.')
  if not path.is_file():
    raise UserError(f'There is no file {path}; give the path of the weights '
                    'that you downloaded.')
  try:
    if path.suffix.lower() == '.safetensors':
      return safetensors.numpy.load_file(path)
    if path.suffix.lower() == '.npz':
      return files.read_npz(path)
    with path.open('rb') as file:
      # zipfile.is_zipfile reads the end of a file, and a zip that is cut off
      # should be reported as one.
      if file.read(2) != b'PK':
        return _legacy(file, packages)
      with zipfile.ZipFile(file) as members:
        files.check_zip(members, path)
        return _zipped(members, packages)
  except pickles.PickleError as error:
    raise pickles.PickleError(f'{path}: {error}') from None
  except UserError:
    raise
  except (*pickles.DAMAGE, safetensors.SafetensorError, zipfile.BadZipFile,
          OSError, RuntimeError) as error:
    raise UserError(f'{path} cannot be read as {path.suffix}, it is cut off '
                    f'or damaged ({excerpt(error)}); get it again.') from error


def _zipped(members: zipfile.ZipFile, packages: Sequence[str]) -> Any:
  """torch.save since 1.6: a zip of data.pkl and one member per storage."""
  names = members.namelist()
  top = [n.removesuffix('data.pkl') for n in names
         if n.count('/') == 1 and n.endswith('/data.pkl')]
  if len(top) != 1 or f'{top[0]}constants.pkl' in names:
    raise pickles.PickleError(
        'it is not a state_dict that torch.save wrote, but another zip or '
        'a TorchScript program; save the state_dict of its model.')

  @functools.cache  # Tensors may share a storage.
  def content(key: str) -> bytes:
    return members.read(f'{top[0]}data/{key}')

  def storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
    stored = members.getinfo(f'{top[0]}data/{key}').file_size
    if stored < count * dtype.itemsize:
      raise pickles.PickleError(
          f'the tensor stored as {excerpt(key)[1:-1]} is cut off.')
    return np.frombuffer(content(key), dtype)[:count]

  return _Unpickler(
      io.BytesIO(members.read(f'{top[0]}data.pkl')), storage, packages,
      sum(member.file_size for member in members.infolist())).load()


def _legacy(file: BinaryIO, packages: Sequence[str]) -> Any:
  """torch.save before 1.6: several pickles, then the bytes of the storages."""
  file.seek(0)
  # Not tarfile.is_tarfile, which unpacks compressed files.
  if file.read(262)[257:] == b'ustar':
    raise pickles.PickleError('it is in the tar format of 2016, which is not '
                              'supported; use a newer file of its network.')
  file.seek(0)
  read = lambda storage=None: _Unpickler(file, storage, packages).load()
  first = read()
  if isinstance(first, dict):  # by pickle.dump, of NumPy arrays
    return first
  if first != pickles.LEGACY_MAGIC:
    raise pickles.PickleError('torch.save did not write it.')
  read(), read()  # protocol, machine
  # The tensors come before the storages that they refer to. The first pass
  # collects the types of the storages, the second one builds the tensors.
  start, types = file.tell(), {}

  def collect(dtype: np.dtype, key: str, count: int) -> None:
    types[key] = dtype, count

  read(collect)
  keys = read()
  if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
    raise pickles.PickleError('the list of its storages is damaged.')
  begin, storages = file.tell(), {}
  content = np.memmap(file, mode='r')
  for key in keys:
    dtype, count = types[key]
    # Each storage is its length in eight bytes, then its numbers.
    end = begin + 8 + count * dtype.itemsize
    if end > len(content) or content[begin:begin + 8].view('<i8')[0] != count:
      raise pickles.PickleError(
          f'the tensor stored as {excerpt(key)[1:-1]} is cut off.')
    storages[key] = content[begin + 8:end].view(dtype)
    begin = end
  file.seek(start)
  return read(lambda dtype, key, count: storages[key])


class _Unpickler(pickles.Unpickler):
  """Allows the names that a state_dict refers to, and external storages."""

  def __init__(self, file: IO[bytes], storage: StorageReader | None,
               packages: Sequence[str], size: int | None = None) -> None:
    """Starts to read a pickle.

    Args:
      file: at the start of the pickle.
      storage: reads a storage; None if the pickle refers to none. A storage of
        None, as in the first pass of `_legacy`, gives a tensor of None.
      packages: see `read_object`.
      size: see pickles.Unpickler.
    """
    super().__init__(file, size)
    self._storage = storage
    self._packages = tuple(f'{package}.' for package in packages)
    rebuild: Any = self._allowed['torch._utils', '_rebuild_tensor_v2']
    rebuild_if = lambda data, *rest: (
        None if data is None else rebuild(data, *rest))
    self._allowed['torch._utils', '_rebuild_tensor_v2'] = rebuild_if
    # The name before PyTorch 0.4, in the VGG16 of torchvision.
    self._allowed['torch._utils', '_rebuild_tensor'] = rebuild_if
    self._allowed['torch.nn.parameter', 'Parameter'] = _parameter_class()

  def find_class(self, module: str, name: str) -> Any:
    if f'{module}.'.startswith(self._packages):
      return self._stand_in(name)
    return super().find_class(module, name)

  def persistent_load(self, pid: Any) -> np.ndarray | None:
    if not (self._storage and isinstance(pid, tuple) and len(pid) >= 5
            and pid[0] == 'storage' and isinstance(pid[1], pickles.Storage)
            and isinstance(pid[2], str) and isinstance(pid[4], int)
            and 0 <= pid[4] < 2 ** 63):
      raise pickles.PickleError('a storage is not described as PyTorch does.')
    if len(pid) > 5 and pid[5] is not None:
      raise pickles.PickleError('a storage is part of another one; save the '
                                'file again with a newer PyTorch.')
    return self._storage(np.dtype(pid[1].dtype), pid[2], pid[4])


def _parameter_class() -> type:
  """A class whose state is the tensor of a Parameter."""

  def new(cls: type, data: Any = None, *rest: Any) -> Any:
    del rest
    parameter = object.__new__(cls)
    pickles.Module.__init__(parameter, 'Parameter', data)
    return parameter

  def setstate(self: Any, state: Any) -> None:
    # The tensor is either the argument of `new` or part of the state.
    if isinstance(state[0], np.ndarray):
      self.state = state[0]

  return type('Parameter', (pickles.Module,), {
      '__new__': new, '__init__': lambda self, *args: None,
      '__setstate__': setstate})
