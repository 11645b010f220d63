"""Every notebook, cell by cell, as Colab would run it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'notebooks').glob('*.ipynb')), ids=lambda p: p.name)
def test_notebook_runs(path, tmp_path):
  notebook = json.loads(path.read_text())
  cells = [''.join(cell['source']) for cell in notebook['cells']
           if cell['cell_type'] == 'code']
  assert len(cells) > 3
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
