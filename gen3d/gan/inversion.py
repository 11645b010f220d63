"""From a picture to the object of a 3-D GAN that looks like it.

First the projector of StyleGAN2 (1912.04958, appendix D): the w, or one for
each layer (w+), and the noise whose image from this camera is like the
picture. Then pivotal tuning (2106.05744): at that w the generator's weights
are moved until the image is the picture's; without the paper's locality
regularization, which its published program leaves off for single pictures too.

Vocabulary. A `target` is a picture [R, R, 3] in [-1, 1] and the label [25] of
its camera. A `measure` embeds images so that squared distances are perceptual
ones. A `noise` is a constant of the backbone, of which every layer has one;
those of the super-resolution are not used.
"""

import functools
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from flax import traverse_util
from PIL import Image, ImageOps

from gen3d import assets, files
from gen3d.choices import UserError
from gen3d.data.images import dataset
from gen3d.files import open_image
from gen3d.gan import inference
from gen3d.io import images as image_io
from gen3d.io import video
from gen3d.models import clip, clip_pair, eg3d, nvidia, perceptual
from gen3d.weights import torch_files

# The projector's: rate, the share of the steps over which it rises and falls,
# exploration in deviations of w and when it ends, weight of the noise's term.
RATE, RISE, FALL = 0.1, 0.05, 0.25
EXPLORE, EXPLORE_END = 0.05, 0.75
NOISE_WEIGHT = 1e5
PIXEL_WEIGHT = 1.0  # of the mean squared difference, beside the measure
TUNING_RATE = 3e-4  # pivotal tuning's
_SHOWN = 128  # pixels a side, at least, of what is shown


class Target(NamedTuple):
  """What is to be found."""
  image: Any  # [R, R, 3] in [-1, 1]
  label: Any  # [25]


class Measure(NamedTuple):
  """A perceptual distance; perceptual.distance compares what `embed` gives.

  Attributes:
    weights: pytree.
    embed: (weights, images [N, R, R, 3] in [0, 1]) -> maps [N, h, w, C].
  """
  weights: Any
  embed: Callable


def read_target(network, path, label):
  """The Target of a picture file, resized to what the network makes.

  Args:
    network: objects.Network.
    path: of the picture; cropped and lit as the network's own are. What is
      transparent shows the background that the network has.
    label: [25].

  Raises:
    UserError: it cannot be read, or is not square.
  """
  white = network.generator.rendering.white_background
  behind = 'white' if white else 'black'
  try:
    with open_image(path) as image:
      image = _flat(ImageOps.exif_transpose(image), behind)
  except Exception as error:  # Pillow raises many kinds for one damage.
    raise UserError(f'{path} cannot be read as an image ({error}); give a PNG '
                    'or JPEG file.') from error
  if image.width != image.height:
    raise UserError(
        f'{path} has {image.width} x {image.height} pixels; crop it to a '
        'square in which the object lies as in the images that the network '
        'learned from.')
  size = image_size(network)
  image = image.resize((size, size), Image.Resampling.LANCZOS)
  return Target(jnp.float32(image) / 127.5 - 1, jnp.float32(label))


def read_camera(path, picture=''):
  """The label [25] in a JSON file: the 25 numbers, or EG3D's dataset.json.

  Args:
    path: of the JSON file.
    picture: the picture's file. Of the names in dataset.json it has the one
      that most of its path ends in.

  Raises:
    UserError: it holds no camera, none of that picture, or several that may
      be of it.
  """
  path = pathlib.Path(path)
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f'The camera {path} cannot be read: {error}.') from error
  if isinstance(found, dict) and 'labels' in found:
    found = _listed(path, found['labels'], picture)
  try:
    label = np.asarray(found, np.float32).ravel()
  except (TypeError, ValueError, OverflowError):
    label = np.zeros(0, np.float32)
  if label.size != 25:
    raise UserError(f'{path} holds no camera: a list of 25 numbers is wanted, '
                    "camera-to-world and intrinsics, or EG3D's dataset.json.")
  dataset.check_labels(dataset.Images(
      str(path), (str(picture) or 'the picture',), label[None], None, 0))
  return label


def shipped_measure():
  """The Measure on features of the shipped CLIP pair.

  Distances of the unit states of all patches after each block: the class
  token alone would say what is seen and not where.
  """
  params, record = assets.load(assets.CLIP)
  model = clip.CLIP(clip_pair.pair_config(record['config']))
  size = model.config.image
  side = size.resolution // size.patch

  def embed(params, x):
    x = jax.image.resize(
        x, (len(x), size.resolution, size.resolution, 3), 'linear')
    _, found = model.apply(
        params, x, method='encode_image', mutable='intermediates',
        capture_intermediates=lambda module, _: module.name in blocks)
    found = found['intermediates']['image']['blocks']
    states = (found[name]['__call__'][0][:, 1:] for name in blocks)
    return tuple(clip.normalize(x).reshape(len(x), side, side, -1) / side
                 for x in states)

  blocks = tuple(str(i) for i in range(size.layers))
  return Measure(params, embed)


def supplied_measure(*paths):
  """The Measure of VGG16, with LPIPS' weights where they are among the files.

  Without them every feature weighs one. Where to get the files, see
  models/perceptual.py.

  Raises:
    UserError: they cannot be read or are of another network.
  """
  learned = any(re.match(r'lin\d\.', name)
                for path in paths for name in torch_files.read(path))
  return Measure(
      perceptual.load(*paths, learned=learned),
      lambda network, x: perceptual.embed(
          network, x, perceptual.PROJECTOR_SIDE))


def image_size(network):
  """Pixels a side of what an objects.Network makes."""
  super_resolution = network.generator.super_resolution
  size = (super_resolution.size if super_resolution.shrink
          else max(super_resolution.size, network.size))
  return size * 2 ** sum(super_resolution.up)


def paint(network, variables, ws, label):
  """The image [R, R, 3] of ws [L, D], as objects.painter's, but floats."""
  generator, size = network.generator, network.size
  planes = generator.apply(variables, ws[None], 'const', method='planes')
  return generator.apply(
      variables, planes, ws[None], label[None], size,
      eg3d.draw(None, 1, size, generator.rendering), method='render').image[0]


def statistics(network, count=10_000, seed=0):
  """Mean [D] of w and its deviation [], the root of the mean square distance.

  Args:
    network: objects.Network.
    count: of latents.
    seed: of them.
  """
  told = inference.label(network.camera, 0.0)

  @jax.jit
  def map_all(variables, z):
    return network.generator.apply(
        variables, z, jnp.broadcast_to(told, (len(z), 25)), method='map')[:, 0]

  z = jax.random.normal(jax.random.key(seed), (count, network.z_dim))
  w = map_all(network.variables, z)
  mean = jnp.mean(w, axis=0)
  return mean, jnp.sqrt(jnp.mean(jnp.sum((w - mean) ** 2, axis=1)))


def project(network, target, measure, *, steps=1000, plus=False, seed=0):
  """The ws whose image is like the target's.

  Args:
    network: objects.Network.
    target: Target.
    measure: Measure.
    steps: of Adam.
    plus: whether each layer gets a w of its own (w+): closer, but less like
      the objects that the network has learned.
    seed: of the exploration.

  Returns:
    (ws [L, D], variables with the noises found, losses [steps]).
  """
  mean, deviation = statistics(network)
  layers = network.generator.apply(
      network.variables, method=lambda g: g.backbone.num_ws)

  # What another picture or number of steps changes is an argument, so that
  # the program that is compiled for one network serves them all.
  @jax.jit
  def step(found, opt_state, i, steps, deviation, variables, weights, target,
           wanted):
    key = jax.random.fold_in(jax.random.key(seed), i)
    spread = deviation * EXPLORE * jnp.maximum(
        0, 1 - i / steps / EXPLORE_END) ** 2

    def loss_of(found):
      w = found['w'] + spread * jax.random.normal(key, found['w'].shape)
      image = paint(network, with_noises(variables, found['noises']),
                    jnp.broadcast_to(w, (layers, w.shape[-1])), target.label)
      loss = _difference(measure, weights, image, target.image, wanted)
      noise = sum(map(correlation, found['noises'].values()))
      return loss + NOISE_WEIGHT * noise, loss

    (_, loss), grads = jax.value_and_grad(loss_of, has_aux=True)(found)
    updates, opt_state = _projector(steps).update(grads, opt_state)
    found = optax.apply_updates(found, updates)
    noises = {name: (x - jnp.mean(x)) / jnp.sqrt(jnp.var(x) + 1e-8)
              for name, x in found['noises'].items()}
    return {'w': found['w'], 'noises': noises}, opt_state, loss

  found = {'w': jnp.tile(mean, (layers if plus else 1, 1)),
           'noises': noises_of(network.variables)}
  opt_state, losses = _projector(steps).init(found), []
  wanted = _embedded(measure, target)
  for i in tqdm.trange(steps, desc='projecting', disable=None):
    found, opt_state, loss = step(
        found, opt_state, i, steps, deviation, network.variables,
        measure.weights, target, wanted)
    losses.append(loss)
  return (jnp.broadcast_to(found['w'], (layers, len(mean))),
          with_noises(network.variables, found['noises']), np.array(losses))


def tune(network, target, measure, ws, *, steps=350):
  """Weights with which the image of ws is the target's: pivotal tuning.

  Args:
    network: objects.Network, with the variables to start from.
    target: Target.
    measure: Measure.
    ws: [L, D], the pivot.
    steps: of Adam.

  Returns:
    (variables, losses [steps]).
  """
  optimizer = optax.adam(TUNING_RATE)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, buffers, weights, ws, target, wanted):
    def loss_of(params):
      image = paint(network, {'params': params, 'buffers': buffers}, ws,
                    target.label)
      return _difference(measure, weights, image, target.image, wanted)

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss

  params = jax.tree.map(jnp.array, network.variables['params'])
  buffers = network.variables['buffers']
  opt_state, losses = optimizer.init(params), []
  wanted = _embedded(measure, target)
  for _ in tqdm.trange(steps, desc='tuning', disable=None):
    params, opt_state, loss = step(
        params, opt_state, buffers, measure.weights, ws, target, wanted)
    losses.append(loss)
  return {'params': params, 'buffers': buffers}, np.array(losses)


def ramp(t):
  """The projector's rate at t in [0, 1): a linear rise, a fall as a cosine."""
  fall = jnp.minimum(1.0, (1 - t) / FALL)
  return (0.5 - 0.5 * jnp.cos(jnp.pi * fall)) * jnp.minimum(1.0, t / RISE)


def correlation(noise):
  """How much of a picture is in a noise [H, H] (1912.04958, appendix D).

  Squared means of the products with its neighbors, on scales down to 8.
  """
  total = 0.0
  while True:
    for axis in (0, 1):
      total += jnp.mean(noise * jnp.roll(noise, 1, axis)) ** 2
    size = noise.shape[0]
    if size <= 8:
      return total
    noise = jnp.mean(noise.reshape(size // 2, 2, size // 2, 2), axis=(1, 3))


def noises_of(variables):
  """{path: [H, H]} of the backbone's noises."""
  return {path: x for path, x in
          traverse_util.flatten_dict(variables['buffers'], sep='/').items()
          if path.startswith('backbone/') and path.endswith('/noise_const')}


def with_noises(variables, noises):
  """Variables with these noises; inverse of `noises_of`."""
  flat = traverse_util.flatten_dict(variables['buffers'], sep='/')
  return {**variables, 'buffers': traverse_util.unflatten_dict(
      {**flat, **noises}, sep='/')}


def export(name, network, target, measure, out, *, steps, tuning_steps, plus,
           views, frames=48, resolution=128):
  """Inverts and writes: a picture, the latent, tuned weights, a film, meshes.

  Args:
    name: that `network` was loaded by.
    network: objects.Network.
    target: Target.
    measure: Measure.
    out: folder.
    steps, plus: of `project`.
    tuning_steps: of `tune`.
    views: azimuths in degrees from which the object is shown as well.
    frames: of the film.
    resolution: of the meshes' grid.

  Returns:
    The paths written. An object without a surface has no meshes, which is
    said on stderr.

  Raises:
    UserError: `out` cannot be written to.
  """
  out, record = pathlib.Path(out), _record(name)
  if out.is_file():
    raise UserError(f'{out} is a file; name a folder for what is made.')
  # That it can be written is known before there is anything to write.
  with files.atomic_write(out / 'latent.npz') as latent:
    ws, variables, projected = project(
        network, target, measure, steps=steps, plus=plus)
    found = network._replace(variables=variables)
    variables, tuned = tune(found, target, measure, ws, steps=tuning_steps)
    np.savez(latent, ws=ws, label=target.label, projection_loss=projected,
             tuning_loss=tuned)
  final = network._replace(variables=variables)
  paint = inference.painter(final, ('image',))
  own = target.label[None]
  turned = inference.label(network.camera, jnp.float32(views))
  row = np.concatenate([
      image_io.to_uint8(target.image[None] / 2 + 0.5),
      inference.painter(found, ('image',))(ws, own),
      paint(ws, jnp.concatenate([own, turned]))])
  scale = -(-_SHOWN // row.shape[1])
  image_io.save(out / 'inversion.png', image_io.tile(
      row.repeat(scale, 1).repeat(scale, 2), len(row),
      ['picture', 'w+' if plus else 'w', 'tuned',
       *(f'tuned, {view:g} degrees' for view in views)]))
  weights = _save(record, final, out)
  video.save(out / 'turntable.mp4', paint(ws, inference.label(
      network.camera, inference.azimuths(network.camera, frames))), 24)
  return [out / 'inversion.png', out / 'latent.npz', *weights,
          out / 'turntable.mp4', *inference.save_meshes(
              inference.mesher(final, resolution), ws, out / 'mesh',
              'The tuned object has no surface, so no mesh of it is written; '
              'fewer steps of tuning keep it closer to what the network has '
              'learned.')]


def _flat(image, behind):
  """An image of whatever kind as RGB, before a color where transparent."""
  if image.mode.startswith('I'):  # 16 bits, which Pillow would cut off at 255.
    gray = np.asarray(image)
    if gray.min() < 0 or gray.max() > 65535:
      raise UserError('it has more than 16 bits')
    image = Image.fromarray(np.round(gray / 257).astype(np.uint8))
  elif image.mode == 'F':
    raise UserError('which of its numbers is white is not known')
  if image.has_transparency_data:
    image = Image.alpha_composite(
        Image.new('RGBA', image.size, behind), image.convert('RGBA'))
  return image.convert('RGB')


def _listed(path, labels, picture):
  """What dataset.json lists for a picture."""
  labels = dataset.listed(path, labels)
  own = pathlib.Path(os.path.abspath(picture)).parts[::-1]

  def likeness(name):
    """Parts in common from the end, and whether that is all of the name."""
    parts = pathlib.PurePosixPath(name).parts[::-1]
    count = len(os.path.commonprefix([parts, own]))
    return count, count == len(parts)

  found = [(likeness(name), name, label) for name, label in labels]
  best = max((shared for shared, *_ in found), default=(0, False))
  if not best[0]:
    raise UserError(f'{path} has no label for {os.path.basename(picture)}; '
                    'write its 25 numbers into a JSON file as a list.')
  (_, first, label), *others = (entry for entry in found if entry[0] == best)
  if others:
    raise UserError(
        f'{path} lists {first} and {others[0][1]}, and {picture} may be '
        'either; give it in the folder that it is listed with, or write its 25 '
        'numbers into a JSON file as a list.')
  return label


def _projector(steps):
  return optax.adam(lambda step: RATE * ramp(step / steps))


def _record(name):
  """What is told of tuned weights: of which network they are."""
  path = inference.find(name)
  if path.suffix == '.pkl':
    return {'model': str(path), 'official': inference.source_of(path)}
  _, record = assets.load(path)
  model = {'model': record.get('model', path.stem)}
  if 'official' in record:  # Tuned before.
    return {**model, 'official': record['official']}
  return {**model, 'config': record['config'], 'camera': record['camera'],
          'tuned_from': record['sha256']}


def _save(record, network, out):
  """Writes tuned weights; an official network keeps its tensors' names."""
  if 'official' in record:
    return assets.save(
        out / 'tuned_official.safetensors', nvidia.tensors(network.variables),
        record)
  return assets.save(
      out / 'tuned.safetensors', network.variables, record)


def _embedded(measure, target):
  return jax.jit(measure.embed)(measure.weights, target.image[None] / 2 + 0.5)


def _difference(measure, weights, image, target, wanted):
  """Perceptual distance and pixels' of images [R, R, 3] in [-1, 1]."""
  seen = measure.embed(weights, image[None] / 2 + 0.5)
  return (perceptual.distance(seen, wanted)[0]
          + PIXEL_WEIGHT * jnp.mean((image - target) ** 2))
