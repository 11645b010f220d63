"""From PyTorch-named tensors to Flax parameters, by name, strictly.

A model's module lists its `sources`: {our path, joined by '/': (PyTorch name,
change of layout)}. `to_flax` fills a tree of our shapes from them and accepts no
tensor that it cannot place.
"""

import fnmatch

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError


class PortingError(UserError):
  """Tensors that do not fit the model that they are meant for."""


def keep(tensor):
  """The tensor as it is: biases, norms, embeddings."""
  return tensor


def linear(tensor):
  """[out, in] -> [in, out]."""
  return tensor.T


def conv(tensor):
  """[out, in, height, width] -> [height, width, in, out]."""
  return tensor.transpose(2, 3, 1, 0)


def to_flax(tensors, sources, like, ignored=()):
  """Parameters with the structure, shapes and types of `like`.

  Args:
    tensors: {PyTorch name: array}.
    sources: {our path: (PyTorch name, change of layout)}, one for each leaf.
    like: a tree of arrays or jax.ShapeDtypeStruct, nested dicts.
    ignored: patterns (as in fnmatch) of names that may be left over.

  Raises:
    PortingError: lists what is missing, unused or of another shape.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
  leaves = [('/'.join(k.key for k in path), leaf) for path, leaf in leaves]
  unknown = {path for path, _ in leaves} ^ set(sources)
  if unknown:
    raise PortingError('The list of sources and the model differ at '
                       f'{_some(sorted(unknown))}.')
  wanted = {name for name, _ in sources.values()}
  missing = sorted(wanted - set(tensors))
  unused = sorted(name for name in set(tensors) - wanted
                  if not any(fnmatch.fnmatch(name, p) for p in ignored))
  misshaped, values = [], []
  for path, leaf in leaves:
    name, layout = sources[path]
    if name not in tensors:
      continue
    tensor = np.asarray(tensors[name])
    # A layout change fails on another rank, which is a matter of shape too.
    value = layout(tensor) if _applies(layout, tensor) else tensor
    if value.shape != leaf.shape:
      misshaped.append(f'{name} {list(tensor.shape)} for {path} '
                       f'{list(leaf.shape)}')
    else:
      values.append(jnp.asarray(value, leaf.dtype))
  problems = [f'{len(items)} {kind}: {_some(items)}' for kind, items in (
      ('missing', missing), ('unused', unused), ('mis-shaped', misshaped))
      if items]
  if problems:
    raise PortingError('The tensors do not fit the model; '
                       + '; '.join(problems) + '.')
  return jax.tree_util.tree_unflatten(treedef, values)


def by_path(like, special=()):
  """Sources of a model whose parameters carry their PyTorch names.

  Args:
    like: {collection: nested dicts of arrays or shapes}; a leaf's name is its
      path within its collection, joined by dots.
    special: {PyTorch name: change of layout}, where it is not that of the
      leaf's kind: convolutions have four axes, matrices called `weight` two.
  """
  special, sources = dict(special), {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]:
    keys = [k.key for k in path]
    name = '.'.join(keys[1:])
    usual = {4: conv, 2: linear if keys[-1] == 'weight' else keep}
    sources['/'.join(keys)] = name, special.get(
        name, usual.get(len(leaf.shape), keep))
  return sources


def to_torch(params, sources):
  """Inverse of `to_flax`: {PyTorch name: NumPy array}.

  Raises:
    UserError: at a change of layout that has no inverse here.
  """
  inverse = {keep: keep, linear: linear, conv: _unconv}
  tensors = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    name, layout = sources['/'.join(k.key for k in path)]
    back = getattr(layout, 'inverse', inverse.get(layout))
    if back is None:
      raise UserError(f'The layout of {name} cannot be turned back.')
    tensors[name] = np.array(back(np.asarray(leaf)), order='C')
  return tensors


def _unconv(tensor):
  return tensor.transpose(3, 2, 0, 1)


def _applies(layout, tensor):
  ranks = {linear: 2, conv: 4}
  return tensor.ndim == ranks.get(layout, tensor.ndim)


def _some(items, most=20):
  """A list for a sentence, cut where nobody would read on."""
  more = f' and {len(items) - most} more' if len(items) > most else ''
  return ', '.join(items[:most]) + more
