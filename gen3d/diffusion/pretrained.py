"""Published diffusion models as teachers: Stable Diffusion and DeepFloyd IF.

Either is a pipeline in a folder as diffusers saves it (weights/hub.py).
Stable Diffusion denoises the latents of an autoencoder, so that an image is
encoded first and the gradient comes back through the encoder; IF denoises 64 x
64 pixels. What a folder says of itself is checked when a teacher is made; its
tensors are read when they are asked for: first the text encoder's, by `embed`,
which lets go of them, then the rest, by `load`.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError, check, pick
from gen3d.diffusion import noise
from gen3d.diffusion.teachers import Teacher, unit_images
from gen3d.models import autoencoder, clip, deepfloyd, stable_diffusion, t5
from gen3d.weights import hub

# The parts of a pipeline that are read.
STABLE_DIFFUSION = ('unet', 'vae', 'text_encoder', 'tokenizer')
DEEPFLOYD = ('unet', 'text_encoder', 'tokenizer')

# (schedule, x_t, what the network says, t) -> eps, by diffusers' names.
PREDICTIONS = {'epsilon': lambda schedule, x_t, said, t: said,
               'v_prediction': noise.eps_from_v}
SCHEDULES = {'scaled_linear': noise.scaled_linear,
             'squaredcos_cap_v2': noise.squared_cosine}


class Listener(NamedTuple):
  """A text encoder that is not read yet.

  Attributes:
    tokenize: list of N strings -> (tokens, mask) [N, L].
    states: (params, tokens, mask) -> [N, L, D].
    load: () -> params.
    folder: pretrained.Folder.
  """
  tokenize: Callable
  states: Callable
  load: Callable
  folder: hub.Folder


def forget(names, make):
  """The `remember` that keeps nothing; see `stable_diffusion_teacher`."""
  return make(np.arange(len(names)))


def stable_diffusion_teacher(path, *, dtype=jnp.float32, variant='',
                             prediction='', remat=False, flash=False,
                             remember=forget):
  """The Teacher of a Stable Diffusion 1.x or 2.x.

  Args:
    path: folder of the pipeline, with STABLE_DIFFUSION in it.
    dtype: of weights and computation.
    variant: of the weights; see pretrained.read.
    prediction: what the U-Net says, a key of PREDICTIONS; '' for what the
      folder's scheduler tells, and the noise where there is none.
    remat: the gradient computes the autoencoder's blocks again: less memory.
    flash: see stable_diffusion.UNet.
    remember: (names, make) -> states [N, L, D] of N texts with unique names,
      of which make(rows) computes some.

  Raises:
    UserError: the folder does not fit; says how.
  """
  read = lambda part: hub.read(path / part, variant)
  size = stable_diffusion.unet_config(read('unet'))
  unet = stable_diffusion.UNet(
      size, stable_diffusion.LAYERS, dtype, flash=flash)
  vae = autoencoder.Autoencoder(
      autoencoder.autoencoder_config(read('vae')), dtype, remat)
  if vae.config.latent != size.in_channels:
    raise UserError(
        f'{path} has an autoencoder of {vae.config.latent} channels and a '
        f'U-Net of {size.in_channels}; they are not of one model.')
  folder, where = read('text_encoder'), path / 'text_encoder'
  known = clip.text_config(folder)
  _check_width(path, known.width, size.states)
  listener = Listener(
      hub.load_tokenizer(path / 'tokenizer', known.vocab),
      lambda params, tokens, mask: clip.TextTower(known, dtype).apply(
          params, tokens),
      lambda: clip.load_text(where, dtype, variant)[1], folder)

  def load():
    return {
        'unet': stable_diffusion.load_unet(path / 'unet', dtype, variant)[1],
        'vae': autoencoder.load(path / 'vae', dtype, variant)[1]}

  return network_teacher(
      unet, vae, *_noise(path, 'scaled_linear', prediction),
      functools.partial(_embed, listener, jnp.dtype(dtype).name, remember),
      load)


def deepfloyd_teacher(path, *, dtype=jnp.float32, variant='', prediction='',
                      flash=False, remember=forget):
  """The Teacher of DeepFloyd IF's first stage.

  Arguments and errors are as those of `stable_diffusion_teacher`; `path` has
  the parts DEEPFLOYD.
  """
  read = lambda part: hub.read(path / part, variant)
  size = deepfloyd.unet_config(read('unet'))
  unet = stable_diffusion.UNet(size, deepfloyd.LAYERS, dtype, flash=flash)
  folder, where = read('text_encoder'), path / 'text_encoder'
  known = t5.t5_config(folder)
  _check_width(path, known.width, size.text_width)
  # The mask is T5's alone: the U-Net was trained to see all states.
  listener = Listener(
      hub.load_tokenizer(path / 'tokenizer', known.vocab),
      t5.T5Encoder(known, dtype).apply,
      lambda: t5.load(where, dtype, variant)[1], folder)
  return network_teacher(
      unet, None, *_noise(path, 'squaredcos_cap_v2', prediction),
      functools.partial(_embed, listener, jnp.dtype(dtype).name, remember),
      lambda: {'unet': deepfloyd.load_unet(path / 'unet', dtype, variant)[1]})


def network_teacher(unet, vae, schedule, prediction, embed, load):
  """The Teacher of a U-Net on latents or, where `vae` is None, on pixels.

  Args:
    unet: stable_diffusion.UNet.
    vae: autoencoder.Autoencoder or None.
    schedule: noise.Schedule.
    prediction: a key of PREDICTIONS.
    embed: see Teacher; its text is {'states' [N, L, D]}.
    load: () -> {'unet', 'vae'}, the latter where there is one.
  """
  side, channels = unet.config.side, unet.config.in_channels
  to_eps = PREDICTIONS[prediction]

  def encode(weights, images, key):
    pixels = side * 2 ** (len(vae.config.channels) - 1) if vae else side
    shape = (images.shape[0], pixels, pixels, 3)
    # Without antialiasing, as in the code whose settings people share.
    images = 2 * jax.image.resize(
        images, shape, 'bilinear', antialias=False) - 1
    if vae is None:
      return images
    return autoencoder.scaled_draw(key, vae.config, *vae.apply(
        weights['vae'], images, method='encode'))

  def decode(weights, x):
    return unit_images(None, vae.apply(weights['vae'], x, method='decode'))

  def denoise(weights, x_t, t, text):
    said = unet.apply(
        weights['unet'], x_t, noise.to_step(t), text['states'])
    # Further channels are of the variance.
    return to_eps(schedule, x_t, said[..., :channels], t)

  return Teacher(
      schedule, encode, decode if vae else unit_images, denoise, embed,
      (side, side, channels), None if vae else 1.0, load)


def _noise(path, usual, prediction):
  """(noise.Schedule, key of PREDICTIONS) of a pipeline.

  Args:
    path: of the pipeline.
    usual: the schedule's name, where the folder has no scheduler.
    prediction: that of the user, or ''.
  """
  told = hub.read_scheduler(path)
  prediction = prediction or told.get('prediction_type', 'epsilon')
  check('prediction', PREDICTIONS, prediction)
  name = told.get('beta_schedule', usual)
  squared = pick('beta_schedule', SCHEDULES, name)()
  if name == 'scaled_linear' and 'beta_start' in told and 'beta_end' in told:
    squared = noise.scaled_linear(told['beta_start'], told['beta_end'])
  return noise.discrete_schedule(squared), prediction


def _check_width(path, found, wanted):
  if found != wanted:
    raise UserError(
        f'{path} has a text encoder of width {found} and a U-Net that takes '
        f'{wanted}; they are not of one model.')


def _embed(listener, dtype, remember, prompts):
  """The text {'states' [N, L, D] float32} of prompts; see Teacher.embed."""
  tokens, mask = listener.tokenize(list(prompts))
  model = _digest(listener.folder) + dtype.encode()
  names = [hashlib.sha256(model + token.tobytes() + seen.tobytes()).hexdigest()
           for token, seen in zip(tokens, mask, strict=True)]

  def make(rows):
    states = jax.jit(listener.states)(
        listener.load(), tokens[rows], mask[rows])
    return np.array(states, np.float32)

  return {'states': jnp.asarray(remember(names, make))}


def _digest(folder):
  """SHA-256 of a network: its config and every tensor."""
  digest = hashlib.sha256(
      json.dumps(folder.config, sort_keys=True).encode())
  for name in sorted(folder.tensors):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(folder.tensors[name]).tobytes())
  return digest.digest()
