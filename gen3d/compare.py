r"""Compares scene representations, or 3-D GANs, as the tables of EG3D do.

python -m gen3d.compare --data=shapes:'a red car with blue wheels' \
  --workdir=runs/comparison
python -m gen3d.compare --what=gans --workdir=runs/gans \
  --networks=giraffe_cats,pigan_cats,lifted_gan_cats,cats

Representations are trained, each by its own config in its own process, on the
same rays, and then timed by gen3d.benchmark; the table has ratios to Mip-NeRF.
GANs are trained before, on one set of the shapes world. Both print a table
beside the published one and write it, with a picture, into the workdir; the
same command continues after a stop.
"""

from absl import flags

from gen3d.engine import cli
from gen3d.evaluation import gan_comparison, representations

_WHAT = flags.DEFINE_enum(
    'what', 'representations', ['representations', 'gans'], 'What to compare.')
_WORKDIR = flags.DEFINE_string(
    'workdir', '', 'Folder of the results; each representation has a workdir '
    'in it.')
# Of representations.
_DATA = flags.DEFINE_string(
    'data', '', 'data.path of the configs: the folder of a capture, or '
    '"shapes:" and a caption.')
_CONFIGS = flags.DEFINE_list(
    'configs', ['mip_nerf', 'nerf', 'voxels', 'triplanes'],
    'Files of configs/ without the suffix.')
_VARIANT = flags.DEFINE_string('variant', 'race', 'Variant of these configs.')
_SET = flags.DEFINE_multi_string(
    'set', [], 'KEY=VALUE for all these configs, such as steps=2000.')
# Of GANs.
_NETWORKS = flags.DEFINE_list(
    'networks', [], 'Trained generators: shipped names or .safetensors.')
_SAMPLES = flags.DEFINE_integer(
    'samples', 512, 'Pictures and objects of a seed.', 2)
_SEEDS = flags.DEFINE_integer('seeds', 3, 'How often they are drawn.', 2)


def main() -> None:
  cli.require('workdir', 'data' if _WHAT.value == 'representations' else
              'networks')
  if _WHAT.value == 'gans':
    print(gan_comparison.compare(
        _NETWORKS.value, _WORKDIR.value, samples=_SAMPLES.value,
        seeds=_SEEDS.value))
    return
  print(representations.compare(
      _DATA.value, _WORKDIR.value, _CONFIGS.value, _VARIANT.value, _SET.value))


if __name__ == '__main__':
  cli.run(main)
