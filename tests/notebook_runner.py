"""Runs a notebook file cell by cell, in its own folder, without Jupyter.

python tests/notebook_runner.py NOTEBOOK '{"STEPS": 5}': executes the code
cells in order in one namespace. The second argument replaces parameters of the
cell with the tag 'parameters', as papermill does it. A cell that fails is
named.
"""

import json
import linecache
import os
import pathlib
import sys


def main(path, parameters):
  path, parameters = pathlib.Path(path).resolve(), json.loads(parameters)
  os.chdir(path.parent)
  sys.path[0] = ''  # As in a kernel: the notebook's folder, not this file's.
  namespace = {'__name__': '__main__'}
  cells = json.loads(path.read_text(encoding='utf-8'))['cells']
  for number, cell in enumerate(cells):
    if cell['cell_type'] != 'code':
      continue
    source, name = ''.join(cell['source']), f'<cell {number} of {path.name}>'
    # For the lines of tracebacks.
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    exec(compile(source, name, 'exec'), namespace)
    if 'parameters' in cell['metadata'].get('tags', ()):
      assert set(parameters) == {x for x in namespace if x.isupper()
                                 and x != 'REPOSITORY'}, 'other parameters'
      namespace.update(parameters)
  print('cells:', len(cells))


if __name__ == '__main__':
  main(*sys.argv[1:])
