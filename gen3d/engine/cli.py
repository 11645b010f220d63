"""Start and end of every command.

A user's mistake is a UserError or an OSError; its message goes to stderr as
one sentence and the exit code is 2. Any other exception is a bug and keeps
its traceback.
"""

import pathlib
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from gen3d import legacy
from gen3d.choices import UserError, check
from gen3d.engine import devices


def run(main: Callable[[], None]) -> None:
  """Parses the flags, prepares JAX and calls main(), then exits.

  Exit codes: 0, also after a SIGTERM that saved; 2 after a user's mistake;
  130 after Ctrl-C.
  """

  def guarded(argv):
    try:
      if len(argv) > 1:
        raise UserError(f'Unexpected argument {argv[1]!r}; see --help.')
      if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # Orbax logs every save.
      devices.use_all_cores()
      devices.tune_malloc()
      devices.cache_compilations()
      devices.initialize_distributed()
      main()
    except KeyboardInterrupt:
      sys.exit(130)
    except (UserError, OSError) as error:
      _fail(error)

  app.run(guarded, flags_parser=_parse)


def require(*names: str) -> None:
  """Raises UserError where one of these flags is not given."""
  for name in names:
    if not flags.FLAGS[name].value:
      raise UserError(f'The flag --{name} is missing; see --help.')


def check_config(argv: Sequence[str]) -> None:
  """Checks the config file, its variant and the overridden keys.

  Args:
    argv: the command line, with --config=FILE[:VARIANT] and
      --config.KEY=VALUE.

  Raises:
    UserError: there is no such file, variant or key; names the near ones and
      the present name of a key of version 1.
  """
  path = None
  for flag, following in zip(argv, [*argv[1:], ''], strict=True):
    match = re.fullmatch(r'--?config(=(.*))?', flag, re.DOTALL)
    if match:
      path = match[2] if match[1] else following
  if path is None:
    return
  config = _load(*path.partition(':')[::2])
  keys = _keys(config)
  for flag in argv[1:]:
    match = re.match(r'--?(?:no)?config\.([^=\[]+)', flag)
    if match:
      _check_key(keys, match[1])


def _check_key(keys, key):
  """Raises UserError where a config has no such key."""
  present = legacy.renamed(key)
  if key not in keys and present in keys:
    raise UserError(f'Unknown config key {key!r}, which has another name since '
                    f'version {legacy.VERSION}. Did you mean {present!r}?')
  check('config key', keys, key)


def _parse(argv):
  """Parses the flags, after check_config.

  config_flags has no check of its own before it applies the overrides, so a
  config file is executed twice: by check_config and by config_flags.
  """
  try:
    check_config(argv)
    return flags.FLAGS(argv)
  except (UserError, flags.Error) as error:
    _fail(error)


def _load(path: str, variant: str) -> Any:
  """Executes a config file; returns the config of a variant ('': default).

  A file's VARIANTS, where it has one, holds the names of its variants.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    beside = sorted(str(p) for p in file.parent.glob('*.py'))
    raise UserError(f'There is no config file {path!r}' + (
        f'; choose from {beside}.' if beside else '.'))
  module = runpy.run_path(str(file))
  if 'get_config' not in module:
    raise UserError(f'{path} is not a config file: it has no get_config(); '
                    'give one of configs/.')
  if not variant:
    return module['get_config']()
  if 'VARIANTS' in module:
    check('variant', module['VARIANTS'], variant)
  return module['get_config'](variant)


def _keys(config, prefix=''):
  """Returns the dotted keys of a config, those of its sections included."""
  keys = set()
  for key, value in config.items():
    keys.add(prefix + key)
    if hasattr(value, 'items'):
      keys |= _keys(value, f'{prefix}{key}.')
  return keys


def _fail(error):
  print(' '.join(str(error).split()), file=sys.stderr)
  sys.exit(2)
