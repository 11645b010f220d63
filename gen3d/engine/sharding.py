"""One program over many chips: the mesh, the map over it and its data.

A chip is one JAX device: a TPU core, a GPU or a virtual device of the CPU.
The state is the same on all chips; a batch's leading axis is divided over
them. Everything here works alike on one process and on several.
"""

import ctypes
import functools
import os
import pathlib
import queue
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gen3d.choices import UserError
from gen3d.engine.state import copy

AXIS = 'devices'


def use_all_cores():
  """Gives the CPU one virtual device per core; call before JAX is used.

  One convolution runs on one core, so that a batch divided over virtual
  devices is what keeps all of them busy. Does nothing where the user has
  chosen a number; GPUs and TPUs are not affected.
  """
  chosen = (
      'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
      or jax.config.jax_num_cpu_devices > 0)
  if not chosen:
    jax.config.update('jax_num_cpu_devices', _cores())


def tune_malloc():
  """Lets the process keep the memory that a step frees, for the next step.

  XLA's temporaries on the CPU are megabytes each; glibc gives such blocks
  back to the kernel, which zeroes them page by page when they are asked for
  again: a sixth of a U-Net's gradient, 37 against 31 ms a picture. Does
  nothing where the user has set a MALLOC_ variable or the C library is
  another one.

  Returns:
    Whether the allocator took it.
  """
  # glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX.
  # No mapping of its own for large blocks, so one arena has to hold them.
  settings = {-1: 2**31 - 1, -2: 2**28, -4: 0, -8: 1}
  if any(name.startswith('MALLOC_') for name in os.environ):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError, TypeError):
    return False
  taken = [mallopt(*setting) == 1 for setting in settings.items()]
  return all(taken)


def cache_compilations():
  """Keeps compiled programs on disk, so that a second run starts quickly.

  In $JAX_COMPILATION_CACHE_DIR, else in ~/.cache/gen3d/jax. Where that cannot
  be written, says so once and goes on without.
  """
  path = pathlib.Path(os.environ.get('JAX_COMPILATION_CACHE_DIR')
                      or pathlib.Path.home() / '.cache' / 'gen3d' / 'jax')
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    print(f'Compiled programs are not kept, since {path} cannot be written '
          f'({error.strerror}).', file=sys.stderr)
    jax.config.update('jax_compilation_cache_dir', None)
    return
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def initialize_distributed():
  """Joins the processes of one run; call before JAX is used.

  With JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and
  JAX_PROCESS_ID set, joins as they say; with GEN3D_DISTRIBUTED=1, as
  launch/slurm.sbatch and launch/tpu_pod.sh set it, JAX finds out by itself
  from SLURM or the TPU pod. Otherwise the process stays alone.
  """
  env = os.environ
  if 'JAX_COORDINATOR_ADDRESS' in env:
    try:
      count, index = int(env['JAX_NUM_PROCESSES']), int(env['JAX_PROCESS_ID'])
    except (KeyError, ValueError) as error:
      raise UserError(
          'JAX_COORDINATOR_ADDRESS needs JAX_NUM_PROCESSES and JAX_PROCESS_ID '
          'beside it, both whole numbers.') from error
    jax.distributed.initialize(env['JAX_COORDINATOR_ADDRESS'], count, index)
  elif env.get('GEN3D_DISTRIBUTED') == '1':
    jax.distributed.initialize()


def device_mesh(batch_size=None, min_per_device=1):
  """Returns the Mesh over all devices of all processes, axis 'devices'.

  Args:
    batch_size: where given and the devices are the CPU's cores as taken by
      `use_all_cores`, as many of them as divide it: nobody asked for six.
    min_per_device: examples that each of these must get.
  """
  devices = jax.devices()
  by_default = (devices[0].platform == 'cpu' and jax.process_count() == 1
                and jax.config.jax_num_cpu_devices > 0)
  if batch_size and by_default:
    count = max(n for n in range(1, len(devices) + 1)
                if n == 1 or batch_size % n == 0 and batch_size // n >= min_per_device)
    devices = devices[:count]
  return _mesh(devices)


def _mesh(devices):
  return jax.make_mesh((len(devices),), (AXIS,), devices=devices,
                       axis_types=(jax.sharding.AxisType.Auto,))


class Execution(NamedTuple):
  """Options of the compiler and of placement that a task sets.

  Attributes:
    minimize_memory: whether XLA orders operations on a CPU by the memory that
      they need instead of by parallelism. It halves the memory of a GAN's
      step, and with it the time for page faults; it nearly doubles Mip-NeRF's.
    min_per_device: examples that a device needs, for terms that mix the
      examples of one device.
    min_per_device_key: config key that the error message names as the reason.
  """
  minimize_memory: bool = False
  min_per_device: int = 1
  min_per_device_key: str = ''


def pmap(
    step: Callable, mesh: Mesh, execution: Execution = Execution()
) -> Callable:
  """Returns a train step compiled for all devices of the mesh.

  Args:
    step: (state, batch, key) -> (state, metrics), written for one device: it
      gets its rows of the batch, averages its gradients by
      `jax.lax.pmean(grads, 'devices')` after differentiation, and returns the
      same state on every device. Metrics are scalars and are averaged here.
    mesh: from `device_mesh`.
    execution: options of the compiler.

  Returns:
    (state, batch, key, static=None) -> (state, metrics), with the state from
    `replicate` (its buffers are donated, except those of state.frozen), the
    batch from `to_devices`, and the run's key, which is folded with state.step
    and is the same on all devices. `static` is hashable; each of its values
    compiles a program, in which `step` gets it as the keyword `static`; None is
    not passed on. `lower` takes the same arguments, as that of jax.jit.
  """

  def per_device(state, frozen, batch, key, *, static):
    key = jax.random.fold_in(key, state.step)
    options = {} if static is None else {'static': static}
    state, metrics = step(state.replace(frozen=frozen), batch, key, **options)
    for name, value in metrics.items():
      if np.shape(value):
        raise ValueError(f'Metric {name!r} has shape {np.shape(value)}; '
                         f'metrics are scalars.')
    metrics = {name: jax.lax.pmean(jnp.float32(value), AXIS)
               for name, value in metrics.items()}
    return state.replace(frozen=None), metrics

  def program(state, frozen, batch, key, static):
    # Without check_vma, gradients stay those of the device, as steps expect.
    return jax.shard_map(
        functools.partial(per_device, static=static), mesh=mesh,
        in_specs=(P(), P(), P(AXIS), P()), out_specs=(P(), P()),
        check_vma=False)(state, frozen, batch, key)

  mapped = jax.jit(
      program, static_argnums=4, donate_argnums=0,
      compiler_options=_memory_first() if execution.minimize_memory else None)

  def over_devices(state, batch, key, static=None):
    frozen = state.frozen
    state, metrics = mapped(
        state.replace(frozen=None), frozen, batch, key, static)
    return state.replace(frozen=frozen), metrics

  over_devices.lower = lambda state, batch, key, static=None: mapped.lower(
      state.replace(frozen=None), state.frozen, batch, key, static)
  return over_devices


def map_over_devices(function, rows=None, progress=None):
  """Divides work over this process's devices, as one program.

  Calls of one jitted function on several devices would be compiled for each
  of them anew.

  Args:
    function: (shared, work) -> results, written for one device; work and
      results are pytrees of arrays with the same leading axis.
    rows: how many a device gets at a time, which bounds its memory; None is
      for its part of all that there are.
    progress: what a progress bar says, one step for each `rows`; None for no
      bar.

  Returns:
    (shared, work [N, ...]) -> results [N, ...] as NumPy arrays. Where there
    is less than a device gets, it does the last row again.
  """
  @functools.cache
  def program(count):
    mesh = _mesh(jax.local_devices()[:count])
    return NamedSharding(mesh, P()), jax.jit(jax.shard_map(
        function, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS),
        check_vma=False))

  def run(shared, work):
    work = jax.tree.map(np.asarray, work)
    total = len(jax.tree.leaves(work)[0])
    devices = jax.local_device_count()
    part = rows or -(-total // devices)
    parts = -(-total // part)
    devices = min(devices, parts)
    everywhere, each = program(devices)
    shared = jax.device_put(shared, everywhere)
    done = []
    with tqdm.tqdm(total=parts, desc=progress,
                   disable=None if progress else True) as bar:
      for start in range(0, total, devices * part):
        at = np.minimum(np.arange(start, start + devices * part), total - 1)
        done.append(each(shared, jax.tree.map(lambda x, at=at: x[at], work)))
        if len(done) > 1:  # Few in flight: they share the cores.
          done[-2] = jax.device_get(done[-2])
          bar.update(devices)
      done[-1] = jax.device_get(done[-1])
      bar.update(bar.total - bar.n)
    return jax.tree.map(lambda *x: np.concatenate(x)[:total], *done)

  return run


@functools.cache
def _memory_first():
  """The compiler's option for that, where this jaxlib has it for this device.
  """
  if jax.default_backend() != 'cpu':
    return None
  options = {
      'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}
  try:
    jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
  except jax.errors.JaxRuntimeError:
    return None
  return options


def replicate(tree, mesh, share=False):
  """Copies a pytree of arrays, the same on all processes, to every chip.

  Args:
    tree: pytree of arrays.
    mesh: from `device_mesh`.
    share: whether the result may share memory with `tree`, which then dies
      with it where a step donates it: right for what is never donated.
  """
  sharding = NamedSharding(mesh, P())
  if jax.process_count() == 1:
    # device_put's own may_alias=False does not hold over several devices.
    tree = tree if share else copy(tree)
    return jax.device_put(tree, sharding)

  def send(x):
    if _is_key(x):
      return jax.random.wrap_key_data(
          send(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(
        x.shape, sharding, lambda index: x[index].copy())

  return jax.tree.map(send, tree)


def unreplicate(tree):
  """Returns a replicated pytree as arrays on one device of this process."""
  return jax.tree.map(
      lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def to_devices(batch, mesh):
  """Divides a batch over the chips.

  Args:
    batch: pytree of NumPy arrays [n, ...] of which each process sends the
      rows of its own chips: those of `rows` matter only.
    mesh: from `device_mesh`.

  Raises:
    UserError: where n is not a multiple of the number of chips.
  """
  sharding = NamedSharding(mesh, P(AXIS))
  check_divides(batch, mesh)

  def send(x):
    x = np.asarray(x)
    return jax.make_array_from_callback(
        x.shape, sharding, lambda index: x[index])

  return jax.tree.map(send, batch)


def rows(count):
  """Which of a batch's `count` rows this process sends; None for all."""
  if jax.process_count() == 1 or count % jax.device_count():
    return None  # What cannot be divided is refused later, in a sentence.
  parts = NamedSharding(device_mesh(), P(AXIS)).addressable_devices_indices_map(
      (count,))
  return np.sort(np.concatenate(
      [np.arange(count)[index] for index in parts.values()]))


def check_divides(
    batch: Any, mesh: Mesh, execution: Execution = Execution()) -> None:
  """Checks that devices get equally many examples, and enough of them.

  Raises:
    UserError: the batch cannot be divided, or a device would get fewer than
      execution.min_per_device examples.
  """
  for x in jax.tree.leaves(batch):
    if np.ndim(x) == 0 or np.shape(x)[0] % mesh.size:
      size = f'of {np.shape(x)[0]}' if np.ndim(x) else 'without leading axis'
      raise UserError(
          f'A batch {size} cannot be divided over {mesh.size} devices; choose a '
          f'batch that is a multiple of {mesh.size}, or fewer devices.')
    if np.shape(x)[0] // mesh.size < execution.min_per_device:
      key = execution.min_per_device_key
      raise UserError(
          f'A batch of {np.shape(x)[0]} on {mesh.size} devices leaves fewer '
          f'than the {execution.min_per_device} examples on each that are used '
          f'together{f" ({key})" if key else ""}; choose a larger batch, fewer '
          f'devices, or a smaller group{f" by --config.{key}" if key else ""}.')


def prefetch(batches, mesh, ahead=2):
  """Yields batches on the chips, prepared in a thread up to `ahead` early."""
  ready = queue.Queue(ahead)
  stop = threading.Event()

  def put(item):
    while not stop.is_set():
      try:
        return ready.put(item, timeout=.1)
      except queue.Full:
        continue

  def fill():
    try:
      for batch in batches:
        put((to_devices(batch, mesh), None))
        if stop.is_set():
          return
      put((None, StopIteration()))
    except Exception as error:
      put((None, error))

  thread = threading.Thread(target=fill, daemon=True)
  thread.start()
  try:
    while True:
      batch, error = ready.get()
      if isinstance(error, StopIteration):
        return
      if error is not None:
        raise error
      yield batch
  finally:
    stop.set()
    thread.join(timeout=60)


def _cores():
  cores = (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
           else os.cpu_count() or 1)
  try:  # A container may be given less than it sees.
    quota, period = pathlib.Path('/sys/fs/cgroup/cpu.max').read_text().split()
    return max(1, min(cores, round(int(quota) / int(period))))
  except (OSError, ValueError):
    return cores


def _is_key(x):
  return (isinstance(x, jax.Array)
          and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
