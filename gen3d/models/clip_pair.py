"""The image and text encoders that ship with the package, as two functions.

Two CLIPs, trained on the shapes world (configs/clip.py): assets.CLIP evaluates,
assets.CLIP_GUIDE guides. They have no weights in common with each other or
with the text-to-image model, which is evaluated.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import assets
from gen3d.choices import UserError
from gen3d.models import clip
from gen3d.weights import hub


class ClipPair(NamedTuple):
  """Trained encoders as two functions.

  Attributes:
    image_features: images [N, H, W, 3] in [0, 1] -> features [N, E] of length
      one.
    text_features: N strings -> features [N, E] of length one.
  """
  image_features: Callable[[np.ndarray], np.ndarray]
  text_features: Callable[[Sequence[str]], np.ndarray]


class Towers(NamedTuple):
  """A CLIP that is on this machine, before its weights are read.

  Attributes:
    model: both towers.
    tokenize: N strings -> tokens int32 [N, L].
    load: () -> params of the model.
    fits: whether `tokenize` cuts nothing of a text.
  """
  model: clip.CLIP
  tokenize: Callable[[Sequence[str]], np.ndarray]
  load: Callable[[], Any]
  fits: Callable[[str], bool]


def open_towers(path: str | os.PathLike) -> Towers:
  """A CLIP of this package or of transformers, such as OpenAI's.

  Args:
    path: of a .safetensors file as the task 'clip' writes it, or a folder or
      hub id of a CLIPModel with its tokenizer.

  Raises:
    UserError: there is no such CLIP, or it has no tokenizer.
  """
  if str(path).endswith('.safetensors'):
    params, record = assets.load(path)
    if 'image' not in record.get('config', {}):
      raise UserError(f'{path} holds no CLIP pair; give weights that the task '
                      "'clip' has written, or the folder of a CLIPModel.")
    config = pair_config(record['config'])
    tokenizer, length = assets.tokenizer(), config.text.length
    return Towers(clip.CLIP(config),
                  lambda texts: tokenizer.encode(list(texts), length)[0],
                  lambda: params, lambda text: tokenizer.fits(text, length))
  folder = hub.locate(path).path
  config = clip.clip_config(hub.Folder(folder, hub.read_config(folder), {}))
  tokenize = clip.load_tokenizer(folder, config.text)
  return Towers(clip.CLIP(config), lambda texts: tokenize(texts)[0],
                lambda: clip.load(folder)[1], tokenize.fits)


def load(path: str | os.PathLike = assets.CLIP) -> ClipPair:
  """The encoders of an asset, by default of the one that ships.

  Raises:
    UserError: the asset is missing or damaged, or is not of a CLIP pair.
  """
  params, record = assets.load(path, 'clip')
  return make(params, pair_config(record['config']))


def make(params: Any, config: clip.CLIPConfig) -> ClipPair:
  """The encoders with these parameters."""
  model = clip.CLIP(config)

  def image_features(images: np.ndarray) -> np.ndarray:
    pixels = jnp.asarray(images, jnp.float32)
    return np.asarray(_image_features(params, pixels, model=model))

  def text_features(texts: Sequence[str]) -> np.ndarray:
    tokens, _ = assets.tokenizer().encode(list(texts), config.text.length)
    return np.asarray(_text_features(params, tokens, model=model))

  return ClipPair(image_features, text_features)


@functools.partial(jax.jit, static_argnames='model')
def _image_features(params: Any, images: jax.Array, *,
                    model: clip.CLIP) -> jax.Array:
  side = model.config.image.resolution

  def encode(image: jax.Array) -> jax.Array:
    resized = jax.image.resize(image, (side, side, 3), 'linear')
    return clip.image_features(model, params, resized[None])[0]

  # In batches of 64, which bounds the memory.
  return jax.lax.map(encode, images, batch_size=64)


@functools.partial(jax.jit, static_argnames='model')
def _text_features(params: Any, tokens: jax.Array, *,
                   model: clip.CLIP) -> jax.Array:
  return clip.text_features(model, params, tokens)


def pair_config(config: Any) -> clip.CLIPConfig:
  """Hyperparameters from the config of a run, or the dict in an asset."""
  image, text = config['image'], config['text']
  return clip.CLIPConfig(
      clip.ImageConfig(**image),
      clip.TextConfig(vocab=assets.tokenizer().vocab_size,
                      length=assets.CAPTION_LENGTH, eot=1, **text),
      features=config['features'])
