"""Annotations of every public function: parameters and result."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'gen3d').rglob('*.py'))
# Files that are not annotated yet. Empty it.
ALLOWED = set()


def missing(source):
  """Returns the public functions and methods without full annotations.

  Private ones, lambdas and functions inside functions need none, nor does the
  return of __init__.
  """
  names = []
  for node in ast.parse(source).body:
    functions, prefix = [node], ''
    if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
      functions, prefix = node.body, f'{node.name}.'
    for function in functions:
      if isinstance(function, ast.FunctionDef) and (
          not function.name.startswith('_') or function.name in (
              '__init__', '__call__')) and not _annotated(
                  function, method=bool(prefix)):
        names.append(prefix + function.name)
  return names


def _annotated(function, method):
  """Returns True if all parameters and the result are annotated."""
  static = any(isinstance(x, ast.Name) and x.id == 'staticmethod'
               for x in function.decorator_list)
  arguments = function.args
  positional = [*arguments.posonlyargs, *arguments.args]
  if method and not static:
    positional = positional[1:]  # self or cls
  parameters = [*positional, *arguments.kwonlyargs,
                *filter(None, [arguments.vararg, arguments.kwarg])]
  returns = function.returns is not None or function.name == '__init__'
  return returns and all(x.annotation is not None for x in parameters)


@pytest.mark.parametrize(
    'path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_are_annotated(path):
  name = path.relative_to(ROOT / 'gen3d').as_posix()
  names = missing(path.read_text())
  if name in ALLOWED:
    assert names, f'{name} is annotated: remove it from ALLOWED'
  else:
    assert not names, f'{name} has no full annotations of {", ".join(names)}'


def test_allowed_are_files():
  assert set(ALLOWED) <= {
      path.relative_to(ROOT / 'gen3d').as_posix() for path in FILES}


@pytest.mark.parametrize('source, names', [
    ('def f(x: int, *y: int, z: int = 1, **k: int) -> int: pass', []),
    ('def f(): pass', ['f']),
    ('def f() -> None: pass', []),
    ('def f(x) -> int: pass', ['f']),
    ('def f(*x) -> int: pass', ['f']),
    ('def f(**x) -> int: pass', ['f']),
    ('def f(*, x) -> int: pass', ['f']),
    ('def _f(x): pass', []),
    ('f = lambda x: x', []),
    ('def f() -> None:\n  def g(x): pass', []),
    ('class A:\n  def f(self) -> int: pass\n  def _g(self, x): pass', []),
    ('class A:\n  def f(self, x) -> int: pass', ['A.f']),
    ('class A:\n  @staticmethod\n  def f(x) -> int: pass', ['A.f']),
    ('class A:\n  def __init__(self, x: int): pass', []),
    ('class A:\n  def __init__(self, x): pass', ['A.__init__']),
    ('class _A:\n  def f(self, x): pass', []),
])
def test_missing_annotations_are_found(source, names):
  assert missing(source) == names
