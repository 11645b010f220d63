"""Every config: its variants, and two steps of 'tiny' by gen3d.train."""

import json
import math
import pathlib
import runpy

import commands
import pytest

from gen3d import glossary

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(path.name for path in ROOT.glob('configs/*.py'))


def test_there_are_configs():
  assert 'dreamfusion.py' in CONFIGS


@pytest.mark.parametrize('name', CONFIGS)
def test_every_variant_can_be_made(name):
  module = runpy.run_path(str(ROOT / 'configs' / name))
  assert 'tiny' in module['VARIANTS']
  for variant in module['VARIANTS']:
    assert module['get_config'](variant).steps > 0
  with pytest.raises(KeyError):
    module['get_config']('unknown')


@pytest.mark.parametrize('name', CONFIGS)
def test_two_steps_of_the_tiny_variant(name, tmp_path):
  workdir = tmp_path / 'run'
  done = commands.run('gen3d.train', f'--config=configs/{name}:tiny',
                      '--config.steps=2', f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr[-3000:]
  lines = [json.loads(line) for line in
             (workdir / 'scalars.jsonl').read_text().splitlines()]
  assert max(line['step'] for line in lines) == 2
  values = [x for line in lines for x in line.values()]
  assert all(math.isfinite(x) for x in values)
  names = {name for line in lines for name in line} - {'step', 'time'}
  assert any(name.startswith('schedule/learning_rate') for name in names)
  assert not [name for name in names if not glossary.meaning(name)]
  assert (workdir / 'finished.json').exists()
  assert (workdir / 'checkpoints').is_dir()
