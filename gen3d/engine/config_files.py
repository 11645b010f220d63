"""Config files: by path, or those of gen3d by name from any folder."""

import contextlib
import importlib.util
import inspect
import pathlib
import re
import runpy
import sys
import traceback
import types
from typing import Any

import ml_collections

from gen3d.choices import UserError, check, excerpt

_PACKAGE = pathlib.Path(__file__).parents[1]


def folder() -> pathlib.Path:
  """Returns the folder of gen3d's configs.

  An installed copy has them in gen3d/assets/configs (pyproject.toml), a
  checkout in configs/ beside gen3d/.
  """
  packed = _PACKAGE / 'assets/configs'
  return packed if packed.is_dir() else _PACKAGE.parent / 'configs'


def names() -> list[str]:
  """Returns the names of gen3d's configs."""
  return sorted(path.stem for path in folder().glob('*.py'))


def resolve(text: str) -> str:
  """Returns FILE.py[:VARIANT] of a file or of a config's name.

  Args:
    text: FILE.py[:VARIANT], which is returned as it is, or NAME[:VARIANT].
      configs/NAME.py is the name where the current folder has no such file.

  Raises:
    UserError: gen3d has no config of this name.
  """
  name, colon, variant = text.partition(':')
  beside = re.fullmatch(r'configs/(\w+)\.py', name)
  if beside and not pathlib.Path(name).exists() and beside[1] in names():
    name = beside[1]
  if not re.fullmatch(r'\w+', name) or pathlib.Path(name).is_file():
    return text
  check('config', names(), name)
  return f'{folder() / name}.py{colon}{variant}'


def execute(path: str) -> dict[str, Any]:
  """Executes a config file; returns its variables.

  Raises:
    UserError: there is no such file, or it has no get_config().
  """
  file = pathlib.Path(path)
  if not file.is_file():
    # Those of the folder that a path names; of none, gen3d's.
    beside = sorted(map(str, file.parent.glob('*.py'))) if file.name else []
    raise UserError(f'There is no config file {path!r}; choose from '
                    f'{beside or names()}.')
  _make_importable(file)
  try:
    if file.suffix != '.py':
      raise SyntaxError('its name does not end in .py')
    compile(file.read_bytes(), str(file), 'exec')
  except (SyntaxError, ValueError) as error:  # ValueError: null bytes
    raise UserError(f'{path} is no Python file of a config ({error}); give a '
                    f'name of {names()}.') from error
  with _failures(path):
    module = runpy.run_path(str(file))
  if 'get_config' not in module:
    raise UserError(f'{path} is not a config file: it has no get_config(); '
                    f'give a name of {names()}.')
  return module


def load(path: str, variant: str) -> Any:
  """Executes a config file; returns the config of a variant ('': default).

  A file's VARIANTS, where it has one, holds the names of its variants.

  Raises:
    UserError: there is no such file or variant, it has no get_config(), or that
      of a file of the user fails or returns no config.
  """
  module = execute(path)
  if variant and 'VARIANTS' in module:
    check('variant', module['VARIANTS'], variant)
  with _failures(path):
    config = module['get_config'](*[variant] if variant else [])
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'get_config() of {path} returns {excerpt(config)}; return '
                    'a ConfigDict, as those of gen3d do.')
  return config


@contextlib.contextmanager
def _failures(path):
  """Raises a UserError, with the line, where a user's own config fails.

  An error in one of gen3d's is a bug, which keeps its traceback.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == str(pathlib.Path(path))]
    if not lines or pathlib.Path(path).resolve().parent == folder().resolve():
      raise
    raise UserError(f'The config file {path} fails in line {lines[-1]} '
                    f'({type(error).__name__}: {excerpt(error)}); mend it.'
                    ) from error


def default_variant(module: dict[str, Any]) -> str:
  """Returns the default variant of an executed file; '' without variants."""
  parameters = inspect.signature(module['get_config']).parameters
  return next((x.default for x in parameters.values()), '')


def _make_importable(file):
  """Lets a config file import others by `from configs import NAME`.

  `configs` is gen3d's folder for the files in it, and for other files where
  they have no `configs` of their own.
  """
  own = folder()
  if file.resolve().parent != own.resolve() and (
      'configs' in sys.modules or importlib.util.find_spec('configs')):
    return
  present = sys.modules.get('configs')
  if present is not None and str(own) in map(str, present.__path__):
    return
  package = types.ModuleType('configs')
  package.__path__ = [str(own)]
  sys.modules['configs'] = package
