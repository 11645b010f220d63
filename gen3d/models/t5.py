"""The encoder of T5 v1.1 (Raffel et al., 1910.10683; Shazeer, 2002.05202).

Vocabulary. B captions of L tokens, D = width, H heads of K = head_dim,
F = ff_width. There is no absolute position: a bias per head, looked up by the
bucketed offset between key and query, is added to the attention's logits; its
table is made in the first layer and shared by all. Queries are not divided by
sqrt(K) (the initialization takes care of it), norms subtract no mean and
nothing has a bias.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.weights import hub, port

EPSILON = 1e-6
BUCKETS = 32
MAX_DISTANCE = 128


@dataclasses.dataclass(frozen=True)
class T5Size:
  """The numbers that tell one T5 v1.1 encoder from another."""
  vocab: int
  layers: int
  width: int
  heads: int
  head_dim: int
  ff_width: int


XXL = T5Size(vocab=32128, layers=24, width=4096, heads=64, head_dim=64,
             ff_width=10240)


class T5Encoder(nn.Module):
  """Token states of captions.

  Attributes:
    size: T5Size.
    dtype: of the computation; norms and the softmax stay in float32.
  """
  size: T5Size
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens, mask):
    """tokens int32 [B, L], mask [B, L] (0: padding) -> states [B, L, D].

    States at padding are finite but mean nothing.
    """
    size = self.size
    x = nn.Embed(size.vocab, size.width, dtype=self.dtype,
                 embedding_init=nn.initializers.normal(1.0),
                 name='embed')(tokens)
    # Far wider than T5's own width^-1/2: an encoder as small as ours does not
    # find out by itself that order matters, and begins with heads that tell
    # one offset from another.
    table = self.param('position_bias', nn.initializers.normal(1.0),
                       (BUCKETS, size.heads))
    steps = np.arange(tokens.shape[-1])
    bias = table[buckets(steps[None, :] - steps[:, None])]  # [L, L, H]
    bias = jnp.transpose(bias, (2, 0, 1)).astype(jnp.float32)
    lowest = jnp.finfo(jnp.float32).min / 2
    bias = bias + jnp.where(mask[:, None, None, :] > 0, 0.0, lowest)
    for i in range(size.layers):
      x = _Block(size, self.dtype, name=f'block_{i}')(x, bias)
    return _RMSNorm(self.dtype, name='norm')(x)


def buckets(offset):
  """Bucket indices in [0, 32) of offsets key - query (NumPy int array).

  Half of the buckets are for each direction; of these, half are exact and
  the rest grow logarithmically up to an offset of 128.
  """
  offset = np.asarray(offset)
  half = BUCKETS // 2
  exact = half // 2
  distance = np.abs(offset)
  # float32, as the reference computes it: the floor is taken at exact powers.
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact)
  far = exact + (ratio / np.float32(np.log(MAX_DISTANCE / exact))
                 * (half - exact)).astype(np.int32)
  near = np.where(distance < exact, distance, np.minimum(far, half - 1))
  return near + np.where(offset > 0, half, 0)


def load(path, dtype=jnp.float32, variant=''):
  """An encoder out of transformers' folder: `text_encoder` of DeepFloyd IF.

  In bfloat16 the largest takes 9.5 GB; float16 is too narrow for it.

  Args:
    path: folder with config.json and safetensors.
    dtype: of the parameters and of the computation.
    variant: see pretrained.read.

  Returns:
    (T5Encoder, {'params'}).

  Raises:
    UserError: the folder does not fit; says how.
  """
  folder = hub.read(path, variant)
  size = t5_size(folder)
  tensors = folder.tensors
  if 'shared.weight' not in tensors:  # Either name of the table may be kept.
    tensors = tensors.renamed(lambda name: 'shared.weight' if name == (
        'encoder.embed_tokens.weight') else name)
  return T5Encoder(size, dtype), from_torch(tensors, size, dtype)


def t5_size(folder):
  """T5Size of a pretrained.Folder.

  Raises:
    UserError: the config is for another network, T5 before v1.1 among them.
  """
  hub.expect_class(
      folder, ('T5EncoderModel', 'T5ForConditionalGeneration', 'T5Model'),
      't5')
  # What the first T5 does is also what a config means that does not tell.
  config = {'feed_forward_proj': 'relu', **folder.config}
  hub.expect(folder._replace(config=config), {
      'feed_forward_proj': ('gated-gelu',),
      'relative_attention_num_buckets': (BUCKETS,),
      'relative_attention_max_distance': (MAX_DISTANCE,),
      'layer_norm_epsilon': (EPSILON,)})
  return T5Size(
      vocab=config.get('vocab_size', 32128),
      layers=config.get('num_layers', 6), width=config.get('d_model', 512),
      heads=config.get('num_heads', 8), head_dim=config.get('d_kv', 64),
      ff_width=config.get('d_ff', 2048))


def inputs():
  """Shapes of what a T5Encoder takes."""
  return (jax.ShapeDtypeStruct((1, 77), jnp.int32),
          jax.ShapeDtypeStruct((1, 77), jnp.float32))


def from_torch(tensors, size, dtype=jnp.float32):
  """Parameters from a T5 checkpoint of transformers ({name: NumPy array}).

  The decoder and the head of a whole T5 are left aside.

  Raises:
    porting.PortingError: names or shapes do not match; all are listed.
  """
  return {'params': port.to_flax(
      tensors, encoder_sources(size),
      hub.shapes(T5Encoder(size), inputs(), dtype),
      ignored=('encoder.embed_tokens.weight', 'decoder.*', 'lm_head.*'))}


def encoder_sources(size):
  """`sources` (see porting) of a T5Encoder."""
  sources = {
      'embed/embedding': ('shared.weight', port.keep),
      'norm/scale': ('encoder.final_layer_norm.weight', port.keep),
  }
  first = 'encoder.block.0.layer.0.SelfAttention'
  sources['position_bias'] = (
      f'{first}.relative_attention_bias.weight', port.keep)
  for i in range(size.layers):
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
  size: T5Size
  dtype: Any

  @nn.compact
  def __call__(self, x, bias):
    size = self.size
    inner = size.heads * size.head_dim

    def dense(features, std, name):
      return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name,
                      kernel_init=nn.initializers.normal(std))

    y = _RMSNorm(self.dtype, name='attention_norm')(x)
    heads = (*y.shape[:-1], size.heads, size.head_dim)
    q = dense(inner, (size.width * size.head_dim) ** -0.5, 'query')(y)
    k = dense(inner, size.width ** -0.5, 'key')(y).reshape(heads)
    v = dense(inner, size.width ** -0.5, 'value')(y).reshape(heads)
    logits = jnp.einsum('bqhk,blhk->bhql', q.reshape(heads), k)
    weights = nn.softmax(logits.astype(jnp.float32) + bias, axis=-1)
    y = jnp.einsum('bhql,blhk->bqhk', weights.astype(self.dtype), v)
    x = x + dense(size.width, inner ** -0.5, 'out')(
        y.reshape(*y.shape[:-2], inner))

    y = _RMSNorm(self.dtype, name='ff_norm')(x)
    gate = dense(size.ff_width, size.width ** -0.5, 'gate')(y)
    up = dense(size.ff_width, size.width ** -0.5, 'up')(y)
    return x + dense(size.width, size.ff_width ** -0.5, 'down')(
        nn.gelu(gate, approximate=True) * up)


class _RMSNorm(nn.Module):
  dtype: Any

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)
    return (x * scale).astype(self.dtype)
