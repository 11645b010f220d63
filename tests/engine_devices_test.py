"""Set-up of a process: devices, allocator, compilation cache."""

import os
import pathlib
import platform
import subprocess
import sys

import jax
import pytest

from gen3d.choices import UserError
from gen3d.engine import devices

TESTS = pathlib.Path(__file__).parent


def test_unwritable_compilation_cache_is_disabled_with_a_warning(
    tmp_path, monkeypatch, capsys):
  before = jax.config.jax_compilation_cache_dir
  file = tmp_path / 'file'
  file.write_text('')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(file / 'cache'))
  try:
    devices.cache_compilations()
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert str(file / 'cache') in capsys.readouterr().err


def test_one_device_per_core_by_default_and_the_users_number_stays():
  program = ('from gen3d.engine import devices, sharding; import jax\n'
             'devices.use_all_cores()\n'
             'print(jax.device_count(), *(sharding.device_mesh(*x).size'
             ' for x in ((3,), (4, 2), (2, 2))))')
  env = {**os.environ, 'PYTHONPATH': str(TESTS.parent)}
  env.pop('XLA_FLAGS')
  for flags, want in (({}, None), ({'XLA_FLAGS': os.environ['XLA_FLAGS']}, 2)):
    out = subprocess.run([sys.executable, '-c', program], env={**env, **flags},
                         check=True, capture_output=True, text=True).stdout
    count, divides, pairs, one = map(int, out.split())
    if want is None:  # As many of the cores as divide a batch of 3.
      assert count == devices.cores() and 3 % divides == 0
      assert pairs <= 2 and one == 1  # At least two examples each.
    else:  # The user's number is never reduced.
      assert (count, divides, pairs, one) == (want,) * 4


def test_freed_memory_is_kept_unless_malloc_is_configured():
  program = (
      'import resource\n'
      'import numpy as np\n'
      'from gen3d.engine import devices\n'
      'accepted = devices.tune_malloc()\n'
      'def faults():\n'
      '  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
      'np.ones(2**25).sum()\n'
      'before = faults()\n'
      'for _ in range(4): np.ones(2**25).sum()\n'
      'print(accepted, (faults() - before) < 4 * 2**28 / 4096 / 8)\n')
  run = lambda **extra: subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True,
      check=True, cwd=TESTS.parent,
      env={**os.environ, **extra}).stdout.split()
  if sys.platform == 'linux' and platform.libc_ver()[0] == 'glibc':
    assert run() == ['True', 'True']
  assert run(MALLOC_ARENA_MAX='4')[0] == 'False'


@pytest.mark.parametrize('count, index', [(None, '0'), ('two', '0')])
def test_incomplete_coordinator_variables_are_a_user_error(
    monkeypatch, count, index):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', '127.0.0.1:1')
  monkeypatch.setenv('JAX_PROCESS_ID', index)
  monkeypatch.delenv('JAX_NUM_PROCESSES', raising=False)
  if count:
    monkeypatch.setenv('JAX_NUM_PROCESSES', count)
  with pytest.raises(UserError, match='needs JAX_NUM_PROCESSES'):
    devices.initialize_distributed()


@pytest.mark.optimized  # else both are compiled without optimizations
def test_jit_once_gives_the_bits_of_jit_also_within_another_jit():
  draw = lambda key: jax.random.normal(key, (3, 5))
  key = jax.random.key(0)
  expected = jax.jit(draw)(key)
  assert (devices.jit_once(draw)(key) == expected).all()
  assert (jax.jit(lambda key: devices.jit_once(draw)(key))(key)
          == expected).all()
