"""Low-rank adaptation (LoRA, Hu et al., 2106.09685) of a frozen network.

The outputs of chosen layers get an addition, by Flax's interception of method
calls: neither the network's code nor its parameters change, and the frozen
kernels exist once.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

Path = tuple[str, ...]  # names of the modules, from the network to a layer

# Dense layers of attention, by the names in Stable Diffusion and DeepFloyd IF,
# then by those of models/unet.py.
ATTENTION = ('to_q', 'to_k', 'to_v', 'to_out.0', 'add_k_proj', 'add_v_proj',
             'qkv', 'text_kv', 'out')


def attention_layers(params: Any) -> dict[Path, tuple[int, int]]:
  """{path: (inputs, outputs)} of the attention's dense layers in `params`."""
  leaves: dict[Path, Any] = traverse_util.flatten_dict(params)
  return {path[:-1]: kernel.shape for path, kernel in leaves.items()
          if path[-1] == 'kernel' and kernel.ndim == 2
          and any(path[-2] == name or path[-2].endswith(f'.{name}')
                  for name in ATTENTION)}


def init(key: jax.Array, shapes: Mapping[Path, tuple[int, int]], rank: int
         ) -> dict[str, dict[str, jax.Array]]:
  """{path joined by '/': {'down' [I, rank], 'up' [rank, O]}}; adds zero.

  Args:
    key: PRNG key.
    shapes: {path: (I, O)} of the layers.
    rank: of the additions.
  """
  keys = jax.random.split(key, len(shapes))
  return {'/'.join(path): {
      'down': jax.random.normal(one, (inputs, rank)) / rank,
      'up': jnp.zeros((rank, outputs))}
          for one, (path, (inputs, outputs)) in zip(keys, shapes.items())}


def additions(lora: Mapping[str, Mapping[str, jax.Array]]
              ) -> dict[Path, Callable[[jax.Array], jax.Array]]:
  """{path: x -> (x down) up} of the parameters of `init`."""
  low_rank = lambda pair: lambda x: (
      x @ pair['down'].astype(x.dtype)) @ pair['up'].astype(x.dtype)
  return {tuple(path.split('/')): low_rank(pair)
          for path, pair in lora.items()}


@contextlib.contextmanager
def applied(functions: Mapping[Path, Callable[[jax.Array], jax.Array]],
            network: type | tuple[type, ...]) -> Generator[None]:
  """Within it, layers of networks of one type get additions to their outputs.

  Args:
    functions: {path: input of the layer -> addition}.
    network: type of the networks; layers of others, such as a ControlNet with
      the same names, stay as they are.
  """
  def intercept(call, args, kwargs, context):
    output = call(*args, **kwargs)
    if context.method_name != '__call__':
      return output
    add = functions.get(context.module.path)
    if add is None or not isinstance(_root(context.module), network):
      return output
    return output + add(args[0]).astype(output.dtype)

  with nn.intercept_methods(intercept):
    yield


def _root(module):
  while isinstance(module.parent, nn.Module):
    module = module.parent
  return module
