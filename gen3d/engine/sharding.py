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

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import NamedSharding
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


def pmap(step, mesh, minimize_memory=False):
  """Returns a train step compiled for all chips of the mesh.

  Args:
    step: (state, batch, key) -> (state, metrics), written for one chip: it
      sees its share of the batch, averages its gradients by
      `jax.lax.pmean(grads, 'devices')` after differentiation, and leaves the
      same state on every chip. Metrics are scalars and are averaged here.
    mesh: from `device_mesh`.
    minimize_memory: whether XLA orders operations on a CPU by the memory that they
      need, not so that many could be done at once. It halves a GAN's, and
      with it the time for pages; it nearly doubles Mip-NeRF's.

  Returns:
    (state, batch, key) -> (state, metrics), with the state from `replicate`
    (its buffers are reused: the caller's state is gone afterwards, except
    for state.frozen), the batch from `to_devices`, and the run's key, that is
    folded with state.step and is the same on all chips. As of what jax.jit
    returns, its `lower` gives the program without running it.
  """

  def per_chip(state, frozen, batch, key):
    key = jax.random.fold_in(key, state.step)
    state, metrics = step(state.replace(frozen=frozen), batch, key)
    for name, value in metrics.items():
      if np.shape(value):
        raise UserError(f'Metric {name!r} has shape {np.shape(value)}; '
                        f'metrics are scalars.')
    metrics = {name: jax.lax.pmean(jnp.float32(value), AXIS)
               for name, value in metrics.items()}
    return state.replace(frozen=None), metrics

  # Without check_vma, gradients stay those of the chip, as the step expects.
  mapped = jax.jit(
      jax.shard_map(per_chip, mesh=mesh, in_specs=(P(), P(), P(AXIS), P()),
                    out_specs=(P(), P()), check_vma=False),
      donate_argnums=0,
      compiler_options=_memory_first() if minimize_memory else None)

  def over_chips(state, batch, key):
    frozen = state.frozen
    state, metrics = mapped(state.replace(frozen=None), frozen, batch, key)
    return state.replace(frozen=frozen), metrics

  over_chips.lower = lambda state, batch, key: mapped.lower(
      state.replace(frozen=None), state.frozen, batch, key)
  return over_chips


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


def check_divides(batch, mesh, min_per_device=1):
  """Raises UserError where chips do not get alike, or not `min_per_device` examples."""
  for x in jax.tree.leaves(batch):
    if np.ndim(x) == 0 or np.shape(x)[0] % mesh.size:
      size = f'of {np.shape(x)[0]}' if np.ndim(x) else 'without leading axis'
      raise UserError(
          f'A batch {size} cannot be divided over {mesh.size} chips; choose a '
          f'batch that is a multiple of {mesh.size}, or fewer devices.')
    if np.shape(x)[0] // mesh.size < min_per_device:
      raise UserError(
          f'A batch of {np.shape(x)[0]} on {mesh.size} chips leaves fewer '
          f'than the {min_per_device} examples on each that are looked at together (of '
          'a GAN, model.discriminator.group); choose a larger batch, fewer '
          'devices, or fewer together.')


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
