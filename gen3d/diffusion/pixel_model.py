"""The text-to-image model that ships with gen3d: T5's encoder, a U-Net on
64 x 64 pixels and a light field, trained on the shapes world.

Camera conditioning: each pixel's ray is an input of the U-Net's blocks, and
the U-Net starts from a *prior image*, the light field's estimate of the mean
image of (text, camera). At large noise levels that mean is the best
prediction, and a U-Net, whose input is then almost only noise, learns it
slowly. A camera label of zeros stands for an unknown camera.

Depth conditioning: a ControlNet (models/unet.py), trained beside the frozen
model and shipped in a file of its own, adds to the U-Net's features what
follows from the depth map of the view. A map of zeros stands for no map.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from gen3d import assets
from gen3d.choices import UserError, check
from gen3d.data.shapes import captions
from gen3d.data.shapes import world as shapes_world
from gen3d.diffusion import noise
from gen3d.diffusion.teachers import (
  Teacher,
  Text,
  Weights,
  unit_images,
  without_camera,
  without_depth,
)
from gen3d.models import light_field, t5, unet
from gen3d.ops import cameras

# (schedule, x_t, output of the network, t) -> v.
PREDICTIONS = {'v': lambda schedule, x_t, output, t: output,
               'x': noise.v_from_x}

# Prompts of the sample sheets.
PROMPTS = ('a red chair', 'a yellow duck', 'a blue car with red wheels',
           'a green tree with brown trunk', 'a white rabbit, front view',
           'a pink house with purple roof', 'an orange cat, side view',
           'a cyan mug', 'a purple rocket with orange fins',
           'a black robot, back view', 'a green cactus with brown pot',
           'a red mushroom with white stem', 'a white snowman with black hat',
           'a blue fish with yellow fins, side view',
           'a brown table, overhead view', 'a gray castle with red towers')


class PixelModel(NamedTuple):
  """A text-to-image model on pixels.

  Attributes:
    encoder: t5.T5Encoder.
    unet: unet.UNet.
    light_field: light_field.LightField, which makes the prior image; None for
      a model without.
    size: pixels a side.
    schedule: noise.Schedule.
    prediction: of the U-Net, a key of PREDICTIONS. A network narrower than its
      patches can represent an image but not noise.
    control: unet.ControlNet of depth maps; None for a model without.
  """
  encoder: t5.T5Encoder
  unet: unet.UNet
  light_field: light_field.LightField | None
  size: int
  schedule: noise.Schedule
  prediction: str = 'v'
  control: unet.ControlNet | None = None

  @property
  def patches(self) -> int:
    """Number of the U-Net's patches in an image."""
    return (self.size // self.unet.shape.patch) ** 2

  def init(self, key: jax.Array, length: int) -> Weights:
    """Parameters {'t5', 'unet', 'light_field', 'control'} of the parts.

    Args:
      key: PRNG key.
      length: of the captions in tokens.
    """
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
      rays = light_field.features(*_camera_rays(label, 1)[1:])
      params['light_field'] = self.light_field.init(
          key_field, rays, states[:, 0])
    if self.control:
      params['control'] = self.control.init(
          jax.random.fold_in(key, 3), image[..., :1], image, jnp.zeros(1),
          states, mask, ray_features(label, self.size), image)
    return params

  def embed(self, params: Weights, tokens: jax.Array,
            mask: jax.Array) -> Text:
    """The text of tokens and mask [N, L], with an unknown camera.

    Returns:
      {'states' [N, L, D], 'mask' [N, L], 'camera' [N, 25]} and, where there is
      a light field, 'prior_image' [N, H, W, 3].
    """
    text = {'states': self.encoder.apply(params['t5'], tokens, mask),
            'mask': mask, 'camera': jnp.zeros((len(tokens), 25))}
    if self.light_field:
      text['prior_image'] = jnp.zeros((len(tokens), self.size, self.size, 3))
    return text

  def add_camera(self, params: Weights, text: Text,
                 labels: jax.Array) -> Text:
    """Teacher.add_camera of this model; a label of zeros is unknown.

    The prior image has no gradient: the light field has a loss of its own.
    """
    text = text | {'camera': labels}
    if self.light_field:
      known = jnp.any(labels != 0, axis=-1)[:, None, None, None]
      patch = self.unet.shape.patch
      side = self.size // patch
      patches = self.prior_image(params, text, labels).reshape(
          len(labels), side, side, -1)
      text['prior_image'] = known * unet.depth_to_space(
          jax.lax.stop_gradient(patches), patch)
    return text

  def add_depth(self, params: Weights, text: Text, maps: jax.Array) -> Text:
    """Teacher.add_depth of this model; a map of zeros is none."""
    del params
    shape = (len(maps), self.size, self.size, 1)
    if maps.shape != shape:
      maps = jax.image.resize(maps, shape, 'bilinear', antialias=True)
    return text | {'depth': maps}

  def prior_image(self, params: Weights, text: Text, labels: jax.Array,
                  patches: jax.Array | None = None) -> jax.Array:
    """The light field's image [N, P, 3 * patch^2], by the U-Net's patches.

    Args:
      params: of the model.
      text: as from `embed`.
      labels: [N, 25].
      patches: ints [N, P], row-major indices of the patches to compute; None
        for all.

    Raises:
      ValueError: the model has no light field.
    """
    if self.light_field is None:
      raise ValueError('A model without a light field has no prior image.')
    rays = [x.reshape(len(labels), -1, 3) for x in _camera_rays(
        labels, self.size // self.unet.shape.patch)[1:]]
    if patches is not None:
      rays = [jnp.take_along_axis(x, patches[..., None], 1) for x in rays]
    origins, directions = rays
    image: Any = self.light_field.apply(
        params['light_field'], light_field.features(origins, directions),
        unet.masked_mean(text['states'], text['mask']))
    return image

  def patches_at(self, images: jax.Array, indices: jax.Array) -> jax.Array:
    """Patches [B, P, 3 * patch^2] of images, in the order of `prior_image`.

    Args:
      images: [B, H, W, 3].
      indices: ints [B, P], row-major indices of patches.
    """
    patches = unet.space_to_depth(images, self.unet.shape.patch)
    return jnp.take_along_axis(
        patches.reshape(len(images), -1, patches.shape[-1]),
        indices[..., None], 1)

  def predict_v(self, params: Weights, x_t: jax.Array, t: jax.Array,
                text: Text) -> jax.Array:
    """v [B, H, W, 3] of noisy images x_t at times t [B]."""
    inputs = (x_t, t, text['states'], text['mask'],
              ray_features(text['camera'], self.size), text.get('prior_image'))
    residuals = None
    if self.control and 'depth' in text:
      residuals = self.control.apply(params['control'], text['depth'], *inputs)
    output: Any = self.unet.apply(params['unet'], *inputs, residuals)
    return PREDICTIONS[self.prediction](self.schedule, x_t, output, t)

  def denoise(self, params: Weights, x_t: jax.Array, t: jax.Array,
              text: Text) -> jax.Array:
    """eps [B, H, W, 3]; see `predict_v`."""
    v = self.predict_v(params, x_t, t, text)
    return noise.eps_from_v(self.schedule, x_t, v, t)


def ray_features(labels: jax.Array, size: int) -> jax.Array:
  """Features [B, size, size, 18] of each pixel's ray.

  The ray's direction, its point nearest to the origin, and sines and cosines
  of that point; zeros for an unknown camera.

  Args:
    labels: [B, 25] as from ops.cameras.to_label.
    size: pixels a side.
  """
  known, o, d = _camera_rays(labels, size)
  # Objects of the shapes world have a radius of about 0.6.
  nearest = cameras.nearest_to_origin(o, d) / 0.6
  angles = jnp.pi * jnp.concatenate([nearest, 2 * nearest], -1)
  features = jnp.concatenate([d, nearest, jnp.sin(angles), jnp.cos(angles)], -1)
  return jnp.where(known[:, None, None, None], features, 0.0)


def _camera_rays(labels, side):
  """(known [B], origins, directions [B, side, side, 3]) of labels [B, 25].

  An unknown camera gets the rays of an arbitrary one, which are finite; the
  caller masks what follows from them.
  """
  def one_camera(label):
    known = jnp.any(label != 0)
    arbitrary = cameras.to_label(cameras.orbit(0.0, 0.0, 1.6, 1.3))
    rays = cameras.rays(
        cameras.from_label(jnp.where(known, label, arbitrary)), side, side)
    return known, rays.origins, rays.directions

  return jax.vmap(one_camera)(labels)


def build(config: Mapping[str, Any], vocab: int) -> PixelModel:
  """PixelModel of a config with `size`, `unet` and `t5`.

  Configs of older weights have no `prediction`, which is then 'v', and no
  `light_field`. A config with `control`, the ControlNet's `blocks`, is of a
  model with depth conditioning.

  Args:
    config: mapping, such as `model` of configs/text_to_image.py.
    vocab: size of the tokenizer's vocabulary.

  Raises:
    UserError: the prediction is unknown.
  """
  prediction = config.get('prediction', 'v')
  check('prediction', PREDICTIONS, prediction)
  field, control = config.get('light_field'), config.get('control')
  shape = unet.UNetShape(**config['unet'])._replace(prior_image=bool(field))
  return PixelModel(
      t5.T5Encoder(t5.T5Config(vocab=vocab, **config['t5'])), unet.UNet(shape),
      light_field.LightField(light_field.LightFieldShape(**field),
                             3 * shape.patch ** 2) if field else None,
      config['size'], noise.cosine_schedule(), prediction,
      unet.ControlNet(shape, tuple(control['blocks'])) if control else None)


def to_teacher(model: PixelModel, params: Weights) -> Teacher:
  """A Teacher of a PixelModel and its parameters; texts by `tokenize`."""
  def encode(weights, images, key):
    del weights, key
    shape = (images.shape[0], model.size, model.size, 3)
    if images.shape != shape:
      images = jax.image.resize(images, shape, 'bilinear', antialias=True)
    return 2 * images - 1

  def embed(prompts):
    return jax.jit(model.embed)({'t5': params['t5']},
                                *tokenize(list(prompts)))

  conditioned = model.unet.shape.rays
  return Teacher(
      model.schedule, encode, unit_images, model.denoise, embed,
      (model.size, model.size, 3), 1.0,
      lambda: {name: params[name] for name in params if name != 't5'},
      model.add_camera if conditioned else without_camera, conditioned,
      model.add_depth if model.control else without_depth,
      bool(model.control), assets.tokenizer().fits)


def tokenize(prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """(tokens, mask) [N, L] by the shipped tokenizer.

  Logs a warning that names the words which the shapes world's captions lack,
  and one for each prompt that is cut.
  """
  advice = captions.advice(prompts)
  if advice:
    logging.warning(advice)
  for prompt in prompts:
    if not assets.tokenizer().fits(prompt):
      logging.warning('The text encoder takes %d tokens; the end of %r is '
                      'ignored.', assets.CAPTION_LENGTH,
                      prompt if len(prompt) < 60 else f'{prompt[:60]}...')
  return assets.tokenizer().encode(prompts)


def load(path: str | os.PathLike = assets.TEXT_TO_IMAGE
         ) -> tuple[PixelModel, Weights, dict[str, Any]]:
  """The shipped model, or that at `path`, as (PixelModel, params, record).

  Raises:
    UserError: the file is missing or damaged, or is not of such a model.
  """
  params, record = assets.load(path, 'text_to_image')
  model = build(record['config']['model'], assets.tokenizer().vocab_size)
  return model, params, record


def teacher(path: str | os.PathLike = assets.TEXT_TO_IMAGE,
            control: str | os.PathLike = '') -> Teacher:
  """The shipped model, or that at `path`, as a Teacher.

  Args:
    path: of the weights.
    control: weights of a ControlNet for depth conditioning: 'depth' for the
      shipped ones, a path for others, '' for none.

  Raises:
    UserError: a file is missing or damaged, or the ControlNet was trained for
      other weights.
  """
  model, params, record = load(path)
  if control:
    model, params = _with_control(
        model, params, record['sha256'],
        assets.TEXT_TO_IMAGE_DEPTH if control == 'depth' else control)
  return to_teacher(model, params)


def _with_control(model, params, digest, path):
  """A model and its parameters with the ControlNet at `path`."""
  if not os.path.isfile(path):
    raise UserError(
        f'There is no ControlNet {path}; train one by --config=configs/'
        'text_to_image.py:depth and give its .safetensors file as the '
        "teacher's control.")
  control, record = assets.load(path)
  if record.get('base') != digest:
    raise UserError(
        f'The ControlNet {path} was trained for other weights of the teacher; '
        "give those as the teacher's path, or no control.")
  built = build(record['config']['model'], assets.tokenizer().vocab_size)
  return model._replace(control=built.control), params | control


def around(prompts: Sequence[str], count: int, elevation: float = 20.0
           ) -> tuple[list[str], np.ndarray]:
  """Each prompt from `count` sides: (prompts [N count], labels [N count, 25]).

  Args:
    prompts: N strings; the view's words are appended to each.
    count: number of azimuths, evenly spaced from the front on.
    elevation: in degrees. Distance and focal length are the middle of the
      ranges that the model was trained on.
  """
  middle = {name: np.mean(shapes_world.CAMERA[name])
            for name in ('distance', 'focal')}
  path = cameras.orbit(np.linspace(0.0, 360.0, count, endpoint=False),
                       elevation=elevation, **middle)
  return ([f'{prompt}, {view} view' for prompt in prompts
           for view in shapes_world.view_words(path)],
          np.tile(cameras.to_label(path), (len(prompts), 1)))
