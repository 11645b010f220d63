"""CLIP as guidance: images near their text in CLIP's feature space.

The loss is minus the cosine of the features of augmented renders and of the
prompt (Dream Fields, 2112.01455, eq. 4; CLIP-Mesh, 2203.13333, eq. 1). Its
gradient flows through the image tower, so that the value has a meaning, too.

The shipped pair for guidance, assets.CLIP_GUIDE, is not the one that
evaluates: a scene can learn images that please the network that guides it.
"""

import os
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gen3d import assets
from gen3d.choices import UserError
from gen3d.guidance import Guidance, augmentations, prompts
from gen3d.models import clip, clip_pair
from gen3d.ops import cameras


class Frozen(NamedTuple):
  """Guidance's `frozen` of CLIP."""
  weights: Any  # of the image tower
  texts: Any    # [V, E], of length one: one prompt, or one for each view
  image: Any    # [E], of length one: an image's feature, or None


def from_config(config: ml_collections.ConfigDict) -> Guidance:
  """The Guidance of a config.

  Args:
    config: with `guidance`: `path` of a CLIP, see clip_pair.open_towers ('':
      the shipped one); `augment`, see augmentations.from_config;
      `view_prompts`, keywords of prompts.nearest_view, or {} for one prompt in
      all views; `image_feature`, `path` of a .npy file with a feature [E] that
      renders are to be near to, too ('': none), and its `weight`.

  Raises:
    UserError: there is no such CLIP or file, or a name is unknown.
  """
  settings = config.guidance
  towers = clip_pair.open_towers(settings.path or assets.CLIP_GUIDE)
  size = towers.model.config.image.resolution
  path, weight = settings.image_feature.path, settings.image_feature.weight
  feature = read_feature(path, towers.model.config.features) if path else None
  nearest = (partial(prompts.nearest_view, **settings.view_prompts)
             if settings.view_prompts else None)
  return make(towers, augmentations.from_config(settings.augment, size),
              nearest, feature, weight)


def make(towers: clip_pair.Towers, augment: augmentations.Augment,
         nearest_view: Callable[..., jax.Array] | None = None,
         image_feature: np.ndarray | None = None,
         image_weight: float = 0.0) -> Guidance:
  """The Guidance of a CLIP.

  Args:
    towers: the CLIP.
    augment: render -> images of the image tower's size.
    nearest_view: (azimuth, elevation) -> index into prompts.VIEWS, for
      view-dependent prompts; None for the prompt alone.
    image_feature: [E] that renders are to be near to, too, such as the one
      that a diffusion prior makes of the prompt (CLIP-Mesh); None for none.
    image_weight: of its cosine; that of the prompt is 1.
  """
  def load(prompt, negative_prompt):
    del negative_prompt  # There is no classifier-free guidance.
    weights = towers.load()
    texts = (prompts.with_views(prompt, towers.fits) if nearest_view
             else [prompt])
    encode = jax.jit(partial(clip.text_features, towers.model))
    image = None if image_feature is None else clip.normalize(
        jnp.asarray(image_feature, jnp.float32))
    features = encode(weights, towers.tokenize(texts))
    return Frozen(_without_text(weights), features, image)

  def condition(frozen, camera):
    if nearest_view is None:
      return frozen.texts[0]
    azimuth, elevation, _ = cameras.angles(camera.c2w[:3, 3])
    return frozen.texts[nearest_view(azimuth, elevation)]

  def loss(params, frozen, key, render, text, step):
    del params, step
    features = clip.image_features(
        towers.model, frozen.weights, augment(key, render))
    cosine = jnp.mean(features @ text)
    total, metrics = -cosine, {'clip/cosine': cosine}
    if frozen.image is not None:
      near = jnp.mean(features @ frozen.image)
      total, metrics['clip/image_cosine'] = total - image_weight * near, near
    return total, metrics

  return Guidance(load, init=lambda key, frozen: {}, condition=condition,
                  loss=loss)


def _without_text(weights):
  """The weights that encode images: a step needs no others in memory."""
  return {'params': {name: x for name, x in weights['params'].items()
                     if not name.startswith('text')}}


def read_feature(path: str | os.PathLike, size: int) -> np.ndarray:
  """An image feature [E] from a .npy file of [E] or [1, E].

  Raises:
    UserError: there is no such file, or it holds something else.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise UserError(f'There is no file {file}; give a .npy file of an image '
                    "feature, or '' for none.")
  try:
    feature = np.load(file)
  except Exception as error:  # A zip or a header may be damaged anyhow.
    raise UserError(f'{file} is no .npy file ({error}); save the image feature '
                    'with numpy.save.') from error
  if not isinstance(feature, np.ndarray) or feature.size != size or (
      not np.issubdtype(feature.dtype, np.floating)
      or not np.isfinite(feature).all()):
    raise UserError(f'{file} holds no image feature of this CLIP; it needs '
                    f'{size} finite numbers.')
  return feature.reshape(size)
