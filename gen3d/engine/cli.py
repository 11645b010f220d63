"""How every command starts and how it fails: in one sentence.

A user's mistake is a UserError or an OSError; its sentence goes to stderr and
the exit code is 2. Anything else is a defect and keeps its traceback.
"""

import difflib
import pathlib
import re
import runpy
import sys

from absl import app, flags, logging

from gen3d.choices import UserError, check
from gen3d.engine import sharding


def run(main):
  """Parses the flags, prepares JAX and calls main(), then exits.

  Exit codes: 0, also after a SIGTERM that saved; 2 after a user's mistake;
  130 after Ctrl-C.
  """

  def guarded(argv):
    try:
      if len(argv) > 1:
        raise UserError(f'Unexpected argument {argv[1]!r}; see --help.')
      if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells a lot.
      sharding.use_all_cores()
      sharding.tune_malloc()
      sharding.cache_compilations()
      sharding.initialize_distributed()
      main()
    except KeyboardInterrupt:
      sys.exit(130)
    except (UserError, OSError) as error:
      _fail(error)

  app.run(guarded, flags_parser=_parse)


def require(*names):
  """Raises UserError where one of these flags is not given."""
  for name in names:
    if not flags.FLAGS[name].value:
      raise UserError(f'The flag --{name} is missing; see --help.')


def check_config(argv):
  """Raises UserError at a config file, variant or key that is not there.

  Args:
    argv: the command line, with --config=FILE[:VARIANT] and
      --config.KEY=VALUE.
  """
  path = None
  for flag, following in zip(argv, [*argv[1:], ''], strict=True):
    found = re.fullmatch(r'--?config(=(.*))?', flag, re.DOTALL)
    if found:
      path = found[2] if found[1] else following
  if path is None:
    return
  config = _load(*path.partition(':')[::2])
  keys = _keys(config)
  for flag in argv[1:]:
    found = re.match(r'--?(?:no)?config\.([^=\[]+)', flag)
    if found:
      check('config key', keys, found[1])


def _parse(argv):
  try:
    check_config(argv)
    return flags.FLAGS(argv)
  except (UserError, flags.Error) as error:
    _fail(error)


def _load(path, variant):
  file = pathlib.Path(path)
  if not file.is_file():
    beside = sorted(str(p) for p in file.parent.glob('*.py'))
    raise UserError(f'There is no config file {path!r}' + (
        f'; choose from {beside}.' if beside else '.'))
  get_config = runpy.run_path(str(file))['get_config']
  try:
    return get_config(variant) if variant else get_config()
  except KeyError as error:
    raise UserError(f'Unknown variant {variant!r} of {path}.') from error
  except ValueError as error:
    choices = re.findall(r"'([^']+)'", str(error))
    near = difflib.get_close_matches(
        variant, [c for c in choices if c != variant], 1)
    hint = (f' Did you mean {near[0]!r}?'
            if near and 'Did you mean' not in str(error) else '')
    raise UserError(f'{error}{hint}') from error


def _keys(config, prefix=''):
  keys = set()
  for key, value in config.items():
    keys.add(prefix + key)
    if hasattr(value, 'items'):
      keys |= _keys(value, f'{prefix}{key}.')
  return keys


def _fail(error):
  print(' '.join(str(error).split()), file=sys.stderr)
  sys.exit(2)
