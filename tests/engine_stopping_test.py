"""Signals while the main thread runs no Python; ends despite threads."""

import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import toy_config
import toy_task
from toy_run import leaves

from gen3d.engine import checkpoints, loop, sharding, stopping

TESTS = pathlib.Path(__file__).parent
# With shorter waits.
TRAIN = '''
from gen3d import train
from gen3d.engine import cli, stopping
stopping._GRACE, stopping._NOTICE = 1., .3
train.tasks.TASKS['toy'] = 'blocked_task'
cli.run(train.main)
'''


def take_interrupts():
  """A test run in the background ignores SIGINT, and its children would."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(program, *words, **env):
  return subprocess.Popen(
      [sys.executable, '-c', program, *words], stderr=subprocess.PIPE,
      stdout=subprocess.PIPE, text=True, preexec_fn=take_interrupts, env={
          **os.environ, **env,
          'PYTHONPATH': os.pathsep.join([str(TESTS.parent), str(TESTS)])})


def stop(process, *numbers):
  """Sends signals when it says 'blocked'; returns its exit code and stderr."""
  for line in process.stderr:
    if line == 'blocked\n':
      break
  for number in numbers:
    process.send_signal(number)
  errors = process.communicate(timeout=60)[1]
  assert 'Traceback' not in errors
  return process.returncode, errors


def test_signals_are_answered_while_the_main_thread_is_in_c(tmp_path):
  """The state after the last step is saved, if no step is replacing it."""
  cases = {
      'static:6': (signal.SIGTERM, 0, 'Stopped after step 6, without waiting '
                   'for the next one; step 6 is saved, and the same command '
                   'goes on from there.'),
      'static:0': (signal.SIGINT, 130, 'no step is saved yet, and the same '
                   'command goes on from step 0.'),
      'evaluate': (signal.SIGTERM, 0, 'step 5 is saved'),
      'finish': (signal.SIGINT, 130, 'Stopped while the results were written; '
                 'step 10 is saved'),
      'init': (signal.SIGINT, 130, 'Stopped.')}
  processes = {place: start(
      TRAIN, f'--config={TESTS}/toy_config.py', '--config.checkpoint_every=4',
      f'--workdir={tmp_path / place}', BLOCKED=place) for place in cases}
  for place, (number, code, sentence) in cases.items():
    returned, errors = stop(processes[place], number)
    assert returned == code, errors
    assert sentence in errors.splitlines()[-1]
  assert not (tmp_path / 'finish' / 'finished.json').exists()
  resumed = finish(tmp_path / 'static:6')
  for key, x in finish(tmp_path / 'whole').items():
    np.testing.assert_array_equal(resumed[key], x, err_msg=key)


def finish(workdir):
  config = toy_config.get_config()
  config.checkpoint_every = 4
  return leaves(loop.run(toy_task.make(config), config, workdir)[0])


@pytest.fixture
def late():
  """Queue of the numbers that a Watch is late for; signals do nothing else."""
  before = {number: signal.signal(number, lambda *_: None)
            for number in (signal.SIGTERM, signal.SIGINT)}
  yield queue.Queue()
  for number, handler in before.items():
    signal.signal(number, handler)


def test_a_notebook_is_not_ended(late, monkeypatch):
  monkeypatch.setattr(stopping, '_GRACE', .2)
  monkeypatch.setattr(stopping, '_NOTICE', .1)
  monkeypatch.setitem(sys.modules, 'ipykernel', object())
  with stopping.Watch(late.put):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(queue.Empty):
      late.get(timeout=.5)


def test_stop_while_results_are_written_does_not_wait_for_libraries():
  done = start('''
import atexit, threading
from gen3d.engine import cli, stopping
stopping._EXIT = .2

def main():
  atexit.register(threading.Event().wait)  # as JAX waits for a computation
  raise stopping.Stopped(0)

cli.run(main)
''')
  assert done.communicate(timeout=60) == ('', '') and done.returncode == 0


def test_ctrl_c_runs_the_exit_handlers_and_not_the_end_of_python():
  """Which would wait for the thread, and crashes where it is XLA's."""
  done = start('''
import atexit, threading
from gen3d.engine import cli, stopping
stopping._EXIT = 10**4

def main():
  atexit.register(print, 'handled')
  threading.Thread(target=threading.Event().wait).start()
  raise KeyboardInterrupt

cli.run(main)
''')
  assert done.communicate(timeout=60) == ('handled\n', '')
  assert done.returncode == 130


def test_second_sigterm_is_not_answered_again(capfd):
  stop = stopping.Stopping(lambda state: None, lambda: None, lambda: 3)
  with pytest.raises(stopping.Stopped), stop:
    stop.at_once()
    try:
      signal.raise_signal(signal.SIGTERM)
    finally:
      signal.raise_signal(signal.SIGTERM)
  assert capfd.readouterr().err.count('Stopped before all') == 1


def test_second_ctrl_c_does_not_wait(late, monkeypatch):
  monkeypatch.setattr(stopping, '_GRACE', 10**4)
  with stopping.Watch(late.put):
    for number in (signal.SIGTERM, signal.SIGINT):
      os.kill(os.getpid(), number)
    assert late.get(timeout=60) == signal.SIGTERM


def test_signal_is_not_late_after_the_context(late, monkeypatch):
  monkeypatch.setattr(stopping, '_GRACE', .2)
  monkeypatch.setattr(stopping, '_NOTICE', .1)
  with stopping.Watch(late.put):
    os.kill(os.getpid(), signal.SIGTERM)
  with pytest.raises(queue.Empty):
    late.get(timeout=.5)
  with stopping.Watch(late.put):
    os.kill(os.getpid(), signal.SIGTERM)
    assert late.get(timeout=60) == signal.SIGTERM


def test_program_that_was_started_answers_the_signals(late, monkeypatch):
  monkeypatch.setattr(stopping, '_GRACE', .2)
  monkeypatch.setattr(stopping, '_NOTICE', .1)
  monkeypatch.setattr(stopping, '_LATER', .2)
  passed = []
  with stopping.Watch(late.put), stopping.left_to(passed.append):
    for number in (signal.SIGTERM, signal.SIGINT):
      os.kill(os.getpid(), number)
    with pytest.raises(queue.Empty):
      late.get(timeout=.5)
  assert passed == [signal.SIGTERM, signal.SIGINT]


def test_library_threads_do_not_keep_a_failed_process(tmp_path):
  program = (
      'import threading, time\nfrom gen3d.choices import UserError\n'
      'from gen3d.engine import cli, stopping\nstopping._EXIT = .5\n'
      'def main():\n'
      '  threading.Thread(target=time.sleep, args=[10**4]).start()\n'
      '  raise {}\ncli.run(main)')
  errors = {'UserError("a sentence.")': 2, 'OSError("a sentence.")': 2,
            'stopping.AtOnce("a sentence.")': 2, 'KeyboardInterrupt': 130}
  for process, code in [(start(program.format(error)), code)
                        for error, code in errors.items()]:
    text = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert text == ('a sentence.\n' if code == 2 else '')


@pytest.mark.parametrize('words', [
    ('-m', 'gen3d.train'), ('-m', 'gen3d', 'generate')])
def test_ctrl_c_during_the_imports_has_no_traceback(words, tmp_path):
  # A module that is imported first of all, in place of absl.
  (tmp_path / 'absl.py').write_text(
      'import sys, time\nprint("blocked", file=sys.stderr, flush=True)\n'
      'time.sleep(60)')
  process = subprocess.Popen(
      [sys.executable, *words], stderr=subprocess.PIPE, text=True,
      preexec_fn=take_interrupts, env={
          **os.environ, 'PYTHONPATH': os.pathsep.join(
              [str(tmp_path), str(TESTS.parent)])})
  assert stop(process, signal.SIGINT) == (130, '')


def test_import_of_the_package_leaves_the_handlers():
  program = ('import signal; import gen3d\n'
             'assert signal.getsignal(signal.SIGINT) == '
             'signal.default_int_handler')
  assert start(program).wait(timeout=60) == 0


def test_a_step_that_replaces_the_state_has_longer(monkeypatch):
  ended = []
  monkeypatch.setattr(stopping, 'end', ended.append)
  state = jax.numpy.zeros(3)
  with stopping.Stopping(lambda state: None, lambda: None, lambda: 0) as stops:
    stops.done(1, state)
    state.delete()
    assert stops._late(signal.SIGTERM) == stopping._STEP
    assert not ended
    # The run can save meanwhile; after the wait the process ends in any case.
    stops.keep()
    stops._ending.release()
    assert stops._late(signal.SIGTERM) is None
    assert ended == [0]


def test_a_watch_calls_again_after_the_seconds_that_are_asked_for(
    late, monkeypatch):
  monkeypatch.setattr(stopping, '_GRACE', .2)
  monkeypatch.setattr(stopping, '_NOTICE', .1)
  waits = [.5, None]

  def answer(number):
    late.put((number, time.monotonic()))
    return waits.pop(0)

  with stopping.Watch(answer):
    os.kill(os.getpid(), signal.SIGTERM)
    _, first = late.get(timeout=60)
    number, second = late.get(timeout=60)
  assert number == signal.SIGTERM and second - first > .3


def test_main_thread_does_not_continue_while_the_state_is_saved(tmp_path):
  """Both would save; the thread that began ends the process."""
  with stopping.Stopping(lambda state: None, lambda: None, lambda: 0) as stops:
    stops.keep()
    other = threading.Thread(target=stops.keep, daemon=True)
    other.start()
    other.join(.2)
    assert other.is_alive()
    stops._ending.release()
    other.join(10)
    assert not other.is_alive()


def test_handlers_are_those_of_before_after_a_run(tmp_path):
  before = [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)]
  descriptor = signal.set_wakeup_fd(-1)
  signal.set_wakeup_fd(descriptor)
  finish(tmp_path)
  assert before == [
      signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)]
  assert signal.set_wakeup_fd(-1) == descriptor
  signal.set_wakeup_fd(descriptor)


def test_diverged_state_is_not_saved_at_a_signal(tmp_path):
  task = toy_task.make(toy_config.get_config())
  state = task.init(jax.random.key(0))
  state = loop.replicate_state(
      state.replace(step=state.step + 3), sharding.device_mesh())
  diverged = state.replace(
      params=jax.tree.map(lambda x: x * np.nan, state.params))
  with checkpoints.Checkpoints(tmp_path) as saved:
    loop._save_finite(saved, diverged)
    assert checkpoints.latest(tmp_path) == 0
    loop._save_finite(saved, state)
    assert checkpoints.latest(tmp_path) == 3
