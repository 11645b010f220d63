"""Files of weights as other programs write them, and what they must not do."""

import collections
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch_state
from official_pickles import Call, Name, Storage, dumps

from gen3d.models import giraffe_official, stylegan2_rosinality
from gen3d.weights import pickles, torch_files

# As of a state_dict of PyTorch 2, with its versions beside the tensors.
STORAGES = {'0': np.arange(24, dtype=np.float32),
            '1': np.arange(5, dtype=np.int64) - 2}
TENSORS = {'a.weight': STORAGES['0'].reshape(2, 3, 4).transpose(0, 2, 1),
           'a.bias': STORAGES['0'][20:23], 'count': STORAGES['1']}
TYPES = {'<f4': 'FloatStorage', '<i8': 'LongStorage'}


def rebuilt(key, offset, size, strides, function='_rebuild_tensor_v2',
            view=()):
  data = STORAGES[key]
  storage = Storage('storage', Name('torch', TYPES[data.dtype.str]), key,
                    'cuda:0', data.size, *view)
  rest = () if function == '_rebuild_tensor' else (
      False, collections.OrderedDict())
  return Call(Name('torch._utils', function), storage, offset, size, strides,
              *rest)


def content(function='_rebuild_tensor_v2', wrap=lambda tensor: tensor,
            view=()):
  more = function, view
  return Call(
      Name('collections', 'OrderedDict'),
      [['a.weight', wrap(rebuilt('0', 0, (2, 4, 3), (12, 1, 4), *more))],
       ['a.bias', wrap(rebuilt('0', 20, (3,), (1,), *more))],
       ['count', rebuilt('1', 0, (5,), (1,), *more)]],
      state={'_metadata': collections.OrderedDict({'': {'version': 1}})})


def zipped(path, pickled, storages=STORAGES, extra=()):
  with zipfile.ZipFile(path, 'w') as members:
    members.writestr('archive/data.pkl', pickled)
    members.writestr('archive/version', b'3\n')
    for key, data in storages.items():
      members.writestr(f'archive/data/{key}', data.tobytes())
    for name in extra:
      members.writestr(name, b'')
  return path


def streamed(path, pickled, magic=0x1950a86a20f9469cfc6c):
  path.write_bytes(
      b''.join(map(dumps, (magic, 1001, {'little_endian': True}))) + pickled
      + dumps(list(STORAGES)) + b''.join(
          struct.pack('<q', data.size) + data.tobytes()
          for data in STORAGES.values()))
  return path


def assert_equal(result, expected=TENSORS):
  assert set(result) == set(expected)
  for name, tensor in expected.items():
    assert result[name].dtype == tensor.dtype
    np.testing.assert_array_equal(result[name], tensor)


def old_parameter(tensor):
  """As PyTorch 0.1 pickled it: the tensor is a part of the state."""
  return Call(Name('torch.nn.parameter', 'Parameter'),
              state=(tensor, None, collections.OrderedDict(), True, False))


def new_parameter(tensor):
  return Call(Name('torch.nn.parameter', 'Parameter'), tensor,
              state=(True, False, collections.OrderedDict()))


AGES = pytest.mark.parametrize('write, function, wrap', [
    (zipped, '_rebuild_tensor_v2', lambda tensor: tensor),
    (streamed, '_rebuild_tensor_v2', lambda tensor: tensor),
    (streamed, '_rebuild_tensor', lambda tensor: tensor),
    (streamed, '_rebuild_tensor', old_parameter),
    (streamed, '_rebuild_tensor', new_parameter)], ids=[
        'zip', '2018', '2017', '2017, parameter', '2016, parameter'])


@AGES
def test_all_formats_of_pytorch_are_read(tmp_path, write, function, wrap):
  path = write(tmp_path / 'w.pth', dumps(content(
      function, wrap, () if write is zipped else (None,))))
  assert_equal(torch_files.read(path))


@pytest.mark.parity
@AGES
def test_pytorch_reads_the_files_of_these_tests(
    tmp_path, write, function, wrap):
  torch = pytest.importorskip('torch', reason='PyTorch is a parity extra')
  path = write(tmp_path / 'w.pth', dumps(content(
      function, wrap, () if write is zipped else (None,))))
  theirs = torch.load(path, map_location='cpu', weights_only=False)
  assert_equal({k: v.detach().numpy() for k, v in theirs.items()})


@pytest.mark.parity
@pytest.mark.parametrize('new', [True, False])
def test_files_saved_by_pytorch_are_read(tmp_path, new):
  torch = pytest.importorskip('torch', reason='PyTorch is a parity extra')
  torch.manual_seed(0)
  model = torch.nn.Sequential(
      torch.nn.Conv2d(2, 3, 5), torch.nn.BatchNorm2d(3)).to(torch.float16)
  model.register_buffer('shared', model[0].weight[1:, :, ::2])
  model.register_parameter('brain', torch.nn.Parameter(
      torch.randn(3).to(torch.bfloat16)))
  path = tmp_path / 'w.pt'
  torch.save(model.state_dict(), path, _use_new_zipfile_serialization=new)
  result = torch_files.read(path)
  expected = model.state_dict()
  assert set(result) == set(expected)
  for name, tensor in expected.items():
    assert result[name].dtype.name == str(tensor.dtype).removeprefix('torch.')
    np.testing.assert_array_equal(
        result[name].astype(np.float32), tensor.float().numpy())
  torch.save({'model': model}, path)
  with pytest.raises(pickles.PickleError, match='refused'):
    torch_files.read(path)


def test_safetensors_and_npz_are_read(tmp_path):
  tensors = {name: np.ascontiguousarray(x) for name, x in TENSORS.items()}
  safetensors.numpy.save_file(tensors, tmp_path / 'w.safetensors')
  np.savez(tmp_path / 'w.npz', **tensors)
  assert_equal(torch_files.read(tmp_path / 'w.safetensors'))
  assert_equal(torch_files.read(str(tmp_path / 'w.npz')))


class Toucher:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), 'w')


@pytest.mark.parametrize('write', [zipped, streamed])
def test_code_in_a_pytorch_file_does_not_run(tmp_path, write):
  trace = tmp_path / 'was_here'
  path = write(tmp_path / 'bad.pth', pickle.dumps({'a': Toucher(trace)}, 2))
  with pytest.raises(pickles.PickleError,
                     match=r'bad\.pth: .*io\.open.*refused'):
    torch_files.read(path)
  assert not trace.exists()


def test_code_in_an_npz_file_does_not_run(tmp_path):
  trace = tmp_path / 'was_here'
  np.savez(tmp_path / 'bad.npz', a=np.array([Toucher(trace)], object))
  trace.unlink(missing_ok=True)
  with pytest.raises(ValueError, match=r'bad\.npz cannot be read as \.npz'):
    torch_files.read(tmp_path / 'bad.npz')
  assert not trace.exists()


def cut(path, size):
  path.write_bytes(path.read_bytes()[:size])
  return path


def miscounted(path):
  data = STORAGES['0'].tobytes()
  path.write_bytes(path.read_bytes().replace(
      struct.pack('<q', 24) + data, struct.pack('<q', 23) + data))
  return path


def tarred(path):
  with tarfile.open(path, 'w') as archive:
    archive.addfile(tarfile.TarInfo('sys_info'))
  return path


def plain(path, data):
  path.write_bytes(data)
  return path


GOOD = dumps(content())


@pytest.mark.parametrize('make, said', [
    (lambda p: p / 'no.pth', 'There is no file .*no.pth'),
    (lambda p: plain(p / 'w.onnx', b'x'), r'w.onnx .* ends in .*\.npz.*\.pth'),
    (lambda p: plain(p / 'w.pth', b''), 'w.pth cannot be read'),
    (lambda p: plain(p / 'w.npz', b'x'), 'w.npz cannot be read'),
    (lambda p: plain(p / 'w.safetensors', b'x'), 'w.safetensors cannot be'),
    (lambda p: plain(p / 'w.pth', b'<html>'), 'w.pth cannot be read'),
    (lambda p: streamed(p / 'w.pth', GOOD, magic=1), 'torch.save did not'),
    (lambda p: cut(streamed(p / 'w.pth', GOOD), -8), 'stored as 1 is cut off'),
    (lambda p: miscounted(streamed(p / 'w.pth', GOOD)), 'stored as 0 is cut'),
    (lambda p: cut(streamed(p / 'w.pth', GOOD), 300), 'w.pth cannot be read'),
    (lambda p: cut(zipped(p / 'w.pth', GOOD), -30), 'w.pth cannot be read'),
    (lambda p: zipped(p / 'w.pth', GOOD, {'0': STORAGES['0']}), 'data/1'),
    (lambda p: zipped(p / 'w.pth', GOOD, {
        k: v[1:] for k, v in STORAGES.items()}), 'stored as 0 is cut off'),
    (lambda p: zipped(p / 'w.pth', GOOD, extra=['archive/constants.pkl']),
     'TorchScript'),
    (lambda p: tarred(p / 'w.pth'), 'the tar format of 2016'),
    (lambda p: zipped(p / 'w.pth', dumps({'epoch': 3})), 'state_dict'),
    (lambda p: zipped(p / 'w.pth', dumps([1, 2])), 'state_dict'),
    (lambda p: zipped(p / 'w.pth', dumps({'a': rebuilt(
        '0', 20, (5,), (1,))})), 'beyond its storage'),
    (lambda p: zipped(p / 'w.pth', dumps({'a': Storage(
        'storage', 'FloatStorage', '0', 'cpu', 4)})), 'not described'),
    (lambda p: zipped(p / 'w.pth', dumps({'a': Storage(
        'storage', Name('torch', 'FloatStorage'), '0', 'cpu', 4,
        ('1', 0, 2))})), 'part of another'),
])
def test_bad_files_are_user_errors(tmp_path, make, said):
  with pytest.raises(ValueError, match=said):
    torch_files.read(make(tmp_path))


@pytest.mark.parametrize('packed', [True, False])
def test_checkpoints_of_rosinality_are_named_or_read(tmp_path, packed):
  """As its training writes them, with arguments and optimizers."""
  path = tmp_path / 'stylegan2.pt'
  tensors = {'w': np.ones((2, 3), np.float32)}
  arguments = Call(Name('argparse', 'Namespace'), state={'size': 64})
  if packed:
    torch_state.save(path, tensors, 'g_ema', args=arguments,
                     g_optim={'state': {0: 1.0}})
  else:
    path.write_bytes(dumps({'g_ema': {'w': 1}}))
  with pytest.raises(ValueError, match='StyleGAN2 of rosinality.*lifted_gan'):
    giraffe_official.load(path)
  if packed:
    with pytest.raises(ValueError, match="no StyleGAN2 in rosinality's layout"):
      stylegan2_rosinality.load(path)
