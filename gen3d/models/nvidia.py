"""NVIDIA's released networks: from pickles to our modules, and back.

Generators of EG3D, and of StyleGAN2 in the format of stylegan2-ada-pytorch and
stylegan3. The architecture is read from the pickle, and weights are matched by
name. The names of a discriminator's weights are known too. The released
weights are NVIDIA's, for non-commercial use; they are not part of this project.
"""

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import schemas
from gen3d.choices import UserError, excerpt
from gen3d.models import eg3d, stylegan2
from gen3d.ops import encodings, images
from gen3d.schemas import (
  FLAG,
  MAPPING,
  TEXT,
  each,
  either,
  optional,
  real,
  whole,
)
from gen3d.weights import pickles, port, torch_files

_HYBRID = 'SuperresolutionHybrid'  # at the start of its class's name

Path = str | os.PathLike

# Official buffers that are constants, and statistics of the training data that
# no network uses.
NOT_OURS = ('*resample_filter', 'dataset_label_std')

# Attributes of the networks, keywords of the mapping network, and options of
# the rendering: what a file has of them is checked before a network is built.
_WIDTH, _CLAMP = whole(1, 8192), optional(real(0, 1e9))
_SETTINGS = {
    'z_dim': whole(0, 8192), 'c_dim': whole(0, 8192), 'w_dim': _WIDTH,
    'img_resolution': schemas.Rule(
        lambda x: isinstance(x, int) and x in [2 ** i for i in range(2, 13)],
        'a power of two from 4 to 4096'),
    'img_channels': whole(1, 64), 'channel_base': whole(64, 2 ** 20),
    'channel_max': _WIDTH, 'conv_clamp': _CLAMP,
    'neural_rendering_resolution': whole(1, 1024),
    'sr_num_fp16_res': whole(0, 16), 'mapping_kwargs': MAPPING,
    'rendering_kwargs': MAPPING}
_LENGTH = real(1e-6, 1e6)
_AUTO = schemas.Rule(lambda x: isinstance(x, str) and x == 'auto', "'auto'")
_OPTIONS = {
    'depth_resolution': whole(1, 4096),
    'depth_resolution_importance': whole(0, 4096),
    'ray_start': either(real(0, 1e6), _AUTO),
    'ray_end': either(_LENGTH, _AUTO), 'box_warp': _LENGTH,
    'white_back': FLAG, 'disparity_space_sampling': FLAG,
    'c_gen_conditioning_zero': FLAG, 'c_scale': real(0, 1e6),
    'decoder_lr_mul': _LENGTH, 'sr_antialias': FLAG, 'clamp_mode': TEXT,
    'superresolution_noise_mode': TEXT, 'avg_camera_radius': _LENGTH,
    'avg_camera_pivot': each(real(-1e6, 1e6), 3, 3)}


class Loaded(NamedTuple):
  """A generator and its variables, ready for `network.apply(variables, ...)`.

  Attributes:
    network: eg3d.Generator or stylegan2.Generator.
    variables: {'params', 'buffers'}.
    z_dim: of the latent.
    label_width: 0 without labels.
    rendering_resolution: of the neural rendering when it was saved; 0 in 2-D.
    orbit: {'radius', 'pivot'} of EG3D's usual camera, those that the pickle
      has; None in 2-D.
  """
  network: Any
  variables: Any
  z_dim: int
  label_width: int
  rendering_resolution: int = 0
  orbit: Any = None


def load(path: Path) -> Loaded:
  """The averaged generator (G_ema) of an official pickle.

  Raises:
    pickles.PickleError: the file is no such pickle, or contains a network that
      is not supported.
    port.PortingError: weights are missing, unused or of another shape.
    UserError: a setting of the network is of another type or out of range.
  """
  module = pickles.load(path)
  # The alias-free generator of StyleGAN3 is a 'Generator' too.
  if any(name.startswith('synthesis.input.')
         for name in pickles.tensors(module)):
    raise pickles.PickleError(
        f'{path} contains a StyleGAN3, whose alias-free generator is not '
        'supported and cannot be converted; give a StyleGAN2, StyleGAN2-ADA '
        'or EG3D.')
  kinds = {'TriPlaneGenerator': _eg3d, 'Generator': _stylegan2}
  if module.class_name not in kinds:
    raise pickles.PickleError(
        f'{path} contains a {excerpt(module.class_name)}, which is not '
        f'supported; it should be one of {sorted(kinds)}.')
  _check_settings(path, module)
  with pickles.reported_damage(path):
    return kinds[module.class_name](path, module)


def _check_settings(path, module):
  """Checks the settings of a generator that are there."""
  absent = object()
  settings = {name: module.get(name, absent) for name in _SETTINGS}
  settings = {name: x for name, x in settings.items() if x is not absent}
  schemas.check(path, settings, _SETTINGS)
  schemas.check(path, settings.get('mapping_kwargs', {}),
                {'num_layers': whole(1, 64)})
  options = settings.get('rendering_kwargs', {})
  schemas.check(path, options, _OPTIONS)
  start, end = options.get('ray_start'), options.get('ray_end')
  if isinstance(start, int | float) and isinstance(end, int | float) and (
      end <= start):
    raise UserError(f'{path}: \'ray_end\' is not beyond \'ray_start\'; get it '
                    'again.')
  for layer in _descendants(module):
    schemas.check(path, layer.state, {'conv_clamp': _CLAMP})


class FlattenedWeight(NamedTuple):
  """Layout of a matrix [out, C * size * size] that acts on flattened images.

  Official images are flattened with channels first, ours with channels last.
  """
  size: int

  def __call__(self, tensor: np.ndarray) -> np.ndarray:
    out = tensor.shape[0]
    cube = tensor.reshape(out, -1, self.size, self.size)
    return cube.transpose(2, 3, 1, 0).reshape(-1, out)

  def inverse(self, weight: np.ndarray) -> np.ndarray:
    cube = weight.reshape(self.size, self.size, -1, weight.shape[-1])
    return cube.transpose(3, 2, 0, 1).reshape(weight.shape[-1], -1)


def sources(like: Any) -> dict[str, Any]:
  """The official name and layout of each leaf; see weights/port.py.

  Args:
    like: variables of a generator or a discriminator, StyleGAN2's or EG3D's,
      as arrays or shapes.
  """
  return port.by_path(like, {'b4.fc.weight': FlattenedWeight(4)})


def tensors(variables: Any) -> dict[str, np.ndarray]:
  """{official name: array} of the variables of a network: inverse of `load`.

  They include the resampling filters that official networks save with each
  convolution, so that they are the complete state of an official network:
  np.savez(path, **tensors(variables)) writes it to a file.
  """
  arrays = port.to_torch(variables, sources(variables))
  return arrays | dict.fromkeys(_filters(arrays), np.outer(
      images.BINOMIAL, images.BINOMIAL).astype(np.float32))


def restore(path: Path, like: Any) -> Any:
  """Variables from a file with official names; see `tensors`.

  Args:
    path: of a file that weights/torch_files.py reads.
    like: tree of arrays or shapes, as `network.init` makes it.

  Raises:
    UserError: the file cannot be read, or does not fit.
  """
  return _ported(path, torch_files.read(path), like)


def _filters(arrays) -> Iterable[str]:
  """Names of the resampling filters in the state of an official network.

  Args:
    arrays: {official name: array} of the same network.
  """
  modules = set()
  # Every convolution has a filter, whether it resamples or not, and so has
  # every block, for its image or its skip connection.
  for name in arrays:
    layer, _, kind = name.rpartition('.')
    block, _, layer_name = layer.rpartition('.')
    if kind == 'weight' and layer_name in (
        'conv', 'conv0', 'conv1', 'skip', 'fromrgb'):
      modules.add(layer)
    if kind == 'weight' and layer_name in ('torgb', 'skip'):
      modules.add(block)
    if layer_name == 'skip':
      modules.add('')  # The discriminator itself.
  # All super-resolution modules have one but 8XDC, the widest.
  bias = arrays.get('superresolution.block0.conv0.bias', np.zeros(256))
  if len(bias) != 256:
    modules.add('superresolution')
  return [f'{module}.resample_filter'.lstrip('.') for module in modules]


def _eg3d(path, module) -> Loaded:
  options = _required(path, module, 'rendering_kwargs')
  super_resolution = _super_resolution(path, module, options)
  missing = [name for name in (
      'depth_resolution', 'depth_resolution_importance', 'ray_start',
      'ray_end', 'box_warp') if name not in options]
  if missing:
    raise pickles.PickleError(
        f'{path} has no {missing} in rendering_kwargs, without which it cannot '
        'be rendered.')
  if options.get('clamp_mode', 'softplus') != 'softplus':
    raise pickles.PickleError(
        f'{path} activates density by {excerpt(options["clamp_mode"])}; only '
        'softplus is supported.')
  if options.get('superresolution_noise_mode', 'none') != 'none':
    raise pickles.PickleError(
        f'{path} has noise in its super-resolution, which is not supported.')
  network = eg3d.Generator(
      # The official code has planes of 256 x 256, whatever the images' size.
      {'resolution': 256, 'channel_base': module.get('channel_base', 32_768),
       'channel_max': module.get('channel_max', 512),
       'clamp': _clamp(module.child('backbone') or module,
                       module.get('conv_clamp', 256))},
      {'width': _required(path, module, 'w_dim'),
       'layers': module.get('mapping_kwargs', {}).get('num_layers', 8)},
      eg3d.RenderingConfig(
          options['depth_resolution'],
          options['depth_resolution_importance'], options['ray_start'],
          options['ray_end'], options['box_warp'], _axes(path, module),
          options.get('white_back', False),
          options.get('disparity_space_sampling', False)),
      super_resolution,
      # Without the key, the official code takes 0.
      pose_conditioning=(0.0 if options.get('c_gen_conditioning_zero')
                         else float(options.get('c_scale', 0))),
      # Saved weights are divided by the multiplier, so it is more than a rate.
      decoder_rate=options.get('decoder_lr_mul', 1),
      # A super-resolution that was trained in half precision clamps, also
      # where it is computed in float32.
      super_resolution_clamp=_clamp(
          module.child('superresolution'),
          256 if module.get('sr_num_fp16_res', 0) else None))
  z_dim, label_width = (
      _required(path, module, name) for name in ('z_dim', 'c_dim'))
  z, label = jnp.zeros((1, z_dim)), jnp.zeros((1, label_width))
  # Any resolution of rendering will do: the shapes do not depend on it.
  jitter = eg3d.ray_jitter(None, 1, 16, network.rendering)
  like = jax.eval_shape(lambda: network.init(
      jax.random.key(0), z, label, label, 16, jitter))
  orbit = {short: options[name] for short, name in (
      ('radius', 'avg_camera_radius'), ('pivot', 'avg_camera_pivot'))
      if name in options}
  return Loaded(network, _port(path, module, like), z_dim, label_width,
                module.get('neural_rendering_resolution', 64), orbit)


def _stylegan2(path, module) -> Loaded:
  layers = module.get('mapping_kwargs', {}).get('num_layers', 8)
  z_dim = _required(path, module, 'z_dim')
  label_width = module.get('c_dim', 0)
  # Files of stylegan3 omit what has the default value.
  network = stylegan2.Generator(
      {'resolution': _required(path, module, 'img_resolution'),
       'image_channels': module.get('img_channels', 3),
       'channel_base': module.get('channel_base', 32_768),
       'channel_max': module.get('channel_max', 512),
       'clamp': _clamp(module, module.get('conv_clamp', 256))},
      {'width': _required(path, module, 'w_dim'), 'layers': layers,
       'labeled': label_width > 0, 'latent': z_dim > 0})
  like = jax.eval_shape(lambda: network.init(
      jax.random.key(0), jnp.zeros((1, z_dim)),
      jnp.zeros((1, label_width))))
  return Loaded(network, _port(path, module, like), z_dim, label_width)


def _required(path, module, name):
  """An attribute that every network needs."""
  value = module.get(name)
  if value is None:
    raise pickles.PickleError(
        f'{path} contains a {module.class_name} without {name}; give a file '
        'that an official program has written.')
  return value


def _clamp(module, default):
  """The clamp of a network's convolutions, or None.

  Args:
    module: of the network.
    default: for files whose layers do not have the attribute.
  """
  # A layer without a clamp has None. The first number stands for all, since
  # the official networks pass one clamp to all their layers.
  clamps = [layer.state['conv_clamp'] for layer in _descendants(module)
            if 'conv_clamp' in layer.state]
  return next((c for c in clamps if c is not None),
              None if clamps else default)


def _descendants(module):
  for child in module.state.get('_modules', {}).values():
    if isinstance(child, pickles.Module):
      yield child
      yield from _descendants(child)


def _port(path, module, like):
  return _ported(path, pickles.tensors(module), like)


def _ported(path, arrays, like):
  try:
    return port.to_flax(arrays, sources(like), like,
                        ignored=NOT_OURS, array=jnp.asarray)
  except port.PortingError as error:
    raise port.PortingError(f'{path}: {error}') from None


def _super_resolution(path, module, options):
  child = module.child('superresolution')
  name = '' if child is None else child.class_name
  kind = name.removeprefix(_HYBRID)
  if kind not in eg3d.SUPER_RESOLUTIONS or not name.startswith(_HYBRID):
    raise pickles.PickleError(
        f'{path} has the super-resolution {excerpt(name)}; supported are '
        f'{[_HYBRID + kind for kind in eg3d.SUPER_RESOLUTIONS]}.')
  config = eg3d.SUPER_RESOLUTIONS[kind]
  return config._replace(
      antialias=config.antialias and options.get('sr_antialias', True))


def _axes(path, module):
  """The axes of the tri-planes, from the pickled renderer.

  In released networks two planes have the same axes, by a mistake with which
  they were trained; some forks have corrected it.
  """
  renderer = module.child('renderer')
  matrices = None if renderer is None else renderer.get('plane_axes')
  if matrices is None:
    return 'eg3d_legacy'
  # A point times the inverse has the column and the row of the plane as its
  # first two coordinates.
  if not isinstance(matrices, np.ndarray) or matrices.shape != (3, 3, 3) or (
      matrices.dtype.kind != 'f' or not np.isfinite(matrices).all()
      or (np.abs(np.linalg.det(matrices.astype(float))) < 1e-6).any()):
    raise pickles.PickleError(f'{path} has plane_axes that are not three '
                              'matrices of axes; get it again.')
  inverse = np.linalg.inv(matrices.astype(np.float64))
  axes = tuple(tuple(int(i) for i in np.argmax(np.abs(m[:, :2]), axis=0))
               for m in inverse)
  aligned = all(np.allclose(m[:, :2], np.eye(3)[:, list(pair)])
                 for m, pair in zip(inverse, axes, strict=True))
  for name, known in encodings.AXES.items():
    if axes == known and aligned:
      return name
  raise pickles.PickleError(
      f'{path} has planes with the axes {axes}, '
      f'{"" if aligned else "rotated or mirrored, "}supported are '
      f'{encodings.AXES}.')
