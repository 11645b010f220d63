"""Trainable tasks: one record, one module per task.

The `make` of a task's module turns a config into a Task, which the engine's
loop trains. A module whose finished runs can be shown also has `load`, and its
name is in FINISHED. Code for one device names the mapped axis 'devices'.
"""

import importlib
import os
import pathlib
from collections.abc import (
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from types import ModuleType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from gen3d.choices import UserError, excerpt, pick
from gen3d.engine import checkpoints, optim
from gen3d.engine.sharding import Execution, Step
from gen3d.engine.state import TrainState

# By the name in a config; imported only when needed.
TASKS = {
    'text_to_image': 'gen3d.tasks.text_to_image',
    'text_to_3d': 'gen3d.tasks.text_to_3d',
    'clip': 'gen3d.tasks.clip',
    'gan': 'gen3d.tasks.gan',
    'lifting': 'gen3d.tasks.lifting',
    'reconstruction': 'gen3d.tasks.reconstruction',
    'view_estimation': 'gen3d.tasks.view_estimation',
}
# Tasks that make an object or a scene: their modules have `load`.
FINISHED = ('text_to_3d', 'reconstruction')

# (state, key) -> ({name: number}, {name: uint8 image [H, W, 3]})
Evaluate = Callable[
    [TrainState, jax.Array],
    tuple[Mapping[str, float], Mapping[str, np.ndarray]]]


class Costs(NamedTuple):
  """The quantities of a step's cost and its parts, for gen3d.benchmark.

  Attributes:
    sizes: {quantity: number, or (coarse, fine)} that the cost depends on.
    unit: (name, number a step) for a rate, such as ('rays', 4096), or None.
    phases: (seconds_of) -> iterator of (name, seconds), for steps that differ;
      `seconds_of(static)` times a step with that static argument. Or None.
    parts: (params, batch, devices) -> {name: function without arguments},
      parts of the step on one device. Or None.
    scopes: names of jax.named_scope in the step, whose operations are counted
      apart.
  """
  sizes: dict[str, Any]
  unit: tuple[str, int] | None = None
  phases: Callable[
      [Callable[[Hashable], float]], Iterator[tuple[str, float]]] | None = None
  parts: Callable[
      [Any, Any, int], dict[str, Callable[[], Any]]] | None = None
  scopes: tuple[str, ...] = ()


def _no_static(step: int) -> None:
  del step


def _no_costs() -> Costs:
  return Costs({})


def _none_scheduled(step: int) -> dict[str, float]:
  del step
  return {}


class Task(NamedTuple):
  """A training, as the loop runs it.

  Attributes:
    init: key -> TrainState.
    step: (state, batch, key) -> (state, metrics), and the keyword `static`
      where `static` gives values. Pure, written for one device; the loop maps
      it over the devices and compiles it. `key` is the run's key folded with
      the step and is the same on every device: an example's randomness comes
      from its index in the batch, so that the result does not depend on how
      the examples are divided.
    batches: (seed, first_step) -> iterator of batches (pytrees of NumPy
      arrays with a leading axis that is divided over the devices), beginning
      with the batch of step `first_step`.
    evaluate: (state, key) -> (scalars, images): {name: float} and
      {name: uint8 [H, W, 3]}. Runs on the host, on one device.
    finish: (state, workdir) -> paths of the files that it wrote.
    static: step number -> hashable facts that shape the compiled program (the
      resolution of rendering, phases that are due), sharding.InTurn for several
      programs, or None.
    execution: options of the compiler and of placement.
    costs: () -> Costs.
    scheduled: step number -> {name: value} of what changes by a schedule, such
      as learning rates, for the report.
  """
  init: Callable[[jax.Array], TrainState]
  step: Step
  batches: Callable[[int, int], Iterator[Any]]
  evaluate: Evaluate
  finish: Callable[[TrainState, str], Iterable[Any]]
  static: Callable[[int], Hashable | None] = _no_static
  execution: Execution = Execution()
  costs: Callable[[], Costs] = _no_costs
  scheduled: Callable[[int], Mapping[str, float]] = _none_scheduled


def check_least(
    config: ml_collections.ConfigDict, least: Mapping[str, float]) -> None:
  """Raises UserError where a number of a config is too small.

  Args:
    config: of a task.
    least: {dotted key: least value}; keys that the config has not are left
      out.
  """
  for key, smallest in least.items():
    value: Any = config
    for name in key.split('.'):
      value = value.get(name) if hasattr(value, 'get') else None
    if isinstance(value, (int, float)) and value < smallest:
      raise UserError(f'--config.{key} is {value}; it must be at least '
                      f'{smallest}.')


def scheduled_rate(
    config: ml_collections.ConfigDict) -> Callable[[int], dict[str, float]]:
  """`scheduled` of a Task whose learning rate alone has a schedule."""
  rate: Any = optim.learning_rate(config.optimizer, config.steps)
  return lambda step: {'schedule/learning_rate': float(rate(step))}


def module_of(config: ml_collections.ConfigDict) -> ModuleType:
  """Returns the module of a config's task.

  Raises:
    UserError: the config's task is unknown.
  """
  return importlib.import_module(pick('task', TASKS, str(config.get('task'))))


def load_config(
    workdir: str | os.PathLike, names: Sequence[str]
) -> ml_collections.ConfigDict:
  """Returns the config of a run of one of the tasks `names`.

  Raises:
    UserError: there is no such run, it is damaged, or it is of another task.
  """
  config = checkpoints.load_config(workdir)
  task = config.get('task')
  if task not in names:
    raise UserError(f'The run in {workdir} is of the task {task!r}; give the '
                    f'workdir of a {" or ".join(names)} run.')
  return config


def load_finished(
    workdir: str | os.PathLike, step: int | None = None) -> Any:
  """Returns the render.finished.Finished of a run.

  Args:
    workdir: the run's directory.
    step: number of the checkpoint; None for the newest.

  Raises:
    UserError: there is no such run, it is damaged, or its task makes nothing
      that can be shown.
    FileNotFoundError: there is no such checkpoint.
  """
  config = load_config(workdir, FINISHED)
  try:
    return module_of(config).load(workdir, step)
  except (AttributeError, KeyError, TypeError) as error:
    # ConfigDict raises these for a key that config.json has not, and networks
    # for a value of another type.
    raise UserError(
        f'{pathlib.Path(workdir) / "config.json"} has not the settings of a '
        f'run of the task {config.task!r} ({excerpt(error)}); put back the one '
        'that the training wrote.') from error
