"""The import rule between the packages (README.md, architecture)."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Modules that every package may import; they import only each other.
LEAVES = ('choices', 'schemas', 'files', 'pixels', 'legacy', 'notices',
          'glossary', 'assets')
_ALL = ('ops', 'weights', 'models', 'diffusion', 'guidance', 'scenes', 'gan',
        'metrics', 'data', 'io', 'engine', 'render')
# Package -> the packages that it may import beside itself and the leaves.
SEES = {
    'assets': (),
    'engine': (),
    'ops': (),
    'weights': (),
    'models': ('ops', 'weights'),
    'diffusion': ('ops', 'models', 'weights', 'data', 'engine'),
    'guidance': ('ops', 'models', 'diffusion'),
    'scenes': ('ops', 'models'),
    'metrics': ('ops', 'models'),
    'gan': ('ops', 'models', 'weights', 'engine'),
    'io': ('ops',),
    'data': ('ops', 'io'),
    'render': ('ops', 'scenes', 'gan', 'io', 'engine'),
    'tasks': _ALL,
    'viewer': ('ops', 'gan', 'data', 'io', 'engine', 'render', 'tasks'),
    'evaluation': (*_ALL, 'tasks'),
}
# Commands, the modules of gen3d itself.
COMMANDS = ('tasks', 'evaluation', 'viewer', 'render', 'gan', 'data', 'engine',
            'io')
# File -> imports that break the rule and are still to be moved. Empty it.
EXCEPTIONS = {}


def imported(source):
  """Returns the modules of gen3d that a source imports, as 'ops.cameras'."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return {name.removeprefix('gen3d.') for name in names
          if name.startswith('gen3d.')}


def packages(source):
  """Returns the packages of gen3d that a source imports, without leaves."""
  return {name.split('.')[0] for name in imported(source)} - set(LEAVES)


FILES = sorted((ROOT / 'gen3d').rglob('*.py'))
MODULES = {
    str(path.relative_to(ROOT / 'gen3d').with_suffix('')).replace('/', '.')
    for path in FILES}


@pytest.mark.parametrize(
    'path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_import_only_those_that_they_see(path):
  name = path.relative_to(ROOT / 'gen3d').as_posix()
  package = name.split('/')[0]
  if package == '__init__.py' or package.removesuffix('.py') in LEAVES:
    allowed = set()
  elif package.endswith('.py'):
    allowed = set(COMMANDS)
  else:
    allowed = {package, *SEES[package]}
  excepted = {x for x in EXCEPTIONS.get(name, ()) if '.' not in x}
  check_extra(name, packages(path.read_text()) - allowed, excepted)


def check_extra(name, extra, excepted):
  """Fails at imports against the rule, and at exceptions without a need."""
  assert extra <= excepted, (
      f'{name} must not import {sorted(extra - excepted)}')
  assert excepted <= extra, (
      f'{name} keeps the rule: remove {sorted(excepted - extra)} from '
      'EXCEPTIONS')


def test_exceptions_are_files():
  assert set(EXCEPTIONS) <= {
      path.relative_to(ROOT / 'gen3d').as_posix() for path in FILES}


def test_every_package_has_its_rule():
  names = {p.parent.name for p in (ROOT / 'gen3d').glob('*/__init__.py')}
  assert names == set(SEES)


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'gen3d' / 'tasks').glob('*.py')),
    ids=lambda p: p.name)
def test_tasks_do_not_import_tasks(path):
  tasks = {name for name in MODULES
           if name.startswith('tasks.') and name != 'tasks.__init__'}
  assert tasks
  name = path.relative_to(ROOT / 'gen3d').as_posix()
  check_extra(name, imported(path.read_text()) & tasks,
              {x for x in EXCEPTIONS.get(name, ()) if '.' in x})


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda p: p.name)
def test_configs_import_ml_collections_and_configs_only(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      modules = [node.module]
    else:
      continue
    assert set(modules) <= {'configs', 'ml_collections', 'math'}, modules


@pytest.mark.parametrize('source, modules, names', [
    ('import gen3d.ops.cameras', {'ops.cameras'}, {'ops'}),
    ('from gen3d import data, files', {'data', 'files'}, {'data'}),
    ('def f():\n  from gen3d.tasks import gan', {'tasks.gan'}, {'tasks'}),
    ('import jax', set(), set()),
])
def test_every_kind_of_import_is_found(source, modules, names):
  assert imported(source) == modules and packages(source) == names
