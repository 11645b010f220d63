"""The loop: exact resumption, signals, NaNs, unusable workdirs."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import platform
import random
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy_config
import toy_task
from toy_run import leaves

from gen3d import legacy
from gen3d.choices import UserError
from gen3d.engine import checkpoints, locks, loop, workdirs

TESTS = pathlib.Path(__file__).parent


def run(workdir, change=lambda task: task, **overrides):
  """Runs the toy task in this process; returns its last state."""
  config = toy_config.get_config()
  config.update(overrides)
  return loop.run(change(toy_task.make(config)), config, workdir)[0]


def same(a, b):
  a, b = leaves(a), b if isinstance(b, dict) else leaves(b)
  assert set(a) == set(b)
  for key, x in a.items():
    np.testing.assert_array_equal(x, b[key], err_msg=key)


def test_killed_run_resumes_bit_identically(tmp_path):
  overrides = {'steps': 60, 'checkpoint_every': 3, 'eval_every': 25,
               'pause': .005}
  env = {**os.environ, 'PYTHONPATH': str(TESTS.parent)}
  command = [sys.executable, str(TESTS / 'toy_run.py'), str(tmp_path / 'run'),
             str(tmp_path / 'out.npz'), json.dumps(overrides)]
  moments = random.Random(time.time_ns())  # Any moment must do.
  for _ in range(2):
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
    started = newest(tmp_path / 'run')
    while newest(tmp_path / 'run') == started and process.poll() is None:
      time.sleep(.01)
    time.sleep(moments.uniform(0, .3))
    assert process.poll() is None, process.stderr.read()
    process.kill()
    process.communicate()
  process = subprocess.run(command, env=env, check=True, capture_output=True,
                           text=True)
  resumed = int(process.stderr.split('from step ')[1].split()[0])
  assert 0 < resumed < 60
  with np.load(tmp_path / 'out.npz') as out:
    killed = {key: out[key] for key in out.files if key != 'devices'}
  same(run(tmp_path / 'whole', **{**overrides, 'pause': 0.}), killed)
  steps = [json.loads(line)['step'] for line in
          (tmp_path / 'run' / 'scalars.jsonl').read_text().splitlines()]
  assert steps == sorted([1, *range(5, 61, 5), 25, 50, 60])  # None doubled.


def newest(workdir):
  saved = [int(p.name) for p in workdir.glob('checkpoints/*')
           if p.name.isdigit()]
  return max(saved, default=0)


@pytest.mark.parametrize('number, outcome', [
    (signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_signal_saves_and_stops(tmp_path, number, outcome):
  def interrupted(task):
    def step(batches):
      for i, batch in enumerate(batches):
        if i == 6:
          os.kill(os.getpid(), number)
        yield batch
    return task._replace(
        batches=lambda seed, first: step(task.batches(seed, first)))

  before = signal.getsignal(number)
  with pytest.raises(outcome) as error:
    run(tmp_path / 'run', interrupted, steps=1000, checkpoint_every=0,
        eval_every=0)
  assert signal.getsignal(number) is before
  if outcome is SystemExit:
    assert error.value.code == 0
  assert 0 < newest(tmp_path / 'run') < 1000
  assert not (tmp_path / 'run' / 'result.json').exists()
  same(run(tmp_path / 'run', steps=20, checkpoint_every=0, eval_every=0),
       run(tmp_path / 'whole', steps=20, checkpoint_every=0, eval_every=0))


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
  with pytest.raises(loop.Diverged, match='step 8.*is that of step 6'):
    run(tmp_path / 'run', steps=20, nan_at=8, checkpoint_every=2)
  assert newest(tmp_path / 'run') == 6
  loaded = checkpoints.load(tmp_path / 'run', toy_state())
  assert all(np.isfinite(x).all() for x in leaves(loaded).values())
  good = run(tmp_path / 'good', steps=6)
  same(loaded, good)


def test_nan_in_a_metric_is_named(tmp_path):
  def poisoned(task):
    def step(state, batch, key):
      after, metrics = task.step(state, batch, key)
      return after, {**metrics, 'loss/sds': 1. / (state.step - 3)}
    return task._replace(step=step)

  with pytest.raises(loop.Diverged, match='step 4, where loss/sds is inf'):
    run(tmp_path / 'run', poisoned, checkpoint_every=0)
  assert newest(tmp_path / 'run') == 0


def test_finish_runs_once_per_number_of_steps(tmp_path):
  calls = []

  def recorded(task):
    return task._replace(finish=lambda state, workdir: calls.append(1) or [])

  for steps in (5, 5, 8):
    state = run(tmp_path / 'run', recorded, steps=steps)
    assert state.step == steps
  assert len(calls) == 2  # After step 5 and after step 8.


def test_results_of_a_moved_workdir_are_known_and_deleted_ones_made_again(
    tmp_path):
  calls = []

  def writing(task):
    def finish(state, workdir):
      calls.append(workdir)
      (pathlib.Path(workdir) / 'mesh.glb').write_text('mesh')
      return [pathlib.Path(workdir) / 'mesh.glb']
    return task._replace(finish=finish)

  run(tmp_path / 'run', writing, steps=3)
  marker = json.loads((tmp_path / 'run' / 'finished.json').read_text())
  assert marker == {'step': 3, 'files': ['mesh.glb']}
  (tmp_path / 'run').rename(tmp_path / 'moved')
  run(tmp_path / 'moved', writing, steps=3)
  assert len(calls) == 1
  (tmp_path / 'moved' / 'mesh.glb').unlink()
  run(tmp_path / 'moved', writing, steps=3)
  assert (tmp_path / 'moved' / 'mesh.glb').exists()
  (tmp_path / 'moved' / 'finished.json').write_text('[')
  run(tmp_path / 'moved', writing, steps=3)
  assert len(calls) == 3
  assert run(tmp_path / 'moved', writing, steps=5).step == 5


def test_workdir_of_another_config_is_refused(tmp_path):
  run(tmp_path / 'run', steps=2)
  stored = (tmp_path / 'run' / 'config.json').read_text()
  with pytest.raises(ValueError, match=r'optimizer.learning_rate \(0.01 there, '
                     r'0.5 here\), rows \(8 there, 4 here\)'):
    run(tmp_path / 'run', steps=3, rows=4, optimizer={'learning_rate': .5})
  assert (tmp_path / 'run' / 'config.json').read_text() == stored
  assert run(tmp_path / 'run', steps=3, log_every=1).step == 3


def test_workdir_without_a_checkpoint_accepts_another_config(tmp_path):
  with pytest.raises(loop.Diverged):
    run(tmp_path / 'run', nan_at=2)
  assert run(tmp_path / 'run', nan_at=0).step == 10


@pytest.mark.parametrize('place', ['file/run', '/proc/run'])
def test_unwritable_workdir_is_a_user_error(tmp_path, place):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(ValueError, match='cannot be written'):
    run(tmp_path / place)
  assert (tmp_path / 'file').read_text() == 'mine'


def test_checkpoints_without_a_config_are_refused(tmp_path):
  run(tmp_path / 'run', steps=1)
  (tmp_path / 'run' / 'config.json').unlink()
  with pytest.raises(ValueError, match='checkpoints but no config.json'):
    run(tmp_path / 'run', steps=1)


def test_indivisible_batch_stops_before_init(tmp_path):
  inits = []

  def noted(task):
    return task._replace(init=lambda key: inits.append(1) or task.init(key))

  with pytest.raises(ValueError, match='A batch of 7 cannot be divided over 2'):
    run(tmp_path / 'run', noted, rows=7)
  assert not inits and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('content', [
    '', '{"step": 4, "fi', '[]', '5', 'null', '{}', '{"step": "4"}',
    '{"step": 4, "files": 5}'])
def test_damaged_finished_json_is_written_again(tmp_path, capsys, content):
  """Without a training: the state is that of the last step."""
  marker = tmp_path / 'finished.json'
  marker.write_text(content)
  task = SimpleNamespace(finish=lambda state, workdir: [f'{workdir}/a.glb'])
  finish = lambda: loop._finish(task, None, tmp_path, SimpleNamespace(step=4))
  with pytest.raises(UserError, match='finished.json is missing or damaged'):
    loop.finished_step(tmp_path)
  for _ in range(2):
    assert finish()[1] == [f'{tmp_path}/a.glb']
  assert capsys.readouterr().err.count('is damaged and is made again') == 2
  assert loop.finished_step(tmp_path) == 4


@pytest.mark.parametrize('steps', [4, 6, 20])
def test_renamed_checkpoint_is_not_resumed_from(tmp_path, steps):
  """The run would end before, at or after the step of the directory."""
  run(tmp_path / 'run', steps=4)
  folder = tmp_path / 'run' / 'checkpoints'
  (folder / '4').rename(folder / '6')
  (tmp_path / 'run' / 'finished.json').unlink()
  with pytest.raises(ValueError, match='checkpoints/6 holds step 4, not step 6 '
                     '.*; rename that directory to 4'):
    run(tmp_path / 'run', steps=steps)
  assert not (tmp_path / 'run' / 'finished.json').exists()
  (folder / '6').rename(folder / '4')
  same(run(tmp_path / 'run', steps=8), run(tmp_path / 'whole', steps=8))


def test_second_run_is_refused_until_the_first_is_killed(tmp_path):
  overrides = {'checkpoint_every': 2, 'eval_every': 0, 'pause': .02}
  first = subprocess.Popen(
      [sys.executable, str(TESTS / 'toy_run.py'), str(tmp_path / 'run'),
       str(tmp_path / 'out.npz'), json.dumps({'steps': 10**6, **overrides})],
      env={**os.environ, 'PYTHONPATH': str(TESTS.parent)},
      stderr=subprocess.PIPE)
  try:
    while newest(tmp_path / 'run') == 0 and first.poll() is None:
      time.sleep(.01)
    assert first.poll() is None, first.stderr.read()
    stored = (tmp_path / 'run' / 'config.json').read_text()
    message = (
        f'{tmp_path / "run"} is in use by another run (process {first.pid} '
        f'on {platform.node()}); wait for its end or stop it, or choose')
    for _ in range(2):  # A refused run does not release it.
      with pytest.raises(ValueError, match=re.escape(message)):
        run(tmp_path / 'run', steps=1, **overrides)
    assert (tmp_path / 'run' / 'config.json').read_text() == stored
    assert first.poll() is None
    checkpoints.load_config(tmp_path / 'run')  # Reading is not refused.
  finally:
    first.send_signal(signal.SIGKILL)
    first.communicate()
  steps = newest(tmp_path / 'run') + 2
  assert run(tmp_path / 'run', steps=steps, **overrides).step == steps


def test_locked_workdir_is_not_written_but_can_be_read(tmp_path):
  (tmp_path / 'new').mkdir()
  with (locks.hold(tmp_path / 'new'),
        pytest.raises(ValueError, match='in use by another run')):
    run(tmp_path / 'new', fails_if_batches_are_made)
  assert [p.name for p in (tmp_path / 'new').iterdir()] == ['.lock']
  run(tmp_path / 'run', steps=2)
  with locks.hold(tmp_path / 'run'):
    assert checkpoints.load(tmp_path / 'run', toy_state()).step == 2


def fails_if_batches_are_made(task):
  return task._replace(
      batches=lambda seed, first: pytest.fail('batches were made'))


def test_lock_is_held_until_finish_and_then_released(tmp_path):
  tried = []

  def attempt(*args):
    with pytest.raises(ValueError, match=f'process {os.getpid()} on'):
      run(tmp_path / 'run')
    tried.append(args)
    return []

  run(tmp_path / 'run', lambda task: task._replace(finish=attempt), steps=2)
  assert len(tried) == 1
  with locks.hold(tmp_path / 'run'):
    pass
  with pytest.raises(loop.Diverged):
    run(tmp_path / 'nan', nan_at=2)
  with locks.hold(tmp_path / 'nan'):
    pass


def test_run_that_ended_during_the_first_batch_is_detected(tmp_path):
  """A new workdir is locked only when the first batch is there."""

  def late(task):
    def batches(seed, first):
      run(tmp_path / 'run', steps=2)
      return task.batches(seed, first)
    return task._replace(batches=batches)

  with pytest.raises(ValueError, match='Another run has written to .*/run'):
    run(tmp_path / 'run', late, steps=3)
  assert newest(tmp_path / 'run') == 2
  assert run(tmp_path / 'run', steps=3).step == 3


def test_only_process_0_holds_the_lock(tmp_path, monkeypatch):
  with locks.hold(tmp_path), contextlib.ExitStack() as held:
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    workdirs.lock(tmp_path, held)
    monkeypatch.setattr(jax, 'process_index', lambda: 0)
    with pytest.raises(ValueError, match='in use'):
      workdirs.lock(tmp_path, held)


def test_run_without_file_locks(tmp_path, monkeypatch):
  monkeypatch.setattr(locks, 'fcntl', None)
  assert run(tmp_path / 'windows', steps=1).step == 1
  assert not (tmp_path / 'windows' / '.lock').exists()

  def refuse(file, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(locks, 'fcntl', fcntl)
  monkeypatch.setattr(fcntl, 'flock', refuse)
  assert run(tmp_path / 'network', steps=1).step == 1


def test_symbolic_link_as_lock_file_is_refused(tmp_path):
  (tmp_path / 'mine').write_text('mine')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / '.lock').symlink_to(tmp_path / 'mine')
  with pytest.raises(ValueError, match=r'run cannot be written \(.*/\.lock: '):
    run(tmp_path / 'run', fails_if_batches_are_made)
  assert (tmp_path / 'mine').read_text() == 'mine'


def version_1(workdir, config):
  """Makes a finished run as version 1 left it: no version, no leaf digests."""
  run(workdir, **config)
  stored = workdir / 'config.json'
  content = json.loads(stored.read_text())
  assert content.pop('version') == 2
  stored.write_text(json.dumps({**content, 'counted': 'rays'}))
  for meta in workdir.glob('checkpoints/*/meta/metadata'):
    meta.write_text(json.dumps({'sha256': '0' * 64}))


def test_version_1_run_is_not_resumed_but_can_be_read(tmp_path):
  version_1(tmp_path / 'run', {'steps': 2})
  before = (tmp_path / 'run' / 'config.json').read_text()
  for steps in (2, 3):
    with pytest.raises(UserError, match='of version 1 of gen3d.*layout.*train '
                       'in another workdir. Its exported files'):
      run(tmp_path / 'run', fails_if_batches_are_made, steps=steps)
  with pytest.raises(UserError, match='of version 1 of gen3d'):
    checkpoints.load(tmp_path / 'run', toy_state())
  assert (tmp_path / 'run' / 'config.json').read_text() == before
  config = checkpoints.load_config(tmp_path / 'run')
  assert config.throughput_unit == 'rays' and 'counted' not in config
  # A part of the state can still be read, unverified.
  assert checkpoints.load_tree(tmp_path / 'run', 'params')['w'].shape == (4, 16)


def test_version_is_stored_but_not_part_of_the_config(tmp_path):
  run(tmp_path / 'run', steps=1)
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored['version'] == legacy.VERSION == 2
  assert 'version' not in checkpoints.load_config(tmp_path / 'run')


def test_run_of_a_later_version_is_refused(tmp_path):
  run(tmp_path / 'run', steps=1)
  stored = tmp_path / 'run' / 'config.json'
  stored.write_text(json.dumps({**json.loads(stored.read_text()),
                                'version': 3}))
  with pytest.raises(UserError, match='of version 3 of gen3d'):
    run(tmp_path / 'run', steps=2)


def toy_state():
  return toy_task.make(toy_config.get_config()).init(jax.random.key(0))


def test_run_whose_config_an_editor_saved_as_utf_16_goes_on(tmp_path):
  run(tmp_path / 'run', steps=2)
  stored = tmp_path / 'run' / 'config.json'
  stored.write_bytes(stored.read_text().encode('utf-16'))
  state = run(tmp_path / 'run', steps=3)
  assert state.step == 3 and json.loads(stored.read_text())['steps'] == 3
