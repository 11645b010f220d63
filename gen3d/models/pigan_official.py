"""pi-GAN's released generators: from PyTorch's files to our module.

A checkpoint is generator.pth, the whole generator as an object of the official
classes, with ema.pth beside it: an object of torch_ema, whose list of averaged
parameters has no names but the order of the generator's. Both are read without
PyTorch and without running anything in them; a state_dict of the generator is
read as well. The sizes of the network come from its tensors, cameras and
samples from the CURRICULA.
"""

import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d.choices import UserError, pick
from gen3d.models import pigan
from gen3d.models.pigan_render import CameraPrior, RenderingConfig
from gen3d.weights import pickles, port, torch_files

# Packages whose classes a checkpoint may name.
_PACKAGES = ('generators', 'siren', 'torch_ema', 'torch.nn.modules')


class Curriculum(NamedTuple):
  """What a checkpoint does not say of its training.

  Attributes:
    siren: official class of the network.
    coordinate_scale: see pigan.SirenConfig.
    prior: of the cameras.
    rendering: for evaluation.
    size: of images in the published evaluation.
  """
  siren: str
  coordinate_scale: float
  prior: CameraPrior
  rendering: RenderingConfig
  size: int = 128


_MAX_LAYERS = 64
_BASELINE = 'SPATIALSIRENBASELINE'
# Half the range of the area of CARLA's cameras, from the horizon to the pole
# but for 5 degrees.
_LATITUDES = math.pi / 4 * 85 / 90
CURRICULA = {
    'celeba': Curriculum(
        _BASELINE, 2 / 0.24, CameraPrior('gaussian', 0.3, 0.155),
        RenderingConfig(12, 0.88, 1.12, last_background=True, chunk=1024)),
    'cats': Curriculum(
        _BASELINE, 2 / 0.24, CameraPrior('uniform', 0.5, 0.4),
        RenderingConfig(24, 0.8, 1.2, last_background=True, chunk=1024)),
    'carla': Curriculum(
        'TALLSIREN', 1.0, CameraPrior(
            'spherical_uniform', math.pi, _LATITUDES, pitch_mean=_LATITUDES,
            fov=30.0),
        RenderingConfig(48, 0.7, 1.3, white_background=True, chunk=1024)),
}


class Loaded(NamedTuple):
  """A generator; `variables` has no mean styles, only 'params'."""
  module: pigan.Generator
  variables: Any
  z_dim: int
  curriculum: Curriculum


def load(path: str | os.PathLike, curriculum: str | None = None) -> Loaded:
  """An official generator; see gan.pigan.load_official for the arguments.

  Raises:
    UserError: the file cannot be read, refers to other code, does not fit, or
      is of another curriculum.
  """
  path = pathlib.Path(path)
  content = _read(path)
  kind = None
  if isinstance(content, pickles.Module) and _shadow(content) is None:
    tensors = pickles.tensors(content)
    siren = content.child('siren')
    kind = siren.class_name if siren else None
    averaged = path.with_name(path.name.replace('generator', 'ema'))
    if averaged != path and averaged.is_file():
      tensors = _averaged(averaged, _read(averaged), list(tensors))
  elif _shadow(content) is not None:
    tensors = _averaged(path, content, None)
  else:
    tensors = content
  return _build(path, tensors, _curriculum(path, kind, curriculum))


def official_names(layers: int, mapping_layers: int) -> dict[str, str]:
  """{path of a module in Generator's parameters: official name of the module}.

  In the order of the official parameters.
  """
  return {
      **{f'siren/film_{i}': f'siren.network.{i}.layer' for i in range(layers)},
      'siren/density': 'siren.final_layer',
      'siren/film_color': 'siren.color_layer_sine.layer',
      'siren/color': 'siren.color_layer_linear.0',
      # Activations have the odd numbers.
      **{f'mapping/dense_{i}': f'siren.mapping_network.network.{2 * i}'
         for i in range(mapping_layers + 1)}}


def sources(layers: int, mapping_layers: int) -> port.Sources:
  """The official name and layout of each parameter; see weights/port.py."""
  return {f'params/{path}/{leaf}': (f'{name}.{kind}', layout)
          for path, name in official_names(layers, mapping_layers).items()
          for leaf, kind, layout in (('kernel', 'weight', port.linear),
                                     ('bias', 'bias', port.keep))}


def _build(path, tensors, curriculum):
  """Loaded, from named tensors."""
  layers = _count(tensors, r'siren\.network\.(\d+)\.layer\.weight') or 8
  mapping_layers = _count(
      tensors, r'siren\.mapping_network\.network\.(\d+)\.weight') - 1
  mapping_layers = mapping_layers if mapping_layers > 0 else 3
  if max(layers, mapping_layers) > _MAX_LAYERS:
    raise UserError(f'{path} has more than {_MAX_LAYERS} layers; give a '
                    'generator of pi-GAN.')
  # Where a tensor is missing, the official size: the error is one of `port`.
  shape = lambda name: (*np.shape(tensors.get(name, ())), 256, 256)[:2]
  width, _ = shape('siren.network.0.layer.weight')
  mapping_width, z_dim = shape('siren.mapping_network.network.0.weight')
  module = pigan.Generator(
      pigan.SirenConfig(width, layers, curriculum.coordinate_scale),
      pigan.MappingConfig(mapping_width, mapping_layers))
  like = jax.eval_shape(
      lambda: module.init(jax.random.key(0), jnp.zeros((1, z_dim))))
  try:
    variables = port.to_flax(
        tensors, sources(layers, mapping_layers), {'params': like['params']},
        array=jnp.asarray)
  except port.PortingError as error:
    raise port.PortingError(f'{path}: {error}') from None
  return Loaded(module, variables, z_dim, curriculum)


def _count(tensors, pattern):
  return sum(bool(re.fullmatch(pattern, name)) for name in tensors)


def _curriculum(path, kind, name):
  """The Curriculum of that name, or the first one of a kind of network."""
  known = {c.siren for c in CURRICULA.values()}
  if kind is not None and kind not in known:
    raise UserError(f'{path} has a network {kind!r}, which is not supported; '
                    f'it should be one of {sorted(known)}.')
  if name is None:
    return next(c for c in CURRICULA.values()
                if c.siren == (kind or _BASELINE))
  curriculum = pick('curriculum', CURRICULA, name)
  if kind is not None and kind != curriculum.siren:
    raise UserError(f'{path} has a network {kind!r}, but the curriculum '
                    f'{name!r} is for {curriculum.siren!r}; give another one.')
  return curriculum


def _shadow(content: Any) -> list | None:
  """The averaged parameters in an object of torch_ema or its state_dict."""
  state = content.state if isinstance(content, pickles.Module) else content
  return state.get('shadow_params') if isinstance(state, Mapping) else None


def _averaged(path, content, names):
  """{name: averaged tensor}; `names` is None for the usual network."""
  shadow = _shadow(content)
  if names is None:
    names = [f'{name}.{kind}' for name in official_names(8, 3).values()
             for kind in ('weight', 'bias')]
  if not isinstance(shadow, list) or len(shadow) != len(names):
    count = len(shadow) if isinstance(shadow, list) else 'no'
    raise UserError(f'{path} has {count} averaged tensors, but its generator '
                    f'{len(names)}; give both of one training.')
  return _checked(path, dict(zip(names, shadow, strict=True)))


def _checked(path, tensors):
  if not all(isinstance(name, str) and isinstance(x, np.ndarray)
             for name, x in tensors.items()):
    raise UserError(f'{path} contains something else than tensors; save '
                    'generator.state_dict() alone.')
  return tensors


def _read(path: pathlib.Path) -> Any:
  """A Module, or {name: tensor}, or the state of torch_ema."""
  content = torch_files.read_object(path, _PACKAGES)
  if _shadow(content) is not None:
    return content
  if isinstance(content, pickles.Module):
    pickles.check_modules(path, content)
    return content
  if not isinstance(content, Mapping):
    raise UserError(f'{path} contains no generator; give generator.pth.')
  return _checked(path, dict(content))
