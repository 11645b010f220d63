"""The import rule: who may see whom (README.md, architecture)."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Modules that every package may import; they import one another at most.
LEAVES = ('choices', 'files', 'legacy', 'assets')
_ALL = ('ops', 'weights', 'models', 'diffusion', 'guidance', 'scenes', 'gan',
        'metrics', 'data', 'io', 'engine', 'render')
SEES = {
    'assets': (),
    'ops': (),
    'weights': (),
    'models': ('ops', 'weights'),
    'diffusion': ('ops', 'models', 'weights'),
    'guidance': ('ops', 'models', 'diffusion'),
    'scenes': ('ops', 'models'),
    'gan': ('ops', 'models', 'weights', 'engine', 'io', 'data'),
    'metrics': ('ops', 'models'),
    'data': ('ops', 'io'),
    'io': ('ops',),
    'engine': (),
    'render': ('ops', 'scenes', 'gan', 'io', 'engine'),
    'tasks': _ALL,
    'evaluation': (*_ALL, 'tasks'),
}
COMMANDS = ('tasks', 'evaluation', 'render', 'gan', 'engine', 'io', 'data',
            'models')


def imported(source):
  """Returns the packages of gen3d that a source imports, by name."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute'
      names.add(node.module)
      if node.module == 'gen3d':
        names |= {f'gen3d.{alias.name}' for alias in node.names}
  found = {name.split('.')[1] for name in names if name.startswith('gen3d.')}
  return found - set(LEAVES)


FILES = sorted((ROOT / 'gen3d').rglob('*.py'))


@pytest.mark.parametrize(
    'path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
  package = path.relative_to(ROOT / 'gen3d').parts[0]
  if package == '__init__.py':
    allowed = set()
  elif package.removesuffix('.py') in LEAVES:
    allowed = set()
  elif package.endswith('.py'):
    allowed = set(COMMANDS)
  else:
    allowed = {package, *SEES[package]}
  extra = imported(path.read_text()) - allowed
  assert not extra, f'{package} must not import {sorted(extra)}'


def test_every_package_has_its_rule():
  packages = {p.parent.name for p in (ROOT / 'gen3d').glob('*/__init__.py')}
  assert packages <= set(SEES)


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda p: p.name)
def test_configs_see_ml_collections_and_one_another_only(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      modules = [node.module]
    else:
      continue
    assert set(modules) <= {'configs', 'ml_collections', 'math'}, modules


@pytest.mark.parametrize('source, found', [
    ('import gen3d.ops.cameras', {'ops'}),
    ('from gen3d import data', {'data'}),
    ('def f():\n  from gen3d.tasks import gan', {'tasks'}),
    ('import jax', set()),
])
def test_the_rule_sees_every_kind_of_import(source, found):
  assert imported(source) == found
