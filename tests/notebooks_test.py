"""Runs each notebook's file in a Jupyter kernel, with small numbers."""

import copy
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import types
import urllib.request

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
# Parameters that replace those of the cell with the tag 'parameters'.
SMALL = {
    'eg3d_latents.ipynb': {
        'PAIRS': 1, 'RESOLUTION': 24, 'STEPS': 5, 'TUNING': 2},
    'score_distillation.ipynb': {
        'IMAGE_STEPS': 2, 'SAMPLER_STEPS': 2, 'REFERENCE_NOISES': 1,
        'STEPS': 5},
    'volume_rendering.ipynb': {'PHOTOGRAPHS': 10, 'SIZE': 32, 'STEPS': 5}}


def sources(path, kind):
  return [''.join(cell['source']) for cell in json.loads(path.read_text())[
      'cells'] if cell['cell_type'] == kind]


def kinds(cell):
  """What a cell shows: a set of 'image', 'text', 'widget' and others.

  What is printed to stderr, such as progress, depends on the machine.
  """
  found = set()
  for output in cell.get('outputs', ()):
    if output['output_type'] == 'stream':
      found |= {'text'} if output['name'] == 'stdout' else set()
    elif 'image/png' in output.get('data', {}):
      found.add('image')
    elif any('widget' in kind for kind in output.get('data', {})):
      found.add('widget')
    else:
      found.add(output['output_type'])
  return found


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_runs_in_its_folder(path, tmp_path):
  """As Jupyter runs it, but for the parameters, as papermill sets them."""
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  committed = copy.deepcopy(notebook.cells)
  number, = (number for number, cell in enumerate(notebook.cells)
             if 'parameters' in cell.metadata.get('tags', ()))
  cell = notebook.cells[number]
  names = {name.strip() for line in cell.source.splitlines() if '=' in line
           for name in line.partition('=')[0].split(',')}
  assert names == set(SMALL[path.name])
  cell.source += ''.join(
      f'\n{name} = {value}' for name, value in SMALL[path.name].items())
  environment = {**os.environ, 'IPYTHONDIR': str(tmp_path)}
  for name in ('PYTHONPATH', 'MPLBACKEND'):  # The first cell finds gen3d.
    environment.pop(name, None)
  nbclient.NotebookClient(
      notebook, timeout=400, kernel_name='python3',
      resources={'metadata': {'path': str(path.parent)}}).execute(
          env=environment)
  for done, before in zip(notebook.cells, committed, strict=True):
    shown = kinds(done)
    if done.cell_type == 'code' and 'ipywidgets' in done.source:
      assert shown == {'widget'}
    else:
      assert shown == kinds(before), done.source


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_is_small_has_images_and_formulas_that_render(path):
  notebook = json.loads(path.read_text())
  # Committed with the images of a full run.
  assert any('image/png' in output.get('data', {})
             for cell in notebook['cells']
             for output in cell.get('outputs', ()))
  assert path.stat().st_size < 500_000
  for text in sources(path, 'markdown'):
    assert not re.search(r'\\\\[a-zA-Z]', text), 'a doubled backslash'
    assert text.count('$') % 2 == 0
  # No folders of the machine that the outputs are from.
  assert not re.search(r'/(home|root|work|tmp|Users)/', path.read_text())


def test_notebooks_have_one_first_cell():
  for path in NOTEBOOKS:
    # A link to the notebook itself would need the repository's address.
    assert '(https://colab.research.google.com/github/)' in (
        sources(path, 'markdown')[0])
  first = {sources(path, 'code')[0] for path in NOTEBOOKS}
  assert len(first) == 1 and "REPOSITORY = ''" in first.pop()


@pytest.mark.parametrize('opened, address', [
    ('/fileId=https%3A//github.com/a/b-c/blob/main/notebooks/x.ipynb',
     'https://github.com/a/b-c'),
    ('/content/drive/Untitled.ipynb', None), (None, None)])
def test_first_cell_clones_the_repository_that_colab_shows(
    monkeypatch, tmp_path, opened, address):
  """Without gen3d; on Colab, its server is asked for the notebook's path."""
  started, asked = [], []
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  monkeypatch.setattr(subprocess, 'run', lambda words, check: started.append(
      words))
  if opened is not None:
    monkeypatch.setenv('COLAB_JUPYTER_IP', '1.2.3.4')
    monkeypatch.setattr(urllib.request, 'urlopen', lambda url: (
        asked.append(url), io.BytesIO(
            json.dumps([{'path': opened}]).encode()))[1])
  run = lambda: exec(sources(NOTEBOOKS[0], 'code')[0],
                     types.ModuleType('cell').__dict__)
  if address:
    run()
    assert asked == ['http://1.2.3.4:9000/api/sessions']
    assert started[0] == ['git', 'clone', '--depth=1', address, 'gen3d_repo']
    assert sys.path[0] == 'gen3d_repo'
  else:
    with pytest.raises(ImportError, match='set REPOSITORY above'):
      run()
    assert not started
