"""Runs of several processes of which one is killed, or never starts."""

import itertools
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import pytest

from gen3d.choices import UserError
from gen3d.engine import checkpoints, peers

TESTS = pathlib.Path(__file__).parent
# With shorter waits.
TRAIN = '''
from gen3d import train
from gen3d.engine import cli, devices, peers
devices._START_SECONDS, peers._FAILED = {join}, 3.
train.tasks.TASKS['toy'] = 'toy_task'
cli.run(train.main)
'''


def start(workdir, indices, with_devices, join=50, count=2):
  """Starts processes of a run that would take an hour."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  return [subprocess.Popen(
      [sys.executable, '-c', TRAIN.format(join=join),
       f'--config={TESTS}/toy_config.py', f'--workdir={workdir}',
       '--config.pause=.05', '--config.steps=100000', '--config.eval_every=0'],
      stderr=subprocess.PIPE, text=True, env={
          **with_devices(1), 'JAX_COORDINATOR_ADDRESS': address,
          'JAX_NUM_PROCESSES': str(count), 'JAX_PROCESS_ID': str(i)})
      for i in indices]


def test_process_names_the_one_that_was_killed_and_ends(
    tmp_path, with_devices):
  runs = [start(tmp_path / str(i), (0, 1), with_devices) for i in range(2)]
  try:
    for killed, processes in enumerate(runs):
      while not checkpoints.latest(tmp_path / str(killed)):
        assert all(process.poll() is None for process in processes), (
            processes[0].communicate()[1])
        time.sleep(.05)
      processes[killed].send_signal(signal.SIGKILL)
      other = processes[1 - killed]
      errors = other.communicate(timeout=60)[1]
      assert other.returncode == 2, errors
      assert errors.splitlines()[-1] == (
          f'Process {killed} of the 2 processes of the run has ended or does '
          'not answer; start all of them again with the same commands, which '
          'go on from the newest checkpoint.')
      assert 'Traceback' not in errors and '*** Check failure' not in errors
  finally:
    for process in sum(runs, []):
      process.kill()


def test_process_that_never_starts_is_not_waited_for(tmp_path, with_devices):
  pairs = [start(tmp_path / str(i), (i,), with_devices, join=1)
           for i in range(2)]
  sentences = ('Process 0 has waited 1 seconds, and not all of the 2 processes '
               'have started; start', 'Process 1 has waited 1 seconds, and '
               'process 0 cannot be reached at 127.0.0.1:')
  for (process,), sentence in zip(pairs, sentences, strict=True):
    errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors.count('\n')) == (2, 1), errors
    assert errors.startswith(sentence)


def test_count_that_stands_still_is_that_of_a_process_that_is_gone(
    monkeypatch):
  monkeypatch.setattr(peers, '_state', lambda: type(
      'State', (), {'num_processes': 4, 'process_id': 0}))
  clock = itertools.count()
  monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
  counts = peers._Counts()
  counts.update({})
  for i in range(3):
    counts.update({0: '0', 1: str(i), 2: '7', 3: str(i)})
  assert counts.gone(1.5) == 2
  assert counts.gone(50) is None


def test_error_of_a_run_of_one_process_is_its_own():
  assert peers.check(ValueError('a bug')) is None


def join(monkeypatch):
  """Arguments with which `join` starts JAX."""
  given = {}
  monkeypatch.setattr(peers, '_catch_fatal', lambda: None)
  monkeypatch.setattr(peers.jax.config, 'update', lambda *setting: None)
  peers.join(lambda **limits: given.update(limits), 50)
  return given


def test_without_the_private_record_of_jax_its_own_watch_stays(
    monkeypatch, capsys):
  assert 'heartbeat_timeout_seconds' in join(monkeypatch)
  assert not capsys.readouterr().err
  monkeypatch.delattr(jax._src, 'distributed')
  monkeypatch.setitem(sys.modules, 'jax._src.distributed', None)
  assert [*join(monkeypatch)] == ['initialization_timeout']
  assert 'they do not watch each other' in capsys.readouterr().err
  assert not peers.several()
  assert peers.check(ValueError('a bug')) is None


def test_another_key_value_store_is_one_sentence(monkeypatch):
  state = types.SimpleNamespace(client=object(), num_processes=2, process_id=1,
                                coordinator_address='')
  monkeypatch.setattr(peers, '_state', lambda: state)
  with pytest.raises(UserError, match='cannot watch each other with JAX'):
    join(monkeypatch)


@pytest.mark.parametrize('text, fatal', [
    (b'F1 Terminating process because the JAX distributed service detected '
     b'fatal errors.', True),
    (b'Terminating process because the coordination service', True),
    (b'Terminating the search', False)])
def test_fatal_messages_of_jax(text, fatal):
  assert bool(peers._FATAL.search(text)) == fatal
