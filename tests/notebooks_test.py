"""Every notebook, cell by cell, as Colab would run it, only shorter."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Put after the cell with the tag 'parameters', as papermill does.
SHORT = {
    'eg3d_latents.ipynb': {
        'PAIRS': 1, 'RESOLUTION': 24, 'STEPS': 5, 'TUNING': 2},
    'score_distillation.ipynb': {
        'PULLS': 2, 'SAMPLING': 2, 'OTHERS': 1, 'STEPS': 5},
    'volume_rendering.ipynb': {'PHOTOGRAPHS': 10, 'SIZE': 32, 'STEPS': 5}}


def source(cell, short):
  code = ''.join(cell['source'])
  if 'parameters' not in cell['metadata'].get('tags', ()):
    return code
  known = {}
  exec(code, known)
  assert set(short) == {name for name in known if name.isupper()}
  return '\n'.join([code, *(f'{name} = {x}' for name, x in short.items())])


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'notebooks').glob('*.ipynb')), ids=lambda p: p.name)
def test_notebook_runs(path, tmp_path):
  notebook = json.loads(path.read_text())
  short = SHORT[path.name]
  cells = [source(cell, short) for cell in notebook['cells']
           if cell['cell_type'] == 'code']
  assert len(cells) > 3 and sum('STEPS = 5' in cell for cell in cells) == 1
  script = tmp_path / 'cells.py'
  script.write_text('\n\n'.join(cells))
  done = subprocess.run(
      [sys.executable, str(script)], capture_output=True, text=True, cwd=ROOT,
      timeout=900, env={**os.environ, 'MPLBACKEND': 'Agg',
                        'PYTHONPATH': str(ROOT)})
  assert done.returncode == 0, done.stderr[-3000:]
  # It was run before it was committed: what it shows is there to be read.
  assert any('image/png' in output.get('data', {})
             for cell in notebook['cells']
             for output in cell.get('outputs', ()))
