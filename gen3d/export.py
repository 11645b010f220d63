"""Writes the film, the sheet of views and the meshes of a finished run.

python -m gen3d.export --workdir=runs/a-red-chair --resolution=256 --size=512
"""

from absl import flags

from gen3d import tasks
from gen3d.engine import cli
from gen3d.render import finished

_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the run.')
_STEP = flags.DEFINE_integer(
    'step', None, 'Step of the checkpoint; the newest one if not given.')
_RESOLUTION = flags.DEFINE_integer(
    'resolution', 192, 'Grid points along the longest side of the mesh.',
    lower_bound=8, upper_bound=1024)
_SIZE = flags.DEFINE_integer(
    'size', 256, 'Height of a frame in pixels.', lower_bound=16,
    upper_bound=4096)
_KEEP_SHARE = flags.DEFINE_float(
    'keep_share', None, 'Keep connected components of the mesh of at least '
    "this fraction of the largest one's volume; the run's own setting if not "
    'given.', lower_bound=0.0, upper_bound=1.0)
flags.DEFINE_alias('share', 'keep_share')
_TEXTURE = flags.DEFINE_integer(
    'texture', None, "Texels per side of the mesh's texture, 0 for vertex "
    "colors; the run's own setting if not given.", lower_bound=0,
    upper_bound=8192)
_FORMATS = flags.DEFINE_list(
    'formats', None, 'Mesh files to write, of glb, ply and obj; glb,ply if '
    'not given.')
_FACES = flags.DEFINE_integer(
    'faces', None, 'Reduce the mesh to about this number of triangles; all of '
    'them if not given, or 0.')
_GROUND = flags.DEFINE_bool(
    'ground', None, 'Move the mesh up or down until its lowest point is at '
    'y = 0.')
_OUT = flags.DEFINE_string(
    'out', '', 'Folder to write into; the workdir if not given.')


def main() -> None:
  cli.require('workdir')
  run = tasks.load_finished(_WORKDIR.value, _STEP.value)
  options = run.defaults._replace(
      resolution=_RESOLUTION.value, size=_SIZE.value)
  given = {'keep_share': _KEEP_SHARE.value, 'texture': _TEXTURE.value,
           'faces': _FACES.value, 'ground': _GROUND.value}
  options = options._replace(**{
      key: value for key, value in given.items() if value is not None})
  if _FORMATS.value:
    options = options._replace(formats=_FORMATS.value)
  for path in finished.export(run, _OUT.value or _WORKDIR.value, options):
    print(path)


if __name__ == '__main__':
  cli.run(main)
