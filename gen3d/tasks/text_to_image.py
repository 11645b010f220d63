"""Training a small text-to-image diffusion model on the shapes world.

As Imagen (2205.11487) does at scale: text states from a T5 encoder, here
trained along, condition a U-Net on pixels by attention and a pooled vector;
captions are dropped at times for classifier-free guidance. The network
predicts v under a cosine schedule. Imagen's encoder has read the web before;
ours learns to read here, by being asked for what each caption says of which
part: pictures alone teach it words long before they teach it their order.

Where all is noise the best answer is the mean of all pictures that text and
camera may mean. A U-Net is slow to learn it, for what it sees then is noise; a
light field, which sees nothing else than text and rays, is quick. So there is
one, taught by `sketch_loss` alone, whose picture the U-Net begins from.
"""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import traverse_util

from gen3d import assets
from gen3d.choices import check
from gen3d.data.shapes import captions
from gen3d.data.shapes import world as shapes_world
from gen3d.diffusion import noise, samplers, teachers
from gen3d.engine import optim, sharding
from gen3d.engine import state as states
from gen3d.engine.release import save_release
from gen3d.io import images as image_io
from gen3d.models import unet
from gen3d.ops import cameras
from gen3d.render import finished
from gen3d.tasks import Task

PROMPTS = ('a red chair', 'a yellow duck', 'a blue car with red wheels',
           'a green tree with brown trunk', 'a white rabbit, front view',
           'a pink house with purple roof', 'an orange cat, side view',
           'a cyan mug', 'a purple rocket with orange fins',
           'a black robot, back view', 'a green cactus with brown pot',
           'a red mushroom with white stem', 'a white snowman with black hat',
           'a blue fish with yellow fins, side view',
           'a brown table, overhead view', 'a gray castle with red towers')


def make(config):
  """The Task of configs/text_to_image.py's get_config."""
  model = _model(config)
  optimizer = optim.make_optimizer(config.optimizer, config.steps)

  def init(key):
    params = jax.jit(lambda key: model.init(key, assets.CAPTION_LENGTH))(key)
    if config.start_from:
      earlier, _ = assets.load(config.start_from)
      for part in config.start_parts:
        check(f'part of {config.start_from} (start_parts)', earlier, part)
      params = _with(params, {part: earlier[part]
                              for part in config.start_parts})
    width = model.encoder.config.width
    params['reader'] = {
        'category': jnp.zeros((width, len(captions.CATEGORIES) + 1)),
        'main': jnp.zeros((width, len(captions.COLORS) + 1)),
        'second': jnp.zeros((width, len(captions.COLORS) + 1))}
    return states.create(params, optimizer, ema=True)

  def finish(state, workdir):
    ema = {part: x for part, x in state.ema.items() if part != 'reader'}
    return save_release(assets.TEXT_TO_IMAGE, config, state.replace(ema=ema), workdir)

  return Task(
      init=init,
      step=functools.partial(train_step, model=model, optimizer=optimizer,
                             ema_decay=config.ema_decay,
                             most=config.most_weight,
                             late=config.late_times,
                             lessons=dict(config.lessons),
                             patches=config.sketch_patches),
      batches=functools.partial(batches, config=config),
      evaluate=functools.partial(evaluate, config=config, model=model),
      finish=finish)


def load(path=assets.TEXT_TO_IMAGE):
  """The shipped model as (PixelModel, params, record).

  Raises:
    UserError: the asset is missing or damaged.
  """
  params, record = assets.load(path)
  return _model(record['config']), params, record


def teacher(path=assets.TEXT_TO_IMAGE):
  """The shipped model (or that at `path`) as a teachers.Teacher."""
  model, params, _ = load(path)
  return teachers.pixel_teacher(model, params, _tokenize)


def _with(params, earlier):
  """Parameters with those of an earlier model where it has them."""
  flat = traverse_util.flatten_dict
  return traverse_util.unflatten_dict({**flat(params), **flat(earlier)})


def _tokenize(prompts):
  advice = captions.advice(prompts)
  if advice:
    logging.warning(advice)
  return assets.tokenizer().encode(prompts)


def _model(config):
  return teachers.pixel_model(config['model'], assets.tokenizer().vocab_size)


def batches(seed, first_step, *, config):
  """Training batches, each a pure function of (seed, step): an iterator."""
  views, specs = shapes_world.load_views(
      config.data_seed, 'train', config.views, config.model.size)
  words = shapes_world.view_words(views.camera)
  encode = assets.tokenizer().encode
  for step in itertools.count(first_step):
    rng = np.random.default_rng((seed, step))
    rows = rng.integers(len(specs), size=config.batch)
    textureless = rng.random(config.batch) < shapes_world.TEXTURELESS
    texts = [captions.caption(rng, specs[row], words[row], not white)
             for row, white in zip(rows, textureless)]
    dropped = rng.random(config.batch) < config.drop_caption
    texts = ['' if drop else text for text, drop in zip(texts, dropped)]
    told = ~dropped & (rng.random(config.batch) >= config.drop_camera)
    tokens, mask = encode(texts)
    yield {'index': np.arange(config.batch, dtype=np.int32),
           'views': jax.tree.map(operator.itemgetter(rows), views),
           'textureless': textureless.astype(np.float32),
           'tokens': tokens, 'mask': mask, 'told': told,
           'meaning': captions.meaning(texts)}


def train_step(state, batch, key, *, model, optimizer, ema_decay, most,
               late, lessons, patches):
  """One update of a model on this chip's share of a batch.

  `most` and `late` say at which times: see `spread_times`. `lessons` has the
  weights of 'v' (`v_loss`), 'reading' (`reading_loss`) and 'sketch'
  (`sketch_loss`, at some patches of each picture); what weighs nothing is not
  computed.
  """
  key_time, key = jax.random.split(key)
  # Times spread evenly over the whole batch: less noise in the loss.
  total = batch['index'].shape[0] * jax.lax.axis_size('devices')
  even = (jax.random.uniform(key_time) + batch['index'] / total) % 1.0
  t = spread_times(even, model.schedule, most, late)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['index'])

  def draw(key, view, textureless):
    key_image, key_noise, key_patches = jax.random.split(key, 3)
    images = [2 * shapes_world.sample_image(key_image, view, textureless, *where) - 1
              for where in ((), (0.5,))]
    return *images, jax.random.normal(key_noise, images[0].shape), (
        jax.random.randint(key_patches, (patches,), 0, model.patches))

  x, on_grey, eps, places = jax.vmap(draw)(
      keys, batch['views'], batch['textureless'])
  labels = cameras.to_label(batch['views'].camera)

  def loss_fn(params):
    text = model.embed(params, batch['tokens'], batch['mask'])
    told = jnp.where(batch['told'][:, None], labels, 0)
    compute = {
        'v': lambda: v_loss(
            model, params, x, eps, t, model.look(params, text, told)),
        'reading': lambda: reading_loss(
            params['reader'], text, batch['meaning']),
        'sketch': lambda: sketch_loss(
            model.sketch(params, text, labels, places),
            _patches(model, on_grey, places), batch['told'])}
    losses = {name: compute[name]() for name, w in lessons.items() if w}
    return sum(lessons[name] * loss for name, loss in losses.items()), {
        f'loss/{name}': loss for name, loss in losses.items()}

  grads, losses = jax.grad(loss_fn, has_aux=True)(state.params)
  grads, losses = jax.lax.pmean((grads, losses), 'devices')
  return optim.apply_gradients(state, grads, optimizer, ema_decay), losses


def spread_times(fractions, schedule, most, late):
  """Times at which to train, [N] for fractions [N] of their distribution.

  An error of v counts for the image as if weighted by 1 + SNR. So that this
  weight goes no further than `most`, times of little noise are drawn less
  often: after min-SNR (2303.09556), whose weight is a chance here, and which
  would have shapes, decided at much noise, count less too. Only there does it
  matter what text and camera say, for less noise leaves both to be seen.

  Args:
    fractions: [N] in [0, 1].
    schedule: noise.Schedule.
    most: the largest weight of an image's squared error.
    late: how much more often times near 1 are drawn than those near 0.
  """
  t = jnp.linspace(0.0, 1.0, 1001)
  # 1 + SNR = 1 / sigma^2, since the variance is preserved.
  middle = (t[1:] + t[:-1]) / 2
  chance = jnp.minimum(1.0, most * schedule.sigma(middle) ** 2)
  chance /= 1.0 - (1.0 - 1.0 / late) * middle
  total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(chance)])
  return jnp.interp(fractions, total / total[-1], t)


def v_loss(model, params, x, eps, t, text):
  """Mean squared error of v: that of x weighted by 1 + SNR (2202.00512)."""
  x_t = noise.diffuse(model.schedule, x, eps, t)
  v = model.predict_v(params, x_t, t, text)
  return jnp.mean((v - noise.to_v(model.schedule, x, eps, t)) ** 2)


def sketch_loss(seen, truth, told):
  """Mean squared error, over the examples whose camera is told [B].

  Least where `seen` is the mean of what a text may mean from there. The truth
  may be over the mean background: that has the same mean, and no noise of its
  own.

  Args:
    seen, truth: [B, P, C] of P patches.
    told: [B].
  """
  error = jnp.mean((seen - truth) ** 2, axis=(1, 2))
  return jnp.sum(told * error) / jnp.maximum(jnp.sum(told), 1)


def _patches(model, images, places):
  """Some of the U-Net's patches [B, P, C] of images, as `sketch` has them."""
  patches = unet.space_to_depth(images, model.unet.shape.patch)
  return jnp.take_along_axis(
      patches.reshape(len(images), -1, patches.shape[-1]),
      places[..., None], 1)


def reading_loss(reader, text, meaning):
  """How badly the pooled text, read linearly, says what the captions say.

  Args:
    reader: {'category', 'main', 'second'}, each a matrix [D, classes].
    text: {'states' [B, L, D], 'mask' [B, L]}.
    meaning: [B, 3] as from captions.meaning.

  Returns:
    The sum of the three mean cross-entropies, in nats.
  """
  pooled = jax.nn.standardize(unet.masked_mean(text['states'], text['mask']))
  return sum(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(
      pooled @ reader[name], meaning[:, i]))
             for i, name in enumerate(('category', 'main', 'second')))


def evaluate(state, key, *, config, model):
  """Loss on held-out pictures and a grid of samples, with averaged weights."""
  views, specs = shapes_world.load_views(
      config.data_seed, 'seen', config.held_out, config.model.size)
  words = shapes_world.view_words(views.camera)
  rng = np.random.default_rng(config.data_seed)
  tokens, mask = assets.tokenizer().encode(
      [captions.caption(rng, spec, word) for spec, word in zip(specs, words)])
  losses = _held_out_losses(state.ema, views, tokens, mask, model=model)
  prompts = list(PROMPTS[:config.grid])
  images = sample(key, model, state.ema, prompts, scale=config.guidance_scale,
                  steps=config.sampler_steps)
  return losses, {'samples': image_io.tile(
      images, columns=8, labels=prompts)}


@functools.partial(jax.jit, static_argnames='model')
def _held_out_losses(params, views, tokens, mask, *, model):
  """Mean v losses by name, of cameras that are not told and that are."""
  count = len(tokens)
  keys = jax.random.split(jax.random.key(0), count)
  draw = lambda *where: 2 * jax.vmap(lambda key, view: shapes_world.sample_image(
      key, view, 0.0, *where))(keys, views) - 1
  x, on_grey = draw(), draw(0.5)
  eps = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
  t = (jnp.arange(count) + 0.5) / count
  text = model.embed(params, tokens, mask)
  told = model.look(params, text, cameras.to_label(views.camera))
  one = lambda i: v_loss(model, params, *jax.tree.map(lambda a: a[None], i))
  mean = lambda text: jnp.mean(
      jax.lax.map(one, (x, eps, t, text), batch_size=16))
  losses = {'held_out/v': mean(text), 'held_out/v_of_known_camera': mean(told)}
  if model.light_field:
    losses['held_out/sketch'] = jnp.mean((told['sketch'] - on_grey) ** 2)
  return losses


def sample(key, model, params, prompts, **options):
  """`sample_teacher` of a teachers.PixelModel and its parameters."""
  return sample_teacher(
      key, teachers.pixel_teacher(model, params, _tokenize), prompts,
      **options)


def around(prompts, count, elevation=20.0):
  """Each prompt from `count` sides: (prompts, labels [N count, 25]).

  The sides are `elevation` degrees high and evenly apart, from the front on,
  and named in the prompts.
  """
  # In the middle of what the model has seen.
  path = finished.turntable(count, {'elevation': elevation} | {
      name: np.mean(shapes_world.CAMERA[name]) for name in ('distance', 'focal')})
  return ([f'{prompt}, {view} view' for prompt in prompts
           for view in shapes_world.view_words(path)],
          np.tile(cameras.to_label(path), (len(prompts), 1)))


def sample_teacher(key, teacher, prompts, *, labels=None, negative='',
                   scale=3.0, steps=40, eta=0.0, batch=16):
  """Images uint8 [N, H, W, 3] of N prompts.

  Args:
    key: PRNG key.
    teacher: teachers.Teacher.
    prompts: list of N strings.
    labels: [N, 25] of the cameras, for a teacher that knows them.
    negative: what is led away from; '' for no prompt at all.
    scale: guidance scale, 1 for none.
    steps: of the sampler.
    eta: 0 for DDIM, 1 for ancestral DDPM.
    batch: how many at a time.
  """
  text = teacher.embed([*prompts, negative])
  null = jax.tree.map(lambda a: a[-1:], text)
  text = jax.tree.map(lambda a: a[:-1], text)
  weights = teacher.load()
  if labels is not None:
    text = jax.jit(teacher.look)(weights, text, jnp.asarray(labels))
  draw = _sampler(teacher.schedule, teacher.denoise, teacher.decode,
                  (batch, *teacher.latent), teacher.bound, steps)
  return draw((key, weights, null, scale, eta),
              (np.arange(len(prompts)), text))


@functools.lru_cache(maxsize=4)
def _sampler(schedule, denoise, decode, shape, bound, steps):
  """((key, weights, null, scale, eta), (numbers, texts)) -> images."""
  def draw(shared, rows):
    key, weights, null, scale, eta = shared
    number, text = rows
    null = jax.tree.map(lambda n, a: jnp.broadcast_to(n, a.shape), null, text)
    predict = samplers.guided(denoise, weights, text, null, scale)
    x = samplers.sample(jax.random.fold_in(key, number[0]), predict, schedule,
                        shape, steps, eta, bound)
    images = decode(weights, x)
    return jnp.round(255 * jnp.clip(images, 0, 1)).astype(jnp.uint8)

  return sharding.map_over_devices(draw, shape[0], 'sampling')
