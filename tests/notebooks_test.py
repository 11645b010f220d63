"""Runs the code of each notebook in a new process, with small numbers."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Parameters that replace those of the cell with the tag 'parameters', as
# papermill does it.
SMALL = {
    'eg3d_latents.ipynb': {
        'PAIRS': 1, 'RESOLUTION': 24, 'STEPS': 5, 'TUNING': 2},
    'score_distillation.ipynb': {
        'IMAGE_STEPS': 2, 'SAMPLER_STEPS': 2, 'REFERENCE_NOISES': 1,
        'STEPS': 5},
    'volume_rendering.ipynb': {'PHOTOGRAPHS': 10, 'SIZE': 32, 'STEPS': 5}}


def code_of(cell, parameters):
  """The code of a cell, with assignments after that of the parameters."""
  code = ''.join(cell['source'])
  if 'parameters' not in cell['metadata'].get('tags', ()):
    return code
  variables = {}
  exec(code, variables)
  assert set(parameters) == {name for name in variables if name.isupper()}
  return '\n'.join([
      code, *(f'{name} = {value}' for name, value in parameters.items())])


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'notebooks').glob('*.ipynb')), ids=lambda p: p.name)
def test_notebook_runs_and_has_stored_images(path, tmp_path):
  notebook = json.loads(path.read_text())
  parameters = SMALL[path.name]
  cells = [code_of(cell, parameters) for cell in notebook['cells']
           if cell['cell_type'] == 'code']
  assert len(cells) > 3
  assert sum('\nSTEPS = 5\n' in f'\n{cell}\n' for cell in cells) == 1
  script = tmp_path / 'cells.py'
  script.write_text('\n\n'.join(cells))
  process = subprocess.run(
      [sys.executable, str(script)], capture_output=True, text=True, cwd=ROOT,
      timeout=900, env={**os.environ, 'MPLBACKEND': 'Agg',
                        'PYTHONPATH': str(ROOT)})
  assert process.returncode == 0, process.stderr[-3000:]
  # Notebooks are committed with the images of a full run.
  assert any('image/png' in output.get('data', {})
             for cell in notebook['cells']
             for output in cell.get('outputs', ()))
