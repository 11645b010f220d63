"""Time and memory of a task's training step, for gen3d.benchmark."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gen3d import files, notices, tasks
from gen3d.choices import UserError
from gen3d.engine import loop, sharding
from gen3d.engine.report import peak_memory
from gen3d.evaluation import flops


class Measurement(NamedTuple):
  """A number with its name and the unit that its format depends on."""
  name: str
  value: Any
  unit: str = ''  # 's', 'GB', '/s', 'TFLOP', or '' for counts


Report = Callable[[Measurement], None]
_FORMATS = {'GB': '.3g', '/s': '.0f', 'TFLOP': '.3g'}


class Step:
  """A training step that can be repeated, although it donates its state."""

  def __init__(self, task: tasks.Task, state: Any, mesh: Mesh):
    """Compiles nothing yet.

    Args:
      task: whose step is timed.
      state: from loop.replicate_state.
      mesh: from sharding.device_mesh.
    """
    self._step = sharding.pmap(task.step, mesh, task.execution)
    self._state, self._mesh = state, mesh
    self._key = sharding.replicate(jax.random.key(1), mesh)

  def params(self) -> Any:
    """The trained parameters on one device; invalid after the next step."""
    return sharding.unreplicate(self._state.params)

  def planned_gigabytes(self, batch: Any, static: Hashable = None) -> float:
    """Memory that the compiler plans for a device, arguments included.

    Raises:
      RuntimeError: the backend reports no plan.
    """
    batch = sharding.to_devices(batch, self._mesh)
    sizes = []
    for program in self._step.compile(self._state, batch, self._key, static):
      plan = program.memory_analysis()
      if plan is None:
        raise RuntimeError('This backend does not report its memory plan.')
      sizes.append(plan.temp_size_in_bytes + plan.argument_size_in_bytes)
    # If the step has several programs, that of the largest one.
    return max(sizes) / 1e9

  def seconds(self, batch: Any, repeats: int, static: Hashable = None) -> float:
    """Median seconds of a step on a batch, compiled before.

    Args:
      batch: of the task.
      repeats: number of timed calls.
      static: the step's static argument, see tasks.Task.
    """
    batch = sharding.to_devices(batch, self._mesh)
    return median_seconds(lambda: self._once(batch, static), repeats)

  def once(self, batch: Any, static: Hashable = None) -> None:
    """Does one step on a batch."""
    self._once(sharding.to_devices(batch, self._mesh), static)

  def _once(self, batch, static):
    self._state, metrics = self._step(
        self._state, batch, self._key, static)
    jax.block_until_ready((self._state, metrics))


def run(config: Any, *, repeats: int, plan_only: bool = False,
        out: str | os.PathLike | None = None) -> dict[str, Any]:
  """Measures the step of a config and prints the numbers.

  Args:
    config: ConfigDict of any task.
    repeats: number of timed calls; the median counts.
    plan_only: whether to stop after the memory that the compiler plans.
    out: a .json file for the numbers, or None.

  Returns:
    {name: number}, as written to `out`.

  Raises:
    UserError: the config is invalid, or `out` cannot be written to.
  """
  def numbers():
    task = tasks.module_of(config).make(config)
    return {'task': config.task, **measure(
        task, name=config.task, seed=config.seed, steps=config.steps,
        repeats=repeats, plan_only=plan_only, report=print_measurement)}

  return written(numbers, out)


def written(measured: Callable[[], dict[str, Any]],
            out: str | os.PathLike | None) -> dict[str, Any]:
  """Calls `measured` for {name: number} and writes it to a .json file.

  Args:
    measured: does the work.
    out: the file, or None.

  Raises:
    UserError: `out` cannot be written to; before the work.
  """
  if out and pathlib.Path(out).is_dir():
    raise UserError(f'--out={out} is a folder; name a .json file, in it or '
                    'elsewhere.')
  # Opened before the work, so that an unwritable file fails early.
  with files.atomic_write(out) if out else contextlib.nullcontext() as file:
    numbers = measured()
    if file:
      file.write_text(json.dumps(numbers, indent=2) + '\n')
  return numbers


def measure(task: tasks.Task, *, name: str, seed: int, steps: int,
            repeats: int, plan_only: bool, report: Report) -> dict[str, Any]:
  """Measures a task's training step.

  The step is timed as it is at the end of training, with the batch and the
  static argument of the last step or, where the steps of a training differ,
  with those that Costs.phases passes to `seconds_of`.

  Args:
    task: Task.
    name: of the task, for the first printed line.
    seed: of the batches.
    steps: of the whole training.
    repeats: number of timed calls.
    plan_only: whether to stop after the memory that the compiler plans.
    report: called with each number as soon as it is measured.

  Returns:
    {name: number}.
  """
  # Of the last step, where the batch grows or shrinks in a training.
  costs, batch = task.costs(), next(task.batches(seed, steps - 1))
  mesh = sharding.mesh_for(batch, task.execution)
  numbers = {'devices': mesh.size, 'platform': jax.devices()[0].platform,
             **costs.sizes}
  print_sizes(name, numbers, costs.sizes)
  static = whole_static(costs, task.static(steps - 1))
  if static is not None:
    print('Sizes are those at the end of the training.')

  def add(name, value, unit=''):
    numbers[name] = value
    report(Measurement(name, value, unit))

  # Memory: of the parameters, and as planned for the step.
  with notices.slow('Preparing the networks'):
    state = loop.replicate_state(task.init(jax.random.key(0)), mesh)
  leaves = jax.tree.leaves(state.params)
  add('parameters', sum(x.size for x in leaves))
  add('bytes of parameters', sum(x.nbytes for x in leaves))
  for scope, count in step_flops(
      task, costs.scopes, state, batch, static).items():
    add(f'TFLOP of {scope} in a step', count / 1e12, 'TFLOP')
  step = Step(task, state, mesh)
  add('planned peak of a chip in GB',
      step.planned_gigabytes(batch, static), 'GB')
  if plan_only:
    return numbers
  # Time: of the step or its phases, then of parts on one device.
  begin = time.perf_counter()
  step.once(batch, static)
  print(f'first step, compiled before: {time.perf_counter() - begin:.1f} s')
  seconds_of = lambda static: step.seconds(batch, repeats, static)
  phases = (costs.phases(seconds_of) if costs.phases
            else [('training step', seconds_of(static))])
  for phase, seconds in phases:
    add(phase, seconds, 's')
  if costs.unit:
    unit, count = costs.unit
    # The last of the phases is the average step.
    add(f'{unit}/s in training', count / seconds, '/s')
  if costs.parts:
    _measure_parts(costs, step.params(), batch, mesh.size, repeats, add)
  add('peak memory in GB', peak_gigabytes(), 'GB')
  return numbers


def step_flops(task: tasks.Task, scopes: Sequence[str], state: Any, batch: Any,
               static: Hashable = None) -> dict[str, int]:
  """{scope: operations} of a training step on the whole batch.

  Args:
    task: Task.
    scopes: see tasks.Costs; without any, nothing is counted.
    state: TrainState, of which the shapes count.
    batch: of the task.
    static: the step's static argument, see tasks.Task.
  """
  if not scopes:
    return {}
  given = {} if static is None else {'static': static}
  step = lambda state, batch, key: task.step(state, batch, key, **given)
  # One device that has the whole batch.
  of_device = jax.vmap(step, (None, 0, None), axis_name=sharding.AXIS)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (
      state, jax.tree.map(lambda x: x[None], batch), jax.random.key(0)))
  return flops.by_scope(of_device, shapes, scopes)


def whole_static(costs: tasks.Costs, last: Hashable) -> Hashable:
  """The static argument of a step with all programs that are timed.

  Args:
    costs: of the task.
    last: the static argument of the last step, for a task without phases.
  """
  if not costs.phases:
    return last
  statics = []

  def record(static):
    statics.append(static)
    return 1.0

  list(costs.phases(record))
  return sharding.InTurn(tuple(statics))


def _measure_parts(costs, params, batch, devices, repeats, add):
  """Times the parts of a step on one device.

  A part of a device's units ('rays rendered') has a rate instead of a time.
  """
  unit, count = costs.unit or ('', 0)
  for part, function in costs.parts(params, batch, devices).items():
    seconds = median_seconds(function, repeats)
    if unit and part.startswith(f'{unit} '):
      verb = part.removeprefix(f'{unit} ')
      add(f'{unit}/s {verb} by one device', count / devices / seconds, '/s')
    else:
      add(f'{part}, one device', seconds, 's')


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
  """Median seconds of `repeats` calls after a first one, which compiles."""
  times = []
  for _ in notices.track(range(repeats + 1), 'Timing'):
    begin = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - begin)
  return float(np.median(times[1:]))


def peak_gigabytes() -> float:
  """Peak memory of the device where it is reported, else of the process."""
  # The device's is the last.
  return list(peak_memory().values())[-1]


def print_sizes(task: str, numbers: dict[str, Any],
                sizes: dict[str, Any]) -> None:
  """Prints the task, the devices and the sizes that the numbers depend on."""
  print(f'{task}, {numbers["devices"]} {numbers["platform"]} device(s)')
  print(', '.join(f'{name} {format_size(x)}' for name, x in sizes.items()))


def print_measurement(measurement: Measurement) -> None:
  """Prints one number in the format of its unit."""
  name, value, unit = measurement
  text = (format_seconds(value) if unit == 's'
          else f'{value:{_FORMATS.get(unit, ",")}}')
  print(f'{name}: {text}')


def format_seconds(seconds: float) -> str:
  """Seconds and their rate; a difference of two times may be negative."""
  rate = f'{1 / seconds:.2f} /s' if seconds > 0 else 'within the noise'
  return f'{seconds:.3g} s ({rate})'


def format_size(size: Any) -> str:
  """A number, or those of a coarse and a fine pass joined by +."""
  return ' + '.join(map(str, size)) if isinstance(size, tuple) else str(size)
