"""Full disks, workdirs that vanish, temporary files, runs that cannot begin."""

import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import orbax.checkpoint as ocp
import pytest
import toy_config
import toy_task
from toy_run import leaves

from gen3d import files
from gen3d.choices import UserError
from gen3d.engine import checkpoints, loop, storage, workdirs
from gen3d.engine.stopping import AtOnce

TESTS = pathlib.Path(__file__).parent
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run(workdir, change=lambda task: task, **overrides):
  config = toy_config.get_config()
  config.update({'eval_every': 0, **overrides})
  return loop.run(change(toy_task.make(config)), config, workdir)[0]


def same(a, b):
  b = leaves(b)
  for key, x in leaves(a).items():
    np.testing.assert_array_equal(x, b[key], err_msg=key)


def room(monkeypatch, workdir, saved, **values):
  """A file system that has only this room when step `saved` is saved."""
  real, full = os.statvfs, types.SimpleNamespace(
      **{'f_bavail': 10**6, 'f_frsize': 4096, 'f_files': 0, 'f_favail': 0,
         **values})
  monkeypatch.setattr(os, 'statvfs', lambda path: (
      full if checkpoints.latest(workdir) == saved else real(path)))


@pytest.mark.parametrize('values, reason', [
    ({'f_bavail': 0}, '0 bytes are free, and a checkpoint has about 1,856'),
    ({'f_files': 100, 'f_favail': 3}, '3 more files can be made')])
def test_no_room_for_a_checkpoint_is_said_before_it_is_written(
    tmp_path, monkeypatch, values, reason):
  with monkeypatch.context() as patch:
    room(patch, tmp_path / 'run', 5, **values)
    with pytest.raises(AtOnce, match=re.escape(
        f'{tmp_path}/run/checkpoints cannot be written ({reason}') + '.*; free '
        'space there, .* the same command again: it goes on from step 5, the'):
      run(tmp_path / 'run')
  assert [p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir()] == ['5']
  same(run(tmp_path / 'run'), run(tmp_path / 'whole'))


def test_file_systems_without_a_number_of_files_have_room(tmp_path):
  storage.check_room(tmp_path, 10**6)
  with pytest.raises(OSError, match='bytes are free'):
    storage.check_room(tmp_path, 10**18)


@pytest.mark.parametrize('error', [
    FULL, ValueError("RESOURCE_EXHAUSTED: Error [os_error_code='28']"),
    ValueError('Error writing: No space left on device')])
@pytest.mark.parametrize('step', [5, 10])
def test_checkpoint_that_fails_is_one_sentence(
    tmp_path, monkeypatch, error, step):
  save = ocp.CheckpointManager.save

  def fail(manager, number, **arguments):
    if number == step:
      raise error
    return save(manager, number, **arguments)

  monkeypatch.setattr(ocp.CheckpointManager, 'save', fail)
  after = ('it begins anew, for no checkpoint was written yet' if step == 5
           else 'it goes on from step 5, the last good checkpoint')
  with pytest.raises(storage.Unwritable, match=rf'run/checkpoints cannot be '
                     f'written .*[Nn]o space left on device.*: {after}.'):
    run(tmp_path / 'run')


def test_bug_in_a_save_keeps_its_traceback(tmp_path, monkeypatch):
  def fail(manager, number, **arguments):
    raise ValueError('a bug')

  monkeypatch.setattr(ocp.CheckpointManager, 'save', fail)
  with pytest.raises(ValueError, match='^a bug$') as raised:
    run(tmp_path / 'run')
  assert not isinstance(raised.value, UserError)


def test_results_that_cannot_be_written_are_made_by_the_next_run(tmp_path):
  def full(task):
    def finish(state, workdir):
      with files.atomic_write(f'{workdir}/mesh.glb') as temporary:
        temporary.write_text('a part')
        raise FULL
    return task._replace(finish=finish)

  with pytest.raises(storage.Unwritable, match='run/mesh.glb cannot be written '
                     r'\(No space left on device\).* from step 10'):
    run(tmp_path / 'run', full)
  assert not list((tmp_path / 'run').glob('*mesh*'))
  assert run(tmp_path / 'run').step == 10
  assert (tmp_path / 'run' / 'finished.json').exists()


def test_process_on_a_full_disk_ends_with_one_sentence(tmp_path):
  """Files are limited in size, as root has no other full disk in a test."""
  program = ('import resource\n'
             'resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n'
             'from gen3d import train; from gen3d.engine import cli\n'
             'train.tasks.TASKS["toy"] = "toy_task"; cli.run(train.main)')
  done = subprocess.run(
      [sys.executable, '-c', program, f'--config={TESTS}/toy_config.py',
       f'--workdir={tmp_path / "run"}', '--config.steps=10000',
       '--config.log_every=1', '--config.eval_every=0'],
      env={**os.environ, 'PYTHONPATH':
           os.pathsep.join([str(TESTS.parent), str(TESTS)])},
      capture_output=True, text=True, timeout=120)
  assert done.returncode == 2, done.stderr
  lines = done.stderr.splitlines()
  assert 'Traceback' not in done.stderr and len(lines) < 5, done.stderr
  assert re.search(r'run/\S+ cannot be written \(File too large\); free space '
                   r'.* it goes on from step \d+', lines[-1])


@pytest.mark.parametrize('action', [shutil.rmtree, lambda x: x.rename(
    x.with_name('moved'))])
def test_workdir_that_vanishes_ends_the_run(tmp_path, action):
  def vanishing(task):
    def batches(seed, first):
      for i, batch in enumerate(task.batches(seed, first)):
        if i == 7:
          action(tmp_path / 'run')
        yield batch
    return task._replace(batches=batches)

  with pytest.raises(AtOnce, match='run was deleted or moved while the train'):
    run(tmp_path / 'run', vanishing, steps=1000, checkpoint_every=500)
  assert not (tmp_path / 'run').exists()


def test_what_a_save_makes_again_of_a_vanished_workdir_is_removed(tmp_path):
  stray = tmp_path / 'run' / 'checkpoints' / '5.orbax-checkpoint-tmp'
  (stray / 'state').mkdir(parents=True)
  with pytest.raises(AtOnce):
    storage.check_present(tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  stray.mkdir(parents=True)
  (tmp_path / 'run' / 'mine').write_text('mine')
  with pytest.raises(AtOnce):
    storage.check_present(tmp_path / 'run')
  assert (tmp_path / 'run' / 'mine').exists() and not stray.exists()


def test_temporary_files_of_a_killed_run_are_removed(tmp_path):
  run(tmp_path / 'run', steps=2)
  (tmp_path / 'run' / 'previews').mkdir()
  kept = ['.mine', '.mine.0123456789.txt', 'a.0123456789abcdef.mp4']
  for name in ('.turntable.0123456789abcdef.mp4', '.lock.0123456789abcdef',
               'previews/.a_000005.0123456789abcdef.png', *kept):
    (tmp_path / 'run' / name).write_text('')
  run(tmp_path / 'run', steps=2)
  left = {p.name for p in (tmp_path / 'run').rglob('*')}
  assert set(kept) <= left
  assert [x for x in left if 'abcdef' in x] == kept[2:]


def test_name_of_a_temporary_file_is_one_that_is_removed(tmp_path):
  with files.atomic_write(tmp_path / 'a.mp4') as temporary:
    temporary.write_text('')
    files.remove_temporary(tmp_path)
    assert not temporary.exists()
    temporary.write_text('again')
  assert (tmp_path / 'a.mp4').read_text() == 'again'


def test_run_that_cannot_begin_leaves_no_workdir(tmp_path):
  def damaged(task):
    def init(key):
      raise UserError('The weights are damaged.')
    return task._replace(init=init)

  with pytest.raises(UserError, match='weights are damaged'):
    run(tmp_path / 'run', damaged)
  assert not (tmp_path / 'run').exists()
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'notes.txt').write_text('')
  with pytest.raises(UserError, match='weights are damaged'):
    run(tmp_path / 'mine', damaged)
  assert (tmp_path / 'mine' / 'notes.txt').exists()
  run(tmp_path / 'run', steps=2)
  before = json.loads((tmp_path / 'run' / 'config.json').read_text())
  with pytest.raises(UserError, match='weights are damaged'):
    run(tmp_path / 'run', damaged, steps=2)
  assert json.loads((tmp_path / 'run' / 'config.json').read_text()) == before


def test_workdir_with_files_of_others_is_not_discarded(tmp_path):
  with (pytest.raises(KeyError),
        workdirs.discarded_on_error(tmp_path, new=True)):
    (tmp_path / 'other').write_text('')
    raise KeyError
  assert (tmp_path / 'other').exists()


def test_full_disk_is_told_from_other_errors(tmp_path):
  with pytest.raises(FileNotFoundError), storage.failures(
      tmp_path, lambda: 0):
    (tmp_path.parent / 'data').joinpath('missing').read_bytes()
