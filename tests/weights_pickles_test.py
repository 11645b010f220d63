"""Official pickles without PyTorch, and what they must not do."""

import collections
import io
import os
import pickle

import numpy as np
import pytest
from official_pickles import Call, Name, dumps, persistent, tensor

from gen3d.choices import UserError
from gen3d.weights import pickles


def write(path, content):
  path.write_bytes(dumps(content))
  return path


def network():
  rng = np.random.default_rng(0)
  weight, buffer = rng.normal(size=(2, 3)), rng.normal(size=(4,))
  layer = persistent(
      'FullyConnectedLayer', _parameters={'weight': Call(
          Name('torch._utils', '_rebuild_parameter'), tensor(weight), True,
          collections.OrderedDict())},
      _buffers={'kept': tensor(buffer), 'hidden': tensor(buffer), 'no': None},
      _non_persistent_buffers_set={'hidden'}, _modules={})
  act = Call(Name('torch.nn.modules.activation', 'Softplus'),
             state={'_parameters': {}, '_buffers': {}, '_modules': {}})
  top = persistent(
      'TriPlaneGenerator', _parameters={}, _buffers={},
      _modules=collections.OrderedDict(fc=layer, act=act), z_dim=32,
      rendering_kwargs=Call(Name('dnnlib.util', 'EasyDict'),
                            state={'box_warp': 1}),
      _init_kwargs={'channel_base': 64})
  return top, weight.astype(np.float32), buffer.astype(np.float32)


def test_a_network_is_read_as_names_and_arrays(tmp_path):
  top, weight, buffer = network()
  result = pickles.load(write(tmp_path / 'n.pkl', {
      'G': None, 'D': None, 'G_ema': top, 'augment_pipe': None}))
  assert result.class_name == 'TriPlaneGenerator'
  assert result.get('z_dim') == 32 and result.get('channel_base') == 64
  assert result['rendering_kwargs'] == {'box_warp': 1}
  assert result.child('act').class_name == 'Softplus'
  tensors = pickles.tensors(result)
  assert set(tensors) == {'fc.weight', 'fc.kept'}
  np.testing.assert_array_equal(tensors['fc.weight'], weight)
  np.testing.assert_array_equal(tensors['fc.kept'], buffer)


def test_tensors_with_strides_are_read():
  read = lambda obj: pickles.Unpickler(io.BytesIO(dumps(obj))).load()
  values = np.arange(12.).reshape(3, 4)
  np.testing.assert_array_equal(
      read(tensor(values, size=(4, 3), strides=(1, 4))), values.T)
  np.testing.assert_array_equal(
      read(tensor(values, size=(2,), strides=(4,), offset=1)), values[:2, 1])
  np.testing.assert_array_equal(read(tensor(np.float32(3))), 3)
  for wrong in ({'size': (2,), 'strides': (12,)},
                {'size': (2,), 'strides': (1,), 'offset': 11},
                {'size': (2,), 'strides': (-1,), 'offset': 3}):
    with pytest.raises(pickles.PickleError, match='beyond its storage'):
      read(tensor(values, **wrong))


class Shell:
  """Runs a command when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_a_pickle_that_runs_a_command_is_refused(tmp_path, protocol):
  trace = tmp_path / 'was_here'
  bad = tmp_path / 'bad.pkl'
  bad.write_bytes(pickle.dumps({'G_ema': Shell(trace)}, protocol))
  with pytest.raises(
      pickles.PickleError, match=r'bad\.pkl: .* posix\.system.* refused'):
    pickles.load(bad)
  assert not trace.exists()
  pickle.loads(bad.read_bytes())  # As it would have gone elsewhere.
  assert trace.exists()


@pytest.mark.parametrize('module, name', [
    ('builtins', 'eval'), ('builtins', 'getattr'), ('os', 'system'),
    ('torch_utils.persistence', 'exec'), ('numpy', 'load'),
    ('torch', 'load'), ('dnnlib.util', 'open_url'),
    ('collections', '_sys'), ('torch.nn.modules.container', 'os.system')])
def test_names_that_are_not_allowed_are_refused(tmp_path, module, name):
  bad = write(tmp_path / 'bad.pkl', {'G_ema': Call(Name(module, name), 'x')})
  with pytest.raises(pickles.PickleError, match=f'{module}.{name}'):
    pickles.load(bad)


def test_the_inner_pickle_of_a_tensor_is_restricted_too(tmp_path):
  trace = tmp_path / 'was_here'
  content = pickle.dumps(Shell(trace))
  bad = write(tmp_path / 'bad.pkl', {'G_ema': Call(
      Name('torch.storage', '_load_from_bytes'), content)})
  with pytest.raises(pickles.PickleError, match='posix.system'):
    pickles.load(bad)
  assert not trace.exists()


NDARRAY, NUMBER = Name('numpy', 'ndarray'), Name('numpy', 'dtype')


def array(code, content, *, shape=(1,), order='<', flags=0):
  """A NumPy array, as pickles have them."""
  number = Call(NUMBER, code, False, True,
                state=(3, order, None, None, None, -1, -1, flags))
  return Call(Name('numpy.core.multiarray', '_reconstruct'), NDARRAY, (0,),
              b'b', state=(1, shape, number, False, content))


def scalar(code, content, **order):
  number = array(code, content, **order).state[2]
  return Call(Name('numpy.core.multiarray', 'scalar'), number, content)


def of_storage(storage, size, stride):
  return Call(Name('torch._utils', '_rebuild_tensor_v2'), storage, 0, size,
              stride, False, collections.OrderedDict())


def test_numpy_arrays_and_scalars_are_read():
  read = lambda obj: pickles.Unpickler(io.BytesIO(dumps(obj))).load()
  big = np.array([[1.5, -2.0]], '>f4')
  np.testing.assert_array_equal(
      read(array('f4', big.tobytes(), shape=(1, 2), order='>')), big)
  assert read(scalar('i8', np.int64(-3).tobytes())) == -3
  assert read(scalar('b1', b'\1', order='|'))


POINTER = (1234567).to_bytes(8, 'little')


@pytest.mark.parametrize('hostile, said', [
    # Each of these had a pointer of the file's choice followed, or memory
    # beyond the file's read, or more memory asked for than there is.
    ({Call(NDARRAY, (1,), 'O8', POINTER)}, 'not callable'),
    (array('O8', POINTER), "type 'O8'"),
    (array('V8', POINTER), "type 'V8'"),
    (array('i8', POINTER, order=[NUMBER, 'O8']), 'byte order'),
    (array('f4', POINTER, shape=(3,)), 'cut off'),
    (array('f4', POINTER, shape=(-1, -2)), 'cut off'),
    (scalar('O8', POINTER, flags=0), "type 'O8'"),
    (of_storage(array('f4', b'1234' * 4, shape=(2, 2)), (2,), (2,)),
     'storage of a tensor'),
    (of_storage('text', (2,), (1,)), 'storage of a tensor'),
    (tensor(np.zeros(1), size=(10 ** 13,), strides=(0,)), 'more numbers'),
    (tensor(np.zeros(9), size=(-3, -3), strides=(1, 1)), 'more numbers')])
def test_invalid_arrays_do_not_reach_memory(tmp_path, hostile, said):
  bad = tmp_path / 'bad.pkl'
  bad.write_bytes(dumps({'G_ema': list(hostile) if isinstance(hostile, set)
                         else hostile}))
  with pytest.raises(pickles.PickleError, match=said):
    pickles.load(bad)


@pytest.mark.parametrize('content, said', [
    (b'', 'not an official network pickle'),
    (b'\x89PNG\r\n', 'not an official network pickle'),
    (b'<!DOCTYPE html><html>', 'is a web page'),
    (dumps((None, None, Call(Name('dnnlib.tflib.network', 'Network')))),
     'a network of TensorFlow .* legacy.py'),
    (dumps([1, 2]), 'contains no network G_ema'),
    (dumps({'G': 1}), 'contains no network G_ema'),
    (dumps({'G_ema': network()[0]})[:-40], 'not an official network pickle')])
def test_other_files_are_refused(tmp_path, content, said):
  path = tmp_path / 'x.pkl'
  path.write_bytes(content)
  with pytest.raises(pickles.PickleError, match=said):
    pickles.load(path)


@pytest.mark.parity
def test_modules_pickled_by_pytorch_are_read():
  import torch
  layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Softplus())
  layer.register_buffer('turned', torch.arange(6).half().reshape(2, 3).T)
  result = pickles.Unpickler(io.BytesIO(pickle.dumps(layer))).load()
  arrays = pickles.tensors(result)
  for name, value in layer.state_dict().items():
    np.testing.assert_array_equal(arrays[name], value.numpy())
  assert set(arrays) == set(layer.state_dict())


def test_pipes_are_not_read(tmp_path):
  os.mkfifo(tmp_path / 'a.pkl')
  with pytest.raises(UserError, match='no regular file'):
    pickles.load(tmp_path / 'a.pkl')
