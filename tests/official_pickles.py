"""Writes pickles of networks in the official format, without its programs."""

import collections
import io
import pickle
import struct

import numpy as np


class Name:
  """An object that is pickled as a reference to `module.name`."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class Call:
  """An object that is pickled as a call."""

  def __init__(self, function, *args, state=None):
    self.function, self.args, self.state = function, args, state


class Pickler(pickle._Pickler):
  """Writes Name and Call as they are in files of another program."""

  def save(self, obj, *rest, **named):
    if isinstance(obj, Name):
      self.write(b'c' + f'{obj.module}\n{obj.name}\n'.encode())
    elif isinstance(obj, Call):
      self.save(obj.function)
      self.save(obj.args)
      self.write(pickle.REDUCE)
      if obj.state is not None:
        self.save(obj.state)
        self.write(pickle.BUILD)
    else:
      super().save(obj, *rest, **named)

  def persistent_id(self, obj):
    return obj.pid if isinstance(obj, Storage) else None


class Storage:
  """A persistent id of PyTorch's legacy format."""

  def __init__(self, *pid):
    self.pid = pid


def dumps(obj, protocol=2):
  file = io.BytesIO()
  Pickler(file, protocol).dump(obj)
  return file.getvalue()


def tensor(array, strides=None, offset=0, size=None):
  """An array as PyTorch pickles a tensor with a legacy storage."""
  flat = np.asarray(array, np.float32).ravel()
  storage = Storage(
      'storage', Name('torch', 'FloatStorage'), 'key', 'cpu', flat.size, None)
  content = b''.join(map(dumps, (
      0x1950a86a20f9469cfc6c, 1001, {'little_endian': True}, storage,
      ['key']))) + struct.pack('<q', flat.size) + flat.tobytes()
  size = np.shape(array) if size is None else size
  if strides is None:
    strides = tuple(int(np.prod(size[i + 1:])) for i in range(len(size)))
  return Call(
      Name('torch._utils', '_rebuild_tensor_v2'),
      Call(Name('torch.storage', '_load_from_bytes'), content), offset,
      tuple(size), tuple(strides), False, collections.OrderedDict())


def persistent(class_name, **state):
  return Call(Name('torch_utils.persistence', '_reconstruct_persistent_obj'), {
      'type': 'class', 'version': 6, 'module_src': 'raise SystemExit(1)',
      'class_name': class_name, 'state': state})


def module(class_name, tensors, **state):
  """A persistent object with {dotted name: array} as its weights."""
  own = {n: v for n, v in tensors.items() if '.' not in n}
  names = sorted({n.partition('.')[0] for n in tensors} - set(own))
  children = {name: module('Part', {
      n.partition('.')[2]: v for n, v in tensors.items()
      if n.startswith(f'{name}.')}) for name in names}
  children |= state.pop('children', {})
  return persistent(
      class_name, _parameters={n: tensor(v) for n, v in own.items()},
      _buffers={}, _modules=children, **state)
