"""Trains several representations of one scene and compares them.

python -m gen3d.compare --data=shapes:'a red car with blue wheels' \
  --workdir=runs/comparison

Each is trained by its own config in a process of its own, on the same rays,
and then timed by gen3d.benchmark. Stopped, the same command goes on. Prints a
table with ratios to Mip-NeRF beside the published ones and writes it with a
plot of PSNR over time into the workdir.
"""

import pathlib
import sys

from absl import flags

from gen3d.choices import UserError
from gen3d.engine import cli, sweeps
from gen3d.evaluation import representations

_DATA = flags.DEFINE_string(
    'data', None, 'What the configs\' data.path takes: a capture\'s folder, or '
    '"shapes:" and a caption.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory; each representation has one inside it.')
_CONFIGS = flags.DEFINE_list(
    'configs', ['mip_nerf', 'nerf', 'voxels', 'triplanes'],
    'Files of configs/ without the suffix.')
_VARIANT = flags.DEFINE_string('variant', 'race', 'Of all these configs.')
_SET = flags.DEFINE_multi_string(
    'set', [], 'KEY=VALUE for all these configs, such as steps=2000.')


def main() -> None:
  cli.require('data', 'workdir')
  workdir = pathlib.Path(_WORKDIR.value)
  for setting in _SET.value:
    if '=' not in setting:
      raise UserError(f'--set={setting} has no value; write --set=KEY=VALUE.')
  common = [f'--config.data.path={_DATA.value}',
            *[f'--config.{setting}' for setting in _SET.value]]
  lines = []
  for name in _CONFIGS.value:
    config = f'--config=configs/{name}.py:{_VARIANT.value}'
    train = [sys.executable, '-m', 'gen3d.train', config, *common,
             f'--workdir={workdir / name}']
    cli.check_config(train)
    lines.append(train)
    costs = workdir / name / representations.BENCHMARK
    if not costs.exists():
      lines.append([sys.executable, '-m', 'gen3d.benchmark', config, *common,
                    f'--out={costs}'])
  sweeps.run(lines, keep_going=False)
  runs = [representations.read(workdir, name) for name in _CONFIGS.value]
  text = representations.table(runs)
  print(text)
  (workdir / 'comparison.md').write_text(text + '\n')
  title = pathlib.PurePath(_DATA.value).name
  representations.plot(runs, title, workdir / 'comparison.png')
  print(workdir / 'comparison.md', workdir / 'comparison.png', sep='\n')


if __name__ == '__main__':
  cli.run(main)
