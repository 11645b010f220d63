"""Choosing by name from a plain mapping, and saying what there was.

Every package may import this module; it imports none.
"""

import difflib


def pick(what, choices, name):
  """Returns choices[name].

  Raises:
    ValueError: there is no such choice.
  """
  check(what, choices, name)
  return choices[name]


def check(what, choices, name):
  """Raises ValueError where `name` is none of the choices."""
  if name not in choices:
    raise ValueError(unknown(what, choices, name))


def unknown(what, choices, name):
  """The sentence for a name that is none of the choices."""
  near = difflib.get_close_matches(str(name), [str(c) for c in choices], 3)
  hint = f' Did you mean {" or ".join(map(repr, near))}?' if near else ''
  if near and len(choices) > 20:  # A long list would bury the hint.
    return f'Unknown {what} {name!r}.{hint}'
  return f'Unknown {what} {name!r}; choose from {sorted(choices)}.{hint}'
