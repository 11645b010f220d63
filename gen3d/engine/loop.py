"""The training loop: any task, any number of devices, exact resumption.

The workdir of a run holds config.json, checkpoints/, scalars.jsonl,
tensorboard/, previews/, the files that the task's finish writes, and
finished.json. Its .lock prevents a second run in the same workdir.
"""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gen3d import files, notices, schemas
from gen3d.choices import UserError
from gen3d.engine import sharding, stopping, storage, workdirs
from gen3d.engine.checkpoints import Checkpoints, latest
from gen3d.engine.prefetch import prefetch
from gen3d.engine.report import Report
from gen3d.engine.state import TrainState

_NOT_FINITE = 'params/not_finite'
_LONG_STEP = 20.0  # seconds after which a notice says that it is computed
_FINISHED = {'step': schemas.whole(0, 2 ** 62),
             'files': schemas.each(schemas.TEXT, 0, 2 ** 20)}


class Diverged(UserError):
  """A loss, a metric or a parameter is no longer a finite number."""


def run(
    task: Any, config: ml_collections.ConfigDict, workdir: str | os.PathLike
) -> tuple[TrainState, list[str]]:
  """Trains a task up to config.steps, from the newest checkpoint in workdir.

  SIGTERM saves and exits with code 0, Ctrl-C saves and raises
  KeyboardInterrupt; where a step takes long, the process ends without waiting
  for it (engine/stopping.py).

  Args:
    task: tasks.Task.
    config: ConfigDict; read here are seed, steps, log_every, eval_every (0:
      never), checkpoint_every (0: only at the end), keep_checkpoints, and
      where present checkpoint_minutes, progress (names of the metrics in the
      progress line) and throughput_unit (unit of the `batch` examples of a
      step, such as 'rays', whose rate is reported).
    workdir: directory, created if necessary.

  Returns:
    (the last TrainState, on one device; list of the files that finish wrote).

  Raises:
    UserError: the workdir cannot be used, another run is using it, a
      checkpoint is damaged or of another step than that of its name, or the
      batch cannot be divided over the devices.
    Diverged: at a NaN or an infinity; the last good checkpoint stays.
    AtOnce: a file cannot be written, the workdir is gone, or another process
      of the run has ended.
  """
  workdir = pathlib.Path(workdir).absolute()
  with contextlib.ExitStack() as held:
    # A new workdir is created and locked only after the first batch, so that
    # a run that cannot start leaves no directory.
    exists = workdir.is_dir()
    if exists:
      workdirs.lock(workdir, held)
    workdirs.check(config, workdir)
    start = latest(workdir)
    mesh, batches = make_batches(task, config, start)
    if not exists:
      workdirs.lock(workdir, held)
      if latest(workdir) != start:
        raise UserError(
            f'Another run has written to the workdir {workdir} since this one '
            'began; run the same command again to go on from there, or choose '
            'another workdir.')
    held.enter_context(storage.failures(workdir, lambda: latest(workdir)))
    workdirs.write_config(config, workdir)
    files.remove_temporary(workdir)
    with workdirs.discarded_on_error(workdir, not exists):
      checkpoints = held.enter_context(
          Checkpoints(workdir, config.keep_checkpoints))
      keys = jax.random.split(jax.random.key(config.seed), 3)
      with notices.slow('Preparing the networks'):
        state = task.init(keys[0])
    state = (checkpoints.restore(state, mesh, start) if start
             else replicate_state(state, mesh))
    stop = held.enter_context(stopping.Stopping(
        functools.partial(_save_finite, checkpoints), checkpoints.wait,
        lambda: latest(workdir)))
    if start < config.steps:
      state = _train(task, config, workdir, checkpoints, mesh, state, batches,
                     keys, stop)
    with notices.slow('Saving the checkpoint'):
      checkpoints.wait()
    stop.at_once()
    return _finish(task, config, workdir, sharding.unreplicate(state))


def make_batches(
    task: Any, config: ml_collections.ConfigDict, start: int
) -> tuple[Mesh, Iterator[Any]]:
  """Returns the mesh and the batches on it, from that of step `start`.

  Raises:
    UserError: the batch cannot be divided over the devices.
  """
  if start >= config.steps:
    return sharding.device_mesh(), iter(())
  with notices.slow('Preparing the first batch'):
    batches = iter(task.batches(config.seed, start))
    first = next(batches)
  mesh = sharding.mesh_for(first, task.execution)
  return mesh, prefetch(itertools.chain([first], batches), mesh)


def replicate_state(state: TrainState, mesh: Mesh) -> TrainState:
  """Replicates a new state; frozen weights are neither donated nor copied."""
  frozen = sharding.replicate(state.frozen, mesh, may_alias=True)
  state = sharding.replicate(state.replace(frozen=None), mesh)
  return state.replace(frozen=frozen)


def _train(task, config, workdir, checkpoints, mesh, state, batches, keys,
           stop):
  """Returns the state after config.steps, whose save is in progress."""
  start = int(sharding.unreplicate(state.step))
  step = sharding.pmap(_with_finite_check(task.step), mesh, task.execution)
  run_key = sharding.replicate(keys[1], mesh)
  report = Report(
      workdir, start, config.steps, config.get('progress', ()),
      active=jax.process_index() == 0,
      throughput=((config.throughput_unit, config.batch)
                  if 'throughput_unit' in config else None),
      config=config.to_json_best_effort(indent=2))
  report.message(
      f'Training from step {start} to {config.steps} on {mesh.size} '
      f'{jax.devices()[0].platform} device(s), into {workdir}; the first step '
      'takes longer, because it is compiled.')
  buffer, alone = MetricBuffer(mesh), jax.process_count() == 1
  saved, saved_at = start, time.monotonic()
  try:
    for done in range(start + 1, config.steps + 1):
      with notices.slow(f'Computing step {done}', after=_LONG_STEP):
        state, metrics = step(
            state, next(batches), run_key, task.static(done - 1))
        # Metrics.
        buffer.add(done, metrics)
      stop.done(done, state if alone else None)
      report.progress(done, buffer.newest)
      if done in (1, config.steps) or done % config.log_every == 0:
        storage.check_present(workdir)
        report.scalars(done, {**buffer.means(), **task.scheduled(done - 1)})
      # Evaluation.
      if _due(done, config.eval_every, config.steps):
        buffer.drain()
        with notices.slow('Evaluating'):
          scalars, images = task.evaluate(
              sharding.unreplicate(state), jax.random.fold_in(keys[2], done))
        report.scalars(done, {k: float(v) for k, v in scalars.items()})
        report.images(done, images)
      # Checkpoint.
      overdue = _minutes_since(saved_at) > config.get(
          'checkpoint_minutes', float('inf'))
      signal_number, overdue = any_process_requests(
          stop.received, overdue, exchange=done % config.log_every == 0)
      if signal_number:
        stop.keep()
      if signal_number or overdue or done == config.steps or _due(
          done, config.checkpoint_every):
        buffer.drain()  # Raises before a diverged state is saved.
        storage.check_present(workdir)
        checkpoints.save(state)
        saved, saved_at = done, time.monotonic()
      # Stop.
      if signal_number and done < config.steps:
        checkpoints.wait()
        report.message(f'Stopped at step {done}, which is saved; the same '
                       f'command goes on from there.')
        if signal_number == signal.SIGINT:
          raise KeyboardInterrupt
        raise SystemExit(0)
  except Diverged as error:
    last = f'that of step {saved}' if saved else 'none, for none was due yet'
    raise Diverged(f'{error} The last good checkpoint in {workdir} is {last}.'
                   ) from error
  finally:
    batches.close()
    report.close()
  return state


def _save_finite(checkpoints, state):
  """Saves a state, unless a parameter is no finite number."""
  if all(np.isfinite(x).all() for x in jax.tree.leaves(
      jax.device_get(sharding.unreplicate((state.params, state.extra))))
      if jnp.issubdtype(x.dtype, jnp.inexact)):
    checkpoints.save(state)
    checkpoints.wait()


def finished_step(workdir: str | os.PathLike) -> int:
  """Returns the step at which a finished run ended.

  Raises:
    UserError: its finished.json is missing or damaged.
  """
  marker = pathlib.Path(workdir) / 'finished.json'
  content = files.read_result(marker, _FINISHED)
  if content is None:
    raise UserError(f'{marker} is missing or damaged; run the command of the '
                    'training again, which writes it.')
  return content['step']


def _finish(task, config, workdir, state):
  """Runs the task's finish once per number of steps."""
  if jax.process_index() != 0:
    return state, []
  marker = workdir / 'finished.json'
  before = files.read_result(marker, _FINISHED)
  if before and before['step'] == int(state.step):
    listed = [str(workdir / name) for name in before['files']]
    # Results that were deleted are made again.
    if all(map(os.path.exists, listed)):
      return state, listed
  with notices.slow('Writing the results'):
    written = [str(file) for file in task.finish(state, str(workdir)) or ()]
  # Relative, so that the workdir may be moved.
  files.write_bytes(marker, json.dumps({
      'step': int(state.step),
      'files': [os.path.relpath(file, workdir) for file in written]}).encode())
  return state, written


def _with_finite_check(step):
  """Adds the metric _NOT_FINITE: 0 if all new parameters are finite, else 1."""

  def checked(before, batch, key, **static):
    state, metrics = step(before, batch, key, **static)
    # Where a step has several programs, each checks what it has changed. A NaN
    # or an infinity is the largest of a leaf, which takes one kernel to find.
    largest = [jnp.max(jnp.abs(new), initial=0) for old, new in zip(
        *(jax.tree.leaves((x.params, x.extra)) for x in (before, state)),
        strict=True)
               if new is not old and jnp.issubdtype(new.dtype, jnp.inexact)]
    finite = jnp.isfinite(jnp.array(largest, jnp.float32))
    return state, {**metrics, _NOT_FINITE: jnp.any(~finite)}

  return checked


class MetricBuffer:
  """Metrics that are still being computed; checks and averages them."""

  def __init__(self, mesh: Mesh):
    # Reading a metric waits for its step. An accelerator is kept busy by two
    # steps in flight; virtual devices of the CPU use the same cores, so that
    # steps in flight only wait for each other.
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    self._in_flight = 0 if on_cpu else 2
    self._pending, self._sums, self._count = [], {}, 0
    self._newest = {}

  def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Adds a step's metrics; checks those of steps that should be done.

    Raises:
      Diverged: a metric or a parameter is not finite.
    """
    self._pending.append((step, metrics))
    self._receive(self._in_flight)

  def newest(self) -> dict[str, float]:
    """Returns the newest metrics that have arrived."""
    return self._newest

  def drain(self) -> None:
    """Waits for all steps and checks their metrics, as `add` does."""
    self._receive(0)

  def means(self) -> dict[str, float]:
    """Returns the means of the metrics since the last call."""
    self.drain()
    means = {name: x / self._count for name, x in self._sums.items()}
    self._sums, self._count = {}, 0
    return means

  def _receive(self, left):
    """Reads pending metrics until `left` steps are pending."""
    while len(self._pending) > left:
      step, metrics = self._pending.pop(0)
      values = {name: float(x) for name, x in
                jax.device_get(sharding.unreplicate(metrics)).items()}
      finite = values.pop(_NOT_FINITE) == 0.
      bad = [f'{name} is {x}' for name, x in values.items()
             if not np.isfinite(x)]
      if bad or not finite:
        raise Diverged(f'Training stopped at step {step}, where '
                       f'{", ".join(bad) or "the parameters are not finite"}.')
      for name, x in values.items():
        self._sums[name] = self._sums.get(name, 0.) + x
      self._count += 1
      self._newest = values


def any_process_requests(
    stop: int, overdue: bool, exchange: bool) -> tuple[int, bool]:
  """All-reduces (max) a stop signal and an overdue checkpoint.

  All processes save together, so they have to decide alike.

  Args:
    stop: number of the signal that this process has received, or 0.
    overdue: whether a checkpoint is overdue by this process's clock.
    exchange: whether the processes communicate at this step, the same on all.

  Returns:
    (stop, overdue) of all processes; (0, False) for several processes without
    an exchange.
  """
  if jax.process_count() == 1:
    return stop, overdue
  if not exchange:
    return 0, False
  requests = multihost_utils.process_allgather(np.array([stop, int(overdue)]))
  stop, overdue = requests.max(axis=0)
  return int(stop), bool(overdue)


def _due(done, every, steps=None):
  return bool(every) and (done % every == 0 or done == steps)


def _minutes_since(moment):
  return (time.monotonic() - moment) / 60.
