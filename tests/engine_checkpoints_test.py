"""Checkpoints: round trips, verification, error messages."""

import json
import os
import re
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from gen3d.choices import UserError
from gen3d.engine import checkpoints, sharding
from gen3d.engine import state as states


def make_state(step=3, fill=1.):
  return states.TrainState(
      step=jnp.int32(step), params={'a': {'w': jnp.full([64, 3], fill)}},
      opt_state=({'mu': jnp.ones(3, jnp.bfloat16)}, ()), ema=None,
      frozen={'teacher': jnp.arange(2.)})


def save(workdir, *steps):
  mesh = sharding.device_mesh()
  saver = checkpoints.Checkpoints(workdir)
  for step in steps:
    saver.save(sharding.replicate(make_state(step, float(step)), mesh))
  saver.close()


def test_state_round_trip_without_frozen_weights(tmp_path):
  save(tmp_path, 3, 5)
  new = make_state(0, 0.).replace(frozen={'teacher': jnp.arange(9.)})
  state = checkpoints.load(tmp_path, new)
  assert state.step == 5 and state.params['a']['w'][0, 0] == 5
  assert state.opt_state[0]['mu'].dtype == jnp.bfloat16 and state.ema is None
  np.testing.assert_array_equal(state.frozen['teacher'], np.arange(9))
  assert checkpoints.load(tmp_path, new, step=3).params['a']['w'][0, 0] == 3


def test_next_step_does_not_change_a_save_in_progress(tmp_path):
  mesh = sharding.device_mesh()
  saver = checkpoints.Checkpoints(tmp_path)
  state = sharding.replicate(make_state(), mesh)
  add = sharding.pmap(
      lambda s, b, k: (s.replace(params=jax.tree.map(
          lambda x: x + 1, s.params)), {}), mesh)
  saver.save(state)
  batch = sharding.to_devices(np.zeros(2), mesh)
  for _ in range(20):
    state, _ = add(state, batch, jax.random.key(0))
  saver.close()
  saved = checkpoints.load(tmp_path, make_state())
  np.testing.assert_array_equal(saved.params['a']['w'], 1)


def test_reading_does_not_log_warnings(tmp_path, caplog):
  save(tmp_path, 3)
  caplog.clear()
  logging.set_verbosity(logging.WARNING)  # as every command has it
  checkpoints.load(tmp_path, make_state())
  assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
  assert logging.get_verbosity() == logging.WARNING


@pytest.mark.parametrize('harm', ['truncate', 'flip', 'remove'])
def test_damaged_checkpoint_is_named_with_the_previous_one(
    tmp_path, harm):
  save(tmp_path, 3, 5)
  path = tmp_path / 'checkpoints' / '5'
  file = max(path.glob('state/**/d/*'), key=lambda p: p.stat().st_size)
  content = bytearray(file.read_bytes())
  if harm == 'truncate':
    file.write_bytes(content[:len(content) // 2])
  elif harm == 'flip':
    for i in range(0, len(content), 16):
      content[i] ^= 255
    file.write_bytes(content)
  else:
    file.unlink()
  with pytest.raises(ValueError, match='delete that directory') as error:
    checkpoints.load(tmp_path, make_state())
  assert str(path) in str(error.value)
  assert 'go on from step 3' in str(error.value)
  assert checkpoints.load(tmp_path, make_state(), step=3).step == 3


def test_only_the_first_array_that_cannot_be_read_is_reported(
    tmp_path, monkeypatch):
  reported = []
  monkeypatch.setattr(sys, 'unraisablehook', reported.append)
  save(tmp_path, 3)
  checkpoints.load(tmp_path, make_state())
  assert sys.unraisablehook == reported.append
  for file in (tmp_path / 'checkpoints' / '3' / 'state' / 'd').iterdir():
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
  with pytest.raises(UserError, match='3 is damaged'):
    checkpoints.load(tmp_path, make_state())
  with pytest.raises(UserError, match='3 is damaged .*metadata cannot be read'):
    checkpoints.load_tree(tmp_path, 'params')
  # As TensorStore calls it for an array that arrives after the error.
  late = lambda error: sys.unraisablehook(types.SimpleNamespace(
      exc_value=error))
  reported.clear()
  late(RuntimeError('Event loop is closed'))
  assert not reported
  late(RuntimeError('another'))
  assert len(reported) == 1


def test_sha256_of_a_checkpoint_is_verified(tmp_path):
  save(tmp_path, 3)
  meta = tmp_path / 'checkpoints' / '3' / 'meta' / 'metadata'
  record = json.loads(meta.read_text())
  record['sha256'] = record['sha256'][::-1]
  meta.write_text(json.dumps(record))
  with pytest.raises(ValueError, match='SHA-256 differs'):
    checkpoints.load(tmp_path, make_state())


@pytest.mark.parametrize('content', [
    '', '[]', '5', '{}', '{"sha256": 5, "leaves": {}}', '{"sha256": "0',
    '{"sha256": "0", "leaves": 5}', '{"sha256": NaN}', '[' * 10 ** 5])
def test_damaged_digests_are_named_as_such(tmp_path, content):
  save(tmp_path, 2, 3)
  (tmp_path / 'checkpoints' / '3' / 'meta' / 'metadata').write_text(content)
  for read in (lambda: checkpoints.load(tmp_path, make_state()),
               lambda: checkpoints.load_tree(tmp_path, 'params')):
    with pytest.raises(UserError, match='3 is damaged .*go on from step 2'):
      read()


@pytest.mark.parametrize('content', ['', '[]', '5', '[' * 10 ** 5])
def test_damaged_metadata_of_orbax_is_survived_or_named(tmp_path, content):
  save(tmp_path, 2, 3)
  file = tmp_path / 'checkpoints' / '3' / '_CHECKPOINT_METADATA'
  assert file.exists()
  file.write_text(content)
  try:
    assert checkpoints.load(tmp_path, make_state()).step == 3
  except UserError as error:
    assert re.search(f'{file} .*; delete {file.parent}', str(error))


@pytest.mark.parametrize('make', [
    lambda path: path.symlink_to('/dev/zero'), os.mkfifo])
def test_devices_in_checkpoints_are_not_read(tmp_path, make):
  save(tmp_path, 2, 3)
  folder = tmp_path / 'checkpoints' / '3' / 'state'
  file = max(folder.rglob('d/*'), key=lambda path: path.stat().st_size)
  file.unlink()
  make(file)
  for read in (lambda: checkpoints.load(tmp_path, make_state()),
               lambda: checkpoints.load_tree(tmp_path, 'params')):
    with pytest.raises(UserError, match='3 is damaged .*no regular file'):
      read()


def test_renamed_checkpoint_is_refused(tmp_path):
  save(tmp_path, 2, 3)
  folder = tmp_path / 'checkpoints'
  (folder / '3').rename(folder / '7')
  message = (
      f'Checkpoint {folder}/7 holds step 3, not step 7 as its name says; '
      'rename that directory to 3, or delete it.')
  for step in (None, 7):
    with pytest.raises(ValueError, match=re.escape(message)):
      checkpoints.load(tmp_path, make_state(), step)
  (folder / '7').rename(folder / '3')
  assert checkpoints.load(tmp_path, make_state()).step == 3


def test_copied_checkpoint_is_refused(tmp_path):
  save(tmp_path, 3)
  folder = tmp_path / 'checkpoints'
  shutil.copytree(folder / '3', folder / '7')
  with pytest.raises(ValueError, match='7 holds step 3, .*; delete that dir'):
    checkpoints.load(tmp_path, make_state())
  assert checkpoints.load(tmp_path, make_state(), step=3).step == 3


def test_missing_checkpoint_is_file_not_found(tmp_path):
  with pytest.raises(FileNotFoundError, match='no checkpoint in'):
    checkpoints.load(tmp_path, make_state())
  assert not (tmp_path / 'checkpoints').exists()
  save(tmp_path, 3)
  with pytest.raises(FileNotFoundError, match=r'no checkpoint 4 .*\[3\]'):
    checkpoints.load(tmp_path, make_state(), step=4)


@pytest.mark.parametrize('subtree', [
    'params', 'params/a', 'params/a/w', 'opt_state', 'extra'])
def test_load_tree_reads_a_part_without_a_template(tmp_path, subtree):
  mesh = sharding.device_mesh()
  saver = checkpoints.Checkpoints(tmp_path)
  state = make_state(3, 7.).replace(
      extra={'mean': jnp.float32(.5), 'empty': {}})
  saver.save(sharding.replicate(state, mesh))
  saver.close()
  expected = {'params': {'a': {'w': np.full([64, 3], 7.)}},
              'opt_state': [{'mu': np.ones(3, jnp.bfloat16)}, ()],
              'extra': {'mean': np.float32(.5), 'empty': {}}}
  for key in subtree.split('/'):
    expected = expected[key]
  got = checkpoints.load_tree(tmp_path, subtree)
  assert len(jax.tree.leaves(got)) == len(jax.tree.leaves(expected))
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
    assert isinstance(x, np.ndarray)
    np.testing.assert_array_equal(x, y)
  if subtree != 'opt_state':
    assert (jax.tree.structure(got) == jax.tree.structure(expected))


def test_load_tree_of_an_older_step_and_of_missing_ones(tmp_path):
  with pytest.raises(FileNotFoundError, match='no checkpoint in'):
    checkpoints.load_tree(tmp_path, 'params')
  save(tmp_path, 3, 5)
  assert checkpoints.load_tree(tmp_path, 'params/a/w', 3)[0, 0] == 3
  assert checkpoints.load_tree(tmp_path, 'params/a/w')[0, 0] == 5
  with pytest.raises(FileNotFoundError, match=r'no checkpoint 4 .*\[3, 5\]'):
    checkpoints.load_tree(tmp_path, 'params', 4)
  for subtree in ('params/scene', 'params/a/w/x', 'parms'):
    with pytest.raises(UserError, match=f"checkpoints/5 has no '{subtree}'"):
      checkpoints.load_tree(tmp_path, subtree)


def test_load_tree_verifies_the_arrays_that_it_reads(tmp_path):
  save(tmp_path, 2, 3)
  meta = tmp_path / 'checkpoints' / '3' / 'meta' / 'metadata'
  record = json.loads(meta.read_text())
  record['leaves']['params/a/w'] = '0' * 64
  meta.write_text(json.dumps(record))
  with pytest.raises(UserError, match='3 is damaged .*go on from step 2 .*the '
                     'SHA-256 of params/a/w differs'):
    checkpoints.load_tree(tmp_path, 'params')
  checkpoints.load_tree(tmp_path, 'opt_state')  # Other arrays are not read.
  shutil.rmtree(tmp_path / 'checkpoints' / '3' / 'state')
  with pytest.raises(UserError, match='3 is damaged'):
    checkpoints.load_tree(tmp_path, 'params')
  (tmp_path / 'checkpoints' / '2').rename(tmp_path / 'checkpoints' / '9')
  with pytest.raises(UserError, match='9 holds step 2'):
    checkpoints.load_tree(tmp_path, 'params')
