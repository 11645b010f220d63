"""NVIDIA's released networks, from their pickles to our modules and back.

EG3D's generators and discriminators, and StyleGAN2's in the format of
stylegan2-ada-pytorch and stylegan3. The architecture is read from the pickle,
weights are matched by name. The released weights are NVIDIA's, for
non-commercial use; they are not part of this project.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.models import eg3d, stylegan2
from gen3d.ops import encodings, images
from gen3d.weights import pickles, port, torch_files

_UPSCALING = 'SuperresolutionHybrid'


class Loaded(NamedTuple):
  """A network and its variables, ready for `network.apply(variables, ...)`.

  Attributes:
    network: eg3d.Generator, stylegan2.Generator or stylegan2.Discriminator.
    variables: {'params', 'buffers'}.
    z_dim: of the latent; 0 for a discriminator.
    label_width: 0 where there is no label.
    rendering_resolution: that the generator was saved with; 0 in 2-D.
    orbit: {'radius', 'pivot'} of an EG3D's usual camera, as far as they are
      told; None in 2-D.
  """
  network: Any
  variables: Any
  z_dim: int = 0
  label_width: int = 0
  rendering_resolution: int = 0
  orbit: Any = None


def load(path):
  """The averaged generator (G_ema) of an official pickle, as Loaded.

  Raises:
    pickles.PickleError: the file is no such pickle, or holds a network that
      is not known here.
    porting.PortingError: weights are missing, unused or of another shape.
  """
  module = pickles.load(path).generator
  kinds = {'TriPlaneGenerator': _eg3d, 'Generator': _stylegan2}
  if module.class_name not in kinds:
    raise pickles.PickleError(
        f'{path} holds a {module.class_name!r}, which is not known here; it '
        f'should be one of {sorted(kinds)}.')
  return kinds[module.class_name](path, module)


def load_discriminator(path):
  """The discriminator (D) of an official pickle, as Loaded.

  Raises:
    As `load`.
  """
  module = pickles.load(path).discriminator
  kinds = {'DualDiscriminator': 6, 'Discriminator': 3, 'SingleDiscriminator': 3}
  if module is None or module.class_name not in kinds:
    kind = 'none' if module is None else repr(module.class_name)
    raise pickles.PickleError(
        f'{path} should hold a discriminator, one of {sorted(kinds)}, but '
        f'holds {kind}.')
  label_width = module.get('c_dim', 0)
  resolution = _told(path, module, 'img_resolution')
  network = stylegan2.Discriminator(
      resolution, label_width > 0,
      channel_base=module.get('channel_base', 32_768),
      channel_max=module.get('channel_max', 512),
      mbstd_group=module.get('epilogue_kwargs', {}).get('mbstd_group_size', 4),
      mapping_layers=module.get('mapping_kwargs', {}).get('num_layers', 8),
      clamp=_clamp(module, module.get('conv_clamp', 256)))
  image = jnp.zeros(
      (1, resolution, resolution, kinds[module.class_name]))
  like = jax.eval_shape(lambda: network.init(
      jax.random.key(0), image, jnp.zeros((1, label_width))))
  return Loaded(network, _port(path, module, like), label_width=label_width)


def tensors(variables):
  """{official name: array} of variables of our networks: `load`'s inverse.

  The filters that official networks keep beside every convolution are among
  them, so that an official network of this architecture takes them for its
  whole state: np.savez(path, **tensors(variables)), for one, writes a file
  of them.
  """
  found = port.to_torch(variables, stylegan2.sources(variables))
  return found | dict.fromkeys(_filters(found), np.outer(
      images.BINOMIAL, images.BINOMIAL).astype(np.float32))


def restore(path, like):
  """Variables from a file of official names, see `tensors`.

  Args:
    path: as weight_files.read takes it.
    like: tree of arrays or shapes, as `network.init` makes it.

  Raises:
    UserError: the file cannot be read, or does not fit.
  """
  return _ported(path, torch_files.read(path), like)


def _filters(names):
  """Names of the filters that official networks with these tensors keep."""
  found = set()
  for name in names:
    layer, _, kind = name.rpartition('.')
    block, _, layer_name = layer.rpartition('.')
    if kind == 'weight' and layer_name in (
        'conv', 'conv0', 'conv1', 'skip', 'fromrgb'):
      found.add(layer)
    if kind == 'weight' and layer_name in ('torgb', 'skip'):
      found.add(block)
    if layer_name == 'skip':
      found.add('')  # A discriminator has one for itself.
  # As have all super-resolutions but 8XDC, which is the widest.
  narrow = names.get('superresolution.block0.conv0.bias', np.zeros(256))
  if len(narrow) != 256:
    found.add('superresolution')
  return [f'{at}.resample_filter'.lstrip('.') for at in found]


def _eg3d(path, module):
  options = _told(path, module, 'rendering_kwargs')
  super_resolution = _super_resolution(path, module, options)
  missing = [name for name in (
      'depth_resolution', 'depth_resolution_importance', 'ray_start',
      'ray_end', 'box_warp') if name not in options]
  if missing:
    raise pickles.PickleError(
        f'{path} says nothing of {missing} in rendering_kwargs, so how it is '
        'to be rendered is not known.')
  if options.get('clamp_mode', 'softplus') != 'softplus':
    raise pickles.PickleError(
        f'{path} maps density by {options["clamp_mode"]!r}; only softplus is '
        'known here.')
  if options.get('superresolution_noise_mode', 'none') != 'none':
    raise pickles.PickleError(
        f'{path} has noise in its super-resolution, which is not known here.')
  network = eg3d.Generator(
      {'resolution': 256, 'channel_base': module.get('channel_base', 32_768),
       'channel_max': module.get('channel_max', 512),
       'clamp': _clamp(module.child('backbone') or module,
                       module.get('conv_clamp', 256))},
      {'width': _told(path, module, 'w_dim'),
       'layers': module.get('mapping_kwargs', {}).get('num_layers', 8)},
      eg3d.RenderingConfig(
          options['depth_resolution'],
          options['depth_resolution_importance'], options['ray_start'],
          options['ray_end'], options['box_warp'], _axes(path, module),
          options.get('white_back', False),
          options.get('disparity_space_sampling', False)),
      super_resolution,
      # A file without the key was trained by a program that took 0 for it.
      pose_conditioning=0.0 if options.get('c_gen_conditioning_zero') else float(
          options.get('c_scale', 0)),
      decoder_rate=options.get('decoder_lr_mul', 1),
      super_resolution_clamp=_clamp(
          module.child('superresolution'),
          256 if module.get('sr_num_fp16_res', 0) else None))
  z_dim, label_width = (
      _told(path, module, name) for name in ('z_dim', 'c_dim'))
  z, label = jnp.zeros((1, z_dim)), jnp.zeros((1, label_width))
  draws = eg3d.draw(None, 1, 16, network.rendering)
  like = jax.eval_shape(lambda: network.init(
      jax.random.key(0), z, label, label, 16, draws))
  orbit = {short: options[name] for short, name in (
      ('radius', 'avg_camera_radius'), ('pivot', 'avg_camera_pivot'))
      if name in options}
  return Loaded(network, _port(path, module, like), z_dim, label_width,
                module.get('neural_rendering_resolution', 64), orbit)


def _stylegan2(path, module):
  layers = module.get('mapping_kwargs', {}).get('num_layers', 8)
  z_dim = _told(path, module, 'z_dim')
  label_width = module.get('c_dim', 0)
  network = stylegan2.Generator(
      {'resolution': _told(path, module, 'img_resolution'),
       'image_channels': module.get('img_channels', 3),
       'channel_base': module.get('channel_base', 32_768),
       'channel_max': module.get('channel_max', 512),
       'clamp': _clamp(module, module.get('conv_clamp', 256))},
      {'width': _told(path, module, 'w_dim'), 'layers': layers,
       'labeled': label_width > 0, 'latent': z_dim > 0})
  like = jax.eval_shape(lambda: network.init(
      jax.random.key(0), jnp.zeros((1, z_dim)),
      jnp.zeros((1, label_width))))
  return Loaded(network, _port(path, module, like), z_dim, label_width)


def _told(path, module, name):
  """An attribute that no network can do without."""
  value = module.get(name)
  if value is None:
    raise pickles.PickleError(
        f'{path} holds a {module.class_name} that says nothing of its {name}; '
        'give a file as an official program writes it.')
  return value


def _clamp(module, usual):
  """What a network's convolutions are clamped to, or None.

  Its layers say; `usual` is for files whose layers do not. Those around a
  residual block have none in any case.
  """
  told = [layer.state['conv_clamp'] for layer in _descendants(module)
          if 'conv_clamp' in layer.state]
  return next((c for c in told if c is not None), None if told else usual)


def _descendants(module):
  for child in module.state.get('_modules', {}).values():
    if isinstance(child, pickles.Module):
      yield child
      yield from _descendants(child)


def _port(path, module, like):
  return _ported(path, pickles.tensors(module), like)


def _ported(path, found, like):
  try:
    return port.to_flax(found, stylegan2.sources(like), like,
                        ignored=stylegan2.NOT_OURS, array=jnp.asarray)
  except port.PortingError as error:
    raise port.PortingError(f'{path}: {error}') from None


def _super_resolution(path, module, options):
  child = module.child('superresolution')
  name = '' if child is None else child.class_name
  kind = name.removeprefix(_UPSCALING)
  if kind not in eg3d.SUPER_RESOLUTIONS or not name.startswith(_UPSCALING):
    raise pickles.PickleError(
        f'{path} has the super-resolution {name!r}; known here are '
        f'{[_UPSCALING + kind for kind in eg3d.SUPER_RESOLUTIONS]}.')
  usual = eg3d.SUPER_RESOLUTIONS[kind]
  return usual._replace(
      antialias=usual.antialias and options.get('sr_antialias', True))


def _axes(path, module):
  """Which axes the planes have, found in the renderer that was pickled.

  Released networks have two planes of the same axes, a mistake that their
  weights have grown around; forks have mended it.
  """
  renderer = module.child('renderer')
  matrices = None if renderer is None else renderer.get('plane_axes')
  if matrices is None:
    return 'eg3d_legacy'
  # A point is multiplied by the inverse from the right; its first two
  # coordinates are then column and row.
  inverse = np.linalg.inv(np.asarray(matrices, np.float64))
  axes = tuple(tuple(int(i) for i in np.argmax(np.abs(m[:, :2]), axis=0))
               for m in inverse)
  straight = all(np.allclose(m[:, :2], np.eye(3)[:, list(pair)])
                 for m, pair in zip(inverse, axes, strict=True))
  for name, known in encodings.AXES.items():
    if axes == known and straight:
      return name
  raise pickles.PickleError(
      f'{path} has planes with the axes {axes}, '
      f'{"" if straight else "turned or mirrored, "}known here are '
      f'{encodings.AXES}.')
