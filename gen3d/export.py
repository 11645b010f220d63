"""Writes the files of a scene's run again, from any of its checkpoints.

python -m gen3d.export --workdir=runs/a-red-chair --resolution=256 --size=512
"""

from absl import flags

from gen3d import tasks
from gen3d.engine import cli
from gen3d.render import finished

_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run.')
_STEP = flags.DEFINE_integer(
    'step', None, 'Which checkpoint; the newest one if not given.')
_RESOLUTION = flags.DEFINE_integer(
    'resolution', 192, 'Grid points along the longest side of the mesh.',
    lower_bound=8, upper_bound=1024)
_SIZE = flags.DEFINE_integer(
    'size', 256, 'Height of a frame in pixels.', lower_bound=16,
    upper_bound=4096)
_SHARE = flags.DEFINE_float(
    'share', None, "Keep the mesh's pieces of at least this share of the "
    "largest one's volume; what the config says if not given.",
    lower_bound=0.0, upper_bound=1.0)
_OUT = flags.DEFINE_string(
    'out', None, 'Where the files go; the workdir if not given.')


def main():
  cli.require('workdir')
  shown = tasks.load_finished(_WORKDIR.value, _STEP.value)
  asked = {'resolution': _RESOLUTION.value, 'size': _SIZE.value}
  if _SHARE.value is not None:
    asked['share'] = _SHARE.value
  files = finished.export(shown, _OUT.value or _WORKDIR.value,
                         **{**shown.defaults, **asked})
  for file in files:
    print(file)


if __name__ == '__main__':
  cli.run(main)
