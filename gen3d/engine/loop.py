"""The training loop: any task, any number of chips, resumed exactly.

A run lives in its workdir: config.json, checkpoints/, scalars.jsonl,
tensorboard/, previews/, what the task's finish writes, and finished.json.
.lock keeps a second run out of it.
"""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from gen3d import files
from gen3d.choices import UserError
from gen3d.engine import locks, sharding
from gen3d.engine.checkpoints import Checkpoints, latest
from gen3d.engine.report import Report

# What a run may change when it is resumed: how long, and how often it tells.
_MAY_CHANGE = ('steps', 'log_every', 'eval_every', 'checkpoint_every',
               'checkpoint_minutes', 'keep_checkpoints', 'progress', 'counted')
_FINITE = 'params/finite'


class Diverged(UserError):
  """A loss, a metric or a parameter is no longer a finite number."""


def run(task, config, workdir):
  """Trains a task to its end, from where its workdir stands.

  SIGTERM saves and exits with code 0, Ctrl-C saves and raises
  KeyboardInterrupt.

  Args:
    task: tasks.Task.
    config: ConfigDict; read here are seed, steps, log_every, eval_every (0:
      never), checkpoint_every (0: only at the end), keep_checkpoints, and
      where present checkpoint_minutes, progress (names of the metrics in the
      live line) and counted (what a step works on `batch` of, as 'rays').
    workdir: directory, made if need be.

  Returns:
    (the last TrainState, on one device; list of the files that finish wrote).

  Raises:
    UserError: where the workdir cannot be used, another run is using it, a
      checkpoint is damaged or of another step than its name says, or the
      batch cannot be divided over the chips.
    Diverged: at a NaN or an infinity; the last good checkpoint stays.
  """
  workdir = pathlib.Path(workdir).absolute()
  with contextlib.ExitStack() as held:
    # A new workdir is made, and then locked, only once there is a batch.
    exists = workdir.is_dir()
    if exists:
      _lock(workdir, held)
    check_workdir(config, workdir)
    start = latest(workdir)
    mesh, batches = _feed(task, config, start)
    if not exists:
      _lock(workdir, held)
      if latest(workdir) != start:
        raise UserError(
            f'Another run has written to the workdir {workdir} since this one '
            'began; run the same command again to go on from there, or choose '
            'another workdir.')
    _claim(config, workdir)
    keys = jax.random.split(jax.random.key(config.seed), 3)
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    held.callback(checkpoints.close)
    state = task.init(keys[0])
    state = (checkpoints.restore(state, mesh, start) if start
             else replicate_state(state, mesh))
    if start < config.steps:
      state = _train(task, config, workdir, checkpoints, mesh, state, batches,
                     keys)
    checkpoints.wait()
    return _finish(task, config, workdir, sharding.unreplicate(state))


def check_workdir(config, workdir):
  """Raises UserError where a run cannot use a workdir; changes nothing."""
  workdir = pathlib.Path(workdir).absolute()
  parent = next(p for p in (workdir, *workdir.parents) if p.exists())
  if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
    raise UserError(f'The workdir {workdir} cannot be written, because '
                    f'{parent} is not a directory that you can write to.')
  stored = workdir / 'config.json'
  if not latest(workdir):
    return  # Nothing there is worth protecting.
  if stored.exists():
    try:
      before = json.loads(stored.read_text())
    except ValueError as error:
      raise UserError(f'{stored} is damaged; choose another workdir.'
                      ) from error
    now = json.loads(config.to_json_best_effort())
    differ = _differences(before, now)
    if differ:
      raise UserError(
          f'The workdir {workdir} holds a run of another config, which differs '
          f'in {", ".join(differ)}; choose another workdir, or delete it.')
  else:
    raise UserError(f'The workdir {workdir} holds checkpoints but no '
                    f'config.json; choose another workdir.')


def _lock(workdir, held):
  """Makes the workdir; process 0 holds its lock until the ExitStack ends."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      held.enter_context(locks.hold(workdir))
  except OSError as error:
    raise UserError(f'The workdir {workdir} cannot be written '
                    f'({error.filename or workdir}: {error.strerror}); choose '
                    'another workdir.') from error


def _claim(config, workdir):
  """Writes the config into the workdir."""
  try:
    with tempfile.TemporaryFile(dir=workdir):
      pass
    if jax.process_index() == 0:
      content = json.loads(config.to_json_best_effort())
      files.write_bytes(workdir / 'config.json',
                  (json.dumps(content, indent=2) + '\n').encode())
  except OSError as error:
    raise UserError(f'The workdir {workdir} cannot be written '
                    f'({error.strerror}).') from error
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('workdir')


def _feed(task, config, start):
  """Returns the mesh and the batches on it, from that of step `start`."""
  if start >= config.steps:
    return sharding.device_mesh(), iter(())
  # Some data take minutes to be made: a word, but only where it is needed.
  patience = threading.Timer(5., print, ['Preparing the first batch.'],
                             {'file': sys.stderr, 'flush': True})
  patience.daemon = True
  patience.start()
  try:
    batches = iter(task.batches(config.seed, start))
    first = next(batches)
  finally:
    patience.cancel()
  mesh = sharding.device_mesh(np.shape(jax.tree.leaves(first)[0])[0],
                              task.execution.min_per_device)
  sharding.check_divides(first, mesh, task.execution)
  return mesh, sharding.prefetch(itertools.chain([first], batches), mesh)


def replicate_state(state, mesh):
  """Replicates a new state; frozen weights are not donated, nor copied."""
  frozen = sharding.replicate(state.frozen, mesh, share=True)
  state = sharding.replicate(state.replace(frozen=None), mesh)
  return state.replace(frozen=frozen)


def _train(task, config, workdir, checkpoints, mesh, state, batches, keys):
  """Returns the state of config.steps, of which a save is under way."""
  start = int(sharding.unreplicate(state.step))
  step = sharding.pmap(_watched(task.step), mesh, task.execution)
  run_key = sharding.replicate(keys[1], mesh)
  report = Report(
      workdir, start, config.steps, config.get('progress', ()),
      active=jax.process_index() == 0,
      counted=(config.counted, config.batch) if 'counted' in config else None)
  report.say(f'Training from step {start} to {config.steps} on {mesh.size} '
             f'{jax.devices()[0].platform} device(s), into {workdir}; the '
             f'first step takes longer, for it is compiled.')
  watch, signals = _Watch(mesh), _Signals()
  saved, saved_at = start, time.monotonic()
  try:
    for done in range(start + 1, config.steps + 1):
      state, metrics = step(
          state, next(batches), run_key, task.static(done - 1))
      watch.add(done, metrics)
      report.progress(done, watch.newest)
      if done in (1, config.steps) or done % config.log_every == 0:
        report.scalars(done, watch.means())
      if _due(done, config.eval_every, config.steps):
        watch.drain()
        scalars, images = task.evaluate(
            sharding.unreplicate(state), jax.random.fold_in(keys[2], done))
        report.scalars(done, {k: float(v) for k, v in scalars.items()})
        report.images(done, images)
      stop, overdue = _agree(done % config.log_every == 0, signals.received,
                             _minutes_since(saved_at) > config.get(
                                 'checkpoint_minutes', float('inf')))
      if stop or overdue or done == config.steps or _due(
          done, config.checkpoint_every):
        watch.drain()
        checkpoints.save(state)
        saved, saved_at = done, time.monotonic()
      if stop and done < config.steps:
        checkpoints.wait()
        report.say(f'Stopped at step {done}, which is saved; the same command '
                   f'goes on from there.')
        if stop == signal.SIGINT:
          raise KeyboardInterrupt
        raise SystemExit(0)
  except Diverged as error:
    last = f'that of step {saved}' if saved else 'none, for none was due yet'
    raise Diverged(f'{error} The last good checkpoint in {workdir} is {last}.'
                   ) from error
  finally:
    batches.close()
    signals.restore()
    report.close()
  return state


def _finish(task, config, workdir, state):
  """Runs the task's finish once per number of steps."""
  if jax.process_index() != 0:
    return state, []
  marker = workdir / 'finished.json'
  if marker.exists():
    before = json.loads(marker.read_text())
    if before['step'] == int(state.step):
      return state, before['files']
  results = [str(file) for file in task.finish(state, str(workdir)) or ()]
  files.write_bytes(marker, json.dumps(
      {'step': int(state.step), 'files': results}).encode())
  return state, results


def _watched(step):
  """A step that also tells whether the new parameters are finite."""

  def watched(state, batch, key, **static):
    state, metrics = step(state, batch, key, **static)
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state.params)
              if jnp.issubdtype(x.dtype, jnp.inexact)]
    return state, {**metrics, _FINITE: jnp.all(jnp.array(finite))}

  return watched


class _Watch:
  """The metrics on their way from the chips: checked each, averaged."""

  def __init__(self, mesh):
    # Virtual devices share the cores: steps in flight only wait on each other.
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    self._ahead = 0 if on_cpu else 2
    self._pending, self._sums, self._count = [], {}, 0
    self._newest = {}

  def add(self, step, metrics):
    """Takes a step's metrics; checks those of steps that should be done."""
    self._pending.append((step, metrics))
    self._take(self._ahead)

  def newest(self):
    """Returns the newest metrics that have arrived."""
    return self._newest

  def drain(self):
    """Waits for all steps and checks their metrics."""
    self._take(0)

  def means(self):
    """Returns the metrics' means since the last call."""
    self.drain()
    means = {name: x / self._count for name, x in self._sums.items()}
    self._sums, self._count = {}, 0
    return means

  def _take(self, left):
    while len(self._pending) > left:
      step, metrics = self._pending.pop(0)
      values = {name: float(x) for name, x in
                jax.device_get(sharding.unreplicate(metrics)).items()}
      finite = values.pop(_FINITE) == 1.
      bad = [f'{name} is {x}' for name, x in values.items()
             if not np.isfinite(x)]
      if bad or not finite:
        raise Diverged(f'Training stopped at step {step}, where '
                       f'{", ".join(bad) or "the parameters are not finite"}.')
      for name, x in values.items():
        self._sums[name] = self._sums.get(name, 0.) + x
      self._count += 1
      self._newest = values


class _Signals:
  """SIGTERM and the first Ctrl-C wait until the step is done."""

  def __init__(self):
    self.received, self._before = 0, {}
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._receive)

  def restore(self):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _receive(self, number, frame):
    if self.received and number == signal.SIGINT:
      self.restore()
      raise KeyboardInterrupt
    self.received = number


def _agree(asked, stop, overdue):
  """What all processes do, since they save together: the largest wish."""
  if jax.process_count() == 1:
    return stop, overdue
  if not asked:
    return 0, False
  wishes = multihost_utils.process_allgather(np.array([stop, int(overdue)]))
  stop, overdue = wishes.max(axis=0)
  return int(stop), bool(overdue)


def _due(done, every, steps=None):
  return bool(every) and (done % every == 0 or done == steps)


def _minutes_since(moment):
  return (time.monotonic() - moment) / 60.


def _differences(before, now, prefix=''):
  """Returns the dotted keys in which two configs differ, as 'key (a, b)'."""
  differ = []
  for key in sorted(set(before) | set(now)):
    a, b = before.get(key), now.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
      differ += _differences(a, b, f'{prefix}{key}.')
    elif a != b and (prefix or key not in _MAY_CHANGE):
      differ.append(f'{prefix}{key} ({json.dumps(a)} there, {json.dumps(b)} '
                    f'here)')
  return differ
