"""State dicts of PyTorch, as files and by the recipe of the parity data."""

import collections
import zipfile
import zlib

import numpy as np
from official_pickles import Call, Name, Storage, dumps

from gen3d.models import loading
from gen3d.weights import port


def save(path, tensors, section=None, **others):
  """Writes a .pth as torch.save does, without PyTorch.

  With a section the tensors are content[section], beside `others`.
  """
  storages, entries = {}, []
  for number, (name, tensor) in enumerate(tensors.items()):
    tensor = np.ascontiguousarray(tensor, np.float32)
    storages[str(number)] = tensor
    storage = Storage('storage', Name('torch', 'FloatStorage'), str(number),
                      'cpu', tensor.size)
    strides = tuple(s // 4 for s in tensor.strides)
    entries.append([name, Call(
        Name('torch._utils', '_rebuild_tensor_v2'), storage, 0, tensor.shape,
        strides, False, collections.OrderedDict())])
  content = Call(Name('collections', 'OrderedDict'), entries)
  if section:
    content = {section: content, **others}
  with zipfile.ZipFile(path, 'w') as members:
    members.writestr('archive/data.pkl', dumps(content))
    members.writestr('archive/version', b'3\n')
    for key, data in storages.items():
      members.writestr(f'archive/data/{key}', data.tobytes())
  return path


def zeros(network, inputs):
  """{name: zeros} of a network whose submodules have their PyTorch names."""
  like = {'params': loading.shapes(network, inputs, np.float32)}
  empty = lambda tree: {
      k: empty(v) if isinstance(v, dict) else np.broadcast_to(
          np.float32(0), v.shape) for k, v in tree.items()}
  return port.to_torch(empty(like), port.by_path(like))


def random(network, inputs, seed=0):
  """The same with random numbers, in the ranges of a trained network."""
  rng, tensors = np.random.default_rng(seed), {}
  for name, tensor in zeros(network, inputs).items():
    x = rng.standard_normal(tensor.shape, np.float32)
    if tensor.ndim >= 2:
      x *= np.sqrt(2 / np.prod(tensor.shape[1:]))
    elif name.endswith('running_var'):
      x = 1 + 0.3 * np.tanh(x)
    else:
      x = 0.1 * x + name.endswith('weight')
    tensors[name] = x
  return tensors


def by_recipe(names, shapes, salt, prelus=(), quarter=()):
  """Tensors by the recipe in the parity data; see 'recipe' in each file.

  `prelus` are names of slopes, `quarter` the ends of names of scales that are
  divided by four.
  """
  tensors = {}
  for name, shape in zip(names.tolist(), shapes.tolist()):
    if name.endswith('num_batches_tracked'):
      continue
    shape = tuple(map(int, shape.strip('()').replace(' ', '').strip(
        ',').split(',')))
    random = np.random.RandomState(zlib.crc32((salt + name).encode()))
    if name.endswith('running_var'):
      tensors[name] = random.uniform(0.5, 1.5, shape).astype(np.float32)
      continue
    n = random.standard_normal(shape).astype(np.float32)
    if n.ndim >= 2:
      last = name.startswith('fc.') or name == 'output_layer.3.weight'
      n *= np.float32(np.sqrt((1 if last else 2) / np.prod(shape[1:])))
    elif name in prelus:
      n = np.float32(0.25) + np.float32(0.05) * n
    elif name.endswith('.weight'):
      n = (1 + np.float32(0.1) * n) * np.float32(
          0.25 if name.endswith(tuple(quarter)) and quarter else 1)
    else:
      n *= np.float32(0.1)
    tensors[name] = n
  return tensors
