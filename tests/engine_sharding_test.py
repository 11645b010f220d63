"""One program over many chips: the same result however they are spread."""

import os
import pathlib
import platform
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from gen3d.engine import sharding
from gen3d.engine.state import TrainState

TESTS = pathlib.Path(__file__).parent


def start(workdir, out, env):
  """Starts toy_run.py for 10 steps of 8 examples on the devices of `env`."""
  return subprocess.Popen(
      [sys.executable, str(TESTS / 'toy_run.py'), str(workdir), str(out),
       '{"steps": 10}'], env=env, stderr=subprocess.PIPE, text=True)


def test_the_result_does_not_depend_on_the_spreading(tmp_path, with_devices):
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
  for name, chips in (('eight', 8), ('pair0', 4), ('pair1', 4)):
    other = np.load(tmp_path / f'{name}.npz')
    assert (one['devices'], other['devices']) == (1, chips)
    for key in set(one.files) - {'devices'}:
      np.testing.assert_allclose(
          other[key], one[key], rtol=2e-4, atol=2e-6, err_msg=f'{name} {key}')
  lines = (tmp_path / 'pair' / 'scalars.jsonl').read_text().splitlines()
  assert len(lines) == 5  # Steps 1, 5, 10 and two evaluations, by one process.


@pytest.mark.parametrize('count', [1, 2, 5, 12])
@pytest.mark.parametrize('rows', [None, 1, 3])
def test_work_is_spread_by_one_program(count, rows):
  compiled = []

  def scaled(shared, work):
    compiled.append(len(work['x']))
    return {'y': work['x'] * shared, 'first': work['x'][:1].repeat(
        len(work['x']), axis=0)}

  run = sharding.map_over_devices(scaled, rows)
  x = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)
  for _ in range(2):
    found = run(np.float32(3), {'x': x})
    np.testing.assert_array_equal(found['y'], 3 * x)
  part = rows or -(-count // 2)
  assert compiled == [part]
  np.testing.assert_array_equal(
      found['first'], x[np.arange(count) // part * part])


def test_each_chip_gets_its_rows_and_the_state_stays_replicated():
  mesh = sharding.device_mesh()
  n = 2 * mesh.size

  def step(state, batch, key):
    chip = jax.lax.axis_index('devices')
    total = jax.lax.psum(batch['x'].sum(), 'devices')
    state = state.replace(step=state.step + 1, params=state.params + total)
    return state, {'first': batch['x'][0], 'chip': chip,
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
  assert metrics['chip'] == (mesh.size - 1) / 2
  np.testing.assert_allclose(
      metrics['draw'],
      jax.random.uniform(jax.random.fold_in(jax.random.key(3), 0)), rtol=1e-6)
  np.testing.assert_array_equal(frozen['w'], 1)  # Not donated.
  assert sharding.unreplicate(state).params.devices() == {jax.devices()[0]}


def test_replicate_leaves_the_callers_arrays_alive():
  mesh = sharding.device_mesh()
  mine = jax.numpy.arange(4.)
  theirs = sharding.replicate(mine, mesh)
  jax.jit(lambda x: x + 1, donate_argnums=0)(theirs).block_until_ready()
  np.testing.assert_array_equal(mine, np.arange(4))


@pytest.mark.parametrize('batch', [np.ones([3, 2]), np.ones([])])
def test_a_batch_that_does_not_divide_says_so(batch):
  mesh = sharding.device_mesh()
  assert mesh.size == 2  # conftest.py
  with pytest.raises(ValueError, match='cannot be divided over 2 chips'):
    sharding.to_devices({'x': batch}, mesh)


def test_chips_that_get_too_few_examples_are_counted():
  mesh, batch = sharding.device_mesh(), {'x': np.ones([4, 2])}
  sharding.check_divides(batch, mesh, sharding.Execution(min_per_device=2))
  with pytest.raises(ValueError, match='on 2 chips leaves fewer than the 3'):
    sharding.check_divides(batch, mesh, sharding.Execution(min_per_device=3))


def test_metrics_that_are_no_scalars_are_named():
  mesh = sharding.device_mesh()
  state = sharding.replicate(TrainState(np.int32(0), (), ()), mesh)
  step = sharding.pmap(lambda s, b, k: (s, {'loss': b}), mesh)
  with pytest.raises(ValueError, match="'loss' has shape"):
    step(state, sharding.to_devices(np.ones(2), mesh), jax.random.key(0))


def test_prefetch_keeps_the_order_and_passes_errors_on():
  mesh = sharding.device_mesh()

  def batches():
    for i in range(5):
      yield np.full(2, i)
    raise ValueError('out of pictures')

  seen = []
  with pytest.raises(ValueError, match='out of pictures'):
    for batch in sharding.prefetch(batches(), mesh):
      seen.append(int(batch[0]))
  assert seen == [0, 1, 2, 3, 4]


def test_an_unwritable_cache_is_told_and_left_out(
    tmp_path, monkeypatch, capsys):
  before = jax.config.jax_compilation_cache_dir
  file = tmp_path / 'file'
  file.write_text('')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(file / 'cache'))
  try:
    sharding.cache_compilations()
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert str(file / 'cache') in capsys.readouterr().err


def test_the_default_is_one_device_per_core_and_the_users_number_stays():
  program = ('from gen3d.engine import sharding; import jax\n'
             'sharding.use_all_cores()\n'
             'print(jax.device_count(), sharding.device_mesh(3).size,'
             ' sharding.device_mesh(4, 2).size, sharding.device_mesh(2, 2).size)')
  env = {**os.environ, 'PYTHONPATH': str(TESTS.parent)}
  env.pop('XLA_FLAGS')
  for flags, want in (({}, None), ({'XLA_FLAGS': os.environ['XLA_FLAGS']}, 2)):
    out = subprocess.run([sys.executable, '-c', program], env={**env, **flags},
                         check=True, capture_output=True, text=True).stdout
    count, divides, pairs, one = map(int, out.split())
    if want is None:  # As many of the cores as divide a batch of 3.
      assert count == sharding._cores() and 3 % divides == 0
      assert pairs <= 2 and one == 1  # At least two examples each.
    else:  # What the user asked for is not reduced behind their back.
      assert (count, divides, pairs, one) == (want,) * 4


def test_memory_is_kept_unless_the_user_says_otherwise():
  program = (
      'import resource\n'
      'import numpy as np\n'
      'from gen3d.engine import sharding\n'
      'kept = sharding.tune_malloc()\n'
      'def faults():\n'
      '  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
      'np.ones(2**25).sum()\n'
      'before = faults()\n'
      'for _ in range(4): np.ones(2**25).sum()\n'
      'print(kept, (faults() - before) < 4 * 2**28 / 4096 / 8)\n')
  run = lambda **extra: subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True,
      check=True, cwd=TESTS.parent,
      env={**os.environ, **extra}).stdout.split()
  if sys.platform == 'linux' and platform.libc_ver()[0] == 'glibc':
    assert run() == ['True', 'True']
  assert run(MALLOC_ARENA_MAX='4')[0] == 'False'
