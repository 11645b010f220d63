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

from gen3d.models import eg3d, pickles, porting, stylegan2
from gen3d.ops import encodings

_UPSCALING = 'SuperresolutionHybrid'


class Loaded(NamedTuple):
  """A network and its variables, ready for `network.apply(variables, ...)`.

  Attributes:
    network: eg3d.Generator, stylegan2.Generator or stylegan2.Discriminator.
    variables: {'params', 'buffers'}.
    z_width: of the latent; 0 for a discriminator.
    label_width: 0 where there is no label.
    rendering_resolution: that the generator was saved with; 0 in 2-D.
    orbit: {'radius', 'pivot'} of an EG3D's usual camera, as far as they are
      told; None in 2-D.
  """
  network: Any
  variables: Any
  z_width: int = 0
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
  half = module.get('num_fp16_res', 0)
  label_width = module.get('c_dim', 0)
  resolution = module.get('img_resolution')
  network = stylegan2.Discriminator(
      resolution, label_width > 0,
      base=module.get('channel_base', 32_768),
      most=module.get('channel_max', 512),
      group=module.get('epilogue_kwargs', {}).get('mbstd_group_size', 4),
      mapping_layers=module.get('mapping_kwargs', {}).get('num_layers', 8),
      clamp=module.get('conv_clamp', 256 if half else None))
  image = jnp.zeros(
      (1, resolution, resolution, kinds[module.class_name]))
  like = jax.eval_shape(lambda: network.init(
      jax.random.key(0), image, jnp.zeros((1, label_width))))
  return Loaded(network, _port(module, like), label_width=label_width)


def tensors(variables):
  """{official name: array} of variables of our networks: `load`'s inverse."""
  return porting.unport(variables, stylegan2.sources(variables))


def _eg3d(path, module):
  options = module['rendering_kwargs']
  upscaling = _upscaling(path, module, options)
  if options.get('clamp_mode', 'softplus') != 'softplus':
    raise pickles.PickleError(
        f'{path} maps density by {options["clamp_mode"]!r}; only softplus is '
        'known here.')
  network = eg3d.Generator(
      {'resolution': 256, 'base': module.get('channel_base', 32_768),
       'most': module.get('channel_max', 512),
       'clamp': module.get('conv_clamp', 256)},
      {'width': module.get('w_dim'),
       'layers': module.get('mapping_kwargs', {}).get('num_layers', 8)},
      eg3d.Rendering(
          options['depth_resolution'],
          options['depth_resolution_importance'], options['ray_start'],
          options['ray_end'], options['box_warp'], _axes(path, module),
          options.get('white_back', False),
          options.get('disparity_space_sampling', False)),
      upscaling,
      # A file without the key was trained by a program that took 0 for it.
      condition=0.0 if options.get('c_gen_conditioning_zero') else float(
          options.get('c_scale', 0)),
      decoder_rate=options.get('decoder_lr_mul', 1),
      upscaling_clamp=256 if module.get('sr_num_fp16_res', 0) else None)
  z_width, label_width = module.get('z_dim'), module.get('c_dim')
  z, label = jnp.zeros((1, z_width)), jnp.zeros((1, label_width))
  draws = eg3d.draw(None, 1, 16, network.rendering)
  like = jax.eval_shape(lambda: network.init(
      jax.random.key(0), z, label, label, 16, draws))
  orbit = {short: options[name] for short, name in (
      ('radius', 'avg_camera_radius'), ('pivot', 'avg_camera_pivot'))
      if name in options}
  return Loaded(network, _port(module, like), z_width, label_width,
                module.get('neural_rendering_resolution', 64), orbit)


def _stylegan2(path, module):
  del path
  half = module.get('num_fp16_res', 0)
  layers = module.get('mapping_kwargs', {}).get('num_layers', 8)
  z_width, label_width = module.get('z_dim'), module.get('c_dim', 0)
  network = stylegan2.Generator(
      {'resolution': module.get('img_resolution'),
       'image_channels': module.get('img_channels', 3),
       'base': module.get('channel_base', 32_768),
       'most': module.get('channel_max', 512),
       'clamp': module.get('conv_clamp', 256 if half else None)},
      {'width': module.get('w_dim'), 'layers': layers,
       'labelled': label_width > 0, 'latent': z_width > 0})
  like = jax.eval_shape(lambda: network.init(
      jax.random.key(0), jnp.zeros((1, z_width)),
      jnp.zeros((1, label_width))))
  return Loaded(network, _port(module, like), z_width, label_width)


def _port(module, like):
  return porting.port(pickles.tensors(module), stylegan2.sources(like), like,
                      ignored=stylegan2.NOT_OURS)


def _upscaling(path, module, options):
  child = module.child('superresolution')
  name = '' if child is None else child.class_name
  kind = name.removeprefix(_UPSCALING)
  if kind not in eg3d.UPSCALING or not name.startswith(_UPSCALING):
    raise pickles.PickleError(
        f'{path} has the super-resolution {name!r}; known here are '
        f'{[_UPSCALING + kind for kind in eg3d.UPSCALING]}.')
  usual = eg3d.UPSCALING[kind]
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
  axes = tuple(tuple(int(i) for i in np.argmax(m[:, :2], axis=0))
               for m in inverse)
  for name, known in encodings.AXES.items():
    if axes == known:
      return name
  raise pickles.PickleError(
      f'{path} has planes with the axes {axes}; known here are '
      f'{encodings.AXES}.')
