"""Errors for mistakes of the user, and choices by name.

Every package may import this module; it imports none.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

_LONGEST_MESSAGE = 2000  # characters
_LONGEST_EXCERPT = 80
_LONGEST_PROMPT = 2000
_MOST_NAMES = 40  # in a message


class UserError(ValueError):
  """A mistake of the user: one sentence with the place and a remedy.

  Commands print it and exit with code 2 (engine/cli.py); every other
  exception is a bug and keeps its traceback. Control characters, as names and
  values in files may have them, are escaped, and the middle of a very long
  message is left out.
  """

  def __init__(self, message: str) -> None:
    super().__init__(printable(message, _LONGEST_MESSAGE))


def printable(text: str, longest: int) -> str:
  """The text with control characters escaped; line breaks stay.

  Args:
    text: any, also with bytes of file names that are no UTF-8.
    longest: length beyond which the middle is left out.
  """
  if text.isprintable() and len(text) <= longest:  # The usual case, quickly.
    return text
  escaped = (c if c.isprintable() or c == '\n' else ascii(c)[1:-1]
             for c in _shorten(text, longest))
  return _shorten(''.join(escaped), longest)


def _shorten(text, longest):
  half = (longest - 7) // 2
  return text if len(text) <= longest else (
      f'{text[:half]} [...] {text[-half:]}')


def excerpt(value: Any) -> str:
  """A value of a file for a message, in at most 80 characters.

  Lists are shown by their first items, objects by their type: the content of
  either may be of any size.
  """
  if isinstance(value, list | tuple):
    items = [excerpt(x) if not isinstance(x, list | tuple) else '[...]'
             for x in value[:5]]
    text = f'[{", ".join(items + ["..."] * (len(value) > 5))}]'
  elif isinstance(value, str):
    text = repr(value[:_LONGEST_EXCERPT])
  elif isinstance(value, bool | float | None) or (
      isinstance(value, int) and value.bit_length() < 200):
    text = repr(value)
  elif isinstance(value, BaseException):  # of a library, about a file
    text = ' '.join(str(value).split()).rstrip('.') or type(value).__name__
  else:
    return f'of the type {type(value).__name__}'
  return printable(text, _LONGEST_EXCERPT)


def check_prompt(text: str) -> None:
  """Raises UserError for a prompt that no text encoder should be given.

  It has over 2,000 characters, of which text encoders read 77 tokens or fewer,
  or bytes of the command line that are no UTF-8.
  """
  if len(text) > _LONGEST_PROMPT:
    raise UserError(
        f'The prompt {excerpt(text)} has {len(text):,} characters; give one '
        f'of at most {_LONGEST_PROMPT:,}.')
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(f'The prompt {excerpt(text)} has bytes that are no UTF-8; '
                    'write it again.') from error


def pick(what: str, choices: Mapping[str, Any], name: str) -> Any:
  """Returns choices[name].

  Raises:
    UserError: there is no such choice; names `what` and the near choices.
  """
  check(what, choices, name)
  return choices[name]


def check(what: str, choices: Collection[str], name: Any) -> None:
  """Raises UserError where `name` is not one of the choices."""
  try:
    known = name in choices
  except TypeError:  # A list, for example, has no hash.
    known = False
  if not known:
    raise UserError(unknown(what, choices, name))


def unknown(what: str, choices: Collection[str], name: Any) -> str:
  """Returns the error message for a name that is not one of the choices."""
  near = difflib.get_close_matches(
      excerpt(name).strip("'"), list(choices), 3)
  hint = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
  if near and len(choices) > 20:  # A long list would bury the hint.
    return f'Unknown {what} {excerpt(name)}.{hint}'
  # Of the keys of a config, those outside of its sections come first.
  names = sorted(choices, key=lambda name: (name.count('.'), name))
  listed = str(names[:_MOST_NAMES])[:-1] + (
      ']' if len(names) <= _MOST_NAMES else ', ...]')
  return f'Unknown {what} {excerpt(name)}; choose from {listed}.{hint}'
