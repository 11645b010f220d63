"""Writes the files of a text-to-3D run again, from any of its checkpoints.

python -m gen3d.export --workdir=runs/a-red-chair --resolution=256 --size=512
"""

from absl import flags

from gen3d.engine import cli
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


def main():
  cli.require('workdir')
  scene, params, config = text_to_3d.load_run(_WORKDIR.value, _STEP.value)
  files = text_to_3d.export(
      scene, params, _OUT.value or _WORKDIR.value, orbit=dict(config.orbit),
      **{**config.export, 'resolution': _RESOLUTION.value,
         'size': _SIZE.value})
  for file in files:
    print(file)


if __name__ == '__main__':
  cli.run(main)
