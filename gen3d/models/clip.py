"""CLIP (Radford et al., 2103.00020): an image and a text tower, one space.

Vocabulary. B images of R x R pixels are cut in patches of P x P, W is a
tower's width, L the length of a caption in tokens, E the width of the shared
space. Both towers are pre-norm transformers; the image feature is that of the
class token, the text feature that of the first end-of-text token, which has
seen all words because the text tower is causal. The published networks and
our tiny one are values of the same records.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError
from gen3d.weights import hub, port

EPSILON = 1e-5
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_SCALE = 100.0  # of the logits (section 2.5)


def quick_gelu(x):
  """OpenAI's cheap GELU, x sigmoid(1.702 x)."""
  return x * jax.nn.sigmoid(1.702 * x)


def gelu(x):
  """The exact GELU, of the OpenCLIP networks."""
  return jax.nn.gelu(x, approximate=False)


@dataclasses.dataclass(frozen=True)
class TextSize:
  """A text tower; `eot` is the id of the end-of-text token."""
  vocab: int
  length: int
  width: int
  layers: int
  heads: int
  eot: int
  activation: Callable = quick_gelu


@dataclasses.dataclass(frozen=True)
class ImageSize:
  """An image tower (a vision transformer)."""
  resolution: int
  patch: int
  width: int
  layers: int
  heads: int
  activation: Callable = quick_gelu


@dataclasses.dataclass(frozen=True)
class CLIPSize:
  """A pair of towers and the width of the space that they share."""
  image: ImageSize
  text: TextSize
  features: int


_OPENAI_512 = TextSize(49408, 77, 512, 12, 8, 49407)
_OPENAI_768 = TextSize(49408, 77, 768, 12, 12, 49407)
B32 = CLIPSize(ImageSize(224, 32, 768, 12, 12), _OPENAI_512, 512)
B16 = CLIPSize(ImageSize(224, 16, 768, 12, 12), _OPENAI_512, 512)
L14 = CLIPSize(ImageSize(224, 14, 1024, 24, 16), _OPENAI_768, 768)
# OpenCLIP's ViT-H/14, whose text tower (less its last layer) feeds Stable
# Diffusion 2.
H14 = CLIPSize(ImageSize(224, 14, 1280, 32, 16, gelu),
               TextSize(49408, 77, 1024, 24, 16, 49407, gelu), 1024)


class CLIP(nn.Module):
  """Both towers, their projections and the logits' scale."""
  size: CLIPSize
  dtype: Any = jnp.float32

  def setup(self):
    size = self.size
    self.image = ImageTower(size.image, self.dtype)
    self.text = TextTower(size.text, self.dtype)
    self.image_projection = _dense(
        size.features, size.image.width ** -0.5, self.dtype, bias=False)
    self.text_projection = _dense(
        size.features, size.text.width ** -0.5, self.dtype, bias=False)
    self.log_scale = self.param(
        'log_scale', nn.initializers.constant(np.log(1 / 0.07)), ())

  def __call__(self, images, tokens):
    """Features of both and the logits' scale: ([B, E], [B, E], [])."""
    return self.encode_image(images), self.encode_text(tokens), self.scale()

  def encode_image(self, images):
    """Images [B, R, R, 3] in [0, 1] -> features [B, E], not normalized."""
    return self.image_projection(self.image(images)[:, 0])

  def encode_text(self, tokens):
    """Tokens int32 [B, L] -> features [B, E], not normalized."""
    end = jnp.argmax(tokens == self.size.text.eot, axis=-1)
    states = self.text(tokens)
    return self.text_projection(
        jnp.take_along_axis(states, end[:, None, None], axis=1)[:, 0])

  def scale(self):
    """What cosines are multiplied by to make logits, at most 100."""
    return jnp.minimum(jnp.exp(self.log_scale), MAX_SCALE)


class ImageTower(nn.Module):
  """Vision transformer; its first state is the class token's."""
  size: ImageSize
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images):
    """Images [B, R, R, 3] in [0, 1] -> states [B, 1 + (R/P)^2, W].

    As in transformers, only the class token's state is to be used: the last
    norm is made for it.

    Raises:
      UserError: the images are of another resolution.
    """
    size = self.size
    expected = (size.resolution, size.resolution, 3)
    if images.shape[1:] != expected:
      raise UserError(f'CLIP\'s image tower takes images of {expected}, '
                      f'not {images.shape[1:]}.')
    normal = nn.initializers.normal(size.width ** -0.5)
    x = (images - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)
    x = nn.Conv(size.width, (size.patch, size.patch), (size.patch,) * 2,
                'VALID', use_bias=False, dtype=self.dtype, name='patches')(x)
    x = x.reshape(x.shape[0], -1, size.width)
    token = self.param('class_token', normal, (size.width,))
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1,
                                                     size.width))
    x = jnp.concatenate([token, x], axis=1)
    x = x + self.param('positions', normal, x.shape[1:]).astype(x.dtype)
    x = _norm(self.dtype, 'norm_before')(x)
    x = _Transformer(size, self.dtype, name='blocks')(x, None)
    return _norm(self.dtype, 'norm_after')(x)


class TextTower(nn.Module):
  """Causal transformer over tokens."""
  size: TextSize
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens):
    """Tokens int32 [B, L] -> states [B, L, W], after the last norm.

    Raises:
      UserError: there are more tokens than positions.
    """
    size = self.size
    length = tokens.shape[-1]
    if length > size.length:
      raise UserError(f'CLIP\'s text tower takes at most {size.length} '
                      f'tokens, not {length}.')
    x = nn.Embed(size.vocab, size.width, dtype=self.dtype, name='embed',
                 embedding_init=nn.initializers.normal(0.02))(tokens)
    positions = self.param('positions', nn.initializers.normal(0.01),
                           (size.length, size.width))
    x = x + positions[:length].astype(x.dtype)
    causal = jnp.tril(jnp.ones((length, length), bool))
    x = _Transformer(size, self.dtype, name='blocks')(x, causal)
    return _norm(self.dtype, 'norm')(x)


def normalize(features):
  """Features [..., E] on the unit sphere."""
  squared = jnp.sum(features * features, axis=-1, keepdims=True)
  return features * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))


def image_features(clip, params, images):
  """Unit features [B, E] of images [B, R, R, 3] in [0, 1]."""
  return normalize(clip.apply(params, images, method='encode_image'))


def text_features(clip, params, tokens):
  """Unit features [B, E] of tokens int32 [B, L]."""
  return normalize(clip.apply(params, tokens, method='encode_text'))


def contrastive_loss(queries, candidates, positive, scale, ignored=None):
  """InfoNCE in one direction: find each query's own candidate.

  CLIP's loss (figure 3 of the paper) is the mean of the two directions.

  Args:
    queries: [Q, E], unit.
    candidates: [C, E], unit.
    positive: int [Q], which candidate belongs to each query.
    scale: [], the logits' scale.
    ignored: bool [Q, C] or None; candidates that fit a query as well as its
      own and are no counterexamples. A query's own is never ignored.

  Returns:
    (mean cross entropy [], share of queries whose own scores highest []).
  """
  logits = scale * queries @ candidates.T
  own = jax.nn.one_hot(positive, candidates.shape[0], dtype=bool)
  if ignored is not None:
    logits = jnp.where(ignored & ~own, -jnp.inf, logits)
  score = jnp.sum(jnp.where(own, logits, 0.0), axis=-1)
  loss = jax.nn.logsumexp(logits, axis=-1) - score
  best = score >= jnp.max(logits, axis=-1)
  return jnp.mean(loss), jnp.mean(best.astype(jnp.float32))


def load(path, dtype=jnp.float32, variant=''):
  """Both towers out of a CLIPModel's folder of transformers.

  Args:
    path: folder with config.json and safetensors.
    dtype: of the parameters and of the computation.
    variant: see pretrained.read.

  Returns:
    (CLIP, {'params'}).

  Raises:
    UserError: the folder does not fit; says how.
  """
  folder = hub.read(path, variant)
  size = clip_size(folder)
  return CLIP(size, dtype), from_torch(folder.tensors, size, dtype)


def load_text(path, dtype=jnp.float32, variant=''):
  """A text tower without projection: `text_encoder` of Stable Diffusion.

  Arguments, what is returned, (TextTower, {'params'}), and errors are as
  `load`'s.
  """
  folder = hub.read(path, variant)
  size = text_size(folder)
  tower = TextTower(size, dtype)
  like = hub.shapes(tower, text_inputs(size), dtype)
  # transformers 5 leaves out the name of the tower, the published files, from
  # before it, do not.
  whole = lambda name: f'text_model.{name.removeprefix("text_model.")}'
  return tower, {'params': port.to_flax(
      folder.tensors.renamed(whole), text_sources(size), like,
      ignored=('*.position_ids',))}


def clip_size(folder):
  """CLIPSize of a pretrained.Folder.

  Raises:
    UserError: the config is for another network.
  """
  hub.expect_class(folder, ('CLIPModel',), 'clip')
  config = folder.config
  # Where old files have both, the second holds.
  text, image = ({**(config.get(f'{kind}_config') or {}),
                  **(config.get(f'{kind}_config_dict') or {})}
                 for kind in ('text', 'vision'))
  hub.expect(folder._replace(config=image), {'num_channels': (3,)})
  width = image.get('hidden_size', 768)
  image = ImageSize(
      image.get('image_size', 224), image.get('patch_size', 32), width,
      image.get('num_hidden_layers', 12),
      image.get('num_attention_heads', 12),
      _activation(folder, image, width, 3072))
  return CLIPSize(image, _text_size(folder, text),
                  config.get('projection_dim', 512))


def text_size(folder):
  """TextSize of a pretrained.Folder of a text tower alone.

  Raises:
    UserError: the config is for another network.
  """
  hub.expect_class(folder, ('CLIPTextModel',), 'clip')
  return _text_size(folder, folder.config)


def from_torch(tensors, size, dtype=jnp.float32):
  """Parameters from a CLIPModel of transformers ({name: NumPy array}).

  Raises:
    porting.PortingError: names or shapes do not match; all are listed.
  """
  return {'params': port.to_flax(
      tensors, sources(size),
      hub.shapes(CLIP(size), inputs(size), dtype),
      ignored=('*.position_ids',))}


def sources(size):
  """`sources` (see porting) of a CLIP, for CLIPModel's names."""
  vision = 'vision_model.embeddings'
  return {
      'log_scale': ('logit_scale', port.keep),
      'image_projection/kernel': ('visual_projection.weight',
                                  port.linear),
      'text_projection/kernel': ('text_projection.weight', port.linear),
      'image/class_token': (f'{vision}.class_embedding', port.keep),
      'image/positions': (f'{vision}.position_embedding.weight',
                          port.keep),
      'image/patches/kernel': (f'{vision}.patch_embedding.weight',
                               port.conv),
      # The missing e is in the published names.
      **_norm_sources('image/norm_before', 'vision_model.pre_layrnorm'),
      **_norm_sources('image/norm_after', 'vision_model.post_layernorm'),
      **_block_sources('image', 'vision_model', size.image.layers),
      **text_sources(size.text, 'text/'),
  }


def inputs(size):
  """Shapes of what a CLIP takes."""
  side = size.image.resolution
  return (jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
          *text_inputs(size.text))


def text_inputs(size):
  """Shapes of what a TextTower takes."""
  return (jax.ShapeDtypeStruct((1, size.length), jnp.int32),)


def text_sources(size, prefix=''):
  """`sources` (see porting) of a TextTower, for CLIPTextModel's names."""
  embeddings = 'text_model.embeddings'
  blocks = _block_sources('text', 'text_model', size.layers)
  blocks = {prefix + path.removeprefix('text/'): source
            for path, source in blocks.items()}
  return {
      f'{prefix}embed/embedding': (f'{embeddings}.token_embedding.weight',
                                   port.keep),
      f'{prefix}positions': (f'{embeddings}.position_embedding.weight',
                             port.keep),
      **_norm_sources(f'{prefix}norm', 'text_model.final_layer_norm'),
      **blocks,
  }


def _text_size(folder, config):
  width, vocab = config.get('hidden_size', 512), config.get('vocab_size', 49408)
  end = config.get('eos_token_id', vocab - 1)
  return TextSize(
      vocab, config.get('max_position_embeddings', 77), width,
      config.get('num_hidden_layers', 12),
      config.get('num_attention_heads', 8),
      # Published configs say 2, which is wrong; the last token is meant.
      vocab - 1 if end == 2 else end,
      _activation(folder, config, width, 2048))


def _activation(folder, config, width, inner):
  """A tower's activation, when all else about its MLPs is as it must be."""
  config = {'intermediate_size': inner, **config}
  hub.expect(folder._replace(config=config), {
      'hidden_act': ('quick_gelu', 'gelu'), 'layer_norm_eps': (EPSILON,),
      'intermediate_size': (4 * width,)})
  return {'quick_gelu': quick_gelu, 'gelu': gelu}[
      config.get('hidden_act', 'quick_gelu')]


class _Transformer(nn.Module):
  size: Any  # TextSize or ImageSize
  dtype: Any

  @nn.compact
  def __call__(self, x, allowed):
    for i in range(self.size.layers):
      x = _Block(self.size, self.dtype, name=f'{i}')(x, allowed)
    return x


class _Block(nn.Module):
  size: Any
  dtype: Any

  @nn.compact
  def __call__(self, x, allowed):
    size = self.size
    # The standard deviations of CLIP's code, for towers of any depth.
    std = size.width ** -0.5
    std_out = std * (2 * size.layers) ** -0.5
    heads = (*x.shape[:-1], size.heads, size.width // size.heads)

    y = _norm(self.dtype, 'norm_attention')(x)
    q, k, v = (
        _dense(size.width, std, self.dtype, name=name)(y).reshape(heads)
        for name in ('query', 'key', 'value'))
    logits = jnp.einsum('bqhk,blhk->bhql', q, k).astype(jnp.float32)
    logits = logits * heads[-1] ** -0.5
    if allowed is not None:
      logits = jnp.where(allowed, logits, -jnp.inf)
    weights = nn.softmax(logits, axis=-1).astype(self.dtype)
    y = jnp.einsum('bhql,blhk->bqhk', weights, v).reshape(x.shape)
    x = x + _dense(size.width, std_out, self.dtype, name='out')(y)

    y = _norm(self.dtype, 'norm_mlp')(x)
    y = _dense(4 * size.width, (2 * size.width) ** -0.5, self.dtype,
               name='up')(y)
    return x + _dense(size.width, std_out, self.dtype,
                      name='down')(size.activation(y))


def _dense(features, std, dtype, bias=True, name=None):
  return nn.Dense(features, use_bias=bias, dtype=dtype, name=name,
                  kernel_init=nn.initializers.normal(std))


def _norm(dtype, name):
  return nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name=name)


def _norm_sources(ours, theirs):
  return {f'{ours}/scale': (f'{theirs}.weight', port.keep),
          f'{ours}/bias': (f'{theirs}.bias', port.keep)}


def _block_sources(ours, theirs, layers):
  sources = {}
  for i in range(layers):
    block, layer = f'{ours}/blocks/{i}', f'{theirs}.encoder.layers.{i}'
    sources |= _norm_sources(f'{block}/norm_attention',
                             f'{layer}.layer_norm1')
    sources |= _norm_sources(f'{block}/norm_mlp', f'{layer}.layer_norm2')
    for name, origin in (('query', 'self_attn.q_proj'),
                         ('key', 'self_attn.k_proj'),
                         ('value', 'self_attn.v_proj'),
                         ('out', 'self_attn.out_proj'),
                         ('up', 'mlp.fc1'), ('down', 'mlp.fc2')):
      sources[f'{block}/{name}/kernel'] = (f'{layer}.{origin}.weight',
                                           port.linear)
      sources[f'{block}/{name}/bias'] = (f'{layer}.{origin}.bias',
                                         port.keep)
  return sources
