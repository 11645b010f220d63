"""Set-up of a process before its first use of JAX."""

import ctypes
import functools
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import jax

from gen3d import files
from gen3d.choices import UserError
from gen3d.engine import peers

# In which all processes of a run have to start.
_START_SECONDS, _CLUSTER_SECONDS = 50, 300


def use_all_cores() -> None:
  """Gives the CPU one virtual device per core; call before JAX is used.

  XLA runs one convolution on one core, so a batch has to be divided over
  virtual devices to use all of them. Does nothing where the user has chosen
  a number of devices; GPUs and TPUs are not affected.
  """
  chosen = (
      'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
      or num_cpu_devices() > 0)
  if not chosen:
    jax.config.update('jax_num_cpu_devices', cores())


def num_cpu_devices() -> int:
  """Returns JAX's setting of the number of CPU devices; -1 where not set."""
  return jax.config.jax_num_cpu_devices  # pyrefly: ignore[missing-attribute]


def cores() -> int:
  """Returns the number of CPU cores that this process may use."""
  count = (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
           else os.cpu_count() or 1)
  try:  # A container may have a smaller quota than the machine has cores.
    quota, period = pathlib.Path('/sys/fs/cgroup/cpu.max').read_text().split()
    return max(1, min(count, round(int(quota) / int(period))))
  except (OSError, ValueError):
    return count


def tune_malloc() -> bool:
  """Lets the process keep freed memory for the next step.

  XLA's temporaries on the CPU are megabytes each. By default glibc returns
  such blocks to the kernel, which has to zero their pages when they are
  allocated again: 37 instead of 31 ms an image for the gradient of a U-Net.
  Does nothing where the user has set a MALLOC_ variable or the C library is
  not glibc.

  Returns:
    Whether the allocator accepted all settings.
  """
  # glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX.
  # Large blocks without a mapping of their own need a single arena.
  settings = {-1: 2**31 - 1, -2: 2**28, -4: 0, -8: 1}
  if any(name.startswith('MALLOC_') for name in os.environ):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError, TypeError):
    return False
  accepted = [mallopt(*setting) == 1 for setting in settings.items()]
  return all(accepted)


def cache_compilations() -> None:
  """Keeps compiled programs on disk, so that a second run starts quickly.

  The folder is $JAX_COMPILATION_CACHE_DIR, else ~/.cache/gen3d/jax. Where it
  cannot be written, prints a warning and disables the cache.
  """
  path = pathlib.Path(os.environ.get('JAX_COMPILATION_CACHE_DIR')
                      or files.home_cache() / 'jax').expanduser()
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    print(f'Compiled programs are not cached, because {path} cannot be '
          f'written ({error.strerror}).', file=sys.stderr)
    jax.config.update('jax_compilation_cache_dir', None)
    return
  # On a disk that is full later, one for each program.
  warnings.filterwarnings(
      'ignore', 'Error writing persistent compilation cache entry')
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
  """jax.jit for a function that is called once, such as an initialization.

  On a CPU, LLVM's level 1 compiles in half the time, unless JAX's own setting
  is lower.
  """
  options = ({'xla_backend_optimization_level': 1}
             if jax.default_backend() == 'cpu'
             and not jax.config.read('jax_disable_most_optimizations')
             else None)
  compiled = jax.jit(function, compiler_options=options)

  def call(*args: Any) -> Any:
    # JAX allows no options within another jit.
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
    return function(*args) if traced else compiled(*args)

  return call


def initialize_distributed() -> None:
  """Connects the processes of one run; call before JAX is used.

  The addresses come from JAX_COORDINATOR_ADDRESS (host:port),
  JAX_NUM_PROCESSES and JAX_PROCESS_ID where these are set. With
  GEN3D_DISTRIBUTED=1, which launch/slurm.sbatch and launch/tpu_pod.sh set,
  JAX detects them from SLURM or the TPU pod. Otherwise the run has a single
  process. Where not all of them start within a minute, the process ends with a
  sentence and exit code 2; a cluster has five minutes, since its machines may
  start one after the other.

  Raises:
    UserError: JAX_COORDINATOR_ADDRESS is set without the other two, or the
      processes cannot be connected.
  """
  env = os.environ
  if 'JAX_COORDINATOR_ADDRESS' in env:
    try:
      count, index = int(env['JAX_NUM_PROCESSES']), int(env['JAX_PROCESS_ID'])
    except (KeyError, ValueError) as error:
      raise UserError(
          'JAX_COORDINATOR_ADDRESS needs JAX_NUM_PROCESSES and JAX_PROCESS_ID '
          'beside it, both whole numbers.') from error
    peers.join(functools.partial(jax.distributed.initialize,
                                 env['JAX_COORDINATOR_ADDRESS'], count, index),
               _START_SECONDS)
  elif env.get('GEN3D_DISTRIBUTED') == '1':
    peers.join(jax.distributed.initialize, _CLUSTER_SECONDS)
