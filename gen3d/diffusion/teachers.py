"""Frozen text-to-image models that answer with their noise prediction.

A teacher is one record: what it takes (`encode`), what it says (`denoise`)
and how it hears (`embed`). Its weights are an argument of `denoise`, so that
they travel as data and are never compiled into a program. Here is the record
and the models that gen3d trains; gen3d/diffusion/pretrained.py has those that
others have published.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen3d.choices import check
from gen3d.diffusion import noise
from gen3d.models import light_field, t5, unet
from gen3d.ops import cameras


def _as_it_was(weights, text, labels):
  del weights, labels
  return text


class Teacher(NamedTuple):
  """A frozen diffusion model.

  Attributes:
    schedule: noise.Schedule.
    encode: (weights, images [B, H, W, 3] in [0, 1], key) -> x [B, *latent]
      in about [-1, 1]; differentiable.
    decode: (weights, x [B, *latent]) -> images [B, H, W, 3], about in [0, 1].
    denoise: (weights, x_t [B, *latent], t [B], text) -> eps.
    embed: list of N prompts -> text, a pytree with leading axis N. Once per
      run and before `load`, so that a large text encoder has the memory to
      itself.
    latent: shape of what is denoised.
    bound: on the absolute values of a clean x; None where there is none.
    load: () -> weights, a pytree of what the other functions need.
    look: (weights, text, labels [N, 25] as from ops.cameras.to_label) -> text
      that also says from where it is seen, for a model that knows cameras;
      for all others the text as it was.
  """
  schedule: noise.Schedule
  encode: Callable
  decode: Callable
  denoise: Callable
  embed: Callable
  latent: tuple
  bound: float | None
  load: Callable
  look: Callable = _as_it_was

  @property
  def knows_cameras(self):
    return self.look is not _as_it_was


# (schedule, x_t, what the network says, t) -> v.
PREDICTIONS = {'v': lambda schedule, x_t, said, t: said,
               'x': noise.v_from_x}


class PixelModel(NamedTuple):
  """A text-to-image model on pixels: T5's encoder and a U-Net.

  Attributes:
    encoder: t5.T5Encoder.
    unet: unet.UNet.
    light_field: light_field.LightField, which sketches what is seen by a
      known camera for the U-Net to begin from; None where it has no sketch.
    size: pixels a side.
    schedule: noise.Schedule.
    prediction: what the U-Net says, a key of PREDICTIONS. A network narrower
      than its patches can say the picture but not the noise.
  """
  encoder: t5.T5Encoder
  unet: unet.UNet
  light_field: light_field.LightField | None
  size: int
  schedule: noise.Schedule
  prediction: str = 'v'

  @property
  def patches(self):
    """How many patches of a picture the U-Net sees."""
    return (self.size // self.unet.shape.patch) ** 2

  def init(self, key, length):
    """Parameters {'t5', 'unet', 'light_field'}, captions of `length` tokens."""
    key_t5, key_unet, key_field = jax.random.split(key, 3)
    tokens, mask = jnp.zeros((1, length), jnp.int32), jnp.ones((1, length))
    states = jnp.zeros((1, length, self.encoder.config.width))
    image = jnp.zeros((1, self.size, self.size, 3))
    label = jnp.zeros((1, 25))
    params = {'t5': self.encoder.init(key_t5, tokens, mask),
              'unet': self.unet.init(
                  key_unet, image, jnp.zeros(1), states, mask,
                  ray_features(label, self.size), image)}
    if self.light_field:
      told = light_field.features(*_known_rays(label, 1)[1:])
      params['light_field'] = self.light_field.init(
          key_field, told, states[:, 0])
    return params

  def embed(self, params, tokens, mask):
    """Tokens and mask [N, L] to a text seen by a camera that is not known.

    Returns:
      {'states' [N, L, D], 'mask' [N, L], 'camera' [N, 25]} and, where there is
      a light field, 'sketch' [N, H, W, 3].
    """
    text = {'states': self.encoder.apply(params['t5'], tokens, mask),
            'mask': mask, 'camera': jnp.zeros((len(tokens), 25))}
    if self.light_field:
      text['sketch'] = jnp.zeros((len(tokens), self.size, self.size, 3))
    return text

  def look(self, params, text, labels):
    """Teacher.look of this model; a label of zeros is not known.

    A sketch is taken as it is: the light field has a lesson of its own.
    """
    text = text | {'camera': labels}
    if self.light_field:
      known = jnp.any(labels != 0, axis=-1)[:, None, None, None]
      patch = self.unet.shape.patch
      side = self.size // patch
      seen = self.sketch(params, text, labels).reshape(
          len(labels), side, side, -1)
      text['sketch'] = known * unet.depth_to_space(
          jax.lax.stop_gradient(seen), patch)
    return text

  def sketch(self, params, text, labels, patches=None):
    """What the light field sees, [N, P, 3 * patch^2] for the U-Net's patches.

    Args:
      params: of the model.
      text: as from `embed`.
      labels: [N, 25].
      patches: ints [N, P], those that are wanted, row by row; None for all.
    """
    rays = [x.reshape(len(labels), -1, 3) for x in _known_rays(
        labels, self.size // self.unet.shape.patch)[1:]]
    if patches is not None:
      rays = [jnp.take_along_axis(x, patches[..., None], 1) for x in rays]
    return self.light_field.apply(
        params['light_field'], light_field.features(*rays),
        unet.masked_mean(text['states'], text['mask']))

  def predict_v(self, params, x_t, t, text):
    """v [B, H, W, 3] of noisy images x_t at times t [B]."""
    said = self.unet.apply(params['unet'], x_t, t, text['states'],
                           text['mask'],
                           ray_features(text['camera'], self.size),
                           text.get('sketch'))
    return PREDICTIONS[self.prediction](self.schedule, x_t, said, t)

  def denoise(self, params, x_t, t, text):
    """The same as eps."""
    v = self.predict_v(params, x_t, t, text)
    return noise.eps_from_v(self.schedule, x_t, v, t)


def ray_features(labels, size):
  """What each pixel of a U-Net is told of its ray, [B, size, size, 18].

  The ray's direction, the point of it that is nearest to the origin, where
  the object is, and sines and cosines of that point; zeros for a label of
  zeros, of which nothing is known.

  Args:
    labels: [B, 25] as from ops.cameras.to_label.
    size: pixels a side.
  """
  known, o, d = _known_rays(labels, size)
  # An object of the shapes world reaches about this far.
  nearest = cameras.nearest_to_origin(o, d) / 0.6
  angles = jnp.pi * jnp.concatenate([nearest, 2 * nearest], -1)
  features = jnp.concatenate([d, nearest, jnp.sin(angles), jnp.cos(angles)], -1)
  return jnp.where(known[:, None, None, None], features, 0.0)


def _known_rays(labels, side):
  """(known [B], origins, directions [B, side, side, 3]) of labels [B, 25].

  A label of zeros has the rays of some camera.
  """
  def one(label):
    known = jnp.any(label != 0)
    somewhere = cameras.to_label(cameras.orbit(0.0, 0.0, 1.6, 1.3))
    rays = cameras.rays(
        cameras.from_label(jnp.where(known, label, somewhere)), side, side)
    return known, rays.origins, rays.directions

  return jax.vmap(one)(labels)


def pixel_model(config, vocab):
  """PixelModel of a config with `size`, `unet` and `t5`.

  Models from before there was a choice have no `prediction` (they say v) and
  no `light_field`.

  Raises:
    UserError: if the prediction is not known.
  """
  prediction = config.get('prediction', 'v')
  check('prediction', PREDICTIONS, prediction)
  shape, field = unet.UNetShape(**config['unet']), config.get('light_field')
  return PixelModel(
      t5.T5Encoder(t5.T5Config(vocab=vocab, **config['t5'])),
      unet.UNet(shape._replace(sketch=bool(field))),
      light_field.LightField(light_field.LightFieldShape(**field),
                             3 * shape.patch ** 2) if field else None,
      config['size'], noise.cosine_schedule(), prediction)


def pixel_teacher(model, params, tokenize):
  """A Teacher out of a PixelModel and its parameters.

  Args:
    model: PixelModel.
    params: of the model.
    tokenize: list of N strings -> (tokens, mask) [N, L].
  """
  def encode(weights, images, key):
    del weights, key
    shape = (images.shape[0], model.size, model.size, 3)
    if images.shape != shape:
      images = jax.image.resize(images, shape, 'bilinear', antialias=True)
    return 2 * images - 1

  def embed(prompts):
    return jax.jit(model.embed)({'t5': params['t5']},
                                *tokenize(list(prompts)))

  return Teacher(
      model.schedule, encode, unit_images, model.denoise, embed,
      (model.size, model.size, 3), 1.0,
      lambda: {name: params[name] for name in params if name != 't5'},
      model.look if model.unet.shape.rays else _as_it_was)


def unit_images(weights, x):
  """Teacher.decode of a model on pixels."""
  del weights
  return x / 2 + 0.5
