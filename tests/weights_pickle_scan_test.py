"""Bounds on pickles: files that would crash, hang or fill the memory."""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from official_pickles import Call, Name, dumps, persistent, tensor

from gen3d.weights import pickle_scan, pickles, torch_files

START = b'\x80\x02'
PRIME = 2 ** 61 - 1  # Python's integers have their hashes modulo this


def text(value):
  return b'X' + struct.pack('<I', len(value)) + value.encode()


def integers_of_one_hash():
  keys = (((k + 1) * PRIME).to_bytes(12, 'little') for k in range(500))
  return START + b'}(' + b''.join(
      b'\x8a\x0c' + key + b'N' for key in keys) + b'u.'


def doubled(depth):
  """A tuple with 2^depth items, each level referred to twice."""
  levels = b''.join(b'h%ch%c\x86q%c' % (i, i, i + 1) for i in range(depth))
  return START + b'K\x01q\x00' + levels


KEY = 'a key is neither a number nor a text'
HOSTILE = {
    'deep tuple as key': (START + b'})' + b'\x85' * 70_000 + b'Ns.', KEY),
    'tuple of 2^60 items as key': (
        START + b'}' + doubled(60)[2:] + b'Ns.', KEY),
    'tuple in a frozen set': (START + b'()\x85\x91.', KEY),
    'tuple in a set': (START + b'\x8f()\x85\x90.', KEY),
    'tuple in a dict of a mark': (START + b'(()\x85Nd.', KEY),
    'key out of the memo': (START + b'})\x85q\x00h\x00Ns.', KEY),
    'integers of one hash': (integers_of_one_hash(), KEY),
    'memo of 2^28 rows': (START + b'Nr\x00\x00\x00\x10.', 'memo index'),
    'memo of 2^31 rows': (START + b'Nr\x00\x00\x00\x80.', 'memo index'),
    'memo of 2^28 rows in text': (b'Np268435456\n.', 'memo index'),
    'memo index of a million digits': (
        b'Np' + b'9' * 10 ** 6 + b'\n.', 'a line of PUT'),
    'empty memo': (START + b'h\x00.', 'nothing has the memo index 0'),
    'integer of a million bytes': (
        START + b'\x8b' + struct.pack('<I', 10 ** 6) + b'\1' * 10 ** 6 + b'.',
        'integer'),
    'frame of 2^40 bytes': (
        b'\x80\x04\x95' + struct.pack('<Q', 2 ** 40) + b'N.', 'cut off'),
    'bytes of 2^36': (
        b'\x80\x05\x96' + struct.pack('<Q', 2 ** 36) + b'N.', 'cut off'),
    'change of a class': (START + b'cbuiltins\nset\n}b.', 'changes a class'),
    'extension registry': (START + b'\x82\x01.', 'opcode'),
    'values below a mark': (START + b'N(a.', 'no value'),
    'no mark': (START + b'NNt.', 'mark is missing'),
    'no end': (START + b'N', 'cut off')}


@pytest.mark.parametrize('content, said', HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused_before_they_are_read(
    tmp_path, content, said):
  """As an official pickle, in a zip of PyTorch, and in its older format."""
  with pytest.raises(pickle.UnpicklingError, match=said):
    pickle_scan.check(io.BytesIO(content))
  (tmp_path / 'n.pkl').write_bytes(content)
  with pytest.raises(pickles.PickleError, match=r'n\.pkl'):
    pickles.load(tmp_path / 'n.pkl')
  with zipfile.ZipFile(tmp_path / 'w.pth', 'w') as members:
    members.writestr('archive/data.pkl', content)
  (tmp_path / 'old.pth').write_bytes(b''.join(
      dumps(x) for x in (pickles.LEGACY_MAGIC, 1001, {})) + content)
  for name in ('w.pth', 'old.pth'):
    with pytest.raises(ValueError, match=name):
      torch_files.read(tmp_path / name)


def test_more_opcodes_than_any_network_has_are_refused(monkeypatch):
  monkeypatch.setattr(pickle_scan, '_MAX_OPCODES', 100)
  pickle_scan.check(io.BytesIO(START + b'N0' * 49 + b'.'))
  with pytest.raises(pickle.UnpicklingError, match='more than 100 opcodes'):
    pickle_scan.check(io.BytesIO(START + b'N0' * 50 + b'.'))


CONTENT = [
    {'a': 1, 2: b'x', 'long' * 100: [1.5, None, True, 2 ** 62, -2 ** 70]},
    [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), bytearray(b'x' * 300)],
    {'s', 't'}, frozenset({1, 2}), collections.OrderedDict(a=1),
    'ä' * 300, np.arange(3.), [{'deep': [[[{}]]]}]]
SHARED = [CONTENT, CONTENT]


def test_files_and_buffers_are_scanned_alike(tmp_path):
  (tmp_path / 'empty').write_bytes(b'')
  (tmp_path / 'two').write_bytes(b'before' + START + b'N.' + START + b'N')
  with (tmp_path / 'empty').open('rb') as file, pytest.raises(
      pickle.UnpicklingError, match='cut off'):
    pickle_scan.check(file)
  with (tmp_path / 'two').open('rb') as file:
    file.seek(6)
    pickle_scan.check(file)
    assert pickle.load(file) is None
    with pytest.raises(pickle.UnpicklingError, match='cut off'):
      pickle_scan.check(file)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_plain_data_pass(protocol):
  """The file stands where it stood, at the first of two pickles."""
  file = io.BytesIO(b'before' + pickle.dumps(SHARED, protocol)
                    + pickle.dumps(1, protocol))
  file.seek(6)
  pickle_scan.check(file)
  assert file.tell() == 6
  assert len(pickle.load(file)) == 2
  pickle_scan.check(file)
  assert pickle.load(file) == 1


@pytest.mark.parametrize('content, said', [
    # Each asks for far more memory than the file has bytes.
    (b'c_codecs\nencode\nq\x00' + text('a' * 2 ** 20) + b'q\x01'
     + text('latin1') + b'q\x02](' + b'h\x00h\x01h\x02\x86R' * 100 + b'e.',
     'far more memory'),
    (b'cbuiltins\nset\nq\x00](' + b''.join(
        b'J' + struct.pack('<i', i) for i in range(10_000)) + b'eq\x01]('
     + b'h\x00h\x01\x85R' * 100 + b'e.', 'far more memory'),
    (doubled(40)[2:] + b'cnumpy\ndtype\nh\x28\x85R.', 'of the type'),
    (b'ctorch._utils\n_rebuild_tensor_v2\n(NJ\0\0\0\0J\xff\xff\xff\x7f\x85'
     + text('aaaa') + b'\x85tR.', "an integer is 'aaaa'|a shape is"),
    (b'cos\n\x1b]0;title\x07\n.', r'os\.\\x1b\]0;title\\x07')])
def test_calls_are_bounded_and_messages_short(content, said):
  with pytest.raises(pickles.PickleError, match=said) as error:
    pickles.Unpickler(io.BytesIO(START + content)).load()
  assert len(str(error.value)) < 300


def network(**changes):
  state = {'_parameters': {}, '_buffers': {}, '_modules': {}, **changes}
  return persistent(state.pop('class_name', 'Generator'), **state)


def chain(depth, width=1):
  module = network()
  for _ in range(depth):
    module = network(_modules={str(i): module for i in range(width)})
  return module


@pytest.mark.parametrize('module, said', [
    (network(class_name=['a']), 'a name or tensors of another type'),
    (network(_modules=5), 'a mapping is 5'),
    (network(_parameters=[1]), 'a mapping is'),
    (network(_buffers={'a': 'text'}), 'tensors of another type'),
    (network(_init_kwargs='x'), "a mapping is 'x'"),
    (network(_non_persistent_buffers_set=5), 'no list of its buffers'),
    (chain(20), 'nested deeper'), (chain(9, width=2), 'more than 500')])
def test_modules_of_another_structure_are_refused(
    tmp_path, monkeypatch, module, said):
  monkeypatch.setattr(pickles, '_MAX_NESTED', 10)
  monkeypatch.setattr(pickles, '_MAX_MODULES', 500)
  path = tmp_path / 'n.pkl'
  path.write_bytes(dumps({'G_ema': module}))
  with pytest.raises(pickles.PickleError, match=said):
    pickles.load(path)


def test_storages_of_other_bytes_are_refused(tmp_path):
  load = Name('torch.storage', '_load_from_bytes')
  good = tensor(np.zeros(3)).args[0].args[0]
  for content in (b'', b'x' * 100, good[:-4], [good], 5):
    (tmp_path / 'n.pkl').write_bytes(dumps({'G_ema': Call(load, content)}))
    with pytest.raises(pickles.PickleError, match=r'n\.pkl'):
      pickles.load(tmp_path / 'n.pkl')
