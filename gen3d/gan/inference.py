"""Trained generators of 3-D objects: loading, latents, compiled renderers.

Vocabulary. A seed stands for an object: the latent z is drawn from it.
Rendering is deterministic (noise buffers, samples in the middle of their
intervals), so that an object is the same in all views.

A typical camera is a dict {'elevation', 'distance', 'focal', 'pivot',
'yaw_range'}: medians of the cameras of the training data, in degrees, world
units and image heights. `distance` is from the world's origin; the optical
axis goes through `pivot` (default: the origin). `yaw_range` is in degrees to
either side of the front, for objects seen from the front only; else None.
"""

import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gen3d import assets, schemas
from gen3d.choices import UserError, excerpt
from gen3d.engine import sharding
from gen3d.gan import Generator3D, build, eg3d, giraffe, panels, pigan
from gen3d.models import nvidia
from gen3d.ops import bake, cameras, mesh
from gen3d.weights import pickles

DISCRIMINATOR = '_discriminator'  # ends the file name of its weights
PANELS = ('image', 'image_raw', 'depth')  # of a film
_MAX_SEEDS = 100_000
# Of a typical camera; numbers that may be missing come second.
_CAMERA = dict.fromkeys(('distance', 'focal'), schemas.real(1e-6, 1e6)) | {
    'elevation': schemas.real(-90, 90)}
_CAMERA_OPTIONS = {
    'pivot': schemas.each(schemas.real(-1e6, 1e6), 3, 3),
    'yaw_range': schemas.optional(schemas.real(0, 180))}
_LARGEST = 2 ** 16  # integer in the settings of a network
_NOT_3D = '{} is a generator of images, not of 3-D objects.'


class Trained(NamedTuple):
  """A generator with its weights, and the cameras of its training data.

  Attributes:
    generator: Generator3D.
    variables: of the generator, a nested dict of arrays.
    size: rays a side of a rendering.
    camera: typical camera, see the module's vocabulary.
  """
  generator: Generator3D
  variables: Any
  size: int
  camera: dict


def load(path: str | os.PathLike) -> Trained:
  """Loads a trained generator.

  Args:
    path: a name such as 'shapes' for what ships with the package, or a file:
      .safetensors of gen3d or an official one: EG3D's .pkl, GIRAFFE's .pt or
      pi-GAN's .pth.

  Raises:
    UserError: there is no such network, the file is damaged, or it generates
      images instead of 3-D objects.
  """
  path = find(path)
  if path.suffix in _OFFICIAL:
    return _OFFICIAL[path.suffix](path)
  variables, record = assets.load(path)
  if 'official' in record:
    schemas.check(path, record, {'official': schemas.MAPPING})
    return _load_tuned_official(path, record['official'])
  return _from_record(path, variables, record)[0]


def find(name: str | os.PathLike) -> pathlib.Path:
  """The path of the asset of a name such as 'shapes', or of a file.

  Raises:
    UserError: no asset has this name, or there is no such file.
  """
  path = pathlib.Path(name)
  if path.is_file():
    if path.suffix not in ('.safetensors', *_OFFICIAL):
      raise UserError(f'{path} is no network; give a .safetensors, or an '
                      f'official {", ".join(_OFFICIAL)}.')
    return path
  shipped = {}
  for kind in build.GENERATORS:
    for file in assets.FOLDER.glob(f'{kind}_*.safetensors'):
      if not file.stem.endswith(DISCRIMINATOR):
        # EG3D's are the default kind: 'cats' stands for 'eg3d_cats'.
        shipped[file.stem.removeprefix('eg3d_')] = file
  if str(name) not in shipped:
    raise UserError(
        f'No network {str(name)!r} ships with gen3d, only {sorted(shipped)}, '
        'and there is no such file; give a .safetensors, or an official '
        f'{", ".join(_OFFICIAL)}.')
  return shipped[str(name)]


def load_with_config(
    path: str | os.PathLike) -> tuple[Trained, ml_collections.ConfigDict]:
  """Loads a generator that gen3d has trained, and the config of its training.

  Raises:
    UserError: the file is damaged, or is no generator of objects of gen3d.
  """
  path = find(path)
  if path.suffix in _OFFICIAL:
    raise UserError(f'{path} is an official network, whose training data are '
                    'not known; give a .safetensors that gen3d has trained.')
  return _from_record(path, *assets.load(path))


def from_config(
    config: Any, variables: Any, camera: dict, size: int) -> Trained:
  """The Trained of a config of tasks/gan.py.

  Args:
    config: ConfigDict whose `networks` is a key of build.GENERATORS.
    variables: of the generator.
    camera: typical camera.
    size: rays a side.
  """
  generator = build.GENERATORS[config.networks](
      config.model, *_front_and_sampler(camera))
  return Trained(generator, variables, size, camera)


def digest_of(path: str | os.PathLike) -> dict[str, str]:
  """Absolute path and SHA-256 of an official pickle.

  Weights that were tuned from the pickle keep it in their record: their
  architecture is read from the pickle.
  """
  path = pathlib.Path(path).absolute()
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return {'path': str(path), 'sha256': digest}


def record_of(name: str | os.PathLike) -> dict[str, Any]:
  """The origin of tuned weights, for the json file beside them.

  Args:
    name: of the network that is tuned, see `find`.

  Returns:
    'model' and what `load` needs: 'official', path and digest of an
    official pickle; else 'config' and 'camera', with 'tuned_from', the digest
    of the weights.
  """
  path = find(name)
  if path.suffix == '.pkl':
    return {'model': str(path), 'official': digest_of(path)}
  if path.suffix in _OFFICIAL:
    raise UserError(f'{path} cannot be tuned; give a .safetensors, or an '
                    'official .pkl.')
  _, record = assets.load(path)
  model = {'model': record.get('model', path.stem)}
  if 'official' in record:  # Tuned before.
    return {**model, 'official': record['official']}
  return {**model, 'config': record['config'], 'camera': record['camera'],
          'tuned_from': record['sha256']}


def save_tuned(record: dict[str, Any], trained: Trained,
               out: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes tuned weights, official ones under their official names.

  Args:
    record: by `record_of`.
    trained: with the tuned variables.
    out: folder.

  Returns:
    The paths of the weights and of the json file beside them.
  """
  if 'official' in record:
    return assets.save(
        out / 'tuned_official.safetensors', nvidia.tensors(trained.variables),
        record)
  return assets.save(out / 'tuned.safetensors', trained.variables, record)


def camera_at(camera: dict, azimuth: Any) -> cameras.Camera:
  """The Camera at an azimuth on the sphere of a typical camera.

  The sphere's center is the world's origin, even where `pivot` is another
  point, as in the official networks.

  Args:
    camera: typical camera.
    azimuth: degrees, a scalar or an array [F].

  Returns:
    Camera, with the leading axes of `azimuth`.
  """
  position = cameras.spherical(*jnp.broadcast_arrays(*map(
      jnp.float32, (azimuth, camera['elevation'], camera['distance']))))
  everywhere = lambda x: jnp.broadcast_to(jnp.float32(x), position.shape)
  intrinsics = cameras.pinhole(
      jnp.full(position.shape[:-1], camera['focal'], jnp.float32))
  return cameras.Camera(cameras.look_at(
      position, everywhere(camera.get('pivot', (0.0, 0.0, 0.0))),
      everywhere((0.0, 1.0, 0.0))), intrinsics)


def azimuths(camera: dict, count: int) -> np.ndarray:
  """Azimuths [count] of a film, in degrees: once around, or back and forth.

  Back and forth by `yaw_range` degrees on either side of the front, where the
  typical camera has one.
  """
  time = np.arange(count) / count
  if not camera.get('yaw_range'):
    return 360.0 * time
  return camera['yaw_range'] * np.sin(2 * np.pi * time)


def camera_path(camera: dict, count: int) -> cameras.Camera:
  """Cameras [count] of a film, at `azimuths`."""
  return camera_at(camera, azimuths(camera, count))


def parse_seeds(text: str) -> list[int]:
  """[0, 1, 2, 7] of '0-2,7'.

  Raises:
    UserError: the text has another form, or a seed or a range is too large.
  """
  seeds = []
  for part in text.split(','):
    match = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
    if not match or int(match[2] or match[1]) < int(match[1]):
      raise UserError(f'The seeds {text!r} are not understood; write them '
                      'like 0-7,12.')
    first, last = int(match[1]), int(match[2] or match[1])
    # jax.random.key takes 32 bits: larger seeds would repeat objects.
    if last >= 2 ** 32 or last - first >= _MAX_SEEDS:
      raise UserError(f'The seeds {part.strip()} go too far: they end at '
                      f'{2 ** 32 - 1}, and a range has at most {_MAX_SEEDS}.')
    seeds += range(first, last + 1)
  return seeds


def latent(trained: Trained, seed: int) -> jax.Array:
  """z [Z] of an object."""
  return jax.random.normal(
      jax.random.key(seed), (trained.generator.z_dim,))


def map_latent(trained: Trained, z: jax.Array, psi: float = 1.0,
               cutoff: int | None = None) -> jax.Array:
  """ws [L, D] of z [Z], with the default camera conditioning.

  Args:
    trained: Trained.
    z: [Z].
    psi: truncation, 1 for none.
    cutoff: number of layers that are truncated; None for all.
  """
  return _compiled_mapping(trained.generator)(
      trained.variables, z, psi, cutoff)


def map_seed(trained: Trained, seed: int, psi: float = 1.0,
             cutoff: int | None = None) -> jax.Array:
  """`map_latent` of the latent of a seed."""
  return map_latent(trained, latent(trained, seed), psi, cutoff)


def make_renderer(
    trained: Trained, names: tuple[str, ...] = PANELS
) -> Callable[[jax.Array, cameras.Camera], np.ndarray]:
  """A compiled function that renders an object from several cameras.

  The representation is computed once for all views. Each of this process's
  devices renders one view at a time.

  Args:
    trained: Trained.
    names: of panels.NAMES, side by side in the result.

  Returns:
    (ws [L, D], Camera [F]) -> uint8 [F, R, len(names) R, 3].
  """
  generator, size = trained.generator, trained.size
  synthesize = _compiled_synthesis(generator)

  # Weights are arguments: closed over, they would be constants of the program.
  def render(shared, camera):
    variables, representation, ws = shared
    return panels.row(generator.render(
        variables, representation, ws[None], camera, size, None), names,
                      camera)[None]

  over_devices = sharding.map_over_devices(render, 1, 'Rendering views')
  return lambda ws, camera: over_devices(
      (trained.variables, synthesize(trained.variables, ws), ws), camera)


def make_mesh_extractor(
    trained: Trained, resolution: int = 128
) -> Callable[[jax.Array], mesh.Mesh]:
  """A function ws [L, D] -> Mesh, in world units, colored as the raw image.

  The function raises ops.mesh.EmptyField for an object without a surface.

  Args:
    trained: Trained.
    resolution: of the grid.
  """
  generator = trained.generator
  synthesize = _compiled_synthesis(generator)
  return lambda ws: generator.mesh(
      trained.variables, synthesize(trained.variables, ws), resolution)


def make_baker(
    trained: Trained, size: int
) -> Callable[[jax.Array, mesh.Mesh], mesh.Mesh]:
  """A function (ws [L, D], its mesh) -> the mesh with a texture.

  Args:
    trained: Trained.
    size: texels per side of the texture; 0 for the mesh's vertex colors.

  Raises:
    UserError: there is no texture of this size.
  """
  bake.check_size(size)
  generator = trained.generator
  synthesize = _compiled_synthesis(generator)
  if not size:
    return lambda ws, surface: surface
  return lambda ws, surface: bake.bake(
      functools.partial(generator.color, trained.variables,
                        synthesize(trained.variables, ws)), surface, size)


@functools.lru_cache(8)
def _compiled_mapping(generator):
  """A compiled (variables, z [Z], psi, cutoff) -> ws [L, D]."""
  return jax.jit(lambda variables, z, psi, cutoff: generator.map(
      variables, z[None], None, psi, cutoff)[0], static_argnums=3)


def _compiled_synthesis(generator):
  """A compiled (variables, ws [L, D]) -> representation of one object."""
  return jax.jit(lambda variables, ws: generator.synthesize(
      variables, ws[None], 'const', None))


def _front_and_sampler(camera):
  """(front Camera, key -> random Camera) of a typical camera."""
  return camera_at(camera, 0.0), functools.partial(_sample_camera, camera)


def _sample_camera(camera, key):
  """A Camera at a uniform azimuth within the range of a typical camera."""
  yaw_range = camera.get('yaw_range') or 180.0
  return camera_at(camera, jax.random.uniform(
      key, minval=-yaw_range, maxval=yaw_range))


def _from_record(path, variables, record):
  """(Trained, ConfigDict of its training) of weights that gen3d trained."""
  networks = record.get('config', {}).get('networks')
  if networks is None or 'camera' not in record:
    raise UserError(f'{path} is no generator that gen3d has trained; its '
                    'record has no networks or no camera.')
  if not isinstance(networks, str) or networks not in build.GENERATORS:
    raise UserError(_NOT_3D.format(path))
  where = path.with_suffix('.json')
  schemas.check(where, record, {'camera': schemas.MAPPING})
  schemas.check(where, record['camera'], _CAMERA, required=True)
  schemas.check(where, record['camera'], _CAMERA_OPTIONS)
  try:
    config = ml_collections.ConfigDict(record['config'])
    _check_sizes(where, config.model.to_dict())
    size = _final_size(config)
    schemas.check(where, {'render_size': size},
                  {'render_size': schemas.whole(1, 4096)})
    trained = from_config(config, variables, record['camera'], size)
    schemas.check(where, {'z_width': trained.generator.z_dim},
                  {'z_width': schemas.whole(0, _LARGEST)})
  except UserError:
    raise
  except (ArithmeticError, AttributeError, LookupError, TypeError,
          ValueError) as error:
    raise UserError(f'{where} has settings that make no generator '
                    f'({excerpt(error)}); get it again.') from error
  return trained, config


def _check_sizes(where, settings):
  """Raises UserError at an integer that no network has."""
  for key, value in settings.items():
    if isinstance(value, dict):
      _check_sizes(where, value)
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, int) and item > _LARGEST:
        raise UserError(f'{where}: {key!r} is {excerpt(item)}, more than '
                        f'{_LARGEST}; get it again.')


def _final_size(config):
  """Rays a side of a rendering at the end of training."""
  if 'stages' in config:
    return int(config.stages[-1][1])
  if 'render_size' not in config:
    return int(config.resolution)
  size = int(config.render_size[-1][1])
  return size - size % config.render_bucket


def _load_official(path):
  """An official pickle of EG3D."""
  loaded = nvidia.load(path)
  if loaded.orbit is None:
    raise UserError(_NOT_3D.format(path))
  camera = eg3d.official_camera(loaded)
  generator = eg3d.make(
      loaded.network, loaded.z_dim, *_front_and_sampler(camera))
  return Trained(generator, loaded.variables, loaded.rendering_resolution,
                 camera)


def _load_tuned_official(path, digest):
  """An official network with the weights of pivotal tuning in `path`."""
  schemas.check(f'{path}: "official"', digest,
                {'path': schemas.TEXT, 'sha256': schemas.TEXT}, required=True)
  pickled = pathlib.Path(digest['path'])
  if not pickled.is_file():
    raise UserError(f'{path} is tuned from {pickled}, which is no longer '
                    'there; its architecture is read from that file.')
  if digest_of(pickled) != digest:
    raise UserError(f'{path} is tuned from another {pickled} than the one '
                    'that is there; put that back.')
  trained = _load_official(pickled)
  return trained._replace(variables=nvidia.restore(path, trained.variables))


def _from_official(load):
  """A function path -> Trained, from one path -> gan.Official."""
  def load_trained(path):
    with pickles.reported_damage(path):
      official = load(path)
    generator = official.build(*_front_and_sampler(official.camera))
    return Trained(generator, official.variables, official.size,
                   official.camera)

  return load_trained


# Loaders of official checkpoints by the endings of their names.
_OFFICIAL = {'.pkl': _load_official,
             '.pt': _from_official(giraffe.load_official),
             '.pth': _from_official(pigan.load_official)}
