"""Every config at its 'tiny' variant: two steps through the real CLI."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(path.name for path in ROOT.glob('configs/*.py'))


def test_there_are_configs():
  assert 'dreamfusion.py' in CONFIGS


@pytest.mark.parametrize('name', CONFIGS)
def test_two_steps_of_the_tiny_variant(name, tmp_path):
  workdir = tmp_path / 'run'
  done = subprocess.run(
      [sys.executable, '-m', 'gen3d.train', f'--config=configs/{name}:tiny',
       '--config.steps=2', f'--workdir={workdir}'],
      cwd=ROOT, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr[-3000:]
  written = [json.loads(line) for line in
             (workdir / 'scalars.jsonl').read_text().splitlines()]
  assert max(line['step'] for line in written) == 2
  assert (workdir / 'finished.json').exists()
  assert (workdir / 'checkpoints').is_dir()
