"""How fast a config trains here, and with how much memory.

python -m gen3d.benchmark --config=configs/dreamfusion.py
python -m gen3d.benchmark --config=configs/eg3d.py:cpu128

Prints seconds of a training step on all chips, for a GAN each phase of it and
the parts of its networks, for a reconstruction its rays, the size of the
parameters and the peak of memory: what the compiler plans for a chip, and what
was measured. Times are medians; the first call is told apart.
"""

import importlib
import json
import pathlib
import resource
import sys
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from gen3d.choices import pick
from gen3d.engine import cli, loop, sharding
from gen3d.tasks import TASKS, speed

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, FILE.py or FILE.py:VARIANT.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Calls that are timed.', 1)
_PLAN = flags.DEFINE_bool(
    'plan', False, 'Tell only what memory the compiler plans; run nothing.')
_OUT = flags.DEFINE_string('out', None, 'A .json file for the numbers.')

_TOLD = {}  # What was printed, by name.


def main():
  cli.require('config')
  config = _CONFIG.value
  module = importlib.import_module(pick('task', TASKS, config.get('task')))
  task = module.make(config)
  batch_of = lambda at: next(task.batches(config.seed, at))
  mesh = sharding.chips(len(jax.tree.leaves(batch_of(0))[0]), task.least)
  print(f'{config.task}, {mesh.size} {jax.devices()[0].platform} device(s)')
  state = loop.place(task.init(jax.random.key(0)), mesh)
  step = sharding.pmap(task.step, mesh, task.frugal)
  leaves = jax.tree.leaves(state.params)
  number('parameters', sum(x.size for x in leaves))
  number('bytes of parameters', sum(x.nbytes for x in leaves))
  run = Step(step, state, batch_of, mesh)
  number('planned peak of a chip in GB', run.planned_gigabytes(), '.2f')
  if _PLAN.value:
    return
  run.first()
  if config.task == 'gan':
    _gan(config, run)
  else:
    tell('training step', run.seconds(1))
  if config.task == 'reconstruction':
    _rays(config, task, batch_of(0), mesh.size)
  number('peak memory in GB', peak_gigabytes(), '.2f')
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(_TOLD, indent=2))


class Step:
  """A training step that can be repeated, though it gives its state away."""

  def __init__(self, step, state, batch_of, mesh):
    self._step, self._state = step, state
    self._batch_of, self._mesh = batch_of, mesh
    self._key = sharding.replicate(jax.random.key(1), mesh)

  def planned_gigabytes(self):
    """What the compiler plans for a step on one chip, arguments included."""
    plan = self._step.lower(
        self._state, self._batch(0), self._key).compile().memory_analysis()
    return (plan.temp_size_in_bytes + plan.argument_size_in_bytes) / 1e9

  def first(self):
    """Tells how long the first step takes."""
    batch = self._batch(0)
    begin = time.perf_counter()
    self._once(batch)
    print(f'first step, compiled before: {time.perf_counter() - begin:.1f} s')

  def seconds(self, at):
    """Median seconds of a step whose number is `at`."""
    number, batch = np.int32(at), self._batch(at)

    def step():
      self._state = self._state.replace(
          step=jax.device_put(number, self._state.step.sharding))
      return self._once(batch)

    return _median(step)

  def _batch(self, at):
    return sharding.to_devices(self._batch_of(at), self._mesh)

  def _once(self, batch):
    self._state, metrics = self._step(self._state, batch, self._key)
    jax.block_until_ready((self._state, metrics))


def _gan(config, run):
  """The phases by differences: which of them are due depends on the number."""
  schedule = config.schedule
  every, r1_every = schedule.regularize_every, schedule.r1_every
  plain = run.seconds(1)
  both = run.seconds(every * r1_every)
  regularizer = run.seconds(every) - plain if every % r1_every else 0.0
  penalty = both - plain - regularizer
  tell('generator and discriminator phase', plain)
  tell(f'regularisation, every {every}th step', regularizer)
  tell(f'R1, every {r1_every}th step', penalty)
  tell('training step on average',
       plain + regularizer / every + penalty / r1_every)
  if config.networks == 'eg3d':
    for name, function in speed.parts(config).items():
      tell(f'{name}, one device', _median(function))


def _rays(config, task, batch, chips):
  """Rays per second, in training on all chips and rendered by one of them."""
  number('rays/s in training', config.batch / _TOLD['training step'], '.0f')
  state = task.init(jax.random.key(0))
  seconds = _median(speed.rendering(config, state, batch, chips))
  number('rays/s rendered by one device', config.batch / chips / seconds,
         '.0f')


def _median(function):
  """Median seconds of a call, the first one left aside."""
  times = []
  for _ in range(_REPEATS.value + 1):
    begin = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - begin)
  return float(np.median(times[1:]))


def number(what, value, form=','):
  _TOLD[what] = value
  print(f'{what}: {value:{form}}')


def tell(what, seconds):
  _TOLD[what] = seconds
  print(f'{what}: {seconds:.3f} s ({1 / max(seconds, 1e-9):.2f} /s)')


def peak_gigabytes():
  """Of the device where it tells, else of the process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    return stats['peak_bytes_in_use'] / 1e9
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == '__main__':
  cli.run(main)
