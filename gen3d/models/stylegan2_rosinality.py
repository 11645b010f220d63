"""StyleGAN2 generators in the layout of rosinality's stylegan2-pytorch.

LiftedGAN's frozen generators are such files. The networks are those of
models/stylegan2.py; names, axes and a factor of the kernels differ. The
architecture is read from the shapes of the tensors.
"""

import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError
from gen3d.models import nvidia, stylegan2
from gen3d.weights import port, torch_files

# Filters that are constants. Files may also lack the noise, which is then
# random in the official program, and so unknown: those files are refused.
_IGNORED = ('*.kernel',)


def load(path: str | os.PathLike) -> nvidia.Loaded:
  """The averaged generator of a checkpoint, its section g_ema.

  Raises:
    UserError: the file cannot be read, or is no such checkpoint.
    port.PortingError: weights are missing, unused or of another shape.
  """
  # Checkpoints of a training have its arguments.
  tensors = torch_files.read(path, 'g_ema', ('argparse',))
  try:
    return from_torch(tensors)
  except UserError as error:
    raise type(error)(f'{path}: {error}') from None


def from_torch(tensors: Mapping[str, np.ndarray]) -> nvidia.Loaded:
  """The generator of a state_dict {name: array}.

  Raises:
    UserError: it is no generator in this layout.
    port.PortingError: weights are missing, unused or of another shape.
  """
  depth, blocks = (
      _count(tensors, name) for name in ('style.{}.weight', 'to_rgbs.{}.bias'))
  if 'conv1.conv.weight' not in tensors or not 0 < depth <= 64 or (
      not 0 < blocks <= 10):
    raise UserError("it is no StyleGAN2 in rosinality's layout; give a "
                    'checkpoint of stylegan2-pytorch with g_ema.')
  # The mapping network's first item is the normalization of z.
  width, z_dim = tensors['style.1.weight'].shape
  widths = [len(tensors['conv1.activate.bias'])] + [
      len(tensors.get(f'convs.{2 * i}.activate.bias', ()))
      for i in range(blocks)]
  network = stylegan2.Generator(
      {'resolution': 4 * 2**blocks, 'widths': tuple(widths)},
      {'width': width, 'layers': depth})
  like = jax.eval_shape(lambda: network.init(
      jax.random.key(0), jnp.zeros((1, z_dim)), jnp.zeros((1, 0))))
  # There is no running mean of w in these files: zero, as before a training.
  tensors = {**tensors, 'w_avg': np.zeros(width, np.float32)}
  variables = port.to_flax(
      tensors, _sources(depth, blocks), like, _IGNORED, jnp.asarray)
  return nvidia.Loaded(network, variables, z_dim, 0)


class _Kernel:
  """Layout of a modulated convolution: [1, out, in, h, w] -> [h, w, in, out].

  Attributes:
    scaled: by the square root of the fan-in, which the official layer divides
      by in use and ours does not.
  """

  def __init__(self, scaled: bool):
    self.scaled = scaled

  def __call__(self, tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim != 5:
      return tensor  # Another shape than any of ours, which is an error.
    factor = np.prod(tensor.shape[2:])**-0.5 if self.scaled else 1.0
    return port.conv(tensor[0]) * factor


_CONV, _RGB = _Kernel(True), _Kernel(False)


def _squeeze(tensor):
  """Layout without axes of size 1."""
  return tensor.squeeze()


def _first(tensor):
  """Layout without the leading axis."""
  return tensor[0]


def _sources(depth: int, blocks: int) -> port.Sources:
  """Names and layouts of the leaves of stylegan2.Generator."""
  sources: port.Sources = {
      'buffers/mapping/w_avg': ('w_avg', port.keep),
      'params/synthesis/b4/const': ('input.input', _first)}
  for i in range(depth):
    for ours, layout in (('weight', port.linear), ('bias', port.keep)):
      sources[f'params/mapping/fc{i}/{ours}'] = (
          f'style.{i + 1}.{ours}', layout)
  # (path of the layer, its official name, number of its noise)
  layers = [('b4/conv1', 'conv1', 0)]
  images = [('b4/torgb', 'to_rgb1')]
  for i in range(blocks):
    block = f'b{8 * 2**i}'
    layers += [(f'{block}/conv{j}', f'convs.{2 * i + j}', 2 * i + j + 1)
               for j in (0, 1)]
    images.append((f'{block}/torgb', f'to_rgbs.{i}'))
  for ours, theirs, number in layers:
    sources |= _modulated(ours, theirs, _CONV) | {
        f'params/synthesis/{ours}/bias': (
            f'{theirs}.activate.bias', port.keep),
        f'params/synthesis/{ours}/noise_strength': (
            f'{theirs}.noise.weight', _squeeze),
        f'buffers/synthesis/{ours}/noise_const': (
            f'noises.noise_{number}', _squeeze)}
  for ours, theirs in images:
    sources |= _modulated(ours, theirs, _RGB)
    sources[f'params/synthesis/{ours}/bias'] = f'{theirs}.bias', _squeeze
  return sources


def _modulated(ours, theirs, kernel):
  """Sources of a modulated convolution's kernel and affine layer."""
  path, name = f'params/synthesis/{ours}', f'{theirs}.conv'
  return {f'{path}/weight': (f'{name}.weight', kernel),
          f'{path}/affine/weight': (f'{name}.modulation.weight', port.linear),
          f'{path}/affine/bias': (f'{name}.modulation.bias', port.keep)}


def _count(tensors, name):
  """How many names there are of a numbered layer."""
  return sum(name.format(i) in tensors for i in range(len(tensors)))
