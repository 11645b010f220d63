"""Training a small text-to-image diffusion model on the shapes world.

As Imagen (2205.11487) does at scale: text states of a T5 encoder condition a
U-Net on pixels by attention and a pooled vector; captions are dropped at random
for classifier-free guidance. The network predicts v under a cosine schedule.

The text encoder is trained from scratch. An auxiliary loss (`text_probe_loss`)
classifies category and the two colors from its pooled states; without it word
order is learned very late.

At large noise levels the best prediction is the mean of all images of (text,
camera). A U-Net, whose input is then almost only noise, learns it slowly; a
light field, whose inputs are the text and rays alone, learns it quickly. It is
trained by `prior_image_loss` and its output, the prior image, is an input of
the U-Net.

A ControlNet for depth conditioning (config.model.control) is trained alone,
with the other parts frozen: `trained_parts` are the parameters of the state,
the rest is `state.frozen`.
"""

import functools
import itertools
import operator
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import traverse_util

from gen3d import assets
from gen3d.choices import check
from gen3d.data.shapes import captions
from gen3d.data.shapes import render as shapes_render
from gen3d.data.shapes import world as shapes_world
from gen3d.diffusion import noise, pixel_model, sampling
from gen3d.diffusion.pixel_model import PixelModel
from gen3d.engine import devices, optim
from gen3d.engine import state as states
from gen3d.engine.release import save_release
from gen3d.engine.state import TrainState
from gen3d.io import images as image_io
from gen3d.models import unet
from gen3d.ops import cameras
from gen3d.ops import images as image_ops
from gen3d.tasks import Costs, Task, check_least, scheduled_rate

# Name in the parameters (and in checkpoints) of the matrices that
# `text_probe_loss` trains. They are not a part of the released model.
PROBE = 'reader'


class Parts(NamedTuple):
  """The constant parts of a step.

  Attributes:
    model: PixelModel.
    optimizer: optax.GradientTransformation.
    ema_decay: of the moving average of the parameters.
    max_snr_weight, high_noise_oversampling: see `sample_times`.
    loss_weights: of 'v' (`v_loss`), 'text_probe' (`text_probe_loss`) and
      'prior_image' (`prior_image_loss`); a loss of weight zero is not computed.
    prior_patches: patches of each image in the prior image's loss.
    trained: names of the parts that are trained; () for all.
  """
  model: PixelModel
  optimizer: optax.GradientTransformation
  ema_decay: float
  max_snr_weight: float
  high_noise_oversampling: float
  loss_weights: Mapping[str, float]
  prior_patches: int
  trained: tuple[str, ...] = ()


def make(config: ml_collections.ConfigDict) -> Task:
  """The Task of configs/text_to_image.py.

  Raises:
    UserError: the prediction or a trained part is unknown, or the weights of
      `start_from` cannot be read.
  """
  check_least(config, {'batch': 1, 'views': 1, 'held_out': 1, 'grid': 1})
  if config.start_from:  # An error before the data are rendered.
    assets.load(config.start_from, 'text_to_image')
  model = build_model(config)
  for part in config.trained_parts:
    check('part (trained_parts)', parts_of(model), part)
  parts = Parts(
      model, optim.make_optimizer(config.optimizer, config.steps),
      config.ema_decay, config.max_snr_weight, config.high_noise_oversampling,
      dict(config.loss_weights), config.prior_patches,
      tuple(config.trained_parts))

  return Task(
      init=functools.partial(_init, config=config, parts=parts),
      step=functools.partial(train_step, parts=parts),
      batches=functools.partial(batches, config=config),
      evaluate=functools.partial(evaluate, config=config, model=model),
      finish=functools.partial(_finish, config=config),
      costs=lambda: Costs({'image': config.model.size, 'batch': config.batch}),
      scheduled=scheduled_rate(config))


def parts_of(model: PixelModel) -> tuple[str, ...]:
  """Names of the parts of a model's parameters, the probe included."""
  return ('t5', 'unet', PROBE, *(
      name for name in ('light_field', 'control') if getattr(model, name)))


def build_model(config: ml_collections.ConfigDict) -> PixelModel:
  """The PixelModel of a config; errors of pixel_model.build."""
  return pixel_model.build(config['model'], assets.tokenizer().vocab_size)


def _init(key, *, config, parts):
  """The TrainState at step 0, with the weights of `start_from`, if any."""
  model = parts.model
  params = devices.jit_once(
      lambda key: model.init(key, assets.CAPTION_LENGTH))(key)
  if config.start_from:
    earlier, _ = assets.load(config.start_from, 'text_to_image')
    for part in config.start_parts:
      check(f'part of {config.start_from} (start_parts)', earlier, part)
    params = _with(params, {part: earlier[part]
                            for part in config.start_parts}, config.start_from)
  width = model.encoder.config.width
  params[PROBE] = {
      'category': jnp.zeros((width, len(captions.CATEGORIES) + 1)),
      'main': jnp.zeros((width, len(captions.COLORS) + 1)),
      'second': jnp.zeros((width, len(captions.COLORS) + 1))}
  if model.control:
    params['control'] = unet.copy_parameters(params['control'], params['unet'])
  trained = parts.trained or parts_of(model)
  frozen = {part: x for part, x in params.items() if part not in trained}
  return states.create({part: params[part] for part in trained},
                       parts.optimizer, ema=True, frozen=frozen or None)


def _finish(state, workdir, *, config):
  """Writes the averaged weights of the trained parts; see tasks.Task."""
  ema = {part: x for part, x in state.ema.items() if part != PROBE}
  if not config.trained_parts:
    return save_release(
        assets.TEXT_TO_IMAGE, config, state.replace(ema=ema), workdir)
  # The weights of these parts only, and the SHA-256 of those that they belong
  # to, whose own training is not a part of this record.
  base = assets.load(config.start_from)[1] if config.start_from else {}
  alone = config.copy_and_resolve_references()
  alone.start_from = ''
  return save_release(assets.TEXT_TO_IMAGE_DEPTH, alone,
                      state.replace(ema=ema), workdir,
                      base=base.get('sha256', ''))


def _with(params, earlier, file):
  """Parameters, replaced by those of an earlier model where it has them."""
  ours, theirs = map(traverse_util.flatten_dict, (params, earlier))
  # The file may lack parameters that models have only since it was written.
  common = ours.keys() & theirs.keys()
  assets.check_fits(file, {name: theirs[name] for name in common},
                    {name: ours[name] for name in common})
  return traverse_util.unflatten_dict({**ours, **theirs})


def batches(seed: int, first_step: int, *,
            config: ml_collections.ConfigDict) -> Iterator[dict[str, Any]]:
  """Training batches, each a pure function of (seed, step)."""
  views, specs = shapes_world.load_views(
      config.data_seed, 'train', config.views, config.model.size)
  words = shapes_world.view_words(views.camera)
  encode = assets.tokenizer().encode
  for step in itertools.count(first_step):
    rng = np.random.default_rng((seed, step))
    rows = rng.integers(len(specs), size=config.batch)
    textureless = rng.random(config.batch) < shapes_render.TEXTURELESS
    texts = [captions.caption(rng, specs[row], words[row], not white)
             for row, white in zip(rows, textureless)]
    # A dropped caption has no camera either: as the empty prompt has none.
    dropped = rng.random(config.batch) < config.drop_caption
    texts = ['' if drop else text for text, drop in zip(texts, dropped)]
    known = ~dropped & (rng.random(config.batch) >= config.drop_camera)
    tokens, mask = encode(texts)
    yield {'index': np.arange(config.batch, dtype=np.int32),
           'views': jax.tree.map(operator.itemgetter(rows), views),
           'textureless': textureless.astype(np.float32),
           'tokens': tokens, 'mask': mask, 'camera_known': known,
           'meaning': captions.meaning(texts)}


def train_step(state: TrainState, batch: Mapping[str, Any], key: jax.Array, *,
               parts: Parts) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update from one device's part of a batch; see tasks.Task."""
  model = parts.model
  key_time, key = jax.random.split(key)
  # Times are stratified over the whole batch: less variance of the loss.
  total = batch['index'].shape[0] * jax.lax.axis_size('devices')
  strata = (jax.random.uniform(key_time) + batch['index'] / total) % 1.0
  t = sample_times(strata, model.schedule, parts.max_snr_weight,
                   parts.high_noise_oversampling)
  x, on_gray, eps, patches = _examples(key, batch, parts)
  labels = cameras.to_label(batch['views'].camera)

  def loss_fn(trained):
    params = {**(state.frozen or {}), **trained}
    text = model.embed(params, batch['tokens'], batch['mask'])
    if model.control:
      text = model.add_depth(params, text, depth_maps(batch['views']))
    given = jnp.where(batch['camera_known'][:, None], labels, 0)
    compute = {
        'v': lambda: v_loss(
            model, params, x, eps, t, model.add_camera(params, text, given)),
        'text_probe': lambda: text_probe_loss(
            params[PROBE], text, batch['meaning']),
        'prior_image': lambda: prior_image_loss(
            model.prior_image(params, text, labels, patches),
            model.patches_at(on_gray, patches), batch['camera_known'])}
    weights = parts.loss_weights
    losses = {name: compute[name]() for name, w in weights.items() if w}
    return sum(weights[name] * loss for name, loss in losses.items()), {
        f'loss/{name}': loss for name, loss in losses.items()}

  grads, losses = jax.grad(loss_fn, has_aux=True)(state.params)
  grads, losses = jax.lax.pmean((grads, losses), 'devices')
  return optim.apply_gradients(
      state, grads, parts.optimizer, parts.ema_decay), losses


def depth_maps(views: shapes_render.Views) -> jax.Array:
  """Maps [B, H, W, 1] of ops.images.depth_map, of Views [B, H, W, ...]."""
  depth = cameras.axial_depth(
      views.camera, jnp.asarray(views.depth, jnp.float32))
  return image_ops.depth_map(depth, views.coverage / 255.0)


def _examples(key, batch, parts):
  """(images, the same on gray, noise, indices of patches) of a batch."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['index'])

  def draw(key, view, textureless):
    key_image, key_noise, key_patches = jax.random.split(key, 3)
    images = [2 * shapes_render.sample_image(
        key_image, view, textureless, *background) - 1
              for background in ((), (0.5,))]
    return *images, jax.random.normal(key_noise, images[0].shape), (
        jax.random.randint(
            key_patches, (parts.prior_patches,), 0, parts.model.patches))

  return jax.vmap(draw)(keys, batch['views'], batch['textureless'])


def sample_times(fractions: jax.Array, schedule: noise.Schedule,
                 max_snr_weight: float,
                 high_noise_oversampling: float) -> jax.Array:
  """Times [N] at which to train: quantiles of their density.

  A squared error of v is one of x weighted by 1 + SNR. Times of little noise
  are drawn less often, so that density times weight stays below
  `max_snr_weight`: min-SNR (2303.09556) as a sampling density instead of a loss
  weight. Times of much noise, where alone the prediction depends strongly on
  text and camera, are drawn more often.

  Args:
    fractions: [N] in [0, 1], quantiles.
    schedule: noise.Schedule.
    max_snr_weight: largest weight of an image's squared error.
    high_noise_oversampling: density at t = 1 relative to t = 0.
  """
  t = jnp.linspace(0.0, 1.0, 1001)
  # 1 + SNR = 1 / sigma^2, since the variance is preserved.
  middle = (t[1:] + t[:-1]) / 2
  density = jnp.minimum(1.0, max_snr_weight * schedule.sigma(middle) ** 2)
  density /= 1.0 - (1.0 - 1.0 / high_noise_oversampling) * middle
  total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(density)])
  return jnp.interp(fractions, total / total[-1], t)


def v_loss(model: PixelModel, params: Any, x: jax.Array, eps: jax.Array,
           t: jax.Array, text: Any) -> jax.Array:
  """Mean squared error of v: that of x weighted by 1 + SNR (2202.00512).

  Args:
    model: PixelModel.
    params: of the model.
    x: [B, H, W, 3] clean images.
    eps: [B, H, W, 3] noise.
    t: [B].
    text: of the model's `embed`, leading axis B.
  """
  x_t = noise.diffuse(model.schedule, x, eps, t)
  v = model.predict_v(params, x_t, t, text)
  return jnp.mean((v - noise.to_v(model.schedule, x, eps, t)) ** 2)


def prior_image_loss(prediction: jax.Array, truth: jax.Array,
                     camera_known: jax.Array) -> jax.Array:
  """Mean squared error over the examples with a known camera.

  It is least where the prediction is the mean of all images of (text, camera).
  The truth may be composited over the mean background: the minimum is the same
  and the loss has no variance of backgrounds.

  Args:
    prediction, truth: [B, P, C] of P patches.
    camera_known: [B].
  """
  error = jnp.mean((prediction - truth) ** 2, axis=(1, 2))
  return jnp.sum(camera_known * error) / jnp.maximum(jnp.sum(camera_known), 1)


def text_probe_loss(probe: Mapping[str, jax.Array],
                    text: Mapping[str, jax.Array],
                    meaning: jax.Array) -> jax.Array:
  """Cross-entropy of a linear classifier of the pooled text states.

  Args:
    probe: {'category', 'main', 'second'}, each a matrix [D, classes].
    text: {'states' [B, L, D], 'mask' [B, L]}.
    meaning: [B, 3] class indices of captions.meaning.

  Returns:
    The sum of the three mean cross-entropies, in nats.
  """
  pooled = jax.nn.standardize(unet.masked_mean(text['states'], text['mask']))
  return functools.reduce(jnp.add, (
      jnp.mean(optax.softmax_cross_entropy_with_integer_labels(
          pooled @ probe[name], meaning[:, i]))
      for i, name in enumerate(('category', 'main', 'second'))))


def evaluate(state: TrainState, key: jax.Array, *,
             config: ml_collections.ConfigDict, model: PixelModel
             ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """Held-out losses and a sheet of samples, with averaged weights."""
  views, specs = shapes_world.load_views(
      config.data_seed, 'seen', config.held_out, config.model.size)
  words = shapes_world.view_words(views.camera)
  rng = np.random.default_rng(config.data_seed)
  tokens, mask = assets.tokenizer().encode(
      [captions.caption(rng, spec, word) for spec, word in zip(specs, words)])
  params = {**(state.frozen or {}), **state.ema}
  losses: dict[str, jax.Array] = _held_out_losses(
      params, views, tokens, mask, model=model)
  scalars = {name: float(loss) for name, loss in losses.items()}
  sample = functools.partial(
      sampling.sample, key, pixel_model.to_teacher(model, params),
      scale=config.guidance_scale, steps=config.sampler_steps)
  if not model.control:
    prompts = list(pixel_model.PROMPTS[:config.grid])
    return scalars, {'samples': image_io.tile(
        sample(prompts), columns=8, labels=prompts)}
  # Each depth map of a held-out view, and above it the sample of the view.
  some = jax.tree.map(operator.itemgetter(slice(config.grid)), views)
  prompts = [f'{captions.plain(spec)}, {word} view'
             for spec, word in zip(specs[:config.grid], words)]
  maps = np.asarray(depth_maps(some))
  images = sample(prompts, labels=cameras.to_label(some.camera), depth=maps)
  return scalars, {'samples': image_io.tile(
      np.concatenate([images, np.uint8(255 * maps).repeat(3, -1)], axis=1),
      columns=8, labels=prompts)}


@functools.partial(jax.jit, static_argnames='model')
def _held_out_losses(params, views, tokens, mask, *, model):
  """Mean losses by name, without and with the camera and the depth map."""
  count = len(tokens)
  keys = jax.random.split(jax.random.key(0), count)
  draw = lambda *background: 2 * jax.vmap(
      lambda key, view: shapes_render.sample_image(
          key, view, 0.0, *background))(keys, views) - 1
  x, on_gray = draw(), draw(0.5)
  eps = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
  t = (jnp.arange(count) + 0.5) / count
  text = model.embed(params, tokens, mask)
  with_camera = model.add_camera(
      params, text, cameras.to_label(views.camera))
  example_loss = lambda example: v_loss(
      model, params, *jax.tree.map(lambda a: a[None], example))
  mean = lambda text: jnp.mean(
      jax.lax.map(example_loss, (x, eps, t, text), batch_size=16))
  losses = {'held_out/v': mean(text),
            'held_out/v_with_camera': mean(with_camera)}
  if model.control:
    losses['held_out/v_with_depth'] = mean(
        model.add_depth(params, with_camera, depth_maps(views)))
  if model.light_field:
    losses['held_out/prior_image'] = jnp.mean(
        (with_camera['prior_image'] - on_gray) ** 2)
  return losses
