"""Common to all tests: devices, seeds, compilation, the parity mark.

There are two virtual CPU devices, so that code for several devices runs on
several. A test that needs another number starts a process, which inherits
these variables.

Most tests run a program for less time than it takes to compile. Programs are
therefore compiled without LLVM's optimizations, except in tests marked
`optimized`, and by XLA's older kernel emitters where this version still has
them, which saves a third of the time.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import random
import re
import subprocess
import sys

_DEVICES = '--xla_force_host_platform_device_count'
if _DEVICES not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_DEVICES}=2'
# Flags that XLA does not know end the process.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(
    pathlib.Path(__file__).parents[1] / '.pytest_cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

_ROOT = pathlib.Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)  # before the fixtures of the test
def pytest_runtest_setup(item):
  quickly = item.get_closest_marker('optimized') is None
  jax.config.update('jax_disable_most_optimizations', quickly)
  os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = str(int(quickly))


def pytest_collection_modifyitems(items):
  if importlib.util.find_spec('torch') is None:
    reason = 'needs PyTorch: bash launch/test.sh --parity'
    for item in items:
      if 'parity' in item.keywords:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope='module')
def memory_of_compiled_programs():
  """Frees the compiled programs of a module, which others rarely use."""
  yield
  jax.clear_caches()


@pytest.fixture(autouse=True)
def fixed_seeds():
  """Seeds the global generators, which some libraries use."""
  random.seed(0)
  np.random.seed(0)


@pytest.fixture(scope='session')
def with_devices():
  """count -> the environment of a process that has `count` devices."""
  flags = re.sub(rf'{_DEVICES}=\d+', '', os.environ['XLA_FLAGS'])
  return lambda count: {
      **os.environ, 'PYTHONPATH': f'{_ROOT}{os.pathsep}{_ROOT / "tests"}',
      'XLA_FLAGS': f'{flags} {_DEVICES}={count}'}


@pytest.fixture(scope='session')
def tiny_pixel_model():
  """(pixel model, parameters at step 0) of configs/text_to_image.py:tiny."""
  from configs import text_to_image
  from gen3d import assets
  from gen3d.diffusion import pixel_model
  config = text_to_image.get_config('tiny')
  model = pixel_model.build(config.model, assets.tokenizer().vocab_size)
  return model, jax.jit(model.init, static_argnums=1)(
      jax.random.key(0), assets.CAPTION_LENGTH)


@pytest.fixture(scope='session')
def reference_data():
  """name -> the arrays of $GEN3D_REFERENCE/NAME.npz; skips without them."""
  def load(name):
    path = pathlib.Path(os.environ.get('GEN3D_REFERENCE', ''), f'{name}.npz')
    if not path.is_file():
      pytest.skip(f'set GEN3D_REFERENCE to the folder with {path.name}')
    return np.load(path)

  return load


@pytest.fixture(scope='session')
def on_eight_devices(with_devices):
  """(module, name) -> finished process that called a test's function."""
  return lambda module, name: subprocess.run(
      [sys.executable, '-c', f'from tests import {module}; {module}.{name}()'],
      capture_output=True, text=True, cwd=_ROOT, env=with_devices(8))
