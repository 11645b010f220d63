"""Floating-point operations of a function, apart for its named scopes.

Convolutions and matrix products are counted, which are nearly all of a network;
a multiplication and an addition are two operations. They are counted in the
jaxpr, where a scan has its length (the compiler's own count has each loop once)
and backward passes have the names of their forward passes.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

OTHER = 'other'


def by_scope(function: Callable[..., Any], arguments: Sequence[Any],
             scopes: Sequence[str]) -> dict[str, int]:
  """{scope: floating-point operations} of a function; computes nothing.

  What is in several scopes counts in the outermost of them, what is in none as
  OTHER. Of a conditional the largest branch counts, and a `while` of unknown
  length once.

  Args:
    function: of JAX arrays.
    arguments: arrays or jax.ShapeDtypeStructs.
    scopes: names given to jax.named_scope.
  """
  totals = dict.fromkeys((*scopes, OTHER), 0)
  for scope, count in _counts(
      jax.make_jaxpr(function)(*arguments).jaxpr, '', tuple(scopes)):
    totals[scope] += count
  return totals


def _counts(jaxpr: Any, outside: str, scopes: tuple[str, ...]
            ) -> Iterator[tuple[str, int]]:
  """Yields (scope, operations) of the equations of a jaxpr.

  Args:
    jaxpr: Jaxpr.
    outside: names of the scopes around it; equations have only the inner ones.
    scopes: names that are counted apart.
  """
  for equation in jaxpr.eqns:
    names = f'{outside}/{equation.source_info.name_stack}'
    count = _OPERATIONS.get(equation.primitive.name)
    if count:
      yield _outermost(names, scopes), count(equation)
      continue
    inner = [list(_counts(each, names, scopes)) for each in _inner(equation)]
    if equation.primitive.name == 'cond':
      inner = [max(inner, key=lambda found: sum(n for _, n in found))]
    times = equation.params.get('length', 1)
    yield from ((scope, times * n) for found in inner for scope, n in found)


def _inner(equation: Any) -> Iterator[Any]:
  """The jaxprs in an equation's parameters."""
  for value in equation.params.values():
    for each in value if isinstance(value, tuple | list) else (value,):
      each = getattr(each, 'jaxpr', each)  # of a ClosedJaxpr
      if hasattr(each, 'eqns'):
        yield each


def _outermost(names: str, scopes: tuple[str, ...]) -> str:
  """The scope that comes first in names such as 'transpose(jvp(render))/a'."""
  for name in re.findall(r'\w+', names):
    if name in scopes:
      return name
  return OTHER


def _of_product(equation: Any) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  return 2 * equation.outvars[0].aval.size * math.prod(
      left[axis] for axis in contracted)


def _of_convolution(equation: Any) -> int:
  kernel = equation.invars[1].aval
  features = equation.params['dimension_numbers'].rhs_spec[0]
  # A dilated input, in the gradient of a convolution with a stride, has zeros
  # that need no operations.
  return (2 * equation.outvars[0].aval.size * kernel.size
          // kernel.shape[features]
          // math.prod(equation.params['lhs_dilation']))


_OPERATIONS = {'dot_general': _of_product,
               'conv_general_dilated': _of_convolution}
