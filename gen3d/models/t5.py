"""The encoder of T5 v1.1 (Raffel et al., 1910.10683; Shazeer, 2002.05202).

Notation: B captions of L tokens, D = width, H heads of K = head_dim,
F = ff_width. There are no absolute positions: a bias per head, from a table
indexed by the bucket of the offset between key and query, is added to the
logits of the attention; all layers use the table of the first one. Queries are
not divided by sqrt(K) (the initialization does it), norms subtract no mean and
no layer has a bias.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d import schemas
from gen3d.models import loading
from gen3d.weights import hub, port

EPSILON = 1e-6  # of the norms
BUCKETS = 32  # of the offsets
MAX_DISTANCE = 128  # offsets beyond it have one bucket
# The rest of a complete T5, and a second name of the embeddings.
_UNUSED = ('encoder.embed_tokens.weight', 'decoder.*', 'lm_head.*')


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The hyperparameters of a T5 v1.1 encoder."""
  vocab: int
  layers: int
  width: int
  heads: int
  head_dim: int
  ff_width: int


class T5Encoder(nn.Module):
  """Token states of captions.

  Attributes:
    config: hyperparameters.
    dtype: of the computation; norms and the softmax stay in float32.
  """
  config: T5Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """tokens int32 [B, L], mask [B, L] (0: padding) -> states [B, L, D].

    States at padding are finite but have no meaning.
    """
    config = self.config
    x = nn.Embed(config.vocab, config.width, dtype=self.dtype,
                 embedding_init=nn.initializers.normal(1.0),
                 name='embed')(tokens)
    # A larger deviation than the width^-1/2 of T5: a small encoder on little
    # data does not learn the order of words unless its heads distinguish the
    # offsets from the start.
    table = self.param('position_bias', nn.initializers.normal(1.0),
                       (BUCKETS, config.heads))
    positions = np.arange(tokens.shape[-1])
    offsets = positions[None, :] - positions[:, None]  # key - query
    bias = table[buckets(offsets)]  # [L, L, H]
    bias = jnp.transpose(bias, (2, 0, 1)).astype(jnp.float32)
    # Finite, so that a row of padding has no NaN; halved, so that adding to it
    # does not overflow.
    lowest = jnp.finfo(jnp.float32).min / 2
    bias = bias + jnp.where(mask[:, None, None, :] > 0, 0.0, lowest)
    for i in range(config.layers):
      x = _Block(config, self.dtype, name=f'block_{i}')(x, bias)
    return _RMSNorm(self.dtype, name='norm')(x)


def buckets(offset: np.ndarray) -> np.ndarray:
  """Bucket indices in [0, 32) of integer offsets key - query, of any shape.

  Half of the buckets are for each direction. Half of these are for single
  offsets; the width of the others grows logarithmically up to an offset of 128.
  """
  offset = np.asarray(offset)
  half = BUCKETS // 2
  exact = half // 2
  distance = np.abs(offset)
  # In float32 as in the reference, because the floor of exact powers depends
  # on the rounding.
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact)
  far = exact + (ratio / np.float32(np.log(MAX_DISTANCE / exact))
                 * (half - exact)).astype(np.int32)
  near = np.where(distance < exact, distance, np.minimum(far, half - 1))
  return near + np.where(offset > 0, half, 0)


def load(path: str | os.PathLike, dtype: Any = jnp.float32,
         variant: str = '') -> tuple[T5Encoder, dict[str, Any]]:
  """An encoder from a folder of transformers: `text_encoder` of DeepFloyd IF.

  The largest needs 9.5 GB in bfloat16; it overflows in float16.

  Args:
    path: folder with config.json and weights.
    dtype: of the parameters and of the computation.
    variant: see hub.read.

  Returns:
    (T5Encoder, {'params'}).

  Raises:
    UserError: a file is missing or broken, or belongs to another network.
  """
  folder = hub.read(path, variant)
  encoder = T5Encoder(t5_config(folder), dtype)
  tensors, name = folder.tensors, 'shared.weight'
  if name not in tensors:  # A file has the embeddings under one of two names.
    tensors = hub.renamed(tensors, lambda other: name if other == (
        'encoder.embed_tokens.weight') else other)
  return encoder, from_torch(tensors, encoder.config, dtype)


_WIDTH = schemas.whole(1, 2 ** 16)
_VALUES = {'vocab_size': schemas.whole(2, 2 ** 22), 'd_ff': _WIDTH,
           'num_layers': schemas.whole(1, 256), 'd_model': _WIDTH,
           'num_heads': schemas.whole(1, 1024), 'd_kv': _WIDTH}


def t5_config(folder: hub.Folder) -> T5Config:
  """Hyperparameters from the config.json of a T5.

  Raises:
    UserError: the config is for another network, such as a T5 before v1.1.
  """
  hub.expect_class(
      folder, ('T5EncoderModel', 'T5ForConditionalGeneration', 'T5Model'),
      't5')
  # Without the key, transformers builds the first T5.
  config: dict[str, Any] = {'feed_forward_proj': 'relu', **folder.config}
  hub.check_values(folder, _VALUES)
  hub.expect(folder._replace(config=config), {
      'feed_forward_proj': ('gated-gelu',),
      'relative_attention_num_buckets': (BUCKETS,),
      'relative_attention_max_distance': (MAX_DISTANCE,),
      'layer_norm_epsilon': (EPSILON,)})
  return T5Config(
      vocab=config.get('vocab_size', 32128),
      layers=config.get('num_layers', 6), width=config.get('d_model', 512),
      heads=config.get('num_heads', 8), head_dim=config.get('d_kv', 64),
      ff_width=config.get('d_ff', 2048))


def inputs() -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the inputs of a T5Encoder."""
  return (jax.ShapeDtypeStruct((1, 77), jnp.int32),
          jax.ShapeDtypeStruct((1, 77), jnp.float32))


def from_torch(tensors: Mapping[str, np.ndarray], config: T5Config,
               dtype: Any = jnp.float32) -> dict[str, Any]:
  """Parameters of an encoder from those of a T5 of transformers.

  The decoder and the head of a complete T5 are ignored.

  Args:
    tensors: {PyTorch name: array}.
    config: of the encoder.
    dtype: of the parameters.

  Returns:
    {'params'}.

  Raises:
    port.PortingError: lists the names or shapes that do not match.
  """
  return loading.fill(T5Encoder(config), inputs(), tensors, dtype,
                      encoder_sources(config), _UNUSED)


def encoder_sources(config: T5Config) -> port.Sources:
  """Names and layouts of a T5 for each parameter of a T5Encoder."""
  sources: port.Sources = {
      'embed/embedding': ('shared.weight', port.keep),
      'norm/scale': ('encoder.final_layer_norm.weight', port.keep),
  }
  first = 'encoder.block.0.layer.0.SelfAttention'
  sources['position_bias'] = (
      f'{first}.relative_attention_bias.weight', port.keep)
  for i in range(config.layers):
    attention = f'encoder.block.{i}.layer.0'
    feed_forward = f'encoder.block.{i}.layer.1'
    for ours, theirs, layout in (
        ('attention_norm/scale', f'{attention}.layer_norm', port.keep),
        ('query/kernel', f'{attention}.SelfAttention.q', port.linear),
        ('key/kernel', f'{attention}.SelfAttention.k', port.linear),
        ('value/kernel', f'{attention}.SelfAttention.v', port.linear),
        ('out/kernel', f'{attention}.SelfAttention.o', port.linear),
        ('ff_norm/scale', f'{feed_forward}.layer_norm', port.keep),
        ('gate/kernel', f'{feed_forward}.DenseReluDense.wi_0',
         port.linear),
        ('up/kernel', f'{feed_forward}.DenseReluDense.wi_1', port.linear),
        ('down/kernel', f'{feed_forward}.DenseReluDense.wo',
         port.linear)):
      sources[f'block_{i}/{ours}'] = (f'{theirs}.weight', layout)
  return sources


class _Block(nn.Module):
  config: T5Config
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [B, L, D], bias [B, H, L, L] of the logits -> like x."""
    config = self.config
    inner = config.heads * config.head_dim

    def dense(features: int, std: float, name: str) -> nn.Dense:
      return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name,
                      kernel_init=nn.initializers.normal(std))

    y = _RMSNorm(self.dtype, name='attention_norm')(x)
    heads = (*y.shape[:-1], config.heads, config.head_dim)
    q = dense(inner, (config.width * config.head_dim) ** -0.5, 'query')(y)
    k = dense(inner, config.width ** -0.5, 'key')(y).reshape(heads)
    v = dense(inner, config.width ** -0.5, 'value')(y).reshape(heads)
    logits = jnp.einsum('bqhk,blhk->bhql', q.reshape(heads), k)
    weights = nn.softmax(logits.astype(jnp.float32) + bias, axis=-1)
    y = jnp.einsum('bhql,blhk->bqhk', weights.astype(self.dtype), v)
    x = x + dense(config.width, inner ** -0.5, 'out')(
        y.reshape(*y.shape[:-2], inner))

    y = _RMSNorm(self.dtype, name='ff_norm')(x)
    gate = dense(config.ff_width, config.width ** -0.5, 'gate')(y)
    up = dense(config.ff_width, config.width ** -0.5, 'up')(y)
    return x + dense(config.width, config.ff_width ** -0.5, 'down')(
        nn.gelu(gate, approximate=True) * up)


class _RMSNorm(nn.Module):
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)
    return (x * scale).astype(self.dtype)
