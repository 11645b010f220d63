r"""Compares scene representations, 3-D GANs or guidances, and prints a table.

python -m gen3d.compare --data=shapes:'a red car with blue wheels' \
  --workdir=runs/comparison
python -m gen3d.compare --what=gans --workdir=runs/gans \
  --networks=giraffe_cats,pigan_cats,lifted_gan_cats,cats
python -m gen3d.compare --what=guidances --workdir=runs/guidances \
  --prompts='a red chair,a blue car' --seeds=3 --guidances=sds,csd,vsd

Representations are trained, each by its own config in its own process, on the
same rays, and then timed by gen3d.benchmark; the table has ratios to Mip-NeRF.
GANs are trained before, on one set of the shapes world. Guidances optimize an
object for each prompt and seed. All write the table, with a picture, into the
workdir, the first two beside the published one; the same command continues
after a stop.
"""

from absl import flags

from gen3d import notices
from gen3d.engine import cli
from gen3d.evaluation import gan_comparison, guidances, representations

_WHAT = flags.DEFINE_enum(
    'what', 'representations', ['representations', 'gans', 'guidances'],
    'What to compare.')
_WORKDIR = flags.DEFINE_string(
    'workdir', '', 'Folder of the results; each representation has a workdir '
    'in it.')
# Of representations.
_DATA = flags.DEFINE_string(
    'data', '', 'data.path of the configs: the folder of a capture, or '
    '"shapes:" and a caption.')
_CONFIGS = flags.DEFINE_list(
    'configs', ['mip_nerf', 'nerf', 'voxels', 'triplanes'],
    'Names of configs.')
_VARIANT = flags.DEFINE_string('variant', 'race', 'Variant of these configs.')
# Of representations and guidances.
_SET = flags.DEFINE_multi_string(
    'set', [], 'KEY=VALUE for all these configs, such as steps=2000.')
# Of GANs.
_NETWORKS = flags.DEFINE_list(
    'networks', [], 'Trained generators: shipped names or .safetensors.')
_SAMPLES = flags.DEFINE_integer(
    'samples', 512, 'Pictures and objects of a seed.', 2)
# Of GANs and guidances.
_SEEDS = flags.DEFINE_integer('seeds', 3, 'How often they are drawn.', 1)
# Of guidances.
_PROMPTS = flags.DEFINE_list('prompts', [], 'Captions of the shapes world.')
_GUIDANCES = flags.DEFINE_list(
    'guidances', list(guidances.GUIDANCES), 'Which of these.')


def main() -> None:
  cli.check_flags(f'--what={_WHAT.value}', {
      '--what=representations': ('data', 'configs', 'variant', 'set'),
      '--what=gans': ('networks', 'samples', 'seeds'),
      '--what=guidances': ('prompts', 'guidances', 'seeds', 'set')})
  cli.require('workdir', {'representations': 'data', 'gans': 'networks',
                          'guidances': 'prompts'}[_WHAT.value])
  if _WHAT.value == 'guidances':
    print(guidances.compare(
        _WORKDIR.value, _PROMPTS.value, _SEEDS.value, _GUIDANCES.value,
        _SET.value))
    return
  if _WHAT.value == 'gans':
    with notices.slow('Comparing GANs'):
      text = gan_comparison.compare(
          _NETWORKS.value, _WORKDIR.value, samples=_SAMPLES.value,
          seeds=_SEEDS.value)
    print(text)
    return
  print(representations.compare(
      _DATA.value, _WORKDIR.value, _CONFIGS.value, _VARIANT.value, _SET.value))


if __name__ == '__main__':
  cli.run(main)
