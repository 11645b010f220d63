"""Notices about work that takes long."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.engine import notices, sharding
from gen3d.engine.state import TrainState
from gen3d.gan.schedule import Static


def test_slow_prints_after_the_delay_and_only_then(capsys):
  with notices.slow('quick work', after=60.0):
    pass
  assert capsys.readouterr().err == ''
  with notices.slow('slow work', after=0.01):
    time.sleep(0.5)
  assert capsys.readouterr().err == 'slow work\n'


def test_static_is_printed_in_words():
  assert str(Static(24, frozenset())) == (
      '24 x 24 pixels, generator, discriminator')
  assert str(Static(0, frozenset({'regularize', 'r1'}))) == (
      'generator, discriminator, R1, regularization')
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
  assert texts == ['Compiling the training step.',
                   'Compiling the training step: 8 x 8 pixels, all phases.',
                   'Compiling the training step: 16 x 16 pixels, all phases.']
