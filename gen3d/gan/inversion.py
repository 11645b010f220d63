"""Targets and perceptual losses for the inversion of a 3-D GAN."""

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from PIL import Image, ImageOps

from gen3d import assets, files, pixels
from gen3d.choices import UserError
from gen3d.gan import inference
from gen3d.gan.projector import PerceptualLoss, Target
from gen3d.models import clip, clip_pair, perceptual
from gen3d.ops import cameras
from gen3d.weights import torch_files


def read_target(trained: inference.Trained, path: str | os.PathLike,
                camera: cameras.Camera) -> Target:
  """The Target of an image file, resized to the generator's images.

  Args:
    trained: Trained.
    path: of the image, cropped and aligned as the generator's training data.
      Transparent pixels get the generator's background.
    camera: Camera without leading axes.

  Raises:
    UserError: the file cannot be read, or the image is not square.
  """
  generator = trained.generator
  content = files.read_file(path)
  try:
    with pixels.open_checked(content) as image:
      image = pixels.to_rgb(ImageOps.exif_transpose(image),
                            generator.background)
  except Exception as error:  # Pillow raises many kinds for one damage.
    raise pixels.unreadable(
        str(path), content[:pixels.HEAD], error) from error
  if image.width != image.height:
    raise UserError(
        f'{path} has {image.width} x {image.height} pixels; crop it to a '
        'square in which the object lies as in the images that the network '
        'was trained on.')
  size = generator.image_size(trained.size)
  image = image.resize((size, size), Image.Resampling.LANCZOS)
  return Target(jnp.float32(image) / 127.5 - 1,
                jax.tree.map(jnp.float32, camera))


def perceptual_loss(
    paths: Sequence[str | os.PathLike] = ()) -> PerceptualLoss:
  """`vgg16_loss` of these files, or `clip_loss` where there are none."""
  return vgg16_loss(*paths) if paths else clip_loss()


def clip_loss() -> PerceptualLoss:
  """The PerceptualLoss on features of the shipped CLIP pair.

  The features are the normalized states of all patches after each block. The
  class token alone would not depend on positions.
  """
  params, record = assets.load(assets.CLIP)
  model = clip.CLIP(clip_pair.pair_config(record['config']))
  size = model.config.image
  side = size.resolution // size.patch
  blocks = tuple(str(i) for i in range(size.layers))

  def embed(params, x):
    x = jax.image.resize(
        x, (len(x), size.resolution, size.resolution, 3), 'linear')
    _, captured = model.apply(
        params, x, method='encode_image', mutable='intermediates',
        capture_intermediates=lambda module, _: module.name in blocks)
    outputs: Any = captured['intermediates']['image']['blocks']
    states = (outputs[name]['__call__'][0][:, 1:] for name in blocks)
    # Divided by the side: the squared distance is a mean over patches.
    return tuple(clip.normalize(x).reshape(len(x), side, side, -1) / side
                 for x in states)

  return PerceptualLoss(params, embed)


def vgg16_loss(*paths: str | os.PathLike) -> PerceptualLoss:
  """The PerceptualLoss on features of VGG16, with LPIPS' weights if given.

  Args:
    *paths: files of VGG16 and, optionally, of LPIPS' linear layers, in any
      order; models/perceptual.py has their sources. Without LPIPS every
      feature has weight one.

  Raises:
    UserError: a file cannot be read or is of another network.
  """
  learned = any(re.match(r'lin\d\.', name)
                for path in paths for name in torch_files.read(path))
  return PerceptualLoss(
      perceptual.load(*paths, learned=learned),
      lambda network, x: perceptual.embed(
          network, x, perceptual.PROJECTOR_SIDE))
