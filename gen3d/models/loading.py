"""Parameters of Flax networks from tensors of PyTorch (weights/port.py)."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.weights import port

DType = Any  # type of numbers, of NumPy or JAX


def fill(network: nn.Module, inputs: Iterable[Any],
         tensors: Mapping[str, np.ndarray], dtype: DType,
         sources: port.Sources | None = None,
         ignored: Iterable[str] = (),
         where: str | os.PathLike = '') -> dict[str, Any]:
  """Parameters of a network from tensors with PyTorch's names.

  Args:
    network: linen module.
    inputs: arrays or shapes that its `init` takes after the key.
    tensors: {PyTorch name: array}.
    dtype: of the parameters.
    sources: paths below 'params'; None if the submodules have their PyTorch
      names.
    ignored: patterns of names that may be left over.
    where: the tensors are from, for messages; '' where the caller says it.

  Returns:
    {'params'}.

  Raises:
    port.PortingError: lists what is missing, unused or of another shape.
  """
  like = {'params': shapes(network, inputs, dtype)}
  if sources is None:
    sources = port.by_path(like)
  else:
    sources = {f'params/{path}': source for path, source in sources.items()}
  try:
    return port.to_flax(tensors, sources, like, ignored, jnp.asarray)
  except port.PortingError as error:
    if not where:
      raise
    raise port.PortingError(f'{where}: {error}') from None


def shapes(network: nn.Module, inputs: Iterable[Any],
           dtype: DType) -> dict[str, Any]:
  """Nested dicts of jax.ShapeDtypeStruct of the parameters of a network."""
  params = jax.eval_shape(network.init, jax.random.key(0), *inputs)['params']
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
