"""How fast a config trains here, and with how much memory.

python -m gen3d.benchmark --config=configs/dreamfusion.py
python -m gen3d.benchmark --config=configs/eg3d.py:cpu128 --out=numbers.json

Prints the sizes, then seconds of a training step on all chips, for a GAN each
phase of it and the parts of EG3D's networks, for a reconstruction its rays,
the size of the parameters and the peak of memory: what the compiler plans for
a chip, and what was measured. Times are medians; the first call is told apart.
"""

import contextlib
import json
import pathlib
import time

import jax
from absl import flags
from ml_collections import config_flags

from gen3d import files, tasks
from gen3d.choices import UserError
from gen3d.engine import cli, loop, sharding
from gen3d.evaluation import speed

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, FILE.py or FILE.py:VARIANT.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Calls that are timed.', 1)
_PLAN = flags.DEFINE_bool(
    'plan', False, 'Tell only what memory the compiler plans; run nothing.')
_OUT = flags.DEFINE_string('out', None, 'A .json file for the numbers.')

_TOLD = {}  # What was printed, by name.


def main():
  cli.require('config')
  if _OUT.value and pathlib.Path(_OUT.value).is_dir():
    raise UserError(f'--out={_OUT.value} is a folder; name a .json file, in '
                    'it or elsewhere.')
  # That it can be written is known before there is anything to write.
  with (files.atomic_write(_OUT.value) if _OUT.value
        else contextlib.nullcontext()) as out:
    _measure(_CONFIG.value)
    if out:
      out.write_text(json.dumps(_TOLD, indent=2) + '\n')


def _measure(config):
  module = tasks.module_of(config)
  if config.task == 'gan':
    config = speed.settled(config)
  task = module.make(config)
  batch = next(task.batches(config.seed, 0))
  mesh = sharding.device_mesh(
      len(jax.tree.leaves(batch)[0]), task.execution.min_per_device)
  sharding.check_divides(batch, mesh, task.execution)
  sizes(config, mesh)
  state = loop.replicate_state(task.init(jax.random.key(0)), mesh)
  leaves = jax.tree.leaves(state.params)
  number('parameters', sum(x.size for x in leaves))
  number('bytes of parameters', sum(x.nbytes for x in leaves))
  run = speed.Step(task, state, mesh)
  number('planned peak of a chip in GB', run.planned_gigabytes(batch), '.3g')
  if _PLAN.value:
    return
  begin = time.perf_counter()
  run.once(batch)
  print(f'first step, compiled before: {time.perf_counter() - begin:.1f} s')
  if config.task == 'gan':
    _gan(config, run, batch)
  else:
    tell('training step', run.seconds(batch, _REPEATS.value))
  if config.task == 'reconstruction':
    _rays(config, run, batch, mesh.size)
  number('peak memory in GB', speed.peak_gigabytes(), '.3g')


def _gan(config, run, batch):
  """The phases of a step on all chips, and EG3D's networks on one."""
  for what, seconds in speed.phases(config, lambda due: run.seconds(
      speed.with_phases(batch, due), _REPEATS.value)):
    tell(what, seconds)
  if config.networks == 'eg3d':
    for what, function in speed.parts(config, run.params()).items():
      tell(f'{what}, one device', speed.median(function, _REPEATS.value))


def _rays(config, run, batch, chips):
  """Rays per second, in training on all chips and rendered by one of them."""
  number('rays/s in training', config.batch / _TOLD['training step'], '.0f')
  seconds = speed.median(
      speed.rendering(config, run.params(), batch, chips), _REPEATS.value)
  number('rays/s rendered by one device', config.batch / chips / seconds,
         '.0f')


def sizes(config, mesh):
  """What all the numbers are of."""
  found = speed.sizes(config)
  devices = {'devices': mesh.size, 'platform': jax.devices()[0].platform}
  _TOLD.update(task=config.task, **devices, **found)
  print(f'{config.task}, {mesh.size} {devices["platform"]} device(s)')
  print(', '.join(f'{what} {speed.joined(x)}' for what, x in found.items()))
  if config.task == 'gan' and config.networks == 'eg3d':
    print('Rays are those at the end of render_size; parts take the whole '
          'batch.')


def number(what, value, form=','):
  _TOLD[what] = value
  print(f'{what}: {value:{form}}')


def tell(what, seconds):
  _TOLD[what] = seconds
  print(f'{what}: {speed.rated(seconds)}')


if __name__ == '__main__':
  cli.run(main)
