"""Writes the files of a text-to-3D run again, from any of its checkpoints.

python -m gen3d.export --workdir=runs/a-red-chair --resolution=256 --size=512
"""

import json
import pathlib

import jax
import ml_collections
from absl import flags

from gen3d.engine import checkpoints, cli
from gen3d.tasks import text_to_3d

_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run.')
_STEP = flags.DEFINE_integer(
    'step', None, 'Which checkpoint; the newest one if not given.')
_RESOLUTION = flags.DEFINE_integer(
    'resolution', 192, 'Grid points along the longest side of the mesh.',
    lower_bound=8, upper_bound=1024)
_SIZE = flags.DEFINE_integer(
    'size', 256, 'Height of a frame in pixels.', lower_bound=16,
    upper_bound=4096)
_OUT = flags.DEFINE_string(
    'out', None, 'Where the files go; the workdir if not given.')


def read_config(workdir):
  """The ConfigDict of a text-to-3D run.

  Raises:
    ValueError: where there is no such run.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.is_file():
    raise ValueError(
        f'There is no run in {workdir}: it has no config.json; give the '
        '--workdir that gen3d.train was given.')
  try:
    config = ml_collections.ConfigDict(_tuples(json.loads(path.read_text())))
  except ValueError as error:
    raise ValueError(f'{path} is damaged, so the run cannot be read.'
                     ) from error
  if config.get('task') != 'text_to_3d':
    raise ValueError(
        f'The run in {workdir} is of the task {config.get("task")!r}; only '
        "runs of 'text_to_3d' have an object to export.")
  return config


def main():
  cli.require('workdir')
  config = read_config(_WORKDIR.value)
  task = text_to_3d.make(config)
  state = checkpoints.load(
      _WORKDIR.value, task.init(jax.random.key(0)), _STEP.value)
  files = text_to_3d.export(
      text_to_3d.make_scene(config), state.params['scene'],
      _OUT.value or _WORKDIR.value, orbit=dict(config.orbit),
      **{**config.export, 'resolution': _RESOLUTION.value,
         'size': _SIZE.value})
  for file in files:
    print(file)


def _tuples(node):
  """JSON has no tuples, and configs have no lists."""
  if isinstance(node, dict):
    return {key: _tuples(value) for key, value in node.items()}
  return tuple(map(_tuples, node)) if isinstance(node, list) else node


if __name__ == '__main__':
  cli.run(main)
