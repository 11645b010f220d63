r"""Shows runs, 3-D GANs, captures and meshes in the browser, to turn them.

python -m gen3d.view runs/a-red-chair
python -m gen3d.view runs
python -m gen3d.view --network=shapes
python -m gen3d.view /tmp/duck runs/duck
python -m gen3d.view runs/a-red-chair/mesh.glb

A run may still train: the page follows its checkpoints. Of a capture the
cameras and photographs are shown, of a 3-D GAN the seeds, by sliders. Images
are rendered as large as five a second allow, and larger where the camera
rests. The page is for this machine only, unless --host=0.0.0.0 is given.
"""

from absl import flags

from gen3d.choices import UserError
from gen3d.engine import cli
from gen3d.viewer import opening, page

_NETWORK = flags.DEFINE_string(
    'network', '', 'A 3-D GAN: .safetensors, .pkl, .pt, .pth or a shipped '
    'name; it may also be given without the flag.')
_HOST = flags.DEFINE_string(
    'host', '127.0.0.1', 'Address to listen to; 0.0.0.0 lets other machines '
    'in, without a password.')
_PORT = flags.DEFINE_integer(
    'port', page.PORT, 'Port of the page; the next free one if it is in use.',
    1, 65535)
_WAIT = flags.DEFINE_bool(
    'wait', False, 'Wait for a run that has not begun or has no checkpoint.')


def main(*paths: str) -> None:
  paths = (*paths, *filter(None, [_NETWORK.value]))
  if not paths:
    raise UserError('There is nothing to show; give workdirs, captures, 3-D '
                    'GANs or mesh files; see --help.')
  page.import_viser()
  page.serve(opening.open_all(paths, wait=_WAIT.value), host=_HOST.value,
             port=_PORT.value, wait=_WAIT.value)


if __name__ == '__main__':
  cli.run(main, positional=True)
