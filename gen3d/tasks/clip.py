"""A small CLIP pair for the shapes world: the judge of pictures and prompts.

It is trained on views of the world's objects, under drawn lights and before
drawn backgrounds, and on captions of them, and shares nothing with the
diffusion model that it judges.

Vocabulary. The `facts` of a picture, and those that a caption states, are
four small integers: category, main color, second color, view; -1 where it
cannot be seen or is not said. A caption is untrue of a picture when it states
a fact that differs.
"""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import assets
from gen3d.data.shapes import captions
from gen3d.data.shapes import world as shapes_world
from gen3d.engine import optim
from gen3d.engine import state as states
from gen3d.engine.release import save_release
from gen3d.metrics import text as metrics_text
from gen3d.models import clip, clip_pair
from gen3d.tasks import Task

DISTRACTORS = 64
# White objects in training, more than in the world: their captions of any
# color have to be told apart from those of objects that are white. And how
# many of them have captions that may name the colors.
TEXTURELESS, TEXTURELESS_NAMED = 0.2, 0.5


def make(config):
  """The Task of configs/clip.py's get_config."""
  model = clip.CLIP(clip_pair.pair_config(config))
  optimizer = optim.make_optimizer(config.optimizer, config.steps)

  def init(key):
    if config.start_from:
      params, _ = assets.load(config.start_from)
      return states.create(params, optimizer, ema=True)
    resolution = config.image.resolution
    params = jax.jit(model.init)(
        key, jnp.zeros((1, resolution, resolution, 3)),
        jnp.zeros((1, assets.CAPTION_LENGTH), jnp.int32))
    return states.create(params, optimizer, ema=True)

  def finish(state, workdir):
    scalars, _ = evaluate_state(state, None, config=config)
    return save_release(assets.CLIP, config, state, workdir, r_precision=scalars)

  return Task(
      init=init,
      step=functools.partial(train_step, model=model, optimizer=optimizer,
                             ema_decay=config.ema_decay),
      batches=functools.partial(batches, config=config),
      evaluate=functools.partial(evaluate_state, config=config),
      finish=finish)


def r_precision(judge, images, own, others=(), *, facts=None,
                textureless=False, seed=0):
  """How often the judge finds the caption of a picture.

  Args:
    judge: Judge.
    images: [N, H, W, 3] in [0, 1].
    own: list of N captions, one a picture.
    others: more captions, for distractors only.
    facts: int [N, 4], what is true of the pictures, or None: what their
      captions say is all that is known of them.
    textureless: whether the pictures are white, so that no caption is untrue
      of them by its colors.
    seed: int, of the distractors.

  Returns:
    {'64': Rate among 64 captions that are untrue of the picture,
     'all': Rate among all captions that are untrue of it}.

  Raises:
    captions.Unknown: a caption names no object of the shapes world.
    UserError: fewer than 64 captions are untrue of a picture.
  """
  kept, truth = metrics_text.first_of_each([*own, *others])
  truth = truth[:len(own)]
  texts = [[*own, *others][i] for i in kept]
  said = np.stack([stated(t) for t in texts])
  facts = said[truth] if facts is None else facts
  facts = _visible(facts, np.full(len(facts), textureless))
  untrue = ~fits(said[None], facts[:, None])
  distractors = metrics_text.draw_distractors(seed, untrue, DISTRACTORS)
  features = judge.image_features(images), judge.text_features(texts)
  return {
      '64': metrics_text.r_precision(*features, truth, distractors),
      'all': metrics_text.r_precision(*features, truth, allowed=untrue)}


def stated(text):
  """What a caption says: int [4]; raises captions.Unknown."""
  view = [i for i, v in enumerate(captions.VIEWS) if f'{v} view' in text]
  return _numbers(captions.parse(text), view[0] if view else -1)


def fits(said, facts):
  """Whether nothing said [..., 4] is contradicted by the facts [..., 4]."""
  return ((said == facts) | (said < 0) | (facts < 0)).all(-1)


def _numbers(spec, view):
  return np.array([*captions.indices(spec), view], np.int32)


def batches(seed, first_step, *, config):
  """Training batches, each a pure function of (seed, step): an iterator."""
  views, specs = shapes_world.load_views(
      config.data_seed, 'train', config.views, config.resolution)
  truths = _truths(views, specs)
  encode = assets.tokenizer().encode
  for step in itertools.count(first_step):
    rng = np.random.default_rng((seed, step))
    rows = rng.integers(len(specs), size=config.batch)
    textureless = rng.random(config.batch) < TEXTURELESS
    texts = [captions.caption(rng, specs[row], captions.VIEWS[truths[row, 3]],
                              not white or rng.random() < TEXTURELESS_NAMED)
             for row, white in zip(rows, textureless)]
    yield {'index': np.arange(config.batch, dtype=np.int32),
           'views': jax.tree.map(operator.itemgetter(rows), views),
           'textureless': textureless.astype(np.float32),
           'tokens': encode(texts)[0],
           'said': np.stack([stated(text) for text in texts]),
           'facts': _visible(truths[rows], textureless)}


def evaluate_state(state, key, *, config):
  """R-precision of the averaged weights on held-out objects; no pictures."""
  del key  # The pictures are the same every time.
  judge = clip_pair.make(state.ema, clip_pair.pair_config(config))
  scalars = {}
  for split, textureless in (('seen', False), ('unseen', False),
                             ('seen', True)):
    images, texts, facts = held_out(
        split, config.held_out, textureless=textureless,
        seed=config.data_seed, resolution=config.resolution)
    rates = r_precision(judge, images, texts, facts=facts,
                        textureless=textureless)
    name = f'{split}_textureless' if textureless else split
    scalars |= {f'r_precision/{name}_{among}': rate.rate
                for among, rate in rates.items()}
  return scalars, {}


def held_out(split, count=512, *, textureless=False, seed=0, resolution=64):
  """Objects that no training has seen, as r_precision takes them.

  Args:
    split: 'seen' or 'unseen' (pairs of category and color).
    count: N.
    textureless: whether they are white.
    seed: of the world.
    resolution: R.

  Returns:
    (images [N, R, R, 3], list of N captions, facts [N, 4]).
  """
  views, specs = shapes_world.load_views(seed, split, count, resolution)
  truths = _truths(views, specs)
  texts = [captions.caption(shapes_world.example(seed, split, i).rng, spec,
                            captions.VIEWS[truths[i, 3]])
           for i, spec in enumerate(specs)]
  keys = jax.random.split(jax.random.key(seed), count)
  return np.asarray(_sample_images(keys, views, textureless)), texts, truths


@jax.jit
def _sample_images(keys, views, textureless):
  return jax.vmap(shapes_world.sample_image, (0, 0, None))(keys, views, textureless)


def _truths(views, specs):
  """Facts int [N, 4] of objects and of where they are seen from."""
  words = shapes_world.view_words(views.camera)
  return np.stack([_numbers(spec, captions.VIEWS.index(word))
                   for spec, word in zip(specs, words)])


def _visible(truths, textureless):
  """Facts [N, 4] without the colors of textureless pictures [N]."""
  return np.where(textureless[:, None] & np.array([False, True, True, False]),
                  -1, truths).astype(np.int32)


def train_step(state, batch, key, *, model, optimizer, ema_decay):
  """One update of both towers; the batch's pictures are drawn here."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['index'])
  draw = functools.partial(
      augmented, resolution=model.config.image.resolution)
  images = jax.vmap(draw)(keys, batch['views'], batch['textureless'])

  def loss_fn(params):
    image, text, scale = model.apply(params, images, batch['tokens'])
    image, text = clip.normalize(image), clip.normalize(text)
    gather = lambda x: jax.lax.all_gather(x, 'devices', tiled=True)
    here = jax.lax.axis_index('devices') * len(image) + jnp.arange(len(image))
    said, facts = batch['said'], batch['facts']
    # What is true of a picture besides its own caption is no counterexample.
    loss_image, found_text = clip.contrastive_loss(
        image, gather(text), here, scale,
        fits(gather(said)[None], facts[:, None]))
    loss_text, found_image = clip.contrastive_loss(
        text, gather(image), here, scale,
        fits(said[:, None], gather(facts)[None]))
    return (loss_image + loss_text) / 2, {
        'accuracy/text_of_image': found_text,
        'accuracy/image_of_text': found_image, 'scale': scale}

  (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params)
  grads = jax.lax.pmean(grads, 'devices')
  state = optim.apply_gradients(state, grads, optimizer, ema_decay)
  return state, {'loss/contrastive': loss, **metrics}


def augmented(key, view, textureless, resolution):
  """A training picture [R, R, 3] of a view, made unlike the last one of it.

  Light and background as in the shapes world; then what renders of a 3-D
  object and samples of a diffusion model add: another size and place in the
  picture, mirrored (the view words stay true), blurred, noisy, of another
  exposure.
  """
  (key_light, key_background, key_zoom, key_shift, key_mirror, key_blur,
   key_noise, key_exposure) = jax.random.split(key, 8)
  size = view.coverage.shape[0]
  light = shapes_world.sample_light(key_light, view.camera, textureless)
  shaded = shapes_world.shade_and_composite(view, light, jnp.zeros((size, size, 3)))
  image = jnp.concatenate([shaded, view.coverage[..., None] / 255.0], -1)
  image = jnp.where(jax.random.bernoulli(key_mirror), image[:, ::-1], image)
  zoom = jax.random.uniform(key_zoom, minval=0.75, maxval=1.2)
  shift = jax.random.uniform(key_shift, (2,), minval=-0.1, maxval=0.1)
  image = jax.image.scale_and_translate(
      image, (resolution, resolution, 4), (0, 1),
      jnp.stack([zoom, zoom]) * resolution / size,
      resolution * ((1 - zoom) / 2 + shift), 'linear')
  image = image[..., :3] + (1 - image[..., 3:]) * shapes_world.sample_background(
      key_background, resolution)
  side = jax.random.uniform(key_blur, minval=-0.25, maxval=0.25)
  image = _blur(image, jnp.maximum(side, 0.0))
  image *= jax.random.uniform(key_exposure, minval=0.85, maxval=1.15)
  image += 0.03 * jax.random.normal(key_noise, image.shape)
  return jnp.clip(image, 0.0, 1.0)


def _blur(image, side):
  """Convolves with (side, 1 - 2 side, side) both ways, edges repeated."""
  for axis in (0, 1):
    pad = [(1, 1) if a == axis else (0, 0) for a in range(3)]
    padded = jnp.pad(image, pad, 'edge')
    n = image.shape[axis]
    before = jax.lax.slice_in_dim(padded, 0, n, axis=axis)
    after = jax.lax.slice_in_dim(padded, 2, n + 2, axis=axis)
    image = (1 - 2 * side) * image + side * (before + after)
  return image
