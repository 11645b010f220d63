"""CLIP (Radford et al., 2103.00020): image and text in one feature space.

Vocabulary. B images of R x R pixels are cut in patches of P x P, W is the
width of a tower, L the length of a caption in tokens, E the width of the shared
space. Both towers are pre-norm transformers. The image feature is that of the
class token, the text feature that of the first end-of-text token, which attends
to all words because the text tower is causal.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen3d import schemas
from gen3d.choices import UserError
from gen3d.models import loading
from gen3d.weights import hub, port, tokenizing

EPSILON = 1e-5  # of the layer norms
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_SCALE = 100.0  # of the logits (section 2.5)
# Indices that some files store as a tensor.
_CONSTANTS = ('*.position_ids',)
_VALUES = dict.fromkeys(
    ('hidden_size', 'image_size', 'patch_size', 'num_attention_heads',
     'max_position_embeddings', 'projection_dim'), schemas.whole(1, 2 ** 16)
) | {'vocab_size': schemas.whole(2, 2 ** 22),
     'num_hidden_layers': schemas.whole(1, 256)}


def quick_gelu(x: jax.Array) -> jax.Array:
  """x sigmoid(1.702 x), elementwise: the approximate GELU of OpenAI's CLIP."""
  return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
  """The exact GELU, elementwise, of the OpenCLIP networks."""
  return jax.nn.gelu(x, approximate=False)


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Hyperparameters of a text tower; `eot` is the end-of-text token."""
  vocab: int
  length: int
  width: int
  layers: int
  heads: int
  eot: int
  activation: Callable = quick_gelu


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """Hyperparameters of an image tower, a vision transformer."""
  resolution: int
  patch: int
  width: int
  layers: int
  heads: int
  activation: Callable = quick_gelu


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
  """Both towers; `features` is the width of the shared space."""
  image: ImageConfig
  text: TextConfig
  features: int


_OPENAI_512 = TextConfig(49408, 77, 512, 12, 8, 49407)
_OPENAI_768 = TextConfig(49408, 77, 768, 12, 12, 49407)
B32 = CLIPConfig(ImageConfig(224, 32, 768, 12, 12), _OPENAI_512, 512)
B16 = CLIPConfig(ImageConfig(224, 16, 768, 12, 12), _OPENAI_512, 512)
L14 = CLIPConfig(ImageConfig(224, 14, 1024, 24, 16), _OPENAI_768, 768)


class CLIP(nn.Module):
  """Both towers, their projections and the scale of the logits."""
  config: CLIPConfig
  dtype: Any = jnp.float32

  def setup(self) -> None:
    config = self.config
    self.image = ImageTower(config.image, self.dtype)
    self.text = TextTower(config.text, self.dtype)
    self.image_projection = _dense(
        config.features, config.image.width ** -0.5, self.dtype, bias=False)
    self.text_projection = _dense(
        config.features, config.text.width ** -0.5, self.dtype, bias=False)
    self.log_scale = self.param(
        'log_scale', nn.initializers.constant(np.log(1 / 0.07)), ())

  def __call__(self, images: jax.Array, tokens: jax.Array
               ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both features and the scale of the logits: [B, E], [B, E], []."""
    return self.encode_image(images), self.encode_text(tokens), self.scale()

  def encode_image(self, images: jax.Array) -> jax.Array:
    """Images [B, R, R, 3] in [0, 1] -> features [B, E], not normalized."""
    return self.image_projection(self.image(images)[:, 0])

  def encode_text(self, tokens: jax.Array) -> jax.Array:
    """Tokens int32 [B, L] -> features [B, E], not normalized."""
    end = jnp.argmax(tokens == self.config.text.eot, axis=-1)
    states = self.text(tokens)
    return self.text_projection(
        jnp.take_along_axis(states, end[:, None, None], axis=1)[:, 0])

  def scale(self) -> jax.Array:
    """Factor from cosines to logits, at most 100."""
    return jnp.minimum(jnp.exp(self.log_scale), MAX_SCALE)


class ImageTower(nn.Module):
  """Vision transformer; its first state is that of the class token."""
  config: ImageConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Images [B, R, R, 3] in [0, 1] -> states [B, 1 + (R/P)^2, W].

    As in transformers, only the state of the class token is meaningful: the
    last norm was trained on it alone.

    Raises:
      UserError: the images have another resolution.
    """
    config = self.config
    expected = (config.resolution, config.resolution, 3)
    if images.shape[1:] != expected:
      raise UserError(f'The image tower of CLIP needs images of {expected}, '
                      f'not {images.shape[1:]}; resize them first.')
    normal = nn.initializers.normal(config.width ** -0.5)
    x = (images - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)
    x = nn.Conv(config.width, (config.patch, config.patch), (config.patch,) * 2,
                'VALID', use_bias=False, dtype=self.dtype, name='patches')(x)
    x = x.reshape(x.shape[0], -1, config.width)
    token = self.param('class_token', normal, (config.width,))
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1,
                                                     config.width))
    x = jnp.concatenate([token, x], axis=1)
    x = x + self.param('positions', normal, x.shape[1:]).astype(x.dtype)
    x = _norm(self.dtype, 'norm_before')(x)
    x = _Transformer(config, self.dtype, name='blocks')(x, None)
    return _norm(self.dtype, 'norm_after')(x)


class TextTower(nn.Module):
  """Causal transformer over tokens."""
  config: TextConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Tokens int32 [B, L] -> states [B, L, W], after the last norm.

    Raises:
      UserError: there are more tokens than positions.
    """
    config = self.config
    length = tokens.shape[-1]
    if length > config.length:
      raise UserError(f'The text tower of CLIP has {config.length} positions, '
                      f'not {length}; cut the tokens.')
    x = nn.Embed(config.vocab, config.width, dtype=self.dtype, name='embed',
                 embedding_init=nn.initializers.normal(0.02))(tokens)
    positions = self.param('positions', nn.initializers.normal(0.01),
                           (config.length, config.width))
    x = x + positions[:length].astype(x.dtype)
    causal = jnp.tril(jnp.ones((length, length), bool))
    x = _Transformer(config, self.dtype, name='blocks')(x, causal)
    return _norm(self.dtype, 'norm')(x)


def normalize(features: jax.Array) -> jax.Array:
  """Features [..., E] divided by their length."""
  squared = jnp.sum(features * features, axis=-1, keepdims=True)
  return features * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))


def image_features(clip: CLIP, params: Any, images: jax.Array) -> jax.Array:
  """Unit features [B, E] of images [B, R, R, 3] in [0, 1]."""
  features: Any = clip.apply(params, images, method='encode_image')
  return normalize(features)


def text_features(clip: CLIP, params: Any, tokens: jax.Array) -> jax.Array:
  """Unit features [B, E] of tokens int32 [B, L]."""
  features: Any = clip.apply(params, tokens, method='encode_text')
  return normalize(features)


def contrastive_loss(queries: jax.Array, candidates: jax.Array,
                     positive: jax.Array, scale: jax.Array | float,
                     ignored: jax.Array | None = None
                     ) -> tuple[jax.Array, jax.Array]:
  """InfoNCE in one direction: classify the positive candidate of each query.

  The loss of CLIP (figure 3 of the paper) is the mean of the two directions.

  Args:
    queries: [Q, E], of length one.
    candidates: [C, E], of length one.
    positive: int [Q], index of the candidate that belongs to each query.
    scale: [], of the logits.
    ignored: bool [Q, C] or None; candidates that are no negatives, because
      they match a query as well as its positive does. The positive is never
      ignored.

  Returns:
    (mean cross entropy [], accuracy []).
  """
  logits = scale * queries @ candidates.T
  is_positive = jax.nn.one_hot(positive, candidates.shape[0], dtype=bool)
  if ignored is not None:
    logits = jnp.where(ignored & ~is_positive, -jnp.inf, logits)
  score = jnp.sum(jnp.where(is_positive, logits, 0.0), axis=-1)
  loss = jax.nn.logsumexp(logits, axis=-1) - score
  correct = score >= jnp.max(logits, axis=-1)
  return jnp.mean(loss), jnp.mean(correct.astype(jnp.float32))


def load(path: str | os.PathLike, dtype: Any = jnp.float32,
         variant: str = '') -> tuple[CLIP, dict[str, Any]]:
  """Both towers from the folder of a CLIPModel of transformers.

  Args:
    path: folder with config.json and weights.
    dtype: of the parameters and of the computation.
    variant: see hub.read.

  Returns:
    (CLIP, {'params'}).

  Raises:
    UserError: a file is missing or broken, or belongs to another network.
  """
  folder = hub.read(path, variant)
  network = CLIP(clip_config(folder), dtype)
  return network, from_torch(folder.tensors, network.config, dtype)


def load_tokenizer(path: str | os.PathLike,
                   config: TextConfig) -> tokenizing.Tokenizer:
  """The tokenizer in a CLIP's folder; see tokenizing.load_tokenizer.

  Raises:
    UserError: there is none, or it is another network's.
  """
  tokenize = tokenizing.load_tokenizer(path, config.vocab, config.length)
  if config.eot not in tokenize(['a'])[0]:
    raise UserError(
        f'The tokenizer in {path} does not end a text with the token '
        f'{config.eot}, at which its CLIP reads the text feature; give a '
        'folder with the tokenizer of that CLIP.')
  return tokenize


def load_text(path: hub.Path | hub.Folder, dtype: Any = jnp.float32,
              variant: str = '') -> tuple[TextTower, dict[str, Any]]:
  """A text tower without projection: `text_encoder` of Stable Diffusion.

  Arguments and errors are those of `load`.

  Returns:
    (TextTower, {'params'}).
  """
  folder = hub.read(path, variant)
  tower = TextTower(text_config(folder), dtype)
  # transformers 5 writes no name of the tower; the published files, from
  # before, have it.
  prefix = 'text_model.'
  tensors = hub.renamed(
      folder.tensors, lambda name: prefix + name.removeprefix(prefix))
  return tower, loading.fill(
      tower, text_inputs(tower.config), tensors, dtype,
      text_sources(tower.config), _CONSTANTS, folder.path)


def clip_config(folder: hub.Folder) -> CLIPConfig:
  """Hyperparameters from the config.json of a CLIPModel.

  Raises:
    UserError: the config is for another network.
  """
  hub.expect_class(folder, ('CLIPModel',), 'clip')
  hub.check_values(folder, _VALUES)
  keys = 'text_config', 'vision_config'
  hub.check_values(folder, dict.fromkeys(
      (*keys, *(f'{k}_dict' for k in keys)), schemas.optional(schemas.MAPPING)))
  # Old files have both keys; transformers uses the second one then.
  text, image = ({**(folder.config.get(key) or {}),
                  **(folder.config.get(f'{key}_dict') or {})} for key in keys)
  hub.check_values(folder._replace(config=image), _VALUES)
  hub.expect(folder._replace(config=image), {'num_channels': (3,)})
  width = image.get('hidden_size', 768)
  image_config = ImageConfig(
      image.get('image_size', 224), image.get('patch_size', 32), width,
      image.get('num_hidden_layers', 12),
      image.get('num_attention_heads', 12),
      _activation(folder, image, width, 3072))
  return CLIPConfig(image_config, _text_config(folder, text),
                    folder.config.get('projection_dim', 512))


def text_config(folder: hub.Folder) -> TextConfig:
  """Hyperparameters from the config.json of a CLIPTextModel.

  Raises:
    UserError: the config is for another network.
  """
  hub.expect_class(folder, ('CLIPTextModel',), 'clip')
  return _text_config(folder, folder.config)


def from_torch(tensors: Mapping[str, np.ndarray], config: CLIPConfig,
               dtype: Any = jnp.float32) -> dict[str, Any]:
  """Parameters of a CLIP from those of a CLIPModel of transformers.

  Args:
    tensors: {PyTorch name: array}.
    config: of the CLIP.
    dtype: of the parameters.

  Returns:
    {'params'}.

  Raises:
    port.PortingError: lists the names or shapes that do not match.
  """
  return loading.fill(CLIP(config), inputs(config), tensors, dtype,
                      sources(config), _CONSTANTS)


def sources(config: CLIPConfig) -> port.Sources:
  """Names and layouts of a CLIPModel for each parameter of a CLIP."""
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
      # The published name is spelled without an e.
      **_norm_sources('image/norm_before', 'vision_model.pre_layrnorm'),
      **_norm_sources('image/norm_after', 'vision_model.post_layernorm'),
      **_block_sources('image/', 'vision_model', config.image.layers),
      **text_sources(config.text, 'text/'),
  }


def inputs(config: CLIPConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the inputs of a CLIP."""
  side = config.image.resolution
  return (jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
          *text_inputs(config.text))


def text_inputs(config: TextConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Shapes of the inputs of a TextTower."""
  return (jax.ShapeDtypeStruct((1, config.length), jnp.int32),)


def text_sources(config: TextConfig, prefix: str = '') -> port.Sources:
  """Names and layouts of a CLIPTextModel for each parameter of a TextTower.

  `prefix` is the path of the tower in a larger network.
  """
  embeddings = 'text_model.embeddings'
  return {
      f'{prefix}embed/embedding': (f'{embeddings}.token_embedding.weight',
                                   port.keep),
      f'{prefix}positions': (f'{embeddings}.position_embedding.weight',
                             port.keep),
      **_norm_sources(f'{prefix}norm', 'text_model.final_layer_norm'),
      **_block_sources(prefix, 'text_model', config.layers),
  }


def _text_config(folder: hub.Folder, text: hub.Config) -> TextConfig:
  hub.check_values(folder._replace(config=text), _VALUES)
  width, vocab = text.get('hidden_size', 512), text.get('vocab_size', 49408)
  end = text.get('eos_token_id', vocab - 1)
  return TextConfig(
      vocab, text.get('max_position_embeddings', 77), width,
      text.get('num_hidden_layers', 12), text.get('num_attention_heads', 8),
      # Published configs have 2 by mistake; the token is the last one.
      vocab - 1 if end == 2 else end,
      _activation(folder, text, width, 2048))


def _activation(folder: hub.Folder, tower: hub.Config, width: int,
                inner: int) -> Callable:
  """The activation of a tower; checks its heads and its MLPs.

  `tower` is its part of the config, `inner` the default width in the MLPs.
  """
  hub.check_divisors(folder, 'hidden_size and num_attention_heads',
                     [tower.get('num_attention_heads', 1)], [width])
  tower = {'intermediate_size': inner, **tower}
  hub.expect(folder._replace(config=tower), {
      'hidden_act': ('quick_gelu', 'gelu'), 'layer_norm_eps': (EPSILON,),
      'intermediate_size': (4 * width,)})
  return {'quick_gelu': quick_gelu, 'gelu': gelu}[
      tower.get('hidden_act', 'quick_gelu')]


class _Transformer(nn.Module):
  config: TextConfig | ImageConfig
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """x [B, L, W], allowed bool [L, L] or None (all) -> like x."""
    for i in range(self.config.layers):
      x = _Block(self.config, self.dtype, name=f'{i}')(x, allowed)
    return x


class _Block(nn.Module):
  config: TextConfig | ImageConfig
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """x [B, L, W], allowed bool [L, L] or None (all) -> like x."""
    config = self.config
    # The standard deviations of OpenAI's code, for a tower of any depth.
    std = config.width ** -0.5
    std_out = std * (2 * config.layers) ** -0.5
    heads = (*x.shape[:-1], config.heads, config.width // config.heads)

    y = _norm(self.dtype, 'norm_attention')(x)
    q, k, v = (
        _dense(config.width, std, self.dtype, name=name)(y).reshape(heads)
        for name in ('query', 'key', 'value'))
    # The softmax is in float32 for any dtype.
    logits = jnp.einsum('bqhk,blhk->bhql', q, k).astype(jnp.float32)
    logits = logits * heads[-1] ** -0.5
    if allowed is not None:
      logits = jnp.where(allowed, logits, -jnp.inf)
    weights = nn.softmax(logits, axis=-1).astype(self.dtype)
    y = jnp.einsum('bhql,blhk->bqhk', weights, v).reshape(x.shape)
    x = x + _dense(config.width, std_out, self.dtype, name='out')(y)

    y = _norm(self.dtype, 'norm_mlp')(x)
    y = _dense(4 * config.width, (2 * config.width) ** -0.5, self.dtype,
               name='up')(y)
    return x + _dense(config.width, std_out, self.dtype,
                      name='down')(config.activation(y))


def _dense(features: int, std: float, dtype: Any, bias: bool = True,
           name: str | None = None) -> nn.Dense:
  return nn.Dense(features, use_bias=bias, dtype=dtype, name=name,
                  kernel_init=nn.initializers.normal(std))


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name=name)


def _norm_sources(ours: str, theirs: str) -> port.Sources:
  return {f'{ours}/scale': (f'{theirs}.weight', port.keep),
          f'{ours}/bias': (f'{theirs}.bias', port.keep)}


def _block_sources(ours: str, theirs: str, layers: int) -> port.Sources:
  """Sources of the blocks of a tower; `ours` is '' or ends in '/'."""
  sources = {}
  for i in range(layers):
    block, layer = f'{ours}blocks/{i}', f'{theirs}.encoder.layers.{i}'
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
