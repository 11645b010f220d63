"""The CLIP pair that ships with the package, as two functions.

It is trained on the shapes world (configs/clip.py) and shares no weights with
the text-to-image model.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import assets
from gen3d.models import clip


class ClipPair(NamedTuple):
  """A trained pair as two functions.

  Attributes:
    image_features: images [N, H, W, 3] in [0, 1] -> unit features [N, E].
    text_features: list of N strings -> unit features [N, E].
  """
  image_features: Callable
  text_features: Callable


def load(path: str | os.PathLike = assets.CLIP) -> ClipPair:
  """The shipped ClipPair, or that of another asset.

  Raises:
    UserError: the asset is missing or damaged.
  """
  params, record = assets.load(path)
  return make(params, pair_size(record['config']))


def make(params: Any, size: clip.CLIPSize) -> ClipPair:
  """The ClipPair of a pair's parameters and clip.CLIPSize."""
  model = clip.CLIP(size)

  def image_features(images):
    images = jnp.asarray(images, jnp.float32)
    return np.asarray(_image_features(params, images, model=model))

  def text_features(texts):
    tokens, _ = assets.tokenizer().encode(list(texts), size.text.length)
    return np.asarray(_text_features(params, tokens, model=model))

  return ClipPair(image_features, text_features)


@functools.partial(jax.jit, static_argnames='model')
def _image_features(params, images, *, model):
  resolution = model.size.image.resolution

  def one(image):
    fit = jax.image.resize(image, (resolution, resolution, 3), 'linear')
    return clip.image_features(model, params, fit[None])[0]

  return jax.lax.map(one, images, batch_size=64)


@functools.partial(jax.jit, static_argnames='model')
def _text_features(params, tokens, *, model):
  return clip.text_features(model, params, tokens)


def pair_size(config: Any) -> clip.CLIPSize:
  """clip.CLIPSize of a config (a ConfigDict, or a dict from an asset)."""
  image, text = config['image'], config['text']
  return clip.CLIPSize(
      clip.ImageSize(**image),
      clip.TextSize(vocab=assets.tokenizer().vocab_size,
                    length=assets.CAPTION_LENGTH, eot=1, **text),
      features=config['features'])
