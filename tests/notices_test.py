"""Notices about work that takes long."""

import io
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen3d import notices
from gen3d.engine import sharding
from gen3d.engine.state import TrainState
from gen3d.gan.schedule import Static


class Terminal(io.StringIO):
  """Stands in for stderr on a terminal."""

  def isatty(self):
    return True


def test_quick_work_has_no_notice(capsys):
  with notices.slow('quick work', after=60.0):
    pass
  assert list(notices.track('abc', 'Counting')) == ['a', 'b', 'c']
  assert capsys.readouterr().err == ''


def test_lines_follow_at_intervals_with_the_time_left(capsys, monkeypatch):
  monkeypatch.setattr(notices, '_EVERY', 0.1)
  with notices.progress('Rendering', 4, after=0.01) as advance:
    time.sleep(0.05)
    advance(3)
    time.sleep(0.2)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == 'Rendering: 0/4 (0:00:00)'
  assert 'Rendering: 3/4 (0:00:00, 0:00:00 left)' in lines[1:]
  assert notices._line('Work', 2, 8, 60.0) == (
      'Work: 2/8 (0:01:00, 0:03:00 left)')
  assert notices._line('Work', 0, None, 65.0) == 'Work (0:01:05)'


def test_innermost_of_the_notices_that_have_appeared_prints(capsys):
  with (notices.slow('outer work', after=0.05),
        notices.slow('inner work', after=0.01)):
    time.sleep(0.2)
  assert capsys.readouterr().err == 'inner work (0:00:00)\n'
  with notices.slow('outer work', after=0.05):
    for _ in range(20):
      with notices.slow('quick part'):
        time.sleep(0.01)
  assert capsys.readouterr().err == 'outer work (0:00:00)\n'


def test_terminal_has_a_bar_or_a_clock_that_ticks(monkeypatch):
  monkeypatch.setattr(notices, '_TICK', 0.02)
  monkeypatch.setattr(sys, 'stderr', Terminal())
  with notices.slow('Compiling', after=0.01):
    time.sleep(0.2)
  assert 'Compiling: 00:00' in sys.stderr.getvalue()
  with notices.progress('Rendering', 4, after=0.01) as advance:
    advance(3)
    time.sleep(0.2)
  assert re.search(r'Rendering:  75%.*3/4', sys.stderr.getvalue())


def test_notice_ends_with_an_error_of_the_work():
  with pytest.raises(KeyError), notices.slow('work', after=0.01):
    raise KeyError
  assert not notices._shown


def test_static_is_printed_in_words():
  assert str(Static(24, 'generator')) == '24 x 24 pixels, generator'
  assert str(Static(0, 'regularize')) == 'regularization'
  assert str(Static(8)) == '8 x 8 pixels, all phases'


def test_each_program_of_a_step_is_announced_once(monkeypatch):
  texts = []
  slow = notices.slow

  def record(text):
    texts.append(text)
    return slow(text)

  monkeypatch.setattr(notices, 'slow', record)

  def step(state, batch, key, static=None):
    return state.replace(step=state.step + 1), {'mean': jnp.mean(batch)}

  mesh = sharding.device_mesh(2)
  mapped = sharding.pmap(step, mesh)
  state = sharding.replicate(
      TrainState(step=jnp.int32(0), params={}, opt_state={}), mesh)
  key = sharding.replicate(jax.random.key(0), mesh)
  batch = sharding.to_devices(np.zeros((2, 3), np.float32), mesh)
  for static in (None, None, Static(8), Static(16), Static(8)):
    state, _ = mapped(state, batch, key, static)
  mapped.compile(state, batch, key, Static(16))
  assert texts == ['Compiling the training step',
                   'Compiling the training step: 8 x 8 pixels, all phases',
                   'Compiling the training step: 16 x 16 pixels, all phases']


def test_notice_of_a_command_appears_in_files_after_silence(
    capsys, monkeypatch):
  monkeypatch.setattr(notices, '_EVERY', 0.3)
  notices.message('a line')
  notices.working('work is done')
  for _ in range(5):  # Each is within the time after the one before.
    time.sleep(0.1)
    notices.message('a line')
  time.sleep(0.5)
  notices.attended()
  time.sleep(0.4)
  lines = capsys.readouterr().err.splitlines()
  assert lines[:6] == ['a line'] * 6 and set(lines[6:]) <= {
      'work is done (0:00:01)'} and lines[6:]
  notices.working('work is done')
  monkeypatch.setattr(sys, 'stderr', Terminal())
  notices.working('work is done')  # ends the one before
  time.sleep(0.5)
  assert not sys.stderr.getvalue()
