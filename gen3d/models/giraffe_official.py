"""Official GIRAFFE checkpoints (.pt): from PyTorch's files to our modules.

A checkpoint is a dict whose 'model' is a state_dict: `generator.`, its average
`generator_test.`, and `discriminator.`. Sizes are those of the tensors; what
tensors do not tell, ranges of cameras and boxes, is in PRIORS by the name of
the data set, which is part of the official names of the files.
"""

import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp

from gen3d.choices import UserError, pick
from gen3d.models import giraffe, giraffe_rendering
from gen3d.models import giraffe_scene as scenes
from gen3d.weights import port, torch_files

# Buffer of the official blur, which is constant.
_NOT_OURS = '*neural_renderer.upsample_rgb.1.f'
RENDER_SIZE = 16  # rays a side of all of them
_NOWHERE = (0.0, 0.0, 0.0)

_FACES = scenes.Prior(
    scale_min=(0.21,) * 3, scale_max=(0.21,) * 3, translation_min=_NOWHERE,
    translation_max=_NOWHERE, rotation_range=(0.40278, 0.59722),
    v_range=(0.4167, 0.5), fov=10)
_CARS = scenes.Prior(
    scale_min=(0.2, 0.16, 0.16), scale_max=(0.25, 0.2, 0.2),
    translation_min=(-0.22, -0.12, 0.0), translation_max=(0.22, 0.12, 0.0),
    v_range=(0.41667, 0.5), fov=10)
_CHURCHES = scenes.Prior(
    scale_min=(0.45,) * 3, scale_max=(0.55,) * 3,
    translation_min=(-0.15, -0.15, 0.0), translation_max=(0.15, 0.15, 0.0),
    background_rotation_range=(0.0, 0.25), v_range=(0.5, 0.5), fov=30)
_CLEVR = scenes.Prior(
    scale_min=(0.17,) * 3, scale_max=(0.17,) * 3, rotation_range=(0.0, 0.0),
    plane=0.1665, v_range=(0.33333, 0.33333))
# By the name of the data set and the resolution, as in the files' names.
PRIORS = {
    'compcars64': _CARS, 'cars256': _CARS,
    'celeba64': _FACES, 'ffhq256': _FACES,
    'cats64': _FACES._replace(v_range=(0.41667, 0.5)),
    'celebahq256': _FACES._replace(rotation_range=(0.375, 0.625)),
    'church64': _CHURCHES, 'church256': _CHURCHES,
    'chairs64': scenes.Prior(
        translation_min=_NOWHERE, translation_max=_NOWHERE,
        v_range=(0.05, 0.5)),
    'clevr2256': _CLEVR._replace(
        boxes=2, translation_min=(-0.713, -0.713, 0.0),
        translation_max=(0.713, 0.713, 0.0)),
    'clevr2345256': _CLEVR._replace(
        boxes=5, translation_min=(-0.71, -0.71, 0.0),
        translation_max=(0.71, 0.71, 0.0),
        counts=(0.0, 0.0, 0.19457, 0.24355, 0.25270, 0.30919)),
}


def load(path: str | os.PathLike, dataset: str | None = None
         ) -> tuple[giraffe.Model, Any, Any]:
  """Loads an official checkpoint; nothing in it is run.

  Args:
    path: of a checkpoint, or of a state_dict alone.
    dataset: of PRIORS; None for the one in the name of the file.

  Returns:
    (Model, variables of its generator: the average where the file has one,
    variables of the giraffe.Discriminator or None).

  Raises:
    UserError: the file cannot be read, there is no such data set, or tensors
      are missing, unused or of another shape.
  """
  path = pathlib.Path(path)
  tensors = _read(path)
  prior = pick('data set of GIRAFFE', PRIORS, dataset or _dataset_of(path))
  name = next((name for name in ('generator_test', 'generator') if any(
      key.startswith(f'{name}.') for key in tensors)), None)
  if name is None:  # the generator alone
    name = 'generator'
    tensors = {f'generator.{key}': x for key, x in tensors.items()}
  model = _model_of(tensors, f'{name}.', prior)
  like = {name: jax.eval_shape(model.init, jax.random.key(0))['params']}
  if any(key.startswith('discriminator.') for key in tensors):
    like['discriminator'] = _discriminator_shapes(tensors)
  ignored = [_NOT_OURS]
  if name == 'generator_test':
    ignored.append('generator.*')  # of which it is the average
  like = {'params': like}
  try:
    params = port.to_flax(
        tensors, giraffe.sources(like), like, ignored, jnp.asarray)['params']
  except port.PortingError as error:
    raise port.PortingError(f'{path}: {error}') from None
  return model, {'params': params[name]}, (
      {'params': params['discriminator']} if 'discriminator' in params
      else None)


def _dataset_of(path):
  for name in PRIORS:
    if name in path.stem:
      return name
  raise UserError(
      f'The name of {path} has no data set of GIRAFFE, whose boxes and cameras '
      f'are not in the file; name one of {sorted(PRIORS)}.')


def _read(path):
  """{name: array} of the checkpoint's model, or of a state_dict."""
  content = torch_files.read_object(path, ('argparse',))
  if isinstance(content, dict) and 'g_ema' in content:
    raise UserError(
        f"{path} is a StyleGAN2 of rosinality's stylegan2-pytorch, a generator "
        'of images and not of 3-D objects; gen3d train --config=lifted_gan '
        f'--config.generator={path} makes one of objects from it.')
  return torch_files.state_dict_of(path, content, 'model' if isinstance(
      content, dict) and 'model' in content else None)


def _model_of(tensors, prefix, prior):
  """The Model whose sizes are those of tensors, official where they lack."""
  def dimension(name, axis, default):
    return _dimension(tensors, f'{prefix}{name}.weight', axis, default)

  def decoder(name, width, downscale):
    stem = f'{prefix}{name}.'
    return {
        'width': dimension(f'{name}.fc_in', 0, width),
        'layers': 1 + _count(tensors, f'{stem}blocks'),
        # The only place in the official configs; more of them are unused names.
        'skips': (4,) if _count(tensors, f'{stem}fc_p_skips') else (),
        'octaves': max(dimension(f'{name}.fc_in', 1, 60) // 6, 1),
        'view_octaves': max(dimension(f'{name}.fc_view', 1, 24) // 6, 1),
        'downscale': downscale}

  features = dimension('decoder.feat_out', 0, 128)
  blocks = max(_count(tensors, f'{prefix}neural_renderer.conv_layers'), 1)
  first = 'neural_renderer.conv_in'
  module = giraffe.Generator(
      decoder('decoder', 128, 2.0),
      decoder('background_generator', 64, 12.0),
      {'width': dimension(first, 0, features), 'blocks': blocks,
       'min_width': dimension(
           f'neural_renderer.conv_layers.{blocks - 1}', 0, 32)},
      features, giraffe_rendering.Rendering())
  return giraffe.Model(module, prior, dimension('decoder.fc_z', 1, 256),
               dimension('background_generator.fc_z', 1, 128))


def _dimension(tensors, name, axis, default):
  """A side of a tensor; the default where there is none."""
  shape = tensors[name].shape if name in tensors else ()
  return shape[axis] if len(shape) > axis and shape[axis] else default


def _count(tensors, stem):
  """How many layers `stem`.0, .1, ... there are."""
  pattern = re.compile(re.escape(stem) + r'\.(\d+)\.')
  numbers = [int(m[1]) for m in map(pattern.match, tensors) if m]
  # A large number is no layer, but an unused name.
  return 1 + max((i for i in numbers if i < 16), default=-1)


def _discriminator_shapes(tensors):
  width = _dimension(tensors, 'discriminator.conv_out.weight', 1, 512)
  resolution = 4 * 2 ** _count(tensors, 'discriminator.blocks')
  return jax.eval_shape(lambda: giraffe.Discriminator(resolution, width).init(
      jax.random.key(0), jnp.zeros((1, resolution, resolution, 3))))['params']
