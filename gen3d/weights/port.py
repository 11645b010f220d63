"""From tensors with PyTorch's names to Flax parameters: by name, all or none.

Vocabulary. A *layout* reorders the axes of one PyTorch tensor to those of
Flax. The *sources* of a network are {path of a parameter, joined by '/':
(PyTorch name, layout)}. `to_flax` fills a tree from its sources; a tensor that
is missing, left over or of another shape is an error, so that no network runs
with a part of its weights.
"""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gen3d.choices import UserError

Layout = Callable[[np.ndarray], np.ndarray]
Sources = dict[str, tuple[str, Layout]]

# Names of linen's parameters in PyTorch.
_LINEN_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight'}


class PortingError(UserError):
  """Tensors that do not fit the network that they are loaded into."""


def keep(tensor: np.ndarray) -> np.ndarray:
  """Layout of biases, norms and embeddings: no change."""
  return tensor


def linear(tensor: np.ndarray) -> np.ndarray:
  """Layout of a matrix: [out, in] -> [in, out]."""
  return tensor.T


def conv(tensor: np.ndarray) -> np.ndarray:
  """Layout of a convolution: [out, in, h, w] -> [h, w, in, out]."""
  return tensor.transpose(2, 3, 1, 0)


def to_flax(tensors: Mapping[str, np.ndarray], sources: Sources, like: Any,
            ignored: Iterable[str] = (),
            array: Callable[..., Any] = np.asarray) -> Any:
  """Parameters with the structure, shapes and types of `like`.

  Args:
    tensors: {PyTorch name: array}.
    sources: one for each leaf of `like`.
    like: nested dicts of arrays or shapes (anything with shape and dtype).
    ignored: patterns (as in fnmatch) of names that may be left over.
    array: (NumPy array, dtype) -> leaf. jnp.asarray moves each tensor to the
      device as it is read, so that the host never holds all of them.

  Returns:
    Nested dicts of what `array` returns.

  Raises:
    PortingError: lists what is missing, unused or of another shape.
  """
  unknown = {path for path, _ in _leaves(like)} ^ set(sources)
  if unknown:
    raise PortingError('The list of sources and the network differ at '
                       f'{_enumerate(sorted(unknown))}.')
  ignored = tuple(ignored)
  wanted = {name for name, _ in sources.values()}
  missing = sorted(wanted - set(tensors))
  unused = sorted(name for name in set(tensors) - wanted
                  if not any(fnmatch.fnmatch(name, p) for p in ignored))
  misshaped = []

  def load(path: str, leaf: Any) -> Any:
    name, layout = sources[path]
    if name not in tensors:
      return None
    tensor = np.asarray(tensors[name])
    # A layout fails on an array of another rank, which is a mismatch as well.
    value = layout(tensor) if _has_rank(layout, tensor) else tensor
    if value.shape != leaf.shape:
      misshaped.append(f'{name} {list(tensor.shape)} for {path} '
                       f'{list(leaf.shape)}')
      return None
    return array(value, leaf.dtype)

  params = _map_leaves(load, like)
  problems = [f'{len(names)} {kind}: {_enumerate(names)}' for kind, names in (
      ('missing', missing), ('unused', unused), ('mis-shaped', misshaped))
      if names]
  if problems:
    raise PortingError('The tensors do not fit the network; '
                       + '; '.join(problems) + '.')
  return params


def by_path(like: Any,
            special: Mapping[str, Layout] | None = None) -> Sources:
  """Sources of a network whose submodules have their PyTorch names.

  {'params': {'a.0': {'proj': {'kernel': ...}}}} is a.0.proj.weight. Parameters
  may have the leaf names of PyTorch or those of linen.

  Args:
    like: {collection: nested dicts of arrays or shapes}; a PyTorch name is the
      path within the collection, joined by dots.
    special: {PyTorch name: layout} where it does not follow from the rank:
      arrays with four axes are convolutions, matrices called weight or kernel
      are linear maps.
  """
  special, sources = special or {}, {}
  for path, leaf in _leaves(like):
    _, *modules, last = path.split('/')
    name = '.'.join((*modules, _LINEN_LEAVES.get(last, last)))
    by_rank = {4: conv, 2: linear if last in ('weight', 'kernel') else keep}
    sources[path] = name, special.get(name,
                                      by_rank.get(len(leaf.shape), keep))
  return sources


def to_torch(params: Any, sources: Sources) -> dict[str, np.ndarray]:
  """Inverse of `to_flax`: {PyTorch name: NumPy array}.

  A layout that is not defined here has its inverse as the attribute `inverse`.

  Raises:
    UserError: a layout has no inverse.
  """
  inverses: dict[Layout, Layout] = {
      keep: keep, linear: linear, conv: _conv_inverse}
  tensors = {}
  for path, leaf in _leaves(params):
    name, layout = sources[path]
    inverse = getattr(layout, 'inverse', inverses.get(layout))
    if inverse is None:
      raise UserError(f'The layout of {name} has no inverse; it cannot be '
                      'written under its PyTorch name.')
    tensors[name] = np.array(inverse(np.asarray(leaf)), order='C')
  return tensors


def _leaves(tree: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """(path, leaf) of nested dicts, in the order of the sorted keys."""
  for key in sorted(tree):
    if isinstance(tree[key], Mapping):
      yield from _leaves(tree[key], f'{prefix}{key}/')
    else:
      yield prefix + key, tree[key]


def _map_leaves(function: Callable[[str, Any], Any], tree: Any,
                prefix: str = '') -> Any:
  """Nested dicts with `function(path, leaf)` for each leaf."""
  return {key: _map_leaves(function, tree[key], f'{prefix}{key}/')
          if isinstance(tree[key], Mapping)
          else function(prefix + key, tree[key]) for key in sorted(tree)}


def _conv_inverse(tensor: np.ndarray) -> np.ndarray:
  return tensor.transpose(3, 2, 0, 1)


def _has_rank(layout: Layout, tensor: np.ndarray) -> bool:
  ranks: dict[Layout, int] = {linear: 2, conv: 4}
  return tensor.ndim == ranks.get(layout, tensor.ndim)


def _enumerate(names: list[str], limit: int = 20) -> str:
  """A list for an error message, cut after `limit` names."""
  more = f' and {len(names) - limit} more' if len(names) > limit else ''
  return ', '.join(names[:limit]) + more
