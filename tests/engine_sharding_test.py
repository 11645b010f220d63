"""One program over many devices, whose number does not change the result."""

import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from gen3d.choices import UserError
from gen3d.engine import sharding
from gen3d.engine.state import TrainState

TESTS = pathlib.Path(__file__).parent


def start(workdir, out, env):
  """Starts toy_run.py for 10 steps of 8 examples on the devices of `env`."""
  return subprocess.Popen(
      [sys.executable, str(TESTS / 'toy_run.py'), str(workdir), str(out),
       '{"steps": 10}'], env=env, stderr=subprocess.PIPE, text=True)


def test_result_does_not_depend_on_devices_or_processes(tmp_path, with_devices):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  alone = start(tmp_path / 'one', tmp_path / 'one.npz', with_devices(1))
  eight = start(tmp_path / 'eight', tmp_path / 'eight.npz', with_devices(8))
  pair = [start(tmp_path / 'pair', tmp_path / f'pair{i}.npz', {
      **with_devices(2), 'JAX_COORDINATOR_ADDRESS': address,
      'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(i)}) for i in range(2)]
  for process in (alone, eight, *pair):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
  one = np.load(tmp_path / 'one.npz')
  for name, count in (('eight', 8), ('pair0', 4), ('pair1', 4)):
    other = np.load(tmp_path / f'{name}.npz')
    assert (one['devices'], other['devices']) == (1, count)
    for key in set(one.files) - {'devices'}:
      np.testing.assert_allclose(
          other[key], one[key], rtol=2e-4, atol=2e-6, err_msg=f'{name} {key}')
  lines = (tmp_path / 'pair' / 'scalars.jsonl').read_text().splitlines()
  assert len(lines) == 5  # Steps 1, 5, 10 and two evaluations, by one process.


@pytest.mark.parametrize('count', [1, 2, 5, 12])
@pytest.mark.parametrize('rows', [None, 1, 3])
def test_map_over_devices_compiles_one_program(count, rows):
  compiled = []

  def scaled(shared, work):
    compiled.append(len(work['x']))
    return {'y': work['x'] * shared, 'first': work['x'][:1].repeat(
        len(work['x']), axis=0)}

  run = sharding.map_over_devices(scaled, rows)
  x = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)
  for _ in range(2):
    results = run(np.float32(3), {'x': x})
    np.testing.assert_array_equal(results['y'], 3 * x)
  part = rows or -(-count // 2)
  assert compiled == [part]
  np.testing.assert_array_equal(
      results['first'], x[np.arange(count) // part * part])


def test_each_device_gets_its_rows_and_the_state_stays_replicated():
  mesh = sharding.device_mesh()
  n = 2 * mesh.size

  def step(state, batch, key):
    device = jax.lax.axis_index('devices')
    total = jax.lax.psum(batch['x'].sum(), 'devices')
    state = state.replace(step=state.step + 1, params=state.params + total)
    return state, {'first': batch['x'][0], 'device': device,
                   'draw': jax.random.uniform(key)}

  state = sharding.replicate(
      TrainState(np.int32(0), np.float32(0), (), frozen={'w': np.ones(3)}),
      mesh)
  batch = sharding.to_devices({'x': np.arange(n, dtype=np.float32)}, mesh)
  key = sharding.replicate(jax.random.key(3), mesh)
  frozen = state.frozen
  state, metrics = sharding.pmap(step, mesh)(state, batch, key)
  assert state.params == n * (n - 1) / 2
  assert metrics['first'] == np.arange(0, n, 2).mean()
  assert metrics['device'] == (mesh.size - 1) / 2
  np.testing.assert_allclose(
      metrics['draw'],
      jax.random.uniform(jax.random.fold_in(jax.random.key(3), 0)), rtol=1e-6)
  np.testing.assert_array_equal(frozen['w'], 1)  # Not donated.
  assert sharding.unreplicate(state).params.devices() == {jax.devices()[0]}


def test_donating_a_replica_keeps_the_original():
  mesh = sharding.device_mesh()
  original = jax.numpy.arange(4.)
  replica = sharding.replicate(original, mesh)
  jax.jit(lambda x: x + 1, donate_argnums=0)(replica).block_until_ready()
  np.testing.assert_array_equal(original, np.arange(4))


@pytest.mark.parametrize('batch', [np.ones([3, 2]), np.ones([])])
def test_indivisible_batch_is_a_user_error(batch):
  mesh = sharding.device_mesh()
  assert mesh.size == 2  # conftest.py
  with pytest.raises(ValueError, match='cannot be divided over 2 devices'):
    sharding.to_devices({'x': batch}, mesh)


def test_too_few_examples_per_device_are_a_user_error():
  mesh, batch = sharding.device_mesh(), {'x': np.ones([4, 2])}
  sharding.check_divides(batch, mesh, sharding.Execution(min_per_device=2))
  with pytest.raises(ValueError, match='on 2 devices leaves fewer than the 3'):
    sharding.check_divides(batch, mesh, sharding.Execution(min_per_device=3))
  with pytest.raises(UserError, match=r'\(model.group\).*--config.model.group'):
    sharding.check_divides(batch, mesh, sharding.Execution(
        min_per_device=3, min_per_device_key='model.group'))


def test_static_is_passed_as_keyword_and_compiled_once_per_value():
  mesh = sharding.device_mesh()
  compiled = []

  def step(state, batch, key, *, static=0):
    compiled.append(static)
    return state.replace(step=state.step + static), {'static': static}

  run = sharding.pmap(step, mesh)
  state = sharding.replicate(TrainState(np.int32(0), (), ()), mesh)
  batch = sharding.to_devices(np.ones(2), mesh)
  for static, expected in ((1, 1), (5, 6), (1, 7), (None, 7)):
    state, metrics = run(state, batch, jax.random.key(0), static)
    assert state.step == expected and metrics['static'] == (static or 0)
  assert compiled == [1, 5, 0]


def test_programs_in_turn_are_one_step():
  """They share batch, key and step number; metrics of one name are added."""
  mesh, compiled = sharding.device_mesh(), []

  def step(state, batch, key, *, static):
    compiled.append(static)
    if static == 'end':
      return state.replace(step=state.step + 1), {'ended': 1.0}
    params = {**state.params, static: jax.random.uniform(key)}
    return state.replace(params=params), {'loss': 2.0 if static == 'a' else 3.0}

  run = sharding.pmap(step, mesh)
  state = sharding.replicate(TrainState(
      np.int32(0), dict.fromkeys('ab', np.float32(0)), ()), mesh)
  batch = sharding.to_devices(np.ones(2), mesh)
  static = sharding.InTurn(('a', 'b', 'end'))
  for number in range(2):
    state, metrics = run(state, batch, jax.random.key(0), static)
    assert int(state.step) == number + 1
    assert {name: float(x) for name, x in metrics.items()} == {
        'loss': 5.0, 'ended': 1.0}
    drawn = jax.random.uniform(jax.random.fold_in(jax.random.key(0), number))
    assert float(state.params['a']) == float(state.params['b']) == drawn
  state, metrics = run(state, batch, jax.random.key(0), 'b')
  assert int(state.step) == 2 and metrics == {'loss': 3.0}
  assert sorted(compiled) == ['a', 'b', 'end']  # each once


def test_metric_with_a_shape_is_named_in_the_error():
  mesh = sharding.device_mesh()
  state = sharding.replicate(TrainState(np.int32(0), (), ()), mesh)
  step = sharding.pmap(lambda s, b, k: (s, {'loss': b}), mesh)
  with pytest.raises(ValueError, match="'loss' has shape"):
    step(state, sharding.to_devices(np.ones(2), mesh), jax.random.key(0))
