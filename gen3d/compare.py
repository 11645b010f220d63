"""Trains several representations of one scene and compares them.

python -m gen3d.compare --data=shapes:'a red car with blue wheels' \
  --workdir=runs/comparison

Each is trained by its own config in its own process, on the same rays, and
then timed by gen3d.benchmark. The same command continues after a stop. Prints
a table with ratios to Mip-NeRF beside the published ones; writes it and a plot
of PSNR over time into the workdir.
"""

from absl import flags

from gen3d.engine import cli
from gen3d.evaluation import representations

_DATA = flags.DEFINE_string(
    'data', '', 'data.path of the configs: the folder of a capture, or '
    '"shapes:" and a caption.')
_WORKDIR = flags.DEFINE_string(
    'workdir', '', 'Folder; each representation has a workdir in it.')
_CONFIGS = flags.DEFINE_list(
    'configs', ['mip_nerf', 'nerf', 'voxels', 'triplanes'],
    'Files of configs/ without the suffix.')
_VARIANT = flags.DEFINE_string('variant', 'race', 'Variant of these configs.')
_SET = flags.DEFINE_multi_string(
    'set', [], 'KEY=VALUE for all these configs, such as steps=2000.')


def main() -> None:
  cli.require('data', 'workdir')
  print(representations.compare(
      _DATA.value, _WORKDIR.value, _CONFIGS.value, _VARIANT.value, _SET.value))


if __name__ == '__main__':
  cli.run(main)
