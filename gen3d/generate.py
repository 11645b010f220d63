r"""Generates the objects of a 3-D GAN: sheets of views, turntables, meshes.

python -m gen3d.generate --network=shapes --seeds=0-7 --out=/tmp/cars
python -m gen3d.generate --network=ffhq512-128.pkl --seeds=0-7 \
  --truncation=0.7 --out=/tmp/faces

The network is one that gen3d trained (.safetensors) or an official EG3D
pickle. Writes grid.png, and for each seed a turntable, a textured .glb and a
colored .ply; with --interpolate also a film from seed to seed. For images of
prompts, see gen3d.sample.
"""

import math
import pathlib

from absl import flags

from gen3d.choices import UserError
from gen3d.engine import cli
from gen3d.gan import inference
from gen3d.render import objects

_NETWORK = flags.DEFINE_string(
    'network', '', 'A 3-D GAN: .safetensors, .pkl, .pt, .pth or a shipped '
    'name.')
_SEEDS = flags.DEFINE_string('seeds', '0-7', 'Objects, such as 0-7,12.')
_TRUNCATION = flags.DEFINE_float(
    'truncation', 1.0, 'Psi: 1 is none, less is closer to the mean object.')
_CUTOFF = flags.DEFINE_integer(
    'truncation_cutoff', None, 'Number of layers that are truncated; all if '
    'not given.', 1)
_FRAMES = flags.DEFINE_integer('frames', 48, 'Frames of a turntable.', 8)
_RESOLUTION = flags.DEFINE_integer(
    'resolution', 128, "Grid points along a mesh's longest side.", 8)
_TEXTURE = flags.DEFINE_integer(
    'texture', 1024, "Texels per side of the .glb files' textures; 0 for "
    'vertex colors.', 0)
_INTERPOLATE = flags.DEFINE_bool(
    'interpolate', False, 'Also write a film from seed to seed.')
_OUT = flags.DEFINE_string('out', '', 'Folder for the results.')


def main() -> None:
  cli.require('network', 'out')
  seeds = inference.parse_seeds(_SEEDS.value)
  if not math.isfinite(_TRUNCATION.value):
    raise UserError(f'--truncation is {_TRUNCATION.value}; give a number.')
  trained, out = inference.load(_NETWORK.value), pathlib.Path(_OUT.value)
  options = {'psi': _TRUNCATION.value, 'cutoff': _CUTOFF.value,
             'frames': _FRAMES.value}
  written = objects.export(
      trained, seeds, out, resolution=_RESOLUTION.value,
      texture=_TEXTURE.value, **options)
  if _INTERPOLATE.value:
    written.append(objects.interpolate(
        trained, seeds, out / 'interpolation.mp4', **options))
  for file in written:
    print(file)


if __name__ == '__main__':
  cli.run(main)
