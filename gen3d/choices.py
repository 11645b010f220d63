"""Errors for mistakes of the user, and choices by name.

Every package may import this module; it imports none.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any


class UserError(ValueError):
  """A mistake of the user: one sentence with the place and a remedy.

  Commands print it and exit with code 2 (engine/cli.py); every other
  exception is a bug and keeps its traceback.
  """


def pick(what: str, choices: Mapping[str, Any], name: str) -> Any:
  """Returns choices[name].

  Raises:
    UserError: there is no such choice; names `what` and the near choices.
  """
  check(what, choices, name)
  return choices[name]


def check(what: str, choices: Collection[str], name: Any) -> None:
  """Raises UserError where `name` is not one of the choices."""
  if name not in choices:
    raise UserError(unknown(what, choices, name))


def unknown(what: str, choices: Collection[str], name: Any) -> str:
  """Returns the error message for a name that is not one of the choices."""
  near = difflib.get_close_matches(str(name), [str(c) for c in choices], 3)
  hint = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
  if near and len(choices) > 20:  # A long list would bury the hint.
    return f'Unknown {what} {name!r}.{hint}'
  return f'Unknown {what} {name!r}; choose from {sorted(choices)}.{hint}'
