"""Writes a page of runs: films, meshes to turn, curves, what differs.

python -m gen3d.gallery runs --out=/tmp/gallery
python -m gen3d.gallery runs/a-red-chair runs/a-blue-car --out=/tmp/gallery

The page, index.html in the folder --out, opens in any browser without a
server or a network. Numbers are those that gen3d.evaluate has stored.
"""

from absl import flags

from gen3d.choices import UserError
from gen3d.engine import cli
from gen3d.render import gallery

_OUT = flags.DEFINE_string('out', '', 'Folder of the page.')


def main(*paths: str) -> None:
  if not paths:
    raise UserError('There is nothing to show; give workdirs, or a folder of '
                    'workdirs; see --help.')
  cli.require('out')
  print(gallery.write(paths, _OUT.value))


if __name__ == '__main__':
  cli.run(main, positional=True)
