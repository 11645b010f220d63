"""Start and end of every command.

A user's mistake is a UserError or an OSError; its message goes to stderr as
one sentence and the exit code is 2. Any other exception is a bug and keeps
its traceback.
"""

import difflib
import logging as python_logging
import os
import pathlib
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence

from absl import app, flags, logging

from gen3d import files, legacy, notices
from gen3d.choices import UserError, check, printable
from gen3d.engine import config_files, devices, peers, stopping

_CONFIG_FLAG = re.compile(r'(--?config)(=(.*))?', re.DOTALL)
# Flags that absl has for itself.
_OF_LIBRARIES = ('helpfull', 'helpshort', 'helpxml', 'only_check_args')
_HELP = ('-h', '-help', '--help', '-helpshort', '--helpshort')


def run(main: Callable[..., None], positional: bool = False) -> None:
  """Parses the flags, prepares JAX and calls main(), then exits.

  Exit codes: 0, also after --help and after a SIGTERM that saved; 2 after a
  user's mistake; 130 after Ctrl-C.

  Args:
    main: the command.
    positional: whether the words that are no flags are main's arguments; else
      they are refused.
  """

  def guarded(argv):
    try:
      if len(argv) > 1 and not positional:
        raise UserError(
            f'Unexpected argument {argv[1]!r}; write it as the value of a '
            'flag, in quotes where it has spaces; see --help.')
      if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # Orbax logs every save.
      _plain_messages()
      devices.use_all_cores()
      devices.tune_malloc()
      devices.cache_compilations()
      devices.initialize_distributed()
      main(*argv[1:])
    except (UserError, OSError) as error:
      _fail(error)
    except Exception:
      if not peers.several():
        raise
      traceback.print_exc()
      peers.end(1)

  notices.working(f'{pathlib.Path(sys.argv[0]).stem} is at work')
  with stopping.interrupts():
    try:
      app.run(guarded, flags_parser=_parse)
    except KeyboardInterrupt:
      stopping.end_soon(130)
    except stopping.Stopped:
      stopping.end_soon(0)
    finally:
      notices.attended()


def require(*names: str) -> None:
  """Raises UserError where one of these flags is not given."""
  for name in names:
    if not flags.FLAGS[name].value:
      raise UserError(f'The flag --{name} is missing; see --help.')


def check_flags(
    mode: str, modes: Mapping[str, Collection[str]]) -> None:
  """Raises UserError where a flag is given that belongs to other modes only.

  Args:
    mode: the present one, such as '--what=gan'.
    modes: {mode: names of the flags that it uses}.
  """
  for name in sorted(set().union(*modes.values()) - set(modes[mode])):
    if flags.FLAGS[name].present:
      users = [other for other, names in modes.items() if name in names]
      raise UserError(f'The flag --{name} has no effect with {mode}; it is for '
                      f'{" and ".join(users)}.')


def check_config(argv: Sequence[str]) -> set[str]:
  """Checks the config file, its variant and the overridden keys.

  Args:
    argv: the command line, with --config=FILE[:VARIANT], or the name of one of
      gen3d's, and --config.KEY=VALUE.

  Returns:
    The dotted keys of the config; none without a config.

  Raises:
    UserError: there is no such file, name, variant or key; names the near
      ones and the present name of a key of version 1.
  """
  path = None
  for flag, following in zip(argv, [*argv[1:], ''], strict=True):
    match = _CONFIG_FLAG.fullmatch(flag)
    if match:
      path = match[3] if match[2] else following
  if path is None:
    return set()
  config = config_files.load(*config_files.resolve(path).partition(':')[::2])
  keys = _keys(config)
  for flag in argv[1:]:
    match = re.match(r'--?(?:no)?config\.([^=\[]+)', flag)
    if match:
      _check_key(keys, match[1])
  return keys


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
  for word in argv[1:]:
    if word.partition('=')[0] in _HELP and '=' in word:
      _fail(_without_value(word))
  if any(word in _HELP for word in argv[1:]):
    app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
  argv = [_expanded(argument) for argument in argv]
  keys: set[str] = set()
  try:
    keys = check_config(argv)
    return flags.FLAGS(_with_paths(argv))
  except flags.UnrecognizedFlagError as error:
    _fail(_unknown_flag(error.flagname, keys))
  except flags.IllegalFlagValueError as error:
    _fail(_plain(error, keys))
  except (UserError, flags.Error) as error:
    _fail(error)
  except ValueError as error:
    # absl's word for --noview=1 is no flags.Error.
    if not str(error).endswith('does not take an argument'):
      raise
    _fail(_without_value(str(error)))


def _unknown_flag(name, keys):
  """A UserError about a flag that does not exist.

  Args:
    name: of the flag.
    keys: dotted keys of the config.
  """
  if name in keys:
    return UserError(f'Unknown flag --{name}; write --config.{name} for that '
                     'key of the config.')
  known = [x for x in flags.FLAGS if x not in _OF_LIBRARIES]
  near = difflib.get_close_matches(
      name, [*known, *keys, *(f'config.{key}' for key in keys)], 2)
  words = [word if word in known else f'config.{word.removeprefix("config.")}'
           for word in near]
  hint = ' or '.join(f'--{word}' for word in dict.fromkeys(words))
  return UserError(f'Unknown flag --{name}; ' + (
      f'did you mean {hint}?' if hint else 'see --help.'))


def _without_value(text):
  name = re.split('[= ]', text)[0]
  return UserError(f'The flag {name} takes no value; write {name} alone.')


def _plain(error, keys):
  """A UserError in place of a parser's words about a value, else the error.

  Args:
    error: flags.IllegalFlagValueError.
    keys: dotted keys of the config.
  """
  found = re.match(
      r'flag --(?P<name>[^=]+)=(?P<value>.*?): (?:invalid literal for int|'
      r'could not convert string to (?P<real>float)|Failed to parse .* as a '
      r'(?P<section>ConfigDict))', str(error), re.DOTALL)
  allowed = re.match(
      r'flag --(?P<name>[^=]+)=(?P<value>.*?): (?:.* is not (?P<range>.*)|'
      r'value should be one of <(?P<choices>.*)>)$', str(error), re.DOTALL)
  if allowed and not found:
    name, value, numbers, choices = allowed.groups()
    remedy = (f'choose from {choices.replace("|", ", ")}' if choices else
              f'give {re.sub("^(?=integer|number)", "a ", numbers)}'.replace(
                  'an integer', 'a whole number').replace(
                      'integer', 'whole number'))
    return UserError(f'The flag --{name} is {value!r}; {remedy}.')
  if not found:
    return error
  name, value, real, section = found.groups()
  if section:
    inside = f'{name.removeprefix("config.")}.'
    inner = sorted(key for key in keys if key.startswith(inside))
    return UserError(f'--{name} is a section of the config, which has no value '
                     f'of its own; give one of its keys, such as '
                     f'--config.{inner[0]}.' if inner else
                     f'--{name} is an empty section of the config.')
  return UserError(f'The flag --{name} is {value!r}; give a '
                   f'{"" if real else "whole "}number.')


def _expanded(argument):
  """An argument with the home folder for ~ in the paths of its value.

  A shell expands ~ at the start of an argument, but not in --name=~/a,~/b.
  """
  flag, equals, value = argument.partition('=')
  if not (flag.startswith('-') and equals):
    return argument
  return flag + equals + ','.join(
      os.path.expanduser(part) if part.startswith('~') else part
      for part in value.split(','))


def _with_paths(argv):
  """`argv` with the file's path where --config has the name of a config."""
  words = list(argv)
  for i, word in enumerate(words):
    match = _CONFIG_FLAG.fullmatch(word)
    if match and match[2]:
      words[i] = f'{match[1]}={config_files.resolve(match[3])}'
    elif match and i + 1 < len(words):
      words[i + 1] = config_files.resolve(words[i + 1])
  return words


def _plain_messages():
  """Prints warnings of libraries as their sentence, without file and time."""
  plain = python_logging.Formatter('%(message)s')
  logging.get_absl_handler().setFormatter(plain)
  for handler in python_logging.getLogger('jax').handlers:
    handler.setFormatter(plain)
  warnings.formatwarning = lambda message, *_, **__: f'{message}\n'
  hook = threading.excepthook
  # Threads of libraries; the main thread names the file.
  threading.excepthook = lambda error: (
      None if files.is_full(error.exc_value) else hook(error))


def _keys(config, prefix=''):
  """Returns the dotted keys of a config, those of its sections included."""
  keys = set()
  for key, value in config.items():
    keys.add(prefix + key)
    if hasattr(value, 'items'):
      keys |= _keys(value, f'{prefix}{key}.')
  return keys


def _fail(error):
  # UserErrors are printable; the file names in others need not be.
  message = printable(str(error), len(str(error)))
  print(' '.join(message.split()), file=sys.stderr)
  if peers.several():
    peers.end(2)
  if isinstance(error, stopping.AtOnce):
    stopping.end(2)
  stopping.exit_soon(2)
