"""Finished runs: films, sheets of views and meshes.

A Finished is a record of functions without parameters, so that what displays
or exports an object depends neither on its scene nor on its task.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen3d import files, notices
from gen3d.choices import UserError, check
from gen3d.engine import sharding
from gen3d.io import images as image_io
from gen3d.io import meshes, video
from gen3d.ops import bake, cameras, decimation
from gen3d.ops import mesh as mesh_ops
from gen3d.scenes import Scene

MODES = ('color', 'normal', 'textureless')
FILES = ('turntable.mp4', 'preview.png', 'mesh.glb', 'mesh.ply')
SIMILARITY = 'similarity.json'
WHITE = (1.0, 1.0, 1.0)
_SHEET_VIEWS = 8
_SHEET_COLUMNS = 4
_FEWEST_FACES = 4  # of a closed surface
# Frames that a device renders between two updates of the progress.
_FRAMES_AT_ONCE = 4

# (params, cameras [F]) -> uint8 images [F, H, W, 3]
Renderer = Callable[[Any, cameras.Camera], np.ndarray]


class ExportOptions(NamedTuple):
  """Options of `export`.

  Attributes:
    resolution: grid points along the longest side of the mesh.
    size: height of a frame, pixels.
    fps: frames per second of the film.
    keep_share: see ops.mesh.extract.
    texture: texels per side of the texture of .glb and .obj files; 0 for
      vertex colors, which a .ply always has.
    formats: of the mesh files, of io.meshes.FORMATS.
    faces: the mesh is reduced to about so many triangles; 0: not.
    ground: whether the mesh is moved up or down until its lowest point is at
      y = 0.
  """
  resolution: int = 192
  size: int = 256
  fps: int = 24
  keep_share: float = 1.0
  texture: int = 1024
  formats: Sequence[str] = ('glb', 'ply')
  faces: int = 0
  ground: bool = False


DEFAULTS = ExportOptions()


def export_options(settings: Mapping[str, Any]) -> ExportOptions:
  """Returns the options among a config's `export` settings.

  Raises:
    UserError: an option has a value that is not possible.
  """
  options = ExportOptions(**{key: value for key, value in settings.items()
                             if key in ExportOptions._fields})
  _check(options)
  return options


class Finished(NamedTuple):
  """A finished object, as it is displayed and exported.

  Attributes:
    render: (camera, size, mode) -> uint8 image [H, W, 3]. `camera` may have a
      leading axis [F], which the image then has, too; `mode` may be a sequence
      of modes, whose images are side by side. There is one compiled program
      for each size and mode, which is divided over the devices. `size` is a
      number of pixels or (H, W).
    mesh: (resolution, keep_share) -> ops.mesh.Mesh in world units; see
      ops.mesh.extract, whose EmptyField it raises. Without keep_share, with
      that of `defaults`.
    path: cameras [F] of the film.
    modes: modes of the film, side by side.
    defaults: options of `export` that the run's config asks for.
    color: points [ops.mesh.CHUNK, 3] in world units -> colors in [0, 1], from
      which textures are baked; None where `mesh` has its final colors.
    to_world: similarity [4, 4] from the scene's frame, in which y is up, to
      world units; None where they are the same.
    offered: modes of `render`.
    reload: (step of a checkpoint, None for the newest) -> the Finished of the
      same run at this step, by the programs that are compiled already; None
      where there is no run.
    others: the run's further objects, by the same programs.
  """
  render: Callable[[cameras.Camera, Any, Any], np.ndarray]
  mesh: Callable[..., mesh_ops.Mesh]
  path: cameras.Camera
  modes: Sequence[str] = MODES
  defaults: ExportOptions = DEFAULTS
  color: bake.Color | None = None
  to_world: np.ndarray | None = None
  offered: Sequence[str] = MODES
  reload: Callable[[int | None], 'Finished'] | None = None
  others: Sequence['Finished'] = ()


def from_scene(scene: Scene, params: Any, path: cameras.Camera,
               modes: Sequence[str] = MODES,
               defaults: ExportOptions = DEFAULTS,
               to_world: np.ndarray | None = None,
               load_params: Callable[[int | None], Sequence[Any]] | None = None,
               others: Sequence[Any] = ()) -> Finished:
  """Returns the Finished of a scene with trained parameters.

  Args:
    scene: scenes.Scene.
    params: of the scene.
    path: cameras [F] of the film, in the scene's frame.
    modes: modes of the film.
    defaults: options of `export`.
    to_world: similarity [4, 4] from the scene's frame to that of the mesh, or
      None where they are the same.
    load_params: step of a checkpoint -> params of each object of the run, for
      `reload`.
    others: params of further objects, which are shown like the first.
  """
  # Compiled once for each size and modes, whatever the path.
  renderer = functools.cache(functools.partial(make_renderer, scene))
  with_params = functools.partial(
      _with_params, scene, renderer, path=path, modes=modes, defaults=defaults,
      to_world=to_world, offered=scene.modes)

  def made(load, params, *others):
    return with_params(params)._replace(
        reload=load and (lambda step: made(load, *load(step))),
        others=list(map(with_params, others)))

  return made(load_params, params, *others)


def _with_params(scene, renderer, params, *, defaults, to_world, **fields):
  """The Finished of a scene whose compiled renderers exist."""

  def render(camera, size, mode):
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    if np.ndim(camera.c2w) == 2:
      batch = jax.tree.map(lambda x: np.asarray(x)[None], camera)
      return renderer(size, modes)(params, batch)[0]
    return renderer(size, modes)(params, camera)

  def mesh(resolution, keep_share=defaults.keep_share):
    extracted = scene.mesh(params, resolution, keep_share)
    if to_world is None:
      return extracted
    moved = mesh_ops.transform(extracted, np.asarray(to_world))
    return moved._replace(vertices=moved.vertices.astype(np.float32))

  color = None if scene.color is None else functools.partial(
      _color_in_world, functools.partial(scene.color, params), to_world)
  return Finished(render, mesh, defaults=defaults, color=color,
                  to_world=to_world, **fields)


def turntable(frames: int, orbit: Mapping[str, float]) -> cameras.Camera:
  """Cameras [frames] on a full circle around the vertical axis.

  Args:
    frames: number of cameras, evenly spaced from azimuth 0 (the front) on.
    orbit: 'elevation' (degrees), 'distance' and 'focal' of cameras.orbit.
  """
  return cameras.orbit(np.linspace(0.0, 360.0, frames, endpoint=False),
                       **orbit)


def textured(finished: Finished, surface: mesh_ops.Mesh,
             size: int) -> mesh_ops.Mesh:
  """The mesh of a finished object with a texture.

  Args:
    finished: the object.
    surface: its mesh.
    size: texels per side; 0 for vertex colors.

  Returns:
    `surface` itself where `size` is 0 or it has its final colors.
  """
  if not size or finished.color is None:
    return surface
  return bake.bake(finished.color, surface, size)


def reduced(finished: Finished, surface: mesh_ops.Mesh, size: int,
            faces: int) -> tuple[mesh_ops.Mesh, mesh_ops.Mesh]:
  """A mesh with fewer triangles and the object's colors at them.

  Args:
    finished: the object.
    surface: its mesh.
    size: texels per side of the texture; 0 for vertex colors.
    faces: number of the triangles.

  Returns:
    The mesh with vertex colors, and it with a texture, if that has a size.
  """
  color, depth = finished.color, bake.inner_depth(surface)
  if color is None:  # The surface has its final colors.
    color, depth = bake.nearest_color(surface), 0.0
  small = decimation.decimate(surface, faces)
  points = bake.inner_points(small.vertices, small.normals, depth)
  colors = mesh_ops.map_chunks(color, points.astype(np.float32))
  plain = small._replace(colors=np.clip(colors, 0, 1).astype(np.float32))
  return plain, bake.bake(color, plain, size, depth) if size else plain


def export(finished: Finished, workdir: str | os.PathLike,
           options: ExportOptions | None = None) -> list[pathlib.Path]:
  """Writes the film, a sheet of views and the mesh of a finished object.

  Args:
    finished: the object.
    workdir: folder for the files, by default FILES, and SIMILARITY where the
      mesh is not in the scene's frame.
    options: None for those of the object.

  Returns:
    The paths written.

  Raises:
    UserError: there is no surface to export, an option has a value that is not
      possible, or the folder cannot be written to.
  """
  workdir = pathlib.Path(workdir)
  options = options or finished.defaults
  _check(options)
  files.check_folder(workdir)
  size, path = options.size, finished.path
  film = _film(finished, size)
  video.save(workdir / 'turntable.mp4', film, options.fps)
  views = np.arange(_SHEET_VIEWS) * len(film) // _SHEET_VIEWS
  positions = np.asarray(path.c2w)[views, :3, 3]
  azimuths = np.round(np.asarray(cameras.angles(positions)[0])) % 360
  image_io.save(workdir / 'preview.png', image_io.tile(
      film[views][:, :, :size], _SHEET_COLUMNS,
      [f'{a:z.0f} degrees' for a in azimuths]))
  with notices.slow('Extracting the mesh'):
    surface = finished.mesh(options.resolution, options.keep_share)
  with notices.slow('Making the texture'):
    if options.faces:
      surface, with_texture = reduced(
          finished, surface, options.texture, options.faces)
    else:
      with_texture = textured(finished, surface, options.texture)
  beside, to_world = [], finished.to_world
  if options.ground:
    shift = np.eye(4)
    shift[1, 3] = -float(np.asarray(surface.vertices)[:, 1].min())
    surface, with_texture = (_shifted(x, shift)
                             for x in (surface, with_texture))
    to_world = shift if to_world is None else shift @ to_world
  if to_world is not None:
    beside = [workdir / SIMILARITY]
    files.write_bytes(beside[0], json.dumps({
        'scene_to_mesh': np.asarray(to_world, np.float64).tolist()
    }).encode())
  return [*beside, workdir / 'turntable.mp4', workdir / 'preview.png',
          *meshes.save_formats(workdir / 'mesh', options.formats, surface,
                               with_texture)]


def make_renderer(scene: Scene, size: int | tuple[int, int],
                  modes: Sequence[str] = MODES,
                  background: Sequence[float] | None = WHITE) -> Renderer:
  """Compiles a renderer of a scene; its views are divided over the devices.

  Args:
    scene: scenes.Scene.
    size: pixels per side, or (height, width).
    modes: M of scene.show's modes, rendered side by side.
    background: color [3], or None for the scene's own.

  Returns:
    (params, cameras [F]) -> uint8 [F, H, M W, 3].
  """
  color = None if background is None else jnp.asarray(background, jnp.float32)

  def render(params, camera):
    images = scene.show(params, camera, size, modes, color)
    image = jnp.concatenate([images[mode] for mode in modes], axis=1)
    return jnp.round(255 * image).astype(jnp.uint8)

  # lax.map renders one view at a time: the memory of a device does not depend
  # on the length of the film.
  return sharding.map_over_devices(
      lambda params, path: jax.lax.map(
          functools.partial(render, params), path))


def _film(finished, size):
  """The frames uint8 [F, H, M W, 3] of the path, a few at a time."""
  count = len(finished.path.c2w)
  part = min(count, _FRAMES_AT_ONCE * jax.local_device_count())
  frames = []
  for start in notices.track(range(0, count, part), 'Rendering the film'):
    # The last part is filled up: another number would be compiled anew.
    index = np.minimum(np.arange(start, start + part), count - 1)
    frames.append(finished.render(
        jax.tree.map(lambda x, index=index: np.asarray(x)[index],
                     finished.path), size, finished.modes))
  return np.concatenate(frames)[:count]


def _shifted(mesh, matrix):
  moved = mesh_ops.transform(mesh, matrix)
  return moved._replace(vertices=moved.vertices.astype(np.float32))


def _check(options):
  """Raises UserError where an option has a value that is not possible."""
  bake.check_size(options.texture)
  if options.faces and options.faces < _FEWEST_FACES:
    raise UserError(
        f'A mesh cannot be reduced to {options.faces} triangles (--faces, or '
        f'--config.export.faces); give at least {_FEWEST_FACES}, or 0 for all.')
  for key, least in (('resolution', 8), ('size', 1), ('fps', 1)):
    if getattr(options, key) < least:
      raise UserError(f'--config.export.{key} is {getattr(options, key)}; it '
                      f'must be at least {least}.')
  for name in options.formats:
    check('mesh format', meshes.FORMATS, name)


def _color_in_world(color, to_world, points):
  """`color` of a scene's frame at points [N, 3] of the world's."""
  if to_world is not None:
    to_scene = np.linalg.inv(to_world)
    points = points @ to_scene[:3, :3].T + to_scene[:3, 3]
  return color(points.astype(np.float32))
