"""The CLIP pair of the shapes world: contrastive training, R-precision.

Images are views of the world's objects, lit and augmented anew in every step;
captions are sampled from the world's grammar. The pair shares no weights with
the text-to-image model, so it can evaluate that model and what is distilled
from it.

Attributes of images and captions are those of data/shapes/attributes.py.
"""

import functools
import itertools
import operator
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from gen3d import assets
from gen3d.choices import pick
from gen3d.data.shapes import attributes, captions
from gen3d.data.shapes import render as shapes_render
from gen3d.data.shapes import world as shapes_world
from gen3d.engine import devices, optim
from gen3d.engine import state as states
from gen3d.engine.release import save_release
from gen3d.metrics import text as text_metrics
from gen3d.models import clip, clip_pair
from gen3d.ops import backgrounds
from gen3d.ops import images as image_ops
from gen3d.tasks import Costs, Task, check_least, scheduled_rate

# Fraction of textureless objects in training, larger than in the world: a
# caption of any color is consistent with them, and the pair has to tell them
# from objects that are white. Then the fraction of their captions that may
# name colors.
TEXTURELESS_PROB, TEXTURELESS_COLOR_PROB = 0.2, 0.5
# Blur of Dream Fields' backgrounds, whose paper has images of 224 pixels.
_BLUR = {'blur_radius': 4, 'blur_max': 2.1}


def _mixed_background(key: jax.Array, size: int) -> jax.Array:
  """[size, size, 3], of the shapes world or of Dream Fields, equally often."""
  key_kind, key_shapes, key_random = jax.random.split(key, 3)
  return jnp.where(
      jax.random.bernoulli(key_kind),
      shapes_render.sample_background(key_shapes, size),
      backgrounds.dream_fields(key_random, size, **_BLUR))


BACKGROUNDS = {'shapes': shapes_render.sample_background,
               'mixed': _mixed_background}


class Augmentation(NamedTuple):
  """Random changes of a training image; the defaults are those of `shapes`.

  Attributes:
    zoom: range of the scale.
    shift: largest shift along each axis, as a fraction of the side.
    background: (key, size) -> [size, size, 3].
  """
  zoom: tuple = (0.75, 1.2)
  shift: float = 0.1
  background: Callable = shapes_render.sample_background


JUDGE = Augmentation()


def make(config: ml_collections.ConfigDict) -> Task:
  """The Task of configs/clip.py's get_config.

  Raises:
    UserError: the weights of `start_from` cannot be read.
  """
  check_least(config, {'batch': 1, 'views': 1, 'held_out': 1})
  if config.start_from:  # An error before the data are rendered.
    assets.load(config.start_from, 'clip')
  model = clip.CLIP(clip_pair.pair_config(config))
  optimizer = optim.make_optimizer(config.optimizer, config.steps)
  augmentation = Augmentation(
      tuple(config.augment.zoom), config.augment.shift,
      pick('background', BACKGROUNDS, config.augment.background))

  def init(key: jax.Array) -> states.TrainState:
    resolution = config.image.resolution
    inputs = (jnp.zeros((1, resolution, resolution, 3)),
              jnp.zeros((1, assets.CAPTION_LENGTH), jnp.int32))
    if config.start_from:
      params, _ = assets.load(config.start_from, 'clip')
      assets.check_fits(config.start_from, params,
                        jax.eval_shape(model.init, key, *inputs))
    else:
      params = devices.jit_once(model.init)(key, *inputs)
    return states.create(params, optimizer, ema=True)

  def finish(state: states.TrainState,
             workdir: str | os.PathLike) -> tuple[pathlib.Path, ...]:
    scalars, _ = evaluate(state, None, config=config)
    return save_release(assets.FOLDER / f'{config.asset}.safetensors', config,
                        state, workdir, r_precision=scalars)

  return Task(
      init=init,
      step=functools.partial(train_step, model=model, optimizer=optimizer,
                             ema_decay=config.ema_decay,
                             augmentation=augmentation,
                             adversary=config.adversary),
      batches=functools.partial(batches, config=config),
      evaluate=functools.partial(evaluate, config=config),
      finish=finish,
      costs=lambda: Costs({'image': config.image.resolution,
                           'batch': config.batch}),
      scheduled=scheduled_rate(config))


def batches(seed: int, first_step: int, *,
            config: Any) -> Iterator[dict[str, Any]]:
  """Training batches, each a pure function of (seed, step).

  Yields:
    {'index' [B], 'views': world.Views [B], 'textureless' float [B], 'tokens'
    [B, L], 'stated': attributes of the captions [B, 4], 'attributes': of the
    images [B, 4]}.
  """
  views, specs = shapes_world.load_views(
      config.data_seed, 'train', config.views, config.resolution)
  of_views = attributes.of_views(views.camera, specs)
  encode = assets.tokenizer().encode
  for step in itertools.count(first_step):
    rng = np.random.default_rng((seed, step))  # so that resuming is exact
    rows = rng.integers(len(specs), size=config.batch)
    textureless = rng.random(config.batch) < TEXTURELESS_PROB
    texts = [captions.caption(
        rng, specs[row], captions.VIEWS[of_views[row, 3]],
        not white or rng.random() < TEXTURELESS_COLOR_PROB)
             for row, white in zip(rows, textureless)]
    yield {'index': np.arange(config.batch, dtype=np.int32),
           'views': jax.tree.map(operator.itemgetter(rows), views),
           'textureless': textureless.astype(np.float32),
           'tokens': encode(texts)[0],
           'stated': attributes.parse_all(texts),
           'attributes': attributes.visible(of_views[rows], textureless)}


def train_step(state: states.TrainState, batch: dict[str, Any],
               key: jax.Array, *, model: clip.CLIP,
               optimizer: optax.GradientTransformation,
               ema_decay: float, augmentation: Augmentation = JUDGE,
               adversary: float = 0.0
               ) -> tuple[states.TrainState, dict[str, Any]]:
  """One update of both towers, on this device's examples of the batch.

  Args:
    state: TrainState.
    batch: as from `batches`.
    key: of the step; an example's key is folded with its index.
    model: the pair of towers.
    optimizer: of its parameters.
    ema_decay: of the moving average of the parameters.
    augmentation: of the images.
    adversary: radius of `perturb`; 0 for none.

  Returns:
    (state, metrics).
  """
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['index'])
  draw = functools.partial(
      training_image, resolution=model.config.image.resolution,
      augmentation=augmentation)
  images = jax.vmap(draw)(keys, batch['views'], batch['textureless'])

  def loss_fn(params, images):
    output: Any = model.apply(params, images, batch['tokens'])
    image, text, scale = output
    image, text = clip.normalize(image), clip.normalize(text)
    # Negatives come from the whole batch: candidates are gathered from all
    # devices, queries stay local, and `positive` indexes the gathered batch.
    gather = lambda x: jax.lax.all_gather(x, 'devices', tiled=True)
    positive = (jax.lax.axis_index('devices') * len(image)
                + jnp.arange(len(image)))
    stated, shown = batch['stated'], batch['attributes']
    # Other captions that are consistent with an image are not negatives.
    loss_image, text_accuracy = clip.contrastive_loss(
        image, gather(text), positive, scale,
        text_metrics.consistent(gather(stated)[None], shown[:, None]))
    loss_text, image_accuracy = clip.contrastive_loss(
        text, gather(image), positive, scale,
        text_metrics.consistent(stated[:, None], gather(shown)[None]))
    return (loss_image + loss_text) / 2, {
        'accuracy/text_of_image': text_accuracy,
        'accuracy/image_of_text': image_accuracy, 'scale': scale}

  if adversary:
    slope = jax.grad(lambda x: loss_fn(state.params, x)[0])(images)
    images = jax.vmap(functools.partial(perturb, radius=adversary))(
        keys, images, slope)
  (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params, images)
  grads = jax.lax.pmean(grads, 'devices')
  state = optim.apply_gradients(state, grads, optimizer, ema_decay)
  return state, {'loss/contrastive': loss, **metrics}


def perturb(key: jax.Array, image: jax.Array, slope: jax.Array,
            radius: float) -> jax.Array:
  """An image moved to a larger loss, by a random part of `radius`.

  One step of the fast gradient method (Goodfellow et al., 1412.6572) in the
  Euclidean norm. The gradients of an encoder that is trained on such images
  look like objects instead of like noise (Santurkar et al., 1906.09453), as
  guidance needs.

  Args:
    key: PRNG key.
    image: [H, W, 3].
    slope: [H, W, 3], the loss's gradient.
    radius: largest Euclidean length of the change, of values in [0, 1].
  """
  length = radius * jax.random.uniform(jax.random.fold_in(key, 1))
  norm = jnp.sqrt(jnp.sum(slope**2) + 1e-20)
  moved = image + length * slope / norm
  return jax.lax.stop_gradient(jnp.clip(moved, 0.0, 1.0))


def training_image(key: jax.Array, view: shapes_render.Views,
                   textureless: jax.Array | float,
                   resolution: int,
                   augmentation: Augmentation = JUDGE) -> jax.Array:
  """A lit and augmented image [R, R, 3] of one view.

  Light and background are sampled as in the shapes world. The augmentations
  cover the variation of renders of optimized scenes and of samples of a
  diffusion model: scale, position, mirroring (view words stay true), blur,
  exposure and noise.

  Args:
    key: PRNG key.
    view: of one object.
    textureless: 1.0 for a white object, else 0.0.
    resolution: R.
    augmentation: Augmentation.
  """
  (key_light, key_background, key_zoom, key_shift, key_mirror, key_blur,
   key_noise, key_exposure) = jax.random.split(key, 8)
  size = view.coverage.shape[0]
  light = shapes_render.sample_light(key_light, view.camera, textureless)
  # Over black, so that the color is premultiplied by coverage and another
  # background can be added after the geometric augmentations.
  shaded = shapes_render.shade_and_composite(
      view, light, jnp.zeros((size, size, 3)))
  image = jnp.concatenate([shaded, view.coverage[..., None] / 255.0], -1)

  # Geometry.
  image = jnp.where(jax.random.bernoulli(key_mirror), image[:, ::-1], image)
  low, high = augmentation.zoom
  zoom = jax.random.uniform(key_zoom, minval=low, maxval=high)
  shift = jax.random.uniform(key_shift, (2,), minval=-augmentation.shift,
                             maxval=augmentation.shift)
  image = jax.image.scale_and_translate(
      image, (resolution, resolution, 4), (0, 1),
      jnp.stack([zoom, zoom]) * resolution / size,
      resolution * ((1 - zoom) / 2 + shift), 'linear')

  # Background, blur (half of the images have none), exposure, noise.
  background = augmentation.background(key_background, resolution)
  image = image[..., :3] + (1 - image[..., 3:]) * background
  side = jax.random.uniform(key_blur, minval=-0.25, maxval=0.25)
  image = image_ops.blur3(image, jnp.maximum(side, 0.0))
  image *= jax.random.uniform(key_exposure, minval=0.85, maxval=1.15)
  image += 0.03 * jax.random.normal(key_noise, image.shape)
  return jnp.clip(image, 0.0, 1.0)


def evaluate(state: states.TrainState, key: jax.Array | None, *,
             config: Any) -> tuple[dict[str, float], dict[str, Any]]:
  """R-precision of the averaged weights on held-out objects; no images."""
  del key  # The images are the same in every evaluation.
  pair = clip_pair.make(state.ema, clip_pair.pair_config(config))
  scalars = {}
  for split, textureless in (('seen', False), ('unseen', False),
                             ('seen', True)):
    images, texts, shown = held_out(
        split, config.held_out, textureless=textureless,
        seed=config.data_seed, resolution=config.resolution)
    rates = text_metrics.attribute_r_precision(
        pair, images, texts, attributes.parse_all(texts), shown)
    name = f'{split}_textureless' if textureless else split
    scalars |= {f'r_precision/{name}_{among}': rate.rate
                for among, rate in rates.items()}
  return scalars, {}


def held_out(
    split: str, count: int = 512, *, textureless: bool = False, seed: int = 0,
    resolution: int = 64) -> tuple[np.ndarray, list[str], np.ndarray]:
  """Images of objects that are in no training batch, and their captions.

  Args:
    split: 'seen' or 'unseen' (pairs of category and color).
    count: N.
    textureless: the objects are white.
    seed: of the world.
    resolution: R.

  Returns:
    (images [N, R, R, 3], list of N captions, visible attributes [N, 4]).
  """
  views, specs = shapes_world.load_views(seed, split, count, resolution)
  of_views = attributes.of_views(views.camera, specs)
  texts = [captions.caption(shapes_world.example(seed, split, i).rng, spec,
                            captions.VIEWS[of_views[i, 3]])
           for i, spec in enumerate(specs)]
  keys = jax.random.split(jax.random.key(seed), count)
  images = np.asarray(_sample_images(keys, views, textureless))
  return images, texts, attributes.visible(
      of_views, np.full(count, textureless))


@jax.jit
def _sample_images(keys, views, textureless):
  return jax.vmap(shapes_render.sample_image, (0, 0, None))(
      keys, views, textureless)
