"""How fast a config trains here, and with how much memory.

python -m gen3d.benchmark --config=configs/dreamfusion.py
python -m gen3d.benchmark --config=configs/eg3d.py:cpu128

Prints seconds of a training step on all chips, for a GAN each phase of it and
the parts of its networks, and the peak of memory. Times are medians; the first
call, which compiles, is told apart.
"""

import importlib
import resource
import sys
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from gen3d.choices import pick
from gen3d.engine import cli, sharding
from gen3d.tasks import TASKS, speed

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, FILE.py or FILE.py:VARIANT.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Calls that are timed.', 1)


def main():
  cli.require('config')
  config = _CONFIG.value
  module = importlib.import_module(pick('task', TASKS, config.get('task')))
  task = module.make(config)
  batch = next(task.batches(config.seed, 0))
  mesh = sharding.chips(len(jax.tree.leaves(batch)[0]))
  print(f'{config.task}, {mesh.size} {jax.devices()[0].platform} device(s)')
  state = sharding.replicate(task.init(jax.random.key(0)), mesh)
  step = sharding.pmap(task.step, mesh)
  run = Step(step, state, sharding.to_devices(batch, mesh), mesh)
  if config.task == 'gan':
    _gan(config, run)
  else:
    tell('training step', run.seconds(1))
  print(f'peak memory: {peak_gigabytes():.2f} GB')


class Step:
  """A training step that can be repeated, though it gives its state away."""

  def __init__(self, step, state, batch, mesh):
    self._step, self._state, self._batch = step, state, batch
    self._key = sharding.replicate(jax.random.key(1), mesh)
    begin = time.perf_counter()
    self._once()
    print(f'first step, with compilation: {time.perf_counter() - begin:.1f} s')

  def seconds(self, at):
    """Median seconds of a step whose number is `at`."""
    number = np.int32(at)

    def step():
      self._state = self._state.replace(
          step=jax.device_put(number, self._state.step.sharding))
      return self._once()

    return _median(step)

  def _once(self):
    self._state, metrics = self._step(self._state, self._batch, self._key)
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


def _median(function):
  """Median seconds of a call, the first one left aside."""
  times = []
  for _ in range(_REPEATS.value + 1):
    begin = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - begin)
  return float(np.median(times[1:]))


def tell(what, seconds):
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
