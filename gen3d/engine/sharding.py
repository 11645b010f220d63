"""One program over many devices: the mesh, the mapped step and its data.

A device is one JAX device: a TPU core, a GPU or a virtual device of the CPU.
The state is replicated, that is the same on all devices; a batch's leading
axis is divided over them. All functions work with one process and with
several.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gen3d import notices
from gen3d.choices import UserError
from gen3d.engine.devices import cores, num_cpu_devices
from gen3d.engine.state import TrainState, copy

AXIS = 'devices'

# (state, batch, key) -> (state, metrics), written for one device; with the
# keyword `static` where the task has static arguments.
Step = Callable[..., tuple[TrainState, dict[str, Any]]]


class Execution(NamedTuple):
  """Options of the compiler and of placement that a task sets.

  Attributes:
    minimize_memory: whether XLA orders operations on a CPU by the memory that
      they need instead of by parallelism. It can halve the memory of a step
      with large activations, and with it the time for page faults; it can
      nearly double the time of a step with small ones.
    min_per_device: examples that a device needs, for terms that mix the
      examples of one device.
    min_per_device_key: config key that the error message names as the reason.
    batch_sizes: of all stages of a training whose batches grow or shrink; ()
      where all batches have the size of the first one.
  """
  minimize_memory: bool = False
  min_per_device: int = 1
  min_per_device_key: str = ''
  batch_sizes: tuple[int, ...] = ()


_DEFAULTS = Execution()


class InTurn(NamedTuple):
  """The static argument of a step that consists of several programs.

  Each program gets the state that the one before returned, with the same batch
  and key, unless the one before has changed state.step, which only the last may
  do. Metrics that several programs return under one name are added.

  Attributes:
    parts: the static argument of each program, in the order of execution.
  """
  parts: tuple[Hashable, ...]


def device_mesh(
    batch_size: int | None = None, min_per_device: int = 1) -> Mesh:
  """Returns the Mesh over all devices of all processes, axis 'devices'.

  Args:
    batch_size: where given, and the devices are the CPU cores that
      `devices.use_all_cores` took by default, the mesh has the largest number
      of them that divides the batch. A number of devices from XLA_FLAGS is
      never reduced.
    min_per_device: examples that each of these devices must get.
  """
  devices = jax.devices()
  by_default = (devices[0].platform == 'cpu' and jax.process_count() == 1
                and num_cpu_devices() > 0)
  if batch_size and by_default:
    divides = lambda n: (batch_size % n == 0
                         and batch_size // n >= min_per_device)
    devices = devices[:max(
        n for n in range(1, len(devices) + 1) if n == 1 or divides(n))]
  return mesh_of(devices)


def mesh_for(batch: Any, execution: Execution = _DEFAULTS) -> Mesh:
  """Returns the `device_mesh` on which a training divides its batches.

  Args:
    batch: the first one, a pytree of arrays [n, ...].
    execution: of the task.

  Raises:
    UserError: as `check_divides`.
  """
  sizes = np.shape(jax.tree.leaves(batch)[0])[:1] + execution.batch_sizes
  mesh = device_mesh(math.gcd(*sizes), execution.min_per_device)
  check_divides(batch, mesh, execution)
  return mesh


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
  """Returns the Mesh over the given devices, axis 'devices'."""
  return jax.make_mesh((len(devices),), (AXIS,), devices=devices,
                       axis_types=(jax.sharding.AxisType.Auto,))


def pmap(
    step: Step, mesh: Mesh, execution: Execution = _DEFAULTS) -> 'MappedStep':
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
    not passed on.

  Raises:
    ValueError: at the first call, if a metric is not a scalar.
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

  # Frozen weights are an argument of their own: the state is donated, they
  # are used again at the next step.
  mapped = jax.jit(
      program, static_argnums=4, donate_argnums=0,
      compiler_options=(_memory_scheduler() if execution.minimize_memory
                        else None))

  return MappedStep(mapped)


class MappedStep:
  """A step over all devices, as `pmap` describes it."""

  def __init__(self, mapped: Any):
    self._mapped = mapped
    self._compiled = {}

  def __call__(
      self, state: TrainState, batch: Any, key: jax.Array,
      static: Hashable | InTurn | None = None
  ) -> tuple[TrainState, dict[str, Any]]:
    frozen, total = state.frozen, {}
    self.compile(state, batch, key, static)
    for part in _parts(static):
      state, metrics = self._mapped(
          state.replace(frozen=None), frozen, batch, key, part)
      total = {**total, **{
          name: total[name] + value if name in total else value
          for name, value in metrics.items()}}
    return state.replace(frozen=frozen), total

  def compile(
      self, state: TrainState, batch: Any, key: jax.Array,
      static: Hashable | InTurn | None = None) -> list[jax.stages.Compiled]:
    """Compiles the programs of these arguments without running them.

    Those of an InTurn are compiled side by side: the compiler works outside
    Python's lock, and uses one core for most of the time.

    Returns:
      The programs, in the order of execution.
    """
    shapes = tuple(x.shape for x in jax.tree.leaves(batch))
    programs = [(part, shapes) for part in _parts(static)]
    new = [part for part, _ in programs if (part, shapes) not in self._compiled]
    if new:
      names = '; '.join(str(part) for part in new if part is not None)
      with notices.slow('Compiling the training step'
                        f'{names and f": {names}"}'):
        # jit keeps what `lower` and `compile` return, so that a call with the
        # same arguments does not compile again.
        threads = futures.ThreadPoolExecutor(cores())
        compiling = {
            (part, shapes): threads.submit(
                self.lower(state, batch, key, part).compile) for part in new}
        self._compiled |= {
            program: thread.result() for program, thread in compiling.items()}
    return [self._compiled[program] for program in programs]

  def lower(
      self, state: TrainState, batch: Any, key: jax.Array,
      static: Hashable | None = None) -> jax.stages.Lowered:
    """Lowers the program of these arguments, as `lower` of jax.jit does."""
    return self._mapped.lower(
        state.replace(frozen=None), state.frozen, batch, key, static)


def _parts(static):
  """The static arguments of a step's programs."""
  return static.parts if isinstance(static, InTurn) else (static,)


def map_over_devices(
    function: Callable[[Any, Any], Any], rows: int | None = None,
    progress: str | None = None) -> Callable[[Any, Any], Any]:
  """Divides work over this process's devices, as one program.

  One jitted function called on several devices would be compiled for each of
  them anew.

  Args:
    function: (shared, work) -> results, written for one device; work and
      results are pytrees of arrays with the same leading axis.
    rows: number of rows that a device gets at a time, which bounds its
      memory; None for an equal part of all rows.
    progress: what is done, for a notice (gen3d/notices.py); None for none.

  Returns:
    (shared, work [N, ...]) -> results [N, ...] as NumPy arrays. Missing rows
    of the last part are filled with the last row, and dropped again.
  """
  @functools.cache
  def program(count):
    mesh = mesh_of(jax.local_devices()[:count])
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
    replicated, mapped = program(devices)
    shared = jax.device_put(shared, replicated)
    done = []
    with (notices.progress(progress, parts) if progress else
          contextlib.nullcontext(lambda count: None)) as advance:
      for start in range(0, total, devices * part):
        index = np.minimum(
            np.arange(start, start + devices * part), total - 1)
        done.append(mapped(
            shared, jax.tree.map(lambda x, index=index: x[index], work)))
        if len(done) > 1:  # At most two in flight, on the same cores.
          done[-2] = jax.device_get(done[-2])
          advance(devices)
      done[-1] = jax.device_get(done[-1])
    return jax.tree.map(lambda *x: np.concatenate(x)[:total], *done)

  return run


@functools.cache
def _memory_scheduler():
  """Compiler options for Execution.minimize_memory; None where unsupported."""
  if jax.default_backend() != 'cpu':
    return None
  options = {
      'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}
  try:  # Not every jaxlib has this option.
    jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
  except jax.errors.JaxRuntimeError:
    return None
  return options


def replicate(tree: Any, mesh: Mesh, may_alias: bool = False) -> Any:
  """Copies a pytree of arrays, the same on all processes, to every device.

  Args:
    tree: pytree of arrays.
    mesh: from `device_mesh`.
    may_alias: whether the result may use the buffers of `tree`. Donating the
      result then deletes `tree` too: only for arrays that are never donated.
  """
  sharding = NamedSharding(mesh, P())
  if jax.process_count() == 1:
    # device_put's own may_alias=False has no effect over several devices.
    tree = tree if may_alias else copy(tree)
    return jax.device_put(tree, sharding)

  def send(x):
    if _is_key(x):
      return jax.random.wrap_key_data(
          send(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(
        x.shape, sharding, lambda index: x[index].copy())

  return jax.tree.map(send, tree)


def unreplicate(tree: Any) -> Any:
  """Returns a replicated pytree as arrays on one device of this process."""
  return jax.tree.map(
      lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def to_devices(batch: Any, mesh: Mesh) -> Any:
  """Divides a batch over the devices.

  Args:
    batch: pytree of NumPy arrays [n, ...]. Of these, each process sends the
      rows of its own devices: only those given by `rows` are read.
    mesh: from `device_mesh`.

  Raises:
    UserError: n is not a multiple of the number of devices.
  """
  sharding = NamedSharding(mesh, P(AXIS))
  check_divides(batch, mesh)

  def send(x):
    x = np.asarray(x)
    return jax.make_array_from_callback(
        x.shape, sharding, lambda index: x[index])

  return jax.tree.map(send, batch)


def rows(count: int) -> np.ndarray | None:
  """Returns the rows of a batch of `count` that this process sends.

  Returns:
    Indices, ascending; None for all rows.
  """
  if jax.process_count() == 1 or count % jax.device_count():
    return None  # check_divides refuses an indivisible batch later.
  parts = NamedSharding(device_mesh(), P(AXIS)).addressable_devices_indices_map(
      (count,))
  return np.sort(np.concatenate(
      [np.arange(count)[index] for index in parts.values()]))


def check_divides(
    batch: Any, mesh: Mesh, execution: Execution = _DEFAULTS) -> None:
  """Checks that devices get equally many examples, and enough of them.

  Raises:
    UserError: the batch cannot be divided, or a device would get fewer than
      execution.min_per_device examples.
  """
  sizes = {np.shape(x)[0] if np.ndim(x) else None
           for x in jax.tree.leaves(batch)}
  for size in sizes | set(execution.batch_sizes):
    if size is None or size % mesh.size:
      of = 'without leading axis' if size is None else f'of {size}'
      raise UserError(
          f'A batch {of} cannot be divided over {mesh.size} devices; choose '
          f'a batch that is a multiple of {mesh.size}, or fewer devices.')
    if size // mesh.size < execution.min_per_device:
      key = execution.min_per_device_key
      raise UserError(
          f'A batch of {size} on {mesh.size} devices leaves fewer '
          f'than the {execution.min_per_device} examples on each that are used '
          f'together{f" ({key})" if key else ""}; choose a larger batch, fewer '
          f'devices, or a smaller group{f" by --config.{key}" if key else ""}.')


def _is_key(x):
  return (isinstance(x, jax.Array)
          and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
