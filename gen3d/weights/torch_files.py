"""Published weights as {name: array}, from the formats they come in.

.safetensors and .npz are plain data. A PyTorch file (.pth, .pt, .bin; the zip
of today or the older stream of pickles, in which torchvision and LPIPS still
publish) is a program: it is read by the restricted unpickler of
weights/pickles.py, so that nothing in it runs and no PyTorch is needed.
"""

import pathlib
import tarfile
import zipfile

import numpy as np
import safetensors
import safetensors.numpy

from gen3d.choices import UserError
from gen3d.weights import pickles


def read(path):
  """The tensors of a file, {name: NumPy array}.

  Args:
    path: file ending in .safetensors, .npz, .pth, .pt or .bin; of the last
      three, one that holds a state_dict.

  Raises:
    UserError: there is no such file, its ending is another, it is damaged,
      holds something else than tensors or tries more than to hold them.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() not in _READERS:
    raise UserError(f'{path} is no file of weights known here; its name '
                    f'should end in one of {sorted(_READERS)}.')
  if not path.is_file():
    raise UserError(f'There is no file {path}; give the path of the weights '
                    'that you downloaded.')
  try:
    tensors = _READERS[path.suffix.lower()](path)
  except pickles.PickleError as error:
    raise pickles.PickleError(f'{path}: {error}') from None
  except (*pickles.DAMAGE, safetensors.SafetensorError, zipfile.BadZipFile,
          OSError, RuntimeError) as error:
    raise UserError(f'{path} cannot be read as {path.suffix}, it is cut off '
                    f'or damaged ({error}); get it again.') from error
  if not isinstance(tensors, dict) or not all(
      isinstance(name, str) and isinstance(tensor, np.ndarray)
      for name, tensor in tensors.items()):
    raise UserError(f'{path} holds something else than a state_dict of '
                    'tensors; save model.state_dict() and nothing around '
                    'it.')
  return tensors


def _npz(path):
  with np.load(path, allow_pickle=False) as stored:
    return dict(stored)


def _torch(path):
  with path.open('rb') as file:
    # By its beginning: a zip that is cut off is to be told as one.
    tensors = (_zipped if file.read(2) == b'PK' else _legacy)(file)
  if not isinstance(tensors, dict):
    return None
  # A Parameter of old is a Module of ours; all others are arrays already.
  return {name: tensor.state if isinstance(tensor, pickles.Module) else tensor
          for name, tensor in tensors.items()}


def _zipped(file):
  """torch.save since 1.6: data.pkl and a member for each storage."""
  with zipfile.ZipFile(file) as members:
    names = members.namelist()
    top = [n.removesuffix('data.pkl') for n in names
           if n.count('/') == 1 and n.endswith('/data.pkl')]
    if len(top) != 1 or f'{top[0]}constants.pkl' in names:
      raise pickles.PickleError(
          'it is not what torch.save makes of a state_dict, but another zip '
          'or a TorchScript program; save the state_dict of its model.')

    def storage(dtype, key, count):
      name = f'{top[0]}data/{key}'
      if members.getinfo(name).file_size < count * dtype.itemsize:
        raise pickles.PickleError(f'the tensor stored as {key} is cut off.')
      return np.frombuffer(members.read(name), dtype)[:count]

    with members.open(f'{top[0]}data.pkl') as content:
      return _Unpickler(content, storage).load()


def _legacy(file):
  """torch.save before 1.6: pickles in a row, then the storages' bytes."""
  file.seek(0)
  if tarfile.is_tarfile(file):
    raise pickles.PickleError('it is an archive of 2016, older than what is '
                              'read here; take a newer file of its network.')
  file.seek(0)
  read = lambda storage=None: _Unpickler(file, storage).load()
  if read() != pickles.LEGACY_MAGIC:
    raise pickles.PickleError('it is not what torch.save writes.')
  read(), read()  # protocol, machine
  # The storages follow what refers to them, so it is read twice: to learn
  # their types, with nothing in them, and again when they are there.
  start, kinds = file.tell(), {}

  def note(dtype, key, count):
    kinds[key] = dtype, count

  read(note)
  keys = read()
  at, data = file.tell(), {}
  content = np.memmap(file, mode='r')
  for key in keys:
    dtype, count = kinds[key]
    end = at + 8 + count * dtype.itemsize
    if end > len(content) or content[at:at + 8].view('<i8')[0] != count:
      raise pickles.PickleError(f'the tensor stored as {key} is cut off.')
    data[key] = content[at + 8:end].view(dtype)
    at = end
  file.seek(start)
  return read(lambda dtype, key, count: data[key])


class _Unpickler(pickles.Unpickler):
  """Knows what a state_dict refers to, storages outside of it included.

  Attributes:
    storage: (dtype, key, count) -> array [count], or None while there is none
      and tensors are not to be made.
  """

  def __init__(self, file, storage):
    super().__init__(file)
    self._storage = storage
    rebuild = self._known['torch._utils', '_rebuild_tensor_v2']
    rebuild_if = lambda data, *rest: (
        None if data is None else rebuild(data, *rest))
    self._known['torch._utils', '_rebuild_tensor_v2'] = rebuild_if
    # PyTorch before 0.4, by which torchvision's VGG16 was written.
    self._known['torch._utils', '_rebuild_tensor'] = rebuild_if
    self._known['torch.nn.parameter', 'Parameter'] = _parameter()

  def persistent_load(self, pid):
    if not (self._storage and isinstance(pid, tuple) and len(pid) >= 5
            and pid[0] == 'storage' and isinstance(pid[1], pickles.Storage)
            and isinstance(pid[4], int) and pid[4] >= 0):
      raise pickles.PickleError('a storage is not described as PyTorch does.')
    if len(pid) > 5 and pid[5] is not None:
      raise pickles.PickleError('a storage is a part of another one; save the '
                                'file again with a newer PyTorch.')
    return self._storage(np.dtype(pid[1].dtype), pid[2], pid[4])


def _parameter():
  """A class that keeps the tensor of a Parameter as its state."""

  def begin(cls, data=None, *rest):
    del rest
    parameter = object.__new__(cls)
    pickles.Module.__init__(parameter, 'Parameter', data)
    return parameter

  def build(self, state):
    if isinstance(state[0], np.ndarray):  # It came either first or here.
      self.state = state[0]

  return type('Parameter', (pickles.Module,), {
      '__new__': begin, '__init__': lambda self, *args: None,
      '__setstate__': build})


_READERS = {'.safetensors': safetensors.numpy.load_file, '.npz': _npz,
            '.pth': _torch, '.pt': _torch, '.bin': _torch}
