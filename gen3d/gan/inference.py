"""What a trained generator of 3-D objects makes: pictures, films, meshes.

The generator is one of ours (weights of tasks/gan.py's `finish`) or an
official EG3D pickle. A seed stands for an object; noise is constant and rays
are sampled in the middle of their intervals, so that it stays itself from view
to view.
"""

import functools
import hashlib
import itertools
import pathlib
import re
import sys
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gen3d import assets
from gen3d.choices import UserError
from gen3d.engine import sharding
from gen3d.gan import networks as gan_networks
from gen3d.io import images as image_io
from gen3d.io import meshes, video
from gen3d.models import eg3d, nvidia
from gen3d.ops import cameras, mesh

OPPONENT = '_discriminator'  # at the end of its file's name
PANELS = ('image', 'raw', 'depth')
_MOST_SEEDS = 100_000
_FLAT = '{} is a generator of pictures, not of objects.'


class Network(NamedTuple):
  """A trained generator and the camera that its data were seen by.

  Attributes:
    generator: eg3d.Generator.
    variables: {'params', 'buffers'}.
    z_dim: of the latent.
    size: rays a side.
    camera: {'elevation', 'distance', 'focal', 'pivot', 'yaw_range'}; distance from
      the world's origin, the pivot is what it looks at. See `azimuths`.
  """
  generator: eg3d.Generator
  variables: Any
  z_dim: int
  size: int
  camera: dict


def load(path):
  """The Network of a name, a .safetensors or an official .pkl.

  Args:
    path: a name such as 'shapes' for what ships with the package, or a file.

  Raises:
    UserError: there is no such network, the file is damaged, or it makes
      pictures instead of objects.
  """
  path = find(path)
  if path.suffix == '.pkl':
    return _official(path)
  variables, record = assets.load(path)
  if 'official' in record:
    return _tuned(path, record['official'])
  return _ours(path, variables, record)[0]


def find(name):
  """The path of what ships under a name such as 'shapes', or of a file.

  Raises:
    UserError: nothing ships under this name, or there is no such file.
  """
  path = pathlib.Path(name)
  if path.is_file():
    if path.suffix not in ('.pkl', '.safetensors'):
      raise UserError(f'{path} is no network; give a .pkl or a .safetensors.')
    return path
  shipped = {p.stem.removeprefix('eg3d_'): p
             for p in assets.FOLDER.glob('eg3d_*.safetensors')
             if not p.stem.endswith(OPPONENT)}
  if str(name) not in shipped:
    raise UserError(
        f'No network {str(name)!r} ships with gen3d, only {sorted(shipped)}, '
        'and there is no such file; give a .pkl or a .safetensors.')
  return shipped[str(name)]


def load_trained(path):
  """(Network, ConfigDict of its training) of one that gen3d has trained.

  Raises:
    UserError: the file is damaged, or is no generator of objects of ours.
  """
  path = find(path)
  if path.suffix == '.pkl':
    raise UserError(f'{path} is an official network, of whose training data '
                    'nothing is known here; give a .safetensors that gen3d '
                    'has trained.')
  return _ours(path, *assets.load(path))


def _ours(path, variables, record):
  networks = record.get('config', {}).get('networks')
  if networks is None or 'camera' not in record:
    raise UserError(f'{path} is no generator that gen3d has trained; its '
                    'record names no networks or no camera.')
  if networks != 'eg3d':
    raise UserError(_FLAT.format(path))
  config = ml_collections.ConfigDict(record['config'])
  size = int(config.render_size[-1][1])
  size -= size % config.render_bucket
  return trained(config, variables, record['camera'], size), config


def trained(config, variables, camera, size):
  """The Network of a config of tasks/gan.py and what it has trained."""
  return Network(gan_networks.eg3d_generator(config.model), variables,
                 config.model.z_dim, size, camera)


def _official(path):
  loaded = nvidia.load(path)
  if loaded.orbit is None:
    raise UserError(_FLAT.format(path))
  # Of the official viewers: faces are seen from afar and from before, cars
  # from near and all around.
  cars = loaded.network.rendering.white_background
  focal, yaw_range = (1.7074, None) if cars else (4.2647, 20.0)
  return Network(loaded.network, loaded.variables, loaded.z_dim,
                 loaded.rendering_resolution, {
                     'elevation': 0.0, 'focal': focal, 'yaw_range': yaw_range,
                     'distance': loaded.orbit.get('radius') or 2.7,
                     'pivot': tuple(loaded.orbit.get('pivot') or (0, 0, 0))})


def source_of(path):
  """What tuned weights tell of the official pickle that they are from."""
  path = pathlib.Path(path).absolute()
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return {'path': str(path), 'sha256': digest}


def _tuned(path, source):
  """The Network of an official one whose weights inversion has tuned."""
  pickled = pathlib.Path(source['path'])
  if not pickled.is_file():
    raise UserError(f'{path} is tuned from {pickled}, which is no longer '
                    'there; its architecture is read from that file.')
  if source_of(pickled) != source:
    raise UserError(f'{path} is tuned from another {pickled} than the one '
                    'that is there; put that back.')
  network = _official(pickled)
  return network._replace(
      variables=nvidia.restore(path, network.variables))


def label(camera, azimuth):
  """A label [25] on a Network's sphere; degrees, also an array of them.

  The sphere is around the world's origin also where its cameras look at
  another point, as the official networks' do.
  """
  position = cameras.spherical(*jnp.broadcast_arrays(*map(
      jnp.float32, (azimuth, camera['elevation'], camera['distance']))))
  everywhere = lambda x: jnp.broadcast_to(jnp.float32(x), position.shape)
  intrinsics = cameras.pinhole(
      jnp.full(position.shape[:-1], camera['focal'], jnp.float32))
  return cameras.to_label(cameras.Camera(cameras.look_at(
      position, everywhere(camera.get('pivot', (0.0, 0.0, 0.0))),
      everywhere((0.0, 1.0, 0.0))), intrinsics))


def azimuths(camera, count):
  """Where a camera goes [count], in degrees: around, or to and fro.

  To and fro, `yaw_range` degrees to either side of the front, where the object is
  known from there only.
  """
  share = np.arange(count) / count
  if not camera.get('yaw_range'):
    return 360.0 * share
  return camera['yaw_range'] * np.sin(2 * np.pi * share)


def parse_seeds(text):
  """[0, 1, 2, 7] of '0-2,7'.

  Raises:
    UserError: it is written otherwise, or asks for more than there are.
  """
  seeds = []
  for part in text.split(','):
    found = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
    if not found or int(found[2] or found[1]) < int(found[1]):
      raise UserError(f'The seeds {text!r} are not understood; write them '
                      'like 0-7,12.')
    first, last = int(found[1]), int(found[2] or found[1])
    # Beyond these a key begins again from 0.
    if last >= 2 ** 32 or last - first >= _MOST_SEEDS:
      raise UserError(f'The seeds {part.strip()} go too far: they end at '
                      f'{2 ** 32 - 1}, and a range has at most {_MOST_SEEDS}.')
    seeds += range(first, last + 1)
  return seeds


def latent(network, seed):
  """z [Z] of an object."""
  return jax.random.normal(jax.random.key(seed), (network.z_dim,))


def ws_of(network, z, psi=1.0, cutoff=None):
  """ws [L, D] of z [Z]; the mapping network is told the front view."""
  told = label(network.camera, 0.0)[None]
  return network.generator.apply(
      network.variables, z[None], told, psi, cutoff, method='map')[0]


def painter(network, panels=PANELS):
  """A compiled (ws [L, D], labels [T, 25]) -> uint8 [T, R, len(panels) R, 3].

  The planes are made once for all views; each of this process's devices has
  one view at a time.
  """
  generator, size = network.generator, network.size
  planes_of = _planes_of(generator)

  def look(shared, labels):
    variables, planes, ws = shared
    made = generator.apply(
        variables, planes, ws[None], labels, size,
        eg3d.draw(None, 1, size, generator.rendering), method='render')
    shape = made.image.shape[1:]
    fit = lambda x: jax.image.resize(
        jnp.broadcast_to(x, (*x.shape[:2], 3)), shape, 'nearest')
    found = {'image': made.image[0], 'raw': fit(made.image_raw[0]),
             'depth': fit(2 * _closeness(made)[0, ..., None] - 1)}
    side_by_side = jnp.concatenate([found[name] for name in panels], axis=1)
    return jnp.round(255 * jnp.clip(
        side_by_side / 2 + 0.5, 0, 1)).astype(jnp.uint8)[None]

  around = sharding.map_over_devices(look, rows=1)
  return lambda ws, labels: around(
      (network.variables, planes_of(network.variables, ws), ws), labels)


def _closeness(made):
  """Brightness [N, r, r] of a depth panel: what is near is bright.

  As far as an object is seen, its own depths are told apart; what rays find
  in the fog around it is as dark as the fog is thin.
  """
  solid = jnp.where(made.opacity > 0.5, made.depth, jnp.nan)
  near, far = jnp.nanpercentile(solid, jnp.array([1.0, 99.0]))
  closeness = jnp.clip(
      (far - made.depth) / jnp.maximum(far - near, 1e-6), 0, 1)
  return made.opacity * jnp.nan_to_num(0.2 + 0.8 * closeness)


def mesher(network, resolution=128):
  """A compiled ws [L, D] -> Mesh, in world units, colored as the raw image.

  `resolution` is that of the grid.
  """
  generator = network.generator
  planes_of = _planes_of(generator)

  @jax.jit
  def query(variables, planes, points):
    density, values = generator.apply(
        variables, planes, points[None], method='query')
    # The march's own density: see eg3d.march.
    return nn.softplus(density[0] - 1), jnp.clip(values[0, :, :3], 0, 1)

  def surface(ws):
    planes = planes_of(network.variables, ws)
    return mesh.extract(
        functools.partial(query, network.variables, planes),
        generator.rendering.box_warp / 2, resolution)

  return surface


def _planes_of(generator):
  """A compiled (variables, ws [L, D]) -> tri-planes of one object."""
  return jax.jit(lambda variables, ws: generator.apply(
      variables, ws[None], 'const', method='planes'))


def row(film):
  """Frames of all PANELS as a list: images, then raw and depth of the first."""
  side = film.shape[1]
  return [*film[:, :, :side], film[0][:, side:2 * side],
          film[0][:, 2 * side:]]


def sheet(network, seeds, views=5):
  """One picture: a row for each seed, see `row`."""
  paint = painter(network)
  labels = label(network.camera, azimuths(network.camera, views))
  rows = [row(paint(ws_of(network, latent(network, seed)), labels))
          for seed in seeds]
  return image_io.tile(np.concatenate(rows), columns=views + 2)


def export(network, seeds, out, *, psi=1.0, cutoff=None, frames=48, fps=24,
           resolution=128):
  """Writes objects: a sheet of views, and for each a film and meshes.

  Args:
    network: Network.
    seeds: of the objects.
    out: folder.
    psi, cutoff: truncation, and how many layers it is for.
    frames, fps: of the turntables.
    resolution: of the meshes' grid.

  Returns:
    The paths written. An object without a surface has no meshes, which is
    said on stderr.

  Raises:
    UserError: `out` cannot be written to.
  """
  out, written, sheet = pathlib.Path(out), [], []
  paint, surface = painter(network), mesher(network, resolution)
  labels = label(network.camera, azimuths(network.camera, frames))
  eight = np.arange(8) * frames // 8
  for seed in seeds:
    ws = ws_of(network, latent(network, seed), psi, cutoff)
    film = paint(ws, labels)
    sheet.append(np.stack(row(film[eight])))
    name = out / f'seed{seed:04d}'
    video.save(name.with_suffix('.mp4'), film, fps)
    written.append(name.with_suffix('.mp4'))
    written += save_meshes(
        surface, ws, name, f'Seed {seed} has no surface, so no mesh of it is '
        'written; truncation brings it closer to the mean object.')
  image_io.save(
      out / 'grid.png', image_io.tile(np.concatenate(sheet), columns=10))
  return [out / 'grid.png', *written]


def save_meshes(surface, ws, stem, otherwise):
  """Writes an object's meshes.

  Args:
    surface: from `mesher`.
    ws: [L, D].
    stem: of the files' paths.
    otherwise: what is said on stderr where there is no surface.

  Returns:
    The paths written, none where there is no surface.
  """
  try:
    shape = surface(ws)
  except mesh.EmptyField:
    print(otherwise, file=sys.stderr)
    return []
  written = [stem.with_suffix(suffix) for suffix in ('.glb', '.ply')]
  for path in written:
    meshes.save(path, shape)
  return written


def interpolate(network, seeds, path, *, psi=1.0, cutoff=None, frames=48,
                fps=24):
  """A film from object to object while the camera goes its way for each.

  Straight lines in w, eased at each object, and back to the first one.
  """
  paint = painter(network)
  ws = jnp.stack([ws_of(network, latent(network, seed), psi, cutoff)
                  for seed in (*seeds, seeds[0])])
  share = np.arange(frames) / frames
  eased = 3 * share ** 2 - 2 * share ** 3
  turns = azimuths(network.camera, frames)
  video.save(path, (
      paint(start + portion * (end - start),
            label(network.camera, azimuth)[None])[0]
      for start, end in itertools.pairwise(ws)
      for portion, azimuth in zip(eased, turns, strict=True)), fps)
  return path
