"""Schemas of what files contain: types and ranges, checked before use.

A schema is {key: Rule}. Only the keys that it names are checked.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gen3d.choices import UserError, excerpt


class Rule(NamedTuple):
  """What a value must be.

  Attributes:
    accepts: value -> whether it is so.
    expected: in words, after 'it must be'.
  """
  accepts: Callable[[Any], bool]
  expected: str


Schema = Mapping[str, Rule]


def whole(low: int, high: int) -> Rule:
  """An integer in [low, high]."""
  return Rule(lambda x: isinstance(x, int | np.integer)
              and not isinstance(x, bool) and bool(low <= x <= high),
              f'an integer from {low} to {high}')


def real(low: float, high: float) -> Rule:
  """A number in [low, high], which excludes NaN."""
  return Rule(lambda x: isinstance(x, int | float | np.integer | np.floating)
              and not isinstance(x, bool) and bool(low <= x <= high),
              f'a number from {low:g} to {high:g}')


def each(rule: Rule, least: int, most: int) -> Rule:
  """A list (or tuple) of `least` to `most` values that keep a Rule."""
  return Rule(lambda x: isinstance(x, list | tuple)
              and least <= len(x) <= most and all(map(rule.accepts, x)),
              f'a list of {least} to {most} values, each {rule.expected}')


def either(*rules: Rule) -> Rule:
  """A value that keeps one of several Rules."""
  return Rule(lambda x: any(rule.accepts(x) for rule in rules),
              ' or '.join(rule.expected for rule in rules))


FLAG = Rule(lambda x: isinstance(x, int) and x in (0, 1),
            'true or false')
TEXT = Rule(lambda x: isinstance(x, str), 'a string')
MAPPING = Rule(lambda x: isinstance(x, Mapping), 'a mapping')
NOTHING = Rule(lambda x: x is None, 'null')


def optional(rule: Rule) -> Rule:
  """A value that keeps a Rule, or None."""
  return either(NOTHING, rule)


def check(where: Any, content: Mapping[str, Any], schema: Schema,
          required: bool = False) -> None:
  """Checks the values of a mapping from a file.

  Args:
    where: file, for the message.
    content: of the file.
    schema: of its keys.
    required: whether all keys of the schema must be there.

  Raises:
    UserError: names the file, the key, its value and what it must be.
  """
  for key, rule in schema.items():
    if key not in content:
      if required:
        raise UserError(f'{where} has no {key!r}, which must be '
                        f'{rule.expected}; get it again.')
    elif not rule.accepts(content[key]):
      raise UserError(f'{where}: {key!r} is {excerpt(content[key])}, but must '
                      f'be {rule.expected}; get it again.')
